"""Finds a model's temperature (tasks.temperature) on the validation split, and writes it into the model's card; of a
classifier of real faces and attacks, the threshold of liveness too.

The temperature minimises the mean negative log-likelihood; in β = 1/T that is convex, so the zero of its slope is
sought. It holds for one view and one set of networks: an ensemble needs its own, and so does another view. Where no
validation image is taken for a wrong class, the likelihood only rises as T falls to 0, and T stays 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import softmax

from data.dataset import Dataset, noun_of
from tasks.liveness import LIVENESS, MAX_BPCER, REAL, threshold_at_bpcer
from tasks.metrics import LEAST_PROBABILITY, check_probabilities
from tasks.modelfile import load_card, write_card
from tasks.outputs import averaged, decode_piece, piece_size, pieces_of
from tasks.predict import BATCH_SIZE, Predictor, load_predictor
from tasks.settings import ViewName
from tasks.temperature import GREATEST_T, LEAST_T, with_temperature

ROWS = 4096  # images whose probabilities are looked at together


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it rests on, as the card says it; thresholds, by their names."""

    temperature: float
    basis: str
    thresholds: dict[str, float] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """One line of the log."""
        told = "".join(f", threshold of {name} {value:.3g}" for name, value in self.thresholds.items())
        return f"temperature {self.temperature:.3g}{told}, fitted to {self.basis}"

    @property
    def metrics(self) -> dict[str, float]:
        """What a run's record keeps of it."""
        return {
            "temperature": self.temperature,
            **{f"threshold.{name}": value for name, value in self.thresholds.items()},
        }


def calibrate(
    folder: Path,
    dataset: Dataset,
    *,
    batch_size: int = BATCH_SIZE,
    device: torch.device | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Fit the temperature of the model in `folder` to its view of the validation split, and keep it in its card.

    A model that has been calibrated keeps what it has. `on_progress` is told the images seen so far, and in all.
    """
    card = load_card(folder)
    if card.calibrated_on:
        return Calibration(card.temperature, card.calibrated_on, card.thresholds)
    predictor = load_predictor(folder, device, batch_size=batch_size)
    found = fit_on_validation([predictor], dataset, predictor.view, on_progress)
    update = {
        "temperature": found.temperature,
        "calibrated_on": found.basis,
        "thresholds": {**card.thresholds, **found.thresholds},
    }
    write_card(folder, card.model_copy(update=update))
    return found


def fit_on_validation(
    predictors: Sequence[Predictor],
    dataset: Dataset,
    view: ViewName,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """The temperature of the models' averaged outputs by one view, fitted to the validation split; 1 without one.

    Where the classes are `real` and attacks, the threshold of liveness for the outputs at that temperature.
    """
    num_images = dataset.info.num_images("val")
    noun = noun_of(dataset.info.family)
    if not num_images:
        return Calibration(1.0, f"nothing: {dataset.info.name} has no validation {noun}")
    probabilities = np.empty((num_images, len(dataset.info.classes)), np.float32)
    labels = np.empty(num_images, np.int64)
    for piece in pieces_of(dataset, "val", piece_size(predictors)):
        rows = slice(piece.start, piece.start + len(piece.labels))
        labels[rows] = piece.labels
        probabilities[rows] = averaged(predictors, decode_piece(piece, predictors), view).numpy()
        if on_progress is not None:
            on_progress(rows.stop, num_images)
    temperature, note = fit_temperature(probabilities, labels)
    basis = f"{num_images:,} validation {noun} of {dataset.info.name}, view {view}{note}"
    scaled = with_temperature(torch.from_numpy(probabilities), temperature).numpy()
    return Calibration(temperature, basis, liveness_threshold(dataset.info.classes, scaled, labels))


def liveness_threshold(
    classes: Sequence[str], probabilities: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """The highest threshold of `real`'s probabilities that refuses at most `MAX_BPCER` of real faces, by its name.

    Nothing where there is no such class, or of it or the attacks no picture: probabilities (N, K), labels (N,).
    """
    if REAL not in classes or len({classes[label] == REAL for label in labels}) < 2:
        return {}
    scores, kinds = probabilities[:, list(classes).index(REAL)], [classes[label] for label in labels]
    return {LIVENESS: threshold_at_bpcer(scores, kinds, MAX_BPCER)}


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, str]:
    """The temperature in [LEAST_T, GREATEST_T] that makes the labels (N,) most likely, and what is odd about it.

    `probabilities` (N, K) are uncalibrated, N ≥ 1. Where all are right it is 1. Raises ValueError for what is not
    probabilities, as networks give them whose training has diverged.
    """
    check_probabilities(probabilities, labels)
    if (probabilities.argmax(1) == labels).all():
        return 1.0, ": none is mistaken, which does not tell how confident the model may be"
    if slope(1 / GREATEST_T, probabilities, labels) >= 0:
        return GREATEST_T, ": the greatest that is allowed"
    if slope(1 / LEAST_T, probabilities, labels) <= 0:
        return LEAST_T, ": the least that is allowed"
    beta = brentq(slope, 1 / GREATEST_T, 1 / LEAST_T, args=(probabilities, labels), xtol=1e-9)
    return float(1 / beta), ""


def slope(beta: float, probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Derivative by β = 1/T of the mean negative log-likelihood: mean of E[log p] - log p_true, which rises with β."""
    total = 0.0
    for start in range(0, len(labels), ROWS):
        rows = probabilities[start : start + ROWS].astype(np.float64)
        logs = np.log(np.maximum(rows, LEAST_PROBABILITY))
        expected = (softmax(beta * logs, axis=1) * logs).sum(1)
        true = logs[np.arange(len(logs)), labels[start : start + ROWS]]
        total += float((expected - true).sum())
    return total / len(labels)
