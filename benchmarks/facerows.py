"""One row of figures for a way to embed faces, and the table of them: what benchmarks/lfw.py measures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table

from data.dataset import Dataset, Split
from tasks.faceevaluate import SEED, Pairs, pairs_of
from tasks.facepredict import FacePredictor
from tasks.facerecognition import recognition
from tasks.identification import rank, rank_rate
from tasks.modelfile import load_card, load_model
from tasks.pairheads import load_pair_heads, pair_logits
from tasks.personbootstrap import pair_intervals
from tasks.verification import (
    accuracy_at,
    best_threshold,
    even_folds,
    fold_accuracy,
    pair_distances,
    summarise,
)

FARS = (0.1, 0.01)
NUM_DRAWS = 200  # of people, for intervals

Embed = Callable[[Sequence[bytes]], np.ndarray]  # encoded faces -> unit vectors (N, D)


@dataclass(frozen=True)
class Frame:
    """Faces as a method sees them: LFW as a dataset, ORL's 40 × 10 as encoded pictures."""

    dataset: Dataset
    orl: list[bytes]


@dataclass(frozen=True)
class Row:
    """One method's figures; NaN is what it has not got."""

    name: str
    accuracy: float
    ten_fold: float
    ten_fold_sd: float
    auc: float
    auc_low: float
    auc_high: float
    eer: float
    rank1: float
    dir_at_far_1e_2: float
    orl_rank1: float
    orl_sd: float
    threshold: float
    num_enrolled: int
    steps: int
    train_s: float
    cpu_s: float  # of training, all threads
    budget: str
    note: str


@dataclass(frozen=True)
class Trained:
    """A trained embedder's folder, and what it took."""

    folder: Path
    steps: int
    train_s: float
    cpu_s: float


def blobs_of(dataset: Dataset, split: Split) -> list[bytes]:
    found: list[bytes] = dataset.table(split, ["image"])["image"].to_pylist()
    return found


def embedder(predictor: FacePredictor) -> Embed:
    return lambda blobs: predictor.embed(blobs)[0]


def pairs_in(dataset: Dataset, split: Split) -> tuple[Pairs, np.ndarray]:
    """The pairs of a split, and who is on each of its pictures."""
    table = dataset.table(split, ["id", "label"])
    labels = table["label"].to_numpy()
    return pairs_of(dataset, split, table["id"].to_pylist(), labels), labels


def orl_rates(embed: Embed, orl: Sequence[bytes]) -> np.ndarray:
    """Rank 1 of ORL by which picture of the ten is enrolled, (10,)."""
    rows, people = embed(orl), [str(number // 10) for number in range(len(orl))]
    found = []
    for enrolled in range(10):
        inside = np.arange(len(orl)) % 10 == enrolled
        asked = [person for person, taken in zip(people, inside, strict=True) if not taken]
        found.append(rank_rate(rank(rows[~inside], asked, rows[inside], people[::10])))
    return np.array(found)


def measured(
    name: str, seen: Frame, embed: Embed, note: str = "", took: Trained | None = None, budget: str = ""
) -> Row:
    """All figures of a way to embed faces."""
    val, _ = pairs_in(seen.dataset, "val")
    threshold = best_threshold(pair_distances(embed(blobs_of(seen.dataset, "val")), val.places), val.same)
    pairs, labels = pairs_in(seen.dataset, "test")
    rows = embed(blobs_of(seen.dataset, "test"))
    distances = pair_distances(rows, pairs.places)
    folds = fold_accuracy(distances, pairs.same, even_folds(pairs.same))
    figures = summarise(
        distances, pairs.same, FARS, pair_intervals(distances, labels[pairs.places], FARS, SEED, NUM_DRAWS)
    )
    known = recognition(rows, labels, FARS, SEED, NUM_DRAWS)
    assert known is not None
    orl = orl_rates(embed, seen.orl)
    return Row(
        name=name,
        accuracy=accuracy_at(distances, pairs.same, threshold),
        ten_fold=folds.mean,
        ten_fold_sd=folds.sd,
        auc=figures["auc"],
        auc_low=figures["auc_low"],
        auc_high=figures["auc_high"],
        eer=figures["eer"],
        rank1=known.rates["rank1"],
        dir_at_far_1e_2=known.rates["dir_at_far_1e-2"],
        orl_rank1=float(orl.mean()),
        orl_sd=float(orl.std(ddof=1)),
        threshold=threshold,
        num_enrolled=known.num_enrolled,
        steps=took.steps if took else 0,
        train_s=took.train_s if took else 0.0,
        cpu_s=took.cpu_s if took else 0.0,
        budget=budget,
        note=note,
    )


def with_head(seen: Frame, plain: Row, folder: Path) -> Row:
    """The row of an embedder again, its pairs judged by the binary head that is the better one on validation.

    What the head does not change, recognition, is left out.
    """
    embed, heads = embedder(FacePredictor(load_model(folder))), load_pair_heads(folder, load_card(folder))
    val, _ = pairs_in(seen.dataset, "val")
    rows = embed(blobs_of(seen.dataset, "val"))
    right = {
        kind: float(((pair_logits(head, rows, val.places) > 0) == val.same).mean())
        for kind, head in heads.items()
    }
    kind = max(right, key=lambda name: right[name])
    pairs, labels = pairs_in(seen.dataset, "test")
    logits = pair_logits(heads[kind], embed(blobs_of(seen.dataset, "test")), pairs.places)
    apart = logits.max() - logits
    folds = fold_accuracy(apart, pairs.same, even_folds(pairs.same))
    figures = summarise(
        apart, pairs.same, FARS, pair_intervals(apart, labels[pairs.places], FARS, SEED, NUM_DRAWS)
    )
    return replace(
        plain, name="head", accuracy=float(((logits > 0) == pairs.same).mean()), ten_fold=folds.mean,
        ten_fold_sd=folds.sd, auc=figures["auc"], auc_low=figures["auc_low"], auc_high=figures["auc_high"],
        eer=figures["eer"], rank1=math.nan, dir_at_far_1e_2=math.nan, orl_rank1=math.nan, orl_sd=math.nan,
        threshold=float(logits.max()), note=f"{kind}, on the embeddings of cosface",
    )  # fmt: skip


def table_of(rows: Sequence[Row]) -> Table:
    shown = Table(
        "method", "accuracy", "ten-fold ± sd", "AUC (95% over people)", "EER", "rank 1", "DIR at FAR 1%", "ORL rank 1",
        "steps", "core-seconds", "what", title="LFW, the 1,000 pairs of pairsDevTest; ORL, one picture enrolled",
    )  # fmt: skip
    for row in rows:
        shown.add_row(
            row.name, f"{row.accuracy:.1%}", f"{row.ten_fold:.1%} ± {row.ten_fold_sd:.1%}",
            f"{row.auc:.4f} ({row.auc_low:.3f}–{row.auc_high:.3f})", f"{row.eer:.1%}", share(row.rank1),
            share(row.dir_at_far_1e_2), share(row.orl_rank1, row.orl_sd), str(row.steps or "–"),
            f"{row.cpu_s:.0f}" if row.cpu_s else "–", "; ".join(filter(None, (row.budget, row.note))),
        )  # fmt: skip
    return shown


def share(value: float, sd: float = 0.0) -> str:
    """A share and its deviation, if any."""
    if math.isnan(value):
        return "–"
    return f"{value:.1%} ± {sd:.1%}" if sd else f"{value:.1%}"
