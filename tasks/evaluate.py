"""How good a classifier is on a split, by each way to look at its images, and what each way costs.

Images are decoded once, a piece of the split at a time, for all views and all models with the same preprocessing.
Of several models the softmax outputs are averaged, each network counting the same. The registered view is measured as
the model predicts, by its temperature (tasks.temperature), and without; other views are not calibrated.
Networks compute in float32 unless asked otherwise: training may have used bfloat16, and what is measured here is what
prediction gives.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data.augment import shrink
from data.dataset import Dataset, Split
from data.stream import RowReader
from tasks.calibrate import Calibration, fit_on_validation
from tasks.ensemble import require_same_classes
from tasks.inputs import as_pictures
from tasks.memory import PeakMemory
from tasks.metrics import confidence_figures, summarise
from tasks.outputs import DecodeKey, decode_key, decode_piece, piece_size, pieces_of, shares_of
from tasks.pairing import sharing
from tasks.pareto import Comparison
from tasks.predict import Predictor, default_device, load_predictor, machine_of
from tasks.report import Report
from tasks.settings import EvaluateConfig, Precision, ViewName
from tasks.slices import columns_of
from tasks.temperature import with_temperature
from tasks.tested import tested
from tasks.views import require_view

THUMBNAIL_PX = 160


@dataclass
class Cost:
    """What a view has cost so far."""

    time_s: float = 0.0
    memory_mb: list[float] = field(default_factory=list)  # peak of each piece
    unmeasured: str = ""


class Outcome:
    """What is known of each image of the split, filled piece by piece, and what it cost."""

    def __init__(self, num_images: int, num_classes: int, views: Sequence[ViewName]) -> None:
        self.about: list[pa.Table] = []  # of each piece, the columns that slices are made of
        self.labels = np.empty(num_images, np.int64)
        self.uncalibrated = {view: np.zeros((num_images, num_classes), np.float32) for view in views}
        self.costs = {view: Cost() for view in views}


def evaluate(
    folders: Sequence[Path],
    dataset: Dataset,
    *,
    split: Split = "test",
    config: EvaluateConfig,
    device: torch.device | None = None,
    precision: Precision = "fp32",
    on_progress: Callable[[int, int], None] | None = None,
    called: Sequence[str] = (),
) -> Report:
    """Evaluate the model in `folders`, or the ensemble of several, on a split of `dataset`.

    `device` None: the first GPU, else the CPU. `on_progress` is told how many images have been looked at, once
    by each view, and how many there are to look at. Of several models the temperature is fitted first, on the
    validation split. Every image counts; the registered view is `config.registered_view`. Errors and the report name
    the models as they were `called`, by their folders otherwise.
    Raises ValueError for a split without images, or models whose classes are not the dataset's.
    """
    device = device if device is not None else default_device()
    names = called or [str(folder) for folder in folders]
    predictors = [
        load_predictor(folder, device, precision, config.batch_size, name)
        for folder, name in zip(folders, names, strict=True)
    ]
    cards = [predictor.card for predictor in predictors]
    require_same_classes(names, cards, dataset.info)
    dataset.require(split)
    views = tuple(dict.fromkeys((*config.views, config.registered_view)))
    for view in views:
        require_view(view, predictors[0].card.preprocessing)
    num_images = dataset.info.num_images(split)
    num_fitted = dataset.info.num_images("val") if len(predictors) > 1 else 0
    tell = on_progress or (lambda done, total: None)
    total = num_fitted + num_images * len(views)
    calibration = calibration_of(predictors, dataset, config, lambda done, _: tell(done, total))
    outcome = Outcome(num_images, len(dataset.info.classes), views)
    comparison = Comparison(predictors, views)
    done = num_fitted
    for piece in pieces_of(dataset, split, piece_size(predictors), columns_of(dataset.info.family)):
        rows = slice(piece.start, piece.start + len(piece.labels))
        outcome.labels[rows] = piece.labels
        outcome.about.append(piece.about)
        decoded = decode_piece(piece, predictors)
        for view in views:
            # the first pass of a shape compiles and allocates: it is not what the view costs
            if piece.start == 0:
                warm_up(predictors, decoded, view)
            seen = look(predictors, decoded, view, piece.labels, outcome.costs[view], comparison)
            outcome.uncalibrated[view][rows] = seen
            done += len(piece.labels)
            tell(done, total)
    models = tested(names, cards)
    return make_report(dataset, split, config, predictors, outcome, calibration, comparison, models)


def calibration_of(
    predictors: Sequence[Predictor],
    dataset: Dataset,
    config: EvaluateConfig,
    on_progress: Callable[[int, int], None],
) -> Calibration:
    """The temperature of the registered view: the model's own; of several models that of their average, fitted here."""
    if len(predictors) > 1:
        return fit_on_validation(predictors, dataset, config.registered_view, on_progress)
    [predictor] = predictors
    if predictor.view != config.registered_view:
        return Calibration(1.0, f"nothing: the model was calibrated for the view {predictor.view}")
    return Calibration(
        predictor.card.temperature, predictor.card.calibrated_on or "nothing: an uncalibrated model"
    )


def warm_up(predictors: Sequence[Predictor], decoded: dict[DecodeKey, Tensor], view: ViewName) -> None:
    """Compute one full pass of each model, to no avail."""
    for predictor in predictors:
        predictor.uncalibrated(decoded[decode_key(predictor)][: predictor.images_per_pass(view)], view)


def look(
    predictors: Sequence[Predictor],
    decoded: dict[DecodeKey, Tensor],
    view: ViewName,
    labels: np.ndarray,
    cost: Cost,
    comparison: Comparison,
) -> np.ndarray:
    """Uncalibrated probabilities (B, K) of a piece by one view; adds to the view's cost, and to that of each model."""
    total = np.zeros((len(labels), len(predictors[0].card.classes)), np.float32)
    for place, (predictor, share) in enumerate(zip(predictors, shares_of(predictors), strict=True)):
        with PeakMemory(predictor.device) as memory:
            began = time.perf_counter()
            seen = predictor.uncalibrated(decoded[decode_key(predictor)], view).numpy()
            time_s = time.perf_counter() - began
        total += seen * np.float32(share)
        cost.time_s += time_s
        cost.unmeasured = memory.unmeasured
        if memory.megabytes is not None:
            cost.memory_mb.append(memory.megabytes)
        peak_mb = float("nan") if memory.megabytes is None else memory.megabytes
        comparison.see(view, place, seen, labels, time_s, peak_mb)
    return total


def make_report(
    dataset: Dataset,
    split: Split,
    config: EvaluateConfig,
    predictors: Sequence[Predictor],
    outcome: Outcome,
    calibration: Calibration,
    comparison: Comparison,
    models: dict[str, str],
) -> Report:
    """Metrics of every view, those of the registered one again under their bare names, and its worst mistakes."""
    registered, labels = config.registered_view, outcome.labels
    uncalibrated = outcome.uncalibrated[registered]
    probabilities = with_temperature(torch.from_numpy(uncalibrated), calibration.temperature).numpy()
    metrics: dict[str, float] = {"num_images": len(labels)}
    for view, seen in outcome.uncalibrated.items():
        figures = summarise(probabilities if view == registered else seen, labels)
        cost = outcome.costs[view]
        figures["images_per_s"] = len(labels) / cost.time_s
        if cost.memory_mb:
            figures["memory_mb"] = max(cost.memory_mb)
        metrics |= {f"{view}.{name}": value for name, value in figures.items()}
        if view == registered:
            metrics |= figures
    before = confidence_figures(uncalibrated, labels)
    metrics |= {f"{name}_uncalibrated": value for name, value in before.items()}
    metrics["temperature"] = calibration.temperature
    worst = worst_mistakes(probabilities, labels, config.num_worst)
    rows = pa.concat_tables(outcome.about)
    about = describe(dataset, split, config, predictors, outcome.costs[registered], calibration)
    return Report(
        metrics=metrics,
        about={**models, **about, "accuracy_interval": interval_of(rows["group"].to_pylist())},
        view_names=tuple(outcome.uncalibrated),
        registered_view=registered,
        family=dataset.info.family,
        classes=dataset.info.classes,
        rows=rows,
        labels=labels,
        probabilities=probabilities,
        uncalibrated=uncalibrated,
        comparison=comparison,
        worst=worst,
        worst_pictures=pictures_at(dataset, split, worst, predictors[0]),
    )


def describe(
    dataset: Dataset,
    split: Split,
    config: EvaluateConfig,
    predictors: Sequence[Predictor],
    cost: Cost,
    calibration: Calibration,
) -> dict[str, str | int | float]:
    """What was measured, on what, and how: without it the numbers cannot be compared."""
    device = predictors[0].device
    grown = (
        "memory of torch's tensors on the GPU" if device.type == "cuda" else "resident memory of the process"
    )
    return {
        "dataset": dataset.info.name,
        "dataset_source_sha256": dataset.info.source_sha256,
        "split": split,
        "num_images": dataset.info.num_images(split),
        "num_models": len(predictors),
        "num_networks": sum(len(predictor.members) for predictor in predictors),
        "registered_view": config.registered_view,
        "batch_size": config.batch_size,
        "device": machine_of(device),
        "precision": str(predictors[0].dtype).removeprefix("torch."),
        "temperature": calibration.temperature,
        "temperature_fitted_to": calibration.basis,
        "calibrated_view": config.registered_view,
        "ece": "15 equal-width bins of the confidence of the predicted class",
        "images_per_s": "wall clock of cropping, networks and softmax, after a warm-up; without reading and decoding",
        "memory_mb": cost.unmeasured or f"peak growth during forward passes, in MiB, of the {grown}",
    }


def interval_of(groups: Sequence[str]) -> str:
    """How the interval of the accuracy is made, and what of the split it leaves out."""
    shared = sharing(groups)
    copies = f"; {shared:,} share a group with others (near-duplicates, a person), so it is too narrow"
    return f"Wilson, 95%, as if each image stood for itself{copies if shared else ''}"


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray, num_worst: int) -> np.ndarray:
    """Places of the `num_worst` most confident mistakes, the most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return wrong[order[:num_worst]]


def pictures_at(dataset: Dataset, split: Split, places: np.ndarray, predictor: Predictor) -> np.ndarray:
    """What the network is given of the images at `places` (M,), as thumbnails: (M, C, S, S) uint8."""
    rows = RowReader(dataset, split, ["image"], 0).take(places) if len(places) else None
    decoded, errors = predictor.decode(rows["image"].to_pylist() if rows else [])
    assert not any(errors)
    pictures = as_pictures(decoded)
    if not len(places) or pictures.shape[2] <= THUMBNAIL_PX:
        return pictures
    return shrink(torch.from_numpy(pictures), THUMBNAIL_PX).numpy()
