"""The flows of detection: training, the search for its parameters, training again when there is reason to.

./convoy train detection --dataset blood --recipe bccd
"""

from pipelines.familyflows import retraining_flow, search_flow, training_flow

train_detector = training_flow("detection", "detector", "a detector")
search_detector = search_flow("detection", "detector", "a detector")
retrain_detector = retraining_flow("detection", "detector", "a detector")
