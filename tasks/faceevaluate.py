"""A saved embedder: thresholds fitted on the people of validation, verification and recognition of those of a split.

The pairs are those that the dataset came with, as LFW's, where its split holds them all; else all pairs of one person,
up to a number, and as many of two. Recognition is that of tasks.facerecognition.
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
from models.pairhead import PairFeatures, PairHead
from tasks import versioning
from tasks.card import ModelCard, PairHeads
from tasks.facepairs import pairs_of_people, pairs_of_two
from tasks.facepredict import FacePredictor
from tasks.facerecognition import NUM_GALLERIES, Recognition, recognition
from tasks.facereport import Looked, Report, Shown
from tasks.faces import ACCURACY, FaceEvaluate, FaceView, far_of, people_of, require_apart
from tasks.modelfile import load_card, load_model, write_card
from tasks.pairheads import (
    MOST_PICTURES,
    People,
    fit_pair_heads,
    load_pair_heads,
    pair_logits,
    write_pair_heads,
)
from tasks.personbootstrap import FEWEST_PEOPLE, curve_band, pair_intervals
from tasks.settings import Precision
from tasks.tested import tested
from tasks.verification import (
    ENOUGH_ERRORS,
    accuracy_at,
    auc,
    best_threshold,
    fit_threshold,
    fold_accuracy,
    pair_distances,
    roc,
    summarise,
    supported_fars,
)
from tasks.verificationfigures import band_fars

PIECE_IMAGES = 256  # decoded at a time
SEED, NUM_DRAWS = 0, 200  # of the intervals over people
MOST_PAIRS = 50_000  # of a kind, where the dataset has no list; of two people, to fit false-accept rates to
Tell = Callable[[int, int], None]
Heads = dict[PairFeatures, PairHead]


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
    file, place = dataset.files / PAIRS_FILE, {id: i for i, id in enumerate(ids)}
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
    predictor: FacePredictor,
    dataset: Dataset,
    split: Split,
    view: FaceView,
    tell: Tell | None,
    rows: Sequence[int] | None = None,
) -> tuple[np.ndarray, float]:
    """Embeddings (N, D) of a split, or of these rows of it, and how many seconds it took."""
    wanted: Sequence[int] = range(dataset.info.num_images(split)) if rows is None else rows
    began, found = time.perf_counter(), []
    for start in range(0, len(wanted), PIECE_IMAGES):
        places = wanted[start : start + PIECE_IMAGES]
        embeddings, errors = predictor.embed(
            dataset.rows(split, places, ["image"])["image"].to_pylist(), view
        )
        assert not any(errors), "a stored picture was decoded before"
        found.append(embeddings)
        if tell is not None:
            tell(start + len(places), len(wanted))
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

    One for each false-accept rate that its card names and the pairs of two people support, of which as many are
    compared as there are, up to MOST_PAIRS; and that of the highest accuracy on as many pairs of each kind. Distances
    are squared; what cannot be fitted accepts nobody, and the card says which rest on few false accepts. Beside
    them, heads for pairs: see tasks.pairheads.
    """
    card = load_card(folder)
    if card.calibrated_on:
        return Thresholds(f"thresholds were fitted to {card.calibrated_on}", {})
    predictor = FacePredictor(load_model(folder), device, batch_size=batch_size)
    if not dataset.info.num_images("val"):
        return Thresholds(f"no thresholds: {dataset.info.name} has no validation people", {})
    table = dataset.table("val", ["id", "label"])
    labels = table["label"].to_numpy()
    try:
        pairs = pairs_of(dataset, "val", table["id"].to_pylist(), labels)
    except ValueError as error:  # of one person, or nobody has two pictures: no fault of the embedder
        return Thresholds(f"no thresholds: {error}", {})
    embeddings, _seconds = embed_split(predictor, dataset, "val", predictor.view, on_progress)
    distances = pair_distances(embeddings, pairs.places)
    fitted = {ACCURACY: best_threshold(distances, pairs.same)}
    apart = pair_distances(embeddings, pairs_of_two(labels, MOST_PAIRS))
    distances = np.concatenate([distances[pairs.same], apart])
    same = np.arange(len(distances)) < pairs.same.sum()
    rates = [far_of(name) for name in card.thresholds if name != ACCURACY]
    supported = set(supported_fars(rates, len(apart)))
    few = []
    for name in card.thresholds:
        if name != ACCURACY and far_of(name) in supported:
            point = fit_threshold(distances, same, far_of(name))
            fitted[name] = point.threshold
            few += [] if point.supported else [name]
    basis = (
        f"{int(pairs.same.sum()):,} pairs of one and {len(apart):,} of two of the {len(np.unique(labels))} validation "
        f"people of {dataset.info.name}, view {predictor.view}"
    )
    if few:
        basis += f"; {', '.join(few)} {'rest' if len(few) > 1 else 'rests'} on fewer than {ENOUGH_ERRORS} false accepts"
    heads = fit_heads(folder, predictor, dataset, People(embeddings, labels), on_progress)
    update = {"thresholds": {**card.thresholds, **fitted}, "told_by_few": tuple(few)}
    write_card(folder, card.model_copy(update={**update, "calibrated_on": basis, "pair_heads": heads}))
    told = ", ".join(f"{name} {value:.3f}" for name, value in sorted(fitted.items()))
    return Thresholds(
        f"thresholds of squared distance: {told}, fitted to {basis}",
        {f"threshold.{k}": v for k, v in fitted.items()},
    )


def fit_heads(
    folder: Path, predictor: FacePredictor, dataset: Dataset, val: People, tell: Tell | None
) -> PairHeads | None:
    """Fit the heads for pairs, and write them to the model's folder; None where nobody of train has two pictures."""
    labels = dataset.table("train", ["label"])["label"].to_numpy()
    rows = some_people(labels, MOST_PICTURES)
    if len(np.unique(labels[rows])) in (1, len(rows)):
        return None
    embeddings, _seconds = embed_split(predictor, dataset, "train", predictor.view, tell, rows.tolist())
    train = People(embeddings, labels[rows])
    num = len(np.unique(train.labels)), len(np.unique(val.labels))
    about = (
        f"pairs of {num[0]} people of train, decay and scale on {num[1]} of validation, view {predictor.view}"
    )
    return write_pair_heads(folder, fit_pair_heads(train, val), about)


def some_people(labels: np.ndarray, most: int) -> np.ndarray:
    """Rows of people drawn until there are `most` or more, in order: labels (N,) → (M,); all where there are fewer."""
    order = np.random.default_rng(SEED).permutation(np.unique(labels))
    counts = np.bincount(labels)[order]
    wanted = order[: int(np.searchsorted(np.cumsum(counts), most)) + 1]
    return np.flatnonzero(np.isin(labels, wanted))


def require_strangers(card: ModelCard, dataset: Dataset, split: Split) -> str:
    """What is known of people that the model was trained or fitted on and who stand in the split, in a few words.

    Raises ValueError for such people where the model was trained on another version of this dataset. Names of another
    dataset may be other people's, so they are counted. A card names nobody: they are read from the version that it
    tells, if that is here. Whom the weights were trained on that training began with is not known.
    """
    known = seen_people(card, dataset, split)
    begun = card.initial_weights
    return known if begun is None else f"{known}; not known of {begun.source}, which training began with"


def seen_people(card: ModelCard, dataset: Dataset, split: Split) -> str:
    """What `require_strangers` says of the dataset that the card names; raises as it does."""
    if card.dataset == dataset.info.name and card.dataset_digest == versioning.digest(dataset.path):
        return "none: the model was trained on this version"
    if not card.dataset_digest or not versioning.is_cached(card.dataset_digest):
        return f"not known: the version of {card.dataset} that the model was trained on is not here"
    # not tasks.versions.opened, which imports all of ingest: a change there is no reason to train faces again
    with versioning.view(card.dataset_digest) as files:
        trained = Dataset.open(files)
        seen: set[str] = set()
        for side in ("train", "val"):
            seen |= people_of(trained.info, side) if side != split else set()
        both = sorted(people_of(dataset.info, split) & seen)
    if both and card.dataset == dataset.info.name:
        raise ValueError(
            f"{len(both)} people of the {split} split of {dataset.info.name}, as {both[0]!r}, stand on another side in "
            f"the version that the model was trained on ({card.dataset_digest[:8]}): an embedder is tested on people "
            "that it never saw; test it on that version, or train it again"
        )
    return f"{len(both)} by their names, of the people of {card.dataset} that the model was trained on"


def look(
    predictor: FacePredictor, embeddings: np.ndarray, view: FaceView, pairs: Pairs, heads: Heads,
    config: FaceEvaluate,
) -> Looked:  # fmt: skip
    """Distances of the pairs by one view, and the figures made of them."""
    distances = pair_distances(embeddings, pairs.places)
    thresholds = predictor.card.thresholds
    figures = summarise(distances, pairs.same, config.false_accept_rates)
    if view == predictor.view and thresholds[ACCURACY] >= 0:
        figures["accuracy"] = accuracy_at(distances, pairs.same, thresholds[ACCURACY])
        for name, threshold in thresholds.items():
            if name != ACCURACY and threshold >= 0:
                figures[f"accepted_at_{name}"] = float((distances[~pairs.same] <= threshold).mean())
                figures[f"recognised_at_{name}"] = float((distances[pairs.same] <= threshold).mean())
        for kind, head in heads.items():
            logits = pair_logits(head, embeddings, pairs.places)
            figures[f"accuracy_head_{kind}"] = float(((logits > 0) == pairs.same).mean())
            figures[f"auc_head_{kind}"] = auc(roc(logits.max() - logits, pairs.same))
    if len(np.unique(pairs.folds)) > 1:
        by_fold = fold_accuracy(distances, pairs.same, pairs.folds)
        figures |= {
            "fold_accuracy": by_fold.mean, "fold_accuracy_sd": by_fold.sd, "fold_accuracy_se": by_fold.standard_error,
        }  # fmt: skip
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
    model = called[0] if called else str(folders[0])
    if saved.card.family != "faces":
        raise ValueError(
            f"the model {model} is for {saved.card.family}, and the dataset {info.name!r} for faces"
        )
    dataset.require(split)
    require_apart(dataset)
    known = require_strangers(saved.card, dataset, split)
    predictor = FacePredictor(saved, device, precision, config.batch_size)
    table = dataset.table(split, ["id", "label"])
    ids, labels = table["id"].to_pylist(), table["label"].to_numpy()
    pairs = pairs_of(dataset, split, ids, labels)
    views: list[FaceView] = list(dict.fromkeys((predictor.view, *config.views)))
    heads, looks = load_pair_heads(folders[0], saved.card), []
    recognised: Recognition | None = None
    for view in views:
        embeddings, seconds = embed_split(predictor, dataset, split, view, on_progress)
        seen = look(predictor, embeddings, view, pairs, heads, config)
        found = recognition(embeddings, labels, config.false_accept_rates, SEED, NUM_DRAWS)
        if found is not None:
            seen.figures.update(found.rates)
            recognised = recognised or found
        seen.figures["images_per_s"] = len(embeddings) / seconds
        looks.append(seen)
    own, people = looks[0], labels[pairs.places]
    metrics = own.figures | (recognised.intervals if recognised else {})
    band = None
    if len(np.unique(people)) >= FEWEST_PEOPLE:
        drawn: dict[str, Any] = {"seed": SEED, "num_draws": NUM_DRAWS}
        for name, (low, high) in pair_intervals(
            own.distances, people, config.false_accept_rates, **drawn
        ).items():
            metrics |= {f"{name}_low": low, f"{name}_high": high}
        fars = band_fars(int((~pairs.same).sum()))
        band = (fars, *curve_band(own.distances, people, fars, **drawn))
    return Report(
        metrics=metrics,
        about={
            **tested([model], [saved.card]),
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
            "heads_of": saved.card.pair_heads.fitted_on if saved.card.pair_heads else "nothing",
            "people_seen_in_training": known,
            **recognition_about(recognised),
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
        open_set=recognised.curve if recognised else None,
        shown=shown_pairs(
            dataset, split, ids, pairs, own.distances, config.num_worst, predictor.preprocessing.channels
        ),
    )


def recognition_about(found: Recognition | None) -> dict[str, str | int]:
    """What the rates of recognition are of."""
    if found is None:
        return {"recognition": "none: fewer than two people have two pictures"}
    return {
        "recognition": f"one picture enrolled each, drawn; mean over {NUM_GALLERIES} galleries",
        "num_enrolled": found.num_enrolled,
        "num_enrolled_open_set": found.num_enrolled_open,
    }


def shown_pairs(
    dataset: Dataset,
    split: Split,
    ids: Sequence[str],
    pairs: Pairs,
    distances: np.ndarray,
    num: int,
    channels: int,
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
        first, second = pairs.places[place].tolist()
        blobs = dataset.rows(split, [first, second], ["image"])["image"].to_pylist()
        both = tuple(np.asarray(decode_image(blob, channels=3 if channels == 3 else 1)) for blob in blobs)
        shown.append(Shown(bool(pairs.same[place]), float(distances[place]), (ids[first], ids[second]), both))
    return tuple(shown)
