"""Verification with a saved embedder: thresholds fitted on the people of validation, figures on those of a split.

The pairs are those that the dataset came with, as LFW's, where its split holds them all; else all pairs of one person,
up to a number, and as many of two.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from data.dataset import PAIRS_FILE, Dataset, Split
from data.decode import decode_image
from tasks.facepairs import pairs_of_people
from tasks.facepredict import FacePredictor
from tasks.facereport import Looked, Report, Shown
from tasks.faces import ACCURACY, FaceEvaluate, FaceView, far_of, require_apart
from tasks.modelfile import load_card, load_model, write_card
from tasks.personbootstrap import FEWEST_PEOPLE, curve_band, pair_intervals
from tasks.settings import Precision
from tasks.verification import (
    accuracy_at,
    best_threshold,
    fit_threshold,
    fold_accuracy,
    pair_distances,
    summarise,
    supported_fars,
)
from tasks.verificationfigures import band_fars

PIECE_IMAGES = 256  # decoded at a time
SEED, NUM_DRAWS = 0, 200  # of the intervals over people
MOST_PAIRS = 50_000  # of a kind, where the dataset has no list
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures of a split: places (P, 2), which are of one person (P,), folds (P,), where they come from."""

    places: np.ndarray
    same: np.ndarray
    folds: np.ndarray
    source: str


@dataclass(frozen=True)
class Thresholds:
    """What was fitted, and a line for the log."""

    note: str
    metrics: dict[str, float]


def pairs_of(dataset: Dataset, split: Split, ids: Sequence[str], labels: np.ndarray) -> Pairs:
    """The pairs to compare in a split; raises ValueError where there are none of a kind."""
    file, place = dataset.path / PAIRS_FILE, {id: i for i, id in enumerate(ids)}
    if file.is_file():
        rows = pq.read_table(file).to_pydict()
        inside = [
            i
            for i, pair in enumerate(zip(rows["id_a"], rows["id_b"], strict=True))
            if set(pair) <= place.keys()
        ]
        if inside and len(inside) == len(rows["id_a"]):
            places = np.array([[place[rows[name][i]] for name in ("id_a", "id_b")] for i in inside], np.int64)
            return Pairs(places, np.array(rows["same"], bool), np.array(rows["fold"]), "the dataset's list")
    places, same = pairs_of_people(labels, MOST_PAIRS)
    if not same.any() or same.all():
        raise ValueError(
            f"{dataset.info.name}: its {split} split has {int(same.sum())} pairs of one person and "
            f"{int((~same).sum())} of two; verification needs both: people with two pictures, and two people or more"
        )
    return Pairs(places, same, np.zeros(len(same), np.int64), "all pairs of one person, as many of two")


def embed_split(
    predictor: FacePredictor, dataset: Dataset, split: Split, view: FaceView, tell: Tell | None
) -> tuple[np.ndarray, float]:
    """Embeddings (N, D) of a split, and how many seconds it took."""
    num, began, found = dataset.info.num_images(split), time.perf_counter(), []
    for start in range(0, num, PIECE_IMAGES):
        places = range(start, min(start + PIECE_IMAGES, num))
        embeddings, errors = predictor.embed(
            dataset.rows(split, places, ["image"])["image"].to_pylist(), view
        )
        assert not any(errors), "a stored picture was decoded before"
        found.append(embeddings)
        if tell is not None:
            tell(places.stop, num)
    return np.concatenate(found), time.perf_counter() - began


def fit_thresholds(
    folder: Path,
    dataset: Dataset,
    *,
    batch_size: int,
    device: torch.device | None = None,
    on_progress: Tell | None = None,
) -> Thresholds:
    """Fit the thresholds of the embedder in `folder` on the people of validation, and keep them in its card.

    One for each false-accept rate that its card names and the pairs support, and that of the highest accuracy.
    Distances are squared; what cannot be fitted accepts nobody.
    """
    card = load_card(folder)
    if card.calibrated_on:
        return Thresholds(f"thresholds were fitted to {card.calibrated_on}", {})
    predictor = FacePredictor(load_model(folder), device, batch_size=batch_size)
    if not dataset.info.num_images("val"):
        return Thresholds(f"no thresholds: {dataset.info.name} has no validation people", {})
    table = dataset.table("val", ["id", "label"])
    labels = table["label"].to_numpy()
    pairs = pairs_of(dataset, "val", table["id"].to_pylist(), labels)
    embeddings, _seconds = embed_split(predictor, dataset, "val", predictor.view, on_progress)
    distances = pair_distances(embeddings, pairs.places)
    rates = [far_of(name) for name in card.thresholds if name != ACCURACY]
    supported = set(supported_fars(rates, int((~pairs.same).sum())))
    fitted = {ACCURACY: best_threshold(distances, pairs.same)}
    for name in card.thresholds:
        if name != ACCURACY and far_of(name) in supported:
            fitted[name] = fit_threshold(distances, pairs.same, far_of(name)).threshold
    basis = (
        f"{len(pairs.same):,} pairs of {len(np.unique(labels))} validation people of {dataset.info.name}, "
        f"view {predictor.view}"
    )
    update = {"thresholds": {**card.thresholds, **fitted}, "calibrated_on": basis}
    write_card(folder, card.model_copy(update=update))
    told = ", ".join(f"{name} {value:.3f}" for name, value in sorted(fitted.items()))
    return Thresholds(
        f"thresholds of squared distance: {told}", {f"threshold.{k}": v for k, v in fitted.items()}
    )


def look(
    predictor: FacePredictor, dataset: Dataset, split: Split, view: FaceView, pairs: Pairs, config: FaceEvaluate,
    tell: Tell | None,
) -> Looked:  # fmt: skip
    """Distances of the pairs by one view, and the figures made of them."""
    embeddings, seconds = embed_split(predictor, dataset, split, view, tell)
    distances = pair_distances(embeddings, pairs.places)
    thresholds = predictor.card.thresholds
    figures = summarise(distances, pairs.same, config.false_accept_rates)
    if view == predictor.view and thresholds[ACCURACY] >= 0:
        figures["accuracy"] = accuracy_at(distances, pairs.same, thresholds[ACCURACY])
        for name, threshold in thresholds.items():
            if name != ACCURACY and threshold >= 0:
                figures[f"accepted_at_{name}"] = float((distances[~pairs.same] <= threshold).mean())
                figures[f"recognised_at_{name}"] = float((distances[pairs.same] <= threshold).mean())
    if len(np.unique(pairs.folds)) > 1:
        by_fold = fold_accuracy(distances, pairs.same, pairs.folds)
        figures |= {"fold_accuracy": by_fold.mean, "fold_accuracy_sd": by_fold.sd}
    figures["images_per_s"] = len(embeddings) / seconds
    return Looked(view, distances, figures)


def evaluate(
    folders: Sequence[Path],
    dataset: Dataset,
    *,
    split: Split = "test",
    config: FaceEvaluate,
    device: torch.device | None = None,
    precision: Precision = "fp32",
    on_progress: Tell | None = None,
    called: Sequence[str] = (),
) -> Report:
    """Verify the pairs of a split with the embedder in the one folder of `folders`, by each view of the parameters.

    Raises ValueError for several models, a model of another family, people on both sides, a split without pairs.
    """
    if len(folders) != 1:
        raise ValueError(f"{len(folders)} models were given; faces are evaluated one model at a time")
    saved, info = load_model(folders[0]), dataset.info
    if saved.card.family != "faces":
        name = called[0] if called else str(folders[0])
        raise ValueError(
            f"the model {name} is for {saved.card.family}, and the dataset {info.name!r} for faces"
        )
    dataset.require(split)
    require_apart(dataset)
    predictor = FacePredictor(saved, device, precision, config.batch_size)
    table = dataset.table(split, ["id", "label"])
    ids, labels = table["id"].to_pylist(), table["label"].to_numpy()
    pairs = pairs_of(dataset, split, ids, labels)
    views = dict.fromkeys((predictor.view, *config.views))
    looks = [look(predictor, dataset, split, view, pairs, config, on_progress) for view in views]
    own, people = looks[0], labels[pairs.places]
    metrics = dict(own.figures)
    band = None
    if len(np.unique(people)) >= FEWEST_PEOPLE:
        drawn: dict[str, Any] = {"seed": SEED, "num_draws": NUM_DRAWS}
        found = pair_intervals(own.distances, people, config.false_accept_rates, **drawn)
        for name, (low, high) in found.items():
            metrics |= {f"{name}_low": low, f"{name}_high": high}
        fars = band_fars(int((~pairs.same).sum()))
        band = (fars, *curve_band(own.distances, people, fars, **drawn))
    return Report(
        metrics=metrics,
        about={
            "dataset": info.name,
            "dataset_source_sha256": info.source_sha256,
            "split": split,
            "pairs": pairs.source,
            "num_pairs": len(pairs.same),
            "num_same": int(pairs.same.sum()),
            "num_people": len(np.unique(people)),
            "distance": "squared L2 of unit vectors",
            "intervals": "95%, percentile bootstrap over people",
            "thresholds_of": saved.card.calibrated_on or "nothing",
            "device": str(predictor.device),
            "precision": precision,
            "registered_view": predictor.view,
        },
        ids=ids,
        places=pairs.places,
        same=pairs.same,
        looks=tuple(looks),
        thresholds={name: value for name, value in saved.card.thresholds.items() if value >= 0},
        band=band,
        shown=shown_pairs(
            dataset, split, pairs, own.distances, config.num_worst, predictor.preprocessing.channels
        ),
    )


def shown_pairs(
    dataset: Dataset, split: Split, pairs: Pairs, distances: np.ndarray, num: int, channels: int
) -> tuple[Shown, ...]:
    """The pairs of one person that are farthest apart, and those of two that are nearest, half of `num` each."""
    apart = np.argsort(np.where(pairs.same, -distances, np.inf), kind="stable")[
        : min(num // 2, int(pairs.same.sum()))
    ]
    near = np.argsort(np.where(pairs.same, np.inf, distances), kind="stable")[
        : min(num // 2, int((~pairs.same).sum()))
    ]
    shown = []
    for place in [*apart.tolist(), *near.tolist()]:
        blobs = dataset.rows(split, pairs.places[place].tolist(), ["image"])["image"].to_pylist()
        both = tuple(np.asarray(decode_image(blob, channels=3 if channels == 3 else 1)) for blob in blobs)
        shown.append(Shown(bool(pairs.same[place]), float(distances[place]), both))
    return tuple(shown)
