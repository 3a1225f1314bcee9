"""The flows of landmarks: training, and the search for its parameters.

./convoy train landmarks --dataset faces
"""

from pipelines.familyflows import search_flow, training_flow

train_landmarks = training_flow("landmarks", "landmarks", "a network for landmarks")
search_landmarks = search_flow("landmarks", "landmarks", "a network for landmarks", {"metric": "val_loss"})
