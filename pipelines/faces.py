"""The flows of faces: training, the search for its parameters, training again when there is reason to.

./convoy train faces --dataset lfw
"""

from pipelines.familyflows import retraining_flow, search_flow, training_flow

train_faces = training_flow("faces", "faces", "an embedder of faces")
search_faces = search_flow("faces", "faces", "an embedder of faces")
retrain_faces = retraining_flow("faces", "faces", "an embedder of faces")
