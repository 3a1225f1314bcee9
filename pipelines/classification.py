"""The flows of classification: training, and the search for its parameters.

./convoy train classification --dataset digits
"""

from pipelines.familyflows import search_flow, training_flow

train_classifier = training_flow("classification", "classifier", "a classifier")
search_classifier = search_flow("classification", "classifier", "a classifier")
