"""The file that MLflow runs to load a registered model ("models from code"): no pickle, only this and its neighbours.

It is copied into the model beside the modules that it imports (tasks.packaging), so that `mlflow models serve` and
`mlflow models predict` answer from anywhere as `./convoy predict` does. Nothing else imports it.

    input    column `image`: the bytes of an encoded image, signal or volume; base64 where the request is JSON
    output   one row an image, as the family's predictor gives it (tasks.predictors): of classes the columns label,
             confidence, probabilities, error
"""

from pathlib import Path

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from tasks.predictors import open_predictor


class ImageModel(PythonModel):
    """The predictor of a saved model behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        self.predictor = open_predictor(Path(context.artifacts["model"]))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame) -> pd.DataFrame:  # noqa: ARG002
        table = self.predictor.predict(model_input["image"].tolist())
        # object columns: pandas would make NaN of a missing number, which JSON does not have
        columns = {name: pd.Series(table[name].to_pylist(), dtype=object) for name in table.column_names}
        return pd.DataFrame(columns)


set_model(ImageModel())
