"""How good a classifier is on a split, by each way to look at its images, and what each way costs.

Images are decoded once, a piece of the split at a time, for all views and all models with the same preprocessing.
Of several models the softmax outputs are averaged, each network counting the same. Networks compute in float32
unless asked otherwise: training may have used bfloat16, and what is measured here is what prediction gives.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from data.augment import shrink
from data.dataset import Dataset, Split
from data.decode import decode_many
from data.fitting import ArrayPreprocessing, decode_all
from data.stream import RowReader
from tasks.card import Preprocessing
from tasks.ensemble import SAME_QUESTION, class_difference, require_agreement
from tasks.inputs import as_pictures, decoded_bytes
from tasks.memory import PeakMemory
from tasks.metrics import summarise
from tasks.predict import Predictor, default_device, load_predictor
from tasks.report import Report
from tasks.settings import EvaluateConfig, Precision, ViewName
from tasks.views import NUM_CROPS, require_view

PIECE_IMAGES, PIECE_MB = 1024, 64  # of decoded images held at a time: the lesser of both
THUMBNAIL_PX = 160


@dataclass(frozen=True)
class Piece:
    """Consecutive images of a split, still encoded."""

    start: int  # place of the first in the split
    ids: list[str]
    blobs: list[bytes]
    labels: np.ndarray  # (B,) int64


@dataclass
class Cost:
    """What a view has cost so far."""

    time_s: float = 0.0
    memory_mb: list[float] = field(default_factory=list)  # peak of each piece
    unmeasured: str = ""


class Outcome:
    """What is known of each image of the split, filled piece by piece, and what it cost."""

    def __init__(self, num_images: int, num_classes: int, views: Sequence[ViewName]) -> None:
        self.ids = np.empty(num_images, object)
        self.labels = np.empty(num_images, np.int64)
        self.probabilities = {view: np.zeros((num_images, num_classes), np.float32) for view in views}
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
) -> Report:
    """Evaluate the model in `folders`, or the ensemble of several, on a split of `dataset`.

    `device` None: the first GPU, else the CPU. `on_progress` is told the crops seen so far, and in all. Every image
    counts in the split; the registered view is `config.registered_view`. Raises ValueError for a split without
    images, or models whose classes are not the dataset's.
    """
    device = device if device is not None else default_device()
    predictors = [load_predictor(folder, device, precision, config.batch_size) for folder in folders]
    require_same_classes(folders, predictors, dataset)
    dataset.require(split)
    views = tuple(dict.fromkeys((*config.views, config.registered_view)))
    for view in views:
        require_view(view, predictors[0].card.preprocessing)
    num_images = dataset.info.num_images(split)
    outcome = Outcome(num_images, len(dataset.info.classes), views)
    num_seen, num_crops = 0, num_images * sum(NUM_CROPS[view] for view in views)
    for piece in pieces_of(dataset, split, piece_size(predictors)):
        rows = slice(piece.start, piece.start + len(piece.ids))
        outcome.ids[rows], outcome.labels[rows] = piece.ids, piece.labels
        decoded = decode_piece(piece, predictors)
        for view in views:
            seen = look(predictors, decoded, view, outcome.costs[view], warm_up=piece.start == 0)
            outcome.probabilities[view][rows] = seen
            num_seen += NUM_CROPS[view] * len(piece.ids)
            if on_progress is not None:
                on_progress(num_seen, num_crops)
    assert num_seen == num_crops, (
        f"{dataset.path}: dataset.json and its shards do not have the same number of images"
    )
    return make_report(dataset, split, config, predictors, outcome)


def require_same_classes(folders: Sequence[Path], predictors: Sequence[Predictor], dataset: Dataset) -> None:
    """Raise a ValueError unless all models, and the dataset, have the same classes in the same order."""
    if not predictors:
        raise ValueError("evaluation needs at least one model folder")
    require_agreement(folders, [predictor.card for predictor in predictors], SAME_QUESTION)
    card = predictors[0].card
    info = dataset.info
    if card.family != info.family:
        raise ValueError(
            f"the model in {folders[0]} is for {card.family}, the dataset {info.name!r} for {info.family}; give one of "
            f"the same family"
        )
    if card.classes != info.classes:
        raise ValueError(
            f"the model in {folders[0]} and the dataset {info.name!r} must have the same classes in the same order: "
            f"{class_difference(card.classes, info.classes)}; give a dataset of the model's classes (it was trained on "
            f"{card.dataset!r}), or a model of this dataset's: ./convoy train {info.family} --dataset {info.name}"
        )


def piece_size(predictors: Sequence[Predictor]) -> int:
    """Images to decode at a time."""
    layouts = {decode_key(predictor): predictor.card.preprocessing for predictor in predictors}
    image_bytes = sum(decoded_bytes(layout) for layout in layouts.values())
    size = max(1, min(PIECE_IMAGES, PIECE_MB * 2**20 // image_bytes))
    batch_size = predictors[0].batch_size
    return size - size % batch_size if size > batch_size else size  # full passes but for the last


def pieces_of(dataset: Dataset, split: Split, size: int) -> Iterator[Piece]:
    """The split in its order, at most `size` images at a time."""
    start = 0
    for shard in dataset.shards(split):
        with pq.ParquetFile(shard) as file:
            for rows in file.iter_batches(batch_size=size, columns=["id", "image", "label"]):
                labels = rows["label"].to_numpy().astype(np.int64)
                yield Piece(start, rows["id"].to_pylist(), rows["image"].to_pylist(), labels)
                start += len(labels)


DecodeKey = tuple[int, int, str] | ArrayPreprocessing


def decode_key(predictor: Predictor) -> DecodeKey:
    """What decoding depends on: models that share it share the decoded images."""
    preprocessing = predictor.card.preprocessing
    if isinstance(preprocessing, ArrayPreprocessing):
        return preprocessing.model_copy(update={"crop": ()})
    return preprocessing.stored_px, preprocessing.channels, preprocessing.resize


def decode_piece(piece: Piece, predictors: Sequence[Predictor]) -> dict[DecodeKey, Tensor]:
    """The images as each model wants them, by layout: (B, C, T, T) uint8, or arrays of float32."""
    layouts = {decode_key(predictor): predictor.card.preprocessing for predictor in predictors}
    return {layout: torch.from_numpy(decode_blobs(piece.blobs, want)) for layout, want in layouts.items()}


def decode_blobs(blobs: list[bytes], want: Preprocessing | ArrayPreprocessing) -> np.ndarray:
    """Decode items of a dataset, all of which can be read."""
    if isinstance(want, ArrayPreprocessing):
        return decode_all(blobs, want)
    return decode_many(blobs, want.stored_px, want.channels, want.resize)


def look(
    predictors: Sequence[Predictor],
    decoded: dict[DecodeKey, Tensor],
    view: ViewName,
    cost: Cost,
    warm_up: bool,
) -> np.ndarray:
    """Probabilities (B, K) of a piece by one view, averaged over all networks; adds to the view's cost."""
    if warm_up:  # the first pass of a shape compiles and allocates: it is not what the view costs
        for predictor in predictors:
            predictor.probabilities(decoded[decode_key(predictor)][: predictor.images_per_pass(view)], view)
    num_networks = sum(len(predictor.members) for predictor in predictors)
    num_images = len(decoded[decode_key(predictors[0])])
    total = torch.zeros(num_images, len(predictors[0].card.classes))
    with PeakMemory(predictors[0].device) as memory:
        began = time.perf_counter()
        for predictor in predictors:
            share = len(predictor.members) / num_networks
            total += predictor.probabilities(decoded[decode_key(predictor)], view) * share
        cost.time_s += time.perf_counter() - began
    cost.unmeasured = memory.unmeasured
    if memory.megabytes is not None:
        cost.memory_mb.append(memory.megabytes)
    return total.numpy()


def make_report(
    dataset: Dataset, split: Split, config: EvaluateConfig, predictors: Sequence[Predictor], outcome: Outcome
) -> Report:
    """Metrics of every view, those of the registered one again under their bare names, and its worst mistakes."""
    metrics: dict[str, float] = {"num_images": len(outcome.labels)}
    for view, probabilities in outcome.probabilities.items():
        cost = outcome.costs[view]
        figures = summarise(probabilities, outcome.labels)
        figures["images_per_s"] = len(outcome.labels) / cost.time_s
        if cost.memory_mb:
            figures["memory_mb"] = max(cost.memory_mb)
        metrics |= {f"{view}.{name}": value for name, value in figures.items()}
        if view == config.registered_view:
            metrics |= figures
    probabilities = outcome.probabilities[config.registered_view]
    worst = worst_mistakes(probabilities, outcome.labels, config.num_worst)
    return Report(
        metrics=metrics,
        about=describe(dataset, split, config, predictors, outcome.costs[config.registered_view]),
        view_names=tuple(outcome.probabilities),
        registered_view=config.registered_view,
        classes=dataset.info.classes,
        ids=outcome.ids,
        labels=outcome.labels,
        probabilities=probabilities,
        worst=worst,
        worst_pictures=pictures_at(dataset, split, worst, predictors[0]),
    )


def describe(
    dataset: Dataset, split: Split, config: EvaluateConfig, predictors: Sequence[Predictor], cost: Cost
) -> dict[str, str | int | float]:
    """What was measured, on what, and how: without it the numbers cannot be compared."""
    device = predictors[0].device
    cuda = device.type == "cuda"
    machine = torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    grown = "memory of torch's tensors on the GPU" if cuda else "resident memory of the process"
    return {
        "dataset": dataset.info.name,
        "dataset_source_sha256": dataset.info.source_sha256,
        "split": split,
        "num_images": dataset.info.num_images(split),
        "num_models": len(predictors),
        "num_networks": sum(len(predictor.members) for predictor in predictors),
        "registered_view": config.registered_view,
        "batch_size": config.batch_size,
        "device": machine,
        "precision": str(predictors[0].dtype).removeprefix("torch."),
        "accuracy_interval": "Wilson, 95%",
        "ece": "15 equal-width bins of the confidence of the predicted class",
        "images_per_s": "wall clock of cropping, networks and softmax, after a warm-up; without reading and decoding",
        "memory_mb": cost.unmeasured or f"peak growth during forward passes, in MiB, of the {grown}",
    }


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
