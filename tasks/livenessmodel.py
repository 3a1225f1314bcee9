"""A classifier of real faces and attacks as a liveness check: fitted on validation faces, tested on others, asked.

Any model of the classification family will do that has the class `real` beside classes of attacks. How real a face
looks is the probability of that class; all others are types of attack, by their names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data.dataset import Dataset, Split
from tasks.liveness import REAL, Liveness, judge, threshold_at_apcer, threshold_at_bpcer
from tasks.outputs import decode_key, decode_piece, piece_size, pieces_of
from tasks.predict import Predictor, load_predictor

Rate = Literal["bpcer", "apcer"]
FITS = {"bpcer": threshold_at_bpcer, "apcer": threshold_at_apcer}


@dataclass(frozen=True)
class LivenessTest:
    """A threshold fitted on validation, the rates there and on the split that was tested."""

    rate: Rate
    at: float
    val: Liveness
    tested: Liveness
    split: Split


@dataclass(frozen=True)
class LivenessCheck:
    """A model and the threshold from which on a face counts as real."""

    predictor: Predictor
    threshold: float

    def scores(self, blobs: Sequence[bytes]) -> np.ndarray:
        """How real encoded faces look: (N,) in 0…1, NaN of what is no picture."""
        place = real_class(self.predictor)
        rows = self.predictor.predict(blobs)["probabilities"].to_pylist()
        return np.array([np.nan if row is None else row[place] for row in rows])

    def is_real(self, blobs: Sequence[bytes]) -> np.ndarray:
        """Which encoded faces are accepted: (N,) bool; what is no picture is not."""
        return self.scores(blobs) >= self.threshold


def open_liveness(folder: Path, threshold: float) -> LivenessCheck:
    """The model in `folder` as a check; raises FileNotFoundError, or ValueError for a model of other classes."""
    if not 0 < threshold < 1:
        raise ValueError(f"threshold (={threshold}) of liveness must lie between 0 and 1")
    predictor = load_predictor(folder)
    real_class(predictor)
    return LivenessCheck(predictor, threshold)


def real_class(predictor: Predictor) -> int:
    """The place of `real` among a model's classes; raises ValueError where it has none, or nothing beside it."""
    classes = predictor.card.classes
    if REAL not in classes or len(classes) < 2:
        raise ValueError(
            f"the model's classes are {', '.join(classes)}: a liveness check needs {REAL!r} and attacks beside it"
        )
    return classes.index(REAL)


def scores_of(predictor: Predictor, dataset: Dataset, split: Split) -> tuple[np.ndarray, list[str]]:
    """How real the faces of a split look, (N,), and what each is: `real`, or its type of attack."""
    place = real_class(predictor)
    if dataset.info.classes != predictor.card.classes:
        raise ValueError(
            f"{dataset.info.name} has the classes {', '.join(dataset.info.classes)}, the model "
            f"{', '.join(predictor.card.classes)}: they must be the same"
        )
    scores, kinds = [], []
    for piece in pieces_of(dataset, split, piece_size([predictor])):
        images = decode_piece(piece, [predictor])[decode_key(predictor)]
        scores.append(predictor.probabilities(images)[:, place])
        kinds += [dataset.info.classes[label] for label in piece.labels]
    return (torch.cat(scores).double().numpy() if scores else np.empty(0)), kinds


def fit_and_test(predictor: Predictor, dataset: Dataset, split: Split, rate: Rate, at: float) -> LivenessTest:
    """Fit the threshold on the validation split, and judge `split` by it; raises ValueError as tasks.liveness."""
    scores, kinds = scores_of(predictor, dataset, "val")
    threshold = FITS[rate](scores, kinds, at)
    tested = judge(*scores_of(predictor, dataset, split), threshold)
    return LivenessTest(rate, at, judge(scores, kinds, threshold), tested, split)
