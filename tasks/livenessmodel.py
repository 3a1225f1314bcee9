"""A classifier of real faces and attacks as a liveness check: fitted on validation faces, tested on others, asked.

Any model of the classification family will do that has the class `real` beside classes of attacks. How real a face
looks is the probability of that class; all others are types of attack, by their names.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from data.dataset import Dataset, Split
from data.files import whole_folder
from tasks.liveness import LIVENESS, REAL, Liveness, judge, threshold_at_apcer, threshold_at_bpcer
from tasks.metrics import wilson_interval
from tasks.modelfile import load_card, model_files, write_card
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
class Looks:
    """Of N faces: how real they look, (N,) in 0…1, NaN of what is no picture; why each is refused, or None."""

    scores: np.ndarray
    faults: list[str | None]


@dataclass(frozen=True)
class LivenessCheck:
    """A model and the threshold from which on a face counts as real."""

    predictor: Predictor
    threshold: float

    def look(self, blobs: Sequence[bytes]) -> Looks:
        """How real encoded faces look. What is no picture has no score, and is not accepted."""
        place = real_class(self.predictor)
        table = self.predictor.predict(blobs)
        rows, errors = table["probabilities"].to_pylist(), table["error"].to_pylist()
        faults = [
            error or (None if row[place] >= self.threshold else spoof_error(row[place], self.threshold))
            for row, error in zip(rows, errors, strict=True)
        ]
        return Looks(np.array([np.nan if row is None else row[place] for row in rows]), faults)


def spoof_error(score: float, threshold: float) -> str:
    """Why a face is refused."""
    return f"judged a spoof: it looks real to {score:.4g}, and {threshold:.4g} is needed"


def open_liveness(folder: Path, called: str = "", threshold: float | None = None) -> LivenessCheck:
    """The model in `folder` as a check, with the threshold of its card if none is given.

    `called` is what a person gave. Raises FileNotFoundError, or a ValueError of one line for a model that is no check.
    """
    name, card = called or str(folder), load_card(folder)
    if card.family != "classification":
        raise ValueError(
            f"{name} is a model for {card.family}; a liveness check is a classifier of {REAL!r} faces and attacks: see "
            "./convoy liveness"
        )
    predictor = load_predictor(folder)
    real_class(predictor, name)
    if threshold is None:
        threshold = card.thresholds.get(LIVENESS)
    if threshold is None:
        raise ValueError(
            f"{name} has no threshold of liveness: it was trained without validation faces, or before thresholds were "
            f"kept; fit one: ./convoy liveness evaluate {name} --out FOLDER, and give that folder"
        )
    return LivenessCheck(predictor, threshold)


def answer_real(
    check: LivenessCheck, predict: Callable[[Sequence[bytes]], pa.Table], blobs: Sequence[bytes]
) -> pa.Table:
    """What `predict` answers for the faces that are accepted, with a column `liveness`: how real each looks.

    The others never reach `predict`: their rows are null but for `error`, which says why, and their score.
    """
    looks = check.look(blobs)
    accepted = [i for i, fault in enumerate(looks.faults) if fault is None]
    places: list[int | None] = [None] * len(blobs)
    for row, i in enumerate(accepted):
        places[i] = row
    table = predict([blobs[i] for i in accepted]).take(pa.array(places, pa.int64()))
    told = zip(looks.faults, table["error"].to_pylist(), strict=True)
    errors = pa.array([fault or error for fault, error in told], pa.string())
    table = table.set_column(table.schema.get_field_index("error"), "error", errors)
    return table.append_column(LIVENESS, pa.array(looks.scores, pa.float32(), from_pandas=True))


def keep_threshold(folder: Path, out: Path, threshold: float, note: str) -> None:
    """Copy the model in `folder` to the new folder `out`, with this threshold of liveness in its card."""
    card = load_card(folder)
    update = {
        "thresholds": {**card.thresholds, LIVENESS: threshold},
        "calibrated_on": "; ".join(filter(None, (card.calibrated_on, note))),
    }
    with whole_folder(out) as written:
        for name in model_files(card):
            shutil.copyfile(folder / name, written / name)
        write_card(written, card.model_copy(update=update))


def real_class(predictor: Predictor, called: str = "the model") -> int:
    """The place of `real` among a model's classes; raises ValueError where it has none, or nothing beside it."""
    classes = predictor.card.classes
    if REAL not in classes or len(classes) < 2:
        raise ValueError(
            f"the classes of {called} are {', '.join(classes)}: a liveness check needs {REAL!r} and attacks beside it"
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


def too_fine(test: LivenessTest) -> str:
    """Says so where the wanted rate is less than one face of those that it was fitted to; "" where it is not.

    Of a type of attack, or of real faces, one wrong face is then more than is allowed: none was, which tells little.
    """
    fitted = test.val.apcer_by_type if test.rate == "apcer" else {"": test.val.bpcer}
    name, fewest = min(fitted.items(), key=lambda item: item[1].num)
    if test.at * fewest.num + 1e-9 >= 1:  # as tasks.liveness allows them
        return ""
    _low, high = wilson_interval(0, fewest.num)
    what = f"validation faces of {name}" if test.rate == "apcer" else "real faces of validation"
    done = "accepts" if test.rate == "apcer" else "refuses"
    return (
        f"a rate of {test.at:g} is less than one of {fewest.num:,} {what} (1/{fewest.num} = {1 / fewest.num:.2g}): the "
        f"threshold {done} none of them, from which no more follows than a rate of up to {high:.2g}"
    )
