"""The flows of classification: training, the search for its parameters, training again when there is reason to.

./convoy train classification --dataset digits
"""

from pipelines.familyflows import retraining_flow, search_flow, training_flow

train_classifier = training_flow("classification", "classifier", "a classifier")
search_classifier = search_flow("classification", "classifier", "a classifier")
retrain_classifier = retraining_flow("classification", "classifier", "a classifier")
