"""The flows of signals: training, and the search for its parameters.

./convoy train signals --dataset spoken
"""

from pipelines.familyflows import search_flow, training_flow

train_signals = training_flow("signals", "signals", "a classifier of signals")
search_signals = search_flow("signals", "signals", "a classifier of signals")
