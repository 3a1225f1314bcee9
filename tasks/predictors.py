"""Saved models as what answers for pictures: one table by family. Registered models are loaded by it (tasks.pyfunc)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import torch

from tasks.card import ModelCard
from tasks.detectionpredict import DETECTION_SCHEMA, DetectionPredictor
from tasks.facepredict import FACE_SCHEMA, FacePredictor
from tasks.landmarkpredict import LANDMARK_SCHEMA, LandmarkPredictor
from tasks.modelfile import load_model
from tasks.predict import PREDICTION_SCHEMA, Predictor
from tasks.stylizerpredict import STYLE_SCHEMA, StylizerPredictor


class Answering(Protocol):
    """A saved model on a device."""

    card: ModelCard

    def predict(self, blobs: Sequence[bytes]) -> pa.Table:
        """One row for each encoded item, in their order, of the family's schema; `error` says why one has no answer."""


# (saved model, device) -> predictor, with the precision and the batch size that are its own
PREDICTORS: dict[str, Callable[..., Answering]] = {
    "classification": Predictor,
    "detection": DetectionPredictor,
    "faces": FacePredictor,
    "landmarks": LandmarkPredictor,
    "signals": Predictor,
    "style": StylizerPredictor,
    "volumes": Predictor,
}
SCHEMAS: dict[str, pa.Schema] = {  # of what it answers
    "classification": PREDICTION_SCHEMA,
    "detection": DETECTION_SCHEMA,
    "faces": FACE_SCHEMA,
    "landmarks": LANDMARK_SCHEMA,
    "signals": PREDICTION_SCHEMA,
    "style": STYLE_SCHEMA,
    "volumes": PREDICTION_SCHEMA,
}


def open_predictor(folder: Path, device: torch.device | None = None) -> Answering:
    """Read the model of any family in `folder`; raises FileNotFoundError or ValueError where there is none."""
    saved = load_model(folder)
    return PREDICTORS[saved.card.family](saved, device)
