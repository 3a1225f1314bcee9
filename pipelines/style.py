"""The flows of style: training a network that stylises in one pass, the search for its parameters, training again.

./convoy train style --dataset photos

One picture by optimisation is another flow: pipelines.stylize.
"""

from pipelines.familyflows import retraining_flow, search_flow, training_flow

train_stylizer = training_flow("style", "stylizer", "a network that stylises")
search_stylizer = search_flow("style", "stylizer", "a network that stylises")
retrain_stylizer = retraining_flow("style", "stylizer", "a network that stylises")
