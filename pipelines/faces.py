"""The flows of faces: training, and the search for its parameters.

./convoy train faces --dataset lfw
"""

from pipelines.familyflows import search_flow, training_flow

train_faces = training_flow("faces", "faces", "an embedder of faces")
search_faces = search_flow("faces", "faces", "an embedder of faces", {"metric": "val_loss"})
