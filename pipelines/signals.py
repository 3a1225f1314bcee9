"""The flows of signals: training, the search for its parameters, training again when there is reason to.

./convoy train signals --dataset spoken
"""

from pipelines.familyflows import retraining_flow, search_flow, training_flow

train_signals = training_flow("signals", "signals", "a classifier of signals")
search_signals = search_flow("signals", "signals", "a classifier of signals")
retrain_signals = retraining_flow("signals", "signals", "a classifier of signals")
