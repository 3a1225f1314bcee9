"""The flows of volumes: training, and the search for its parameters.

./convoy train volumes --dataset modelnet
"""

from pipelines.familyflows import search_flow, training_flow

train_volumes = training_flow("volumes", "volumes", "a classifier of volumes")
search_volumes = search_flow("volumes", "volumes", "a classifier of volumes")
