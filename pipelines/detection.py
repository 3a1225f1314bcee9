"""The flows of detection: training, and the search for its parameters.

./convoy train detection --dataset blood
"""

from pipelines.familyflows import search_flow, training_flow

train_detector = training_flow("detection", "detector", "a detector")
search_detector = search_flow("detection", "detector", "a detector", {"metric": "val_ap"})
