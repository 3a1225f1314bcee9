"""The file that MLflow runs to load a registered model ("models from code"): no pickle, only this and its neighbours.

It is copied into the model beside the modules that it imports (tasks.packaging), so that `mlflow models serve` and
`mlflow models predict` answer from anywhere as `./convoy predict` does. Nothing else imports it.

    input    column `image`: the bytes of an encoded image, signal or volume; base64 where the request is JSON
    output   one row an image, as the family's predictor gives it (tasks.predictors): of classes the columns label,
             confidence, probabilities, error

An image that cannot be read has its reason in `error`. Where that is so of all of them there is no answer: the request
gets 400 and one sentence.
"""

import json
from pathlib import Path

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from tasks.predictors import open_predictor


class UnreadableError(MlflowException):
    """No image of a request can be read. MLflow's server writes the request into messages: here it stays outside."""

    def __init__(self, text: str) -> None:
        super().__init__(text, INVALID_PARAMETER_VALUE)
        self.text = text

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": self.text})


class ImageModel(PythonModel):
    """The predictor of a saved model behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        self.predictor = open_predictor(Path(context.artifacts["model"]))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame) -> pd.DataFrame:  # noqa: ARG002
        table = self.predictor.predict(model_input["image"].tolist())
        errors = table["error"].to_pylist()
        if errors and None not in errors:
            others = f", and {len(errors) - 1} more cannot be read" if len(errors) > 1 else ""
            raise UnreadableError(f"image 1: {errors[0]}{others}")
        # object columns: pandas would make NaN of a missing number, which JSON does not have
        columns = {name: pd.Series(table[name].to_pylist(), dtype=object) for name in table.column_names}
        return pd.DataFrame(columns)


set_model(ImageModel())
