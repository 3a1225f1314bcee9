"""The flows of volumes: training, the search for its parameters, training again when there is reason to.

./convoy train volumes --dataset modelnet
"""

from pipelines.familyflows import retraining_flow, search_flow, training_flow

train_volumes = training_flow("volumes", "volumes", "a classifier of volumes")
search_volumes = search_flow("volumes", "volumes", "a classifier of volumes")
retrain_volumes = retraining_flow("volumes", "volumes", "a classifier of volumes")
