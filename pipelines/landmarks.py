"""The flows of landmarks: training, the search for its parameters, training again when there is reason to.

./convoy train landmarks --dataset faces
"""

from pipelines.familyflows import retraining_flow, search_flow, training_flow

train_landmarks = training_flow("landmarks", "landmarks", "a network for landmarks")
search_landmarks = search_flow("landmarks", "landmarks", "a network for landmarks")
retrain_landmarks = retraining_flow("landmarks", "landmarks", "a network for landmarks")
