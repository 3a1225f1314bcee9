"""What is computed from a detector's match table: COCO's average precision and recall, curves, the best threshold.

COCO's figures equal pycocotools' to 1e-12. Where a figure has nothing to be computed from (no small object in the
split), it is NaN, where pycocotools has -1. K classes, A ranges of areas, T thresholds of IoU, N detections; speed:
benchmarks/cocoeval.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tasks.detectionmatches import Matches

RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = (1, 10, 100)  # of a class in an image, for average recall
FEWEST_KEPT = 10  # boxes that a threshold is to rest on
DRAWS_AT_ONCE = 50  # of the bootstrap: bounds the memory, which is a number for each draw and image


@dataclass(frozen=True)
class Curve:
    """Of what is kept from each distinct score on, highest first, each (S,): number, precision, recall and F1."""

    scores: np.ndarray
    kept: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    num_objects: int  # that are to be found


class Cut(NamedTuple):
    """A score from which on (≥) detections are kept, and what that gives."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class CocoFigures:
    """Per class and range of areas: average precision (A, T, K) and highest recall (3, A, T, K) by most detections.

    NaN for classes without an object in the range.
    """

    precision: np.ndarray
    recall: np.ndarray


def coco_figures(matches: Matches) -> CocoFigures:
    """Average precision over 101 recalls, and recall at 1, 10 and 100 detections of a class in an image."""
    A, T, K = len(matches.areas), len(matches.iou_thresholds), matches.num_classes
    precision, recall = np.full((A, T, K), np.nan), np.full((len(MAX_DETECTIONS), A, T, K), np.nan)
    right = (matches.found >= 0) & ~matches.ignored
    wrong = (matches.found < 0) & ~matches.ignored
    for a in range(A):
        positives = np.bincount(matches.object_labels[~matches.object_ignored[a]], minlength=K)
        for k, part in class_slices(matches):
            if positives[k]:
                precision[a, :, k] = interpolated(right[a, :, part], wrong[a, :, part], int(positives[k]))
        present = positives > 0
        for m, most in enumerate(MAX_DETECTIONS):
            for t in range(T):
                labels = matches.labels[right[a, t] & (matches.rank < most)]
                found = np.bincount(labels, minlength=K)
                recall[m, a, t, present] = found[present] / positives[present]
    return CocoFigures(precision, recall)


def class_slices(matches: Matches) -> Iterator[tuple[int, slice]]:
    """Each class, and where its detections stand in the table."""
    ends = np.searchsorted(matches.labels, np.arange(matches.num_classes), side="right").tolist()
    for k, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
        yield k, slice(first, end)


def interpolated(
    right: np.ndarray, wrong: np.ndarray, num_positives: float, recalls: np.ndarray = RECALLS
) -> np.ndarray:
    """Average precision (T,) of one class: the mean of `precision_at` over the recalls."""
    return np.asarray(precision_at(right, wrong, num_positives, recalls).mean(1))


def precision_at(
    right: np.ndarray, wrong: np.ndarray, num_positives: float, recalls: np.ndarray = RECALLS
) -> np.ndarray:
    """The highest precision (T, R) of one class from each of `recalls` (R,) on; past the highest recall, 0.

    `right` and `wrong` (T, n) are bool, or how often each detection counts, by falling score.
    """
    best, recall = envelope(right, wrong, num_positives)
    best = np.pad(best, ((0, 0), (0, 1)))
    return np.stack(
        [row[np.searchsorted(reached, recalls)] for row, reached in zip(best, recall, strict=True)]
    )


def envelope(right: np.ndarray, wrong: np.ndarray, num_positives: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each detection, as for `precision_at`: the highest precision from it on, and the recall up to it: (T, n)."""
    hits, misses = right.cumsum(1, dtype=np.float64), wrong.cumsum(1, dtype=np.float64)
    precision = hits / (misses + hits + np.spacing(1))
    return np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1], hits / num_positives


def summarise(matches: Matches) -> dict[str, float]:
    """COCO's twelve figures, by the house's names."""
    figures = coco_figures(matches)
    thresholds = matches.iou_thresholds
    named = {
        "ap": figures.precision[0],
        "ap50": figures.precision[0, np.isclose(thresholds, 0.5)],
        "ap75": figures.precision[0, np.isclose(thresholds, 0.75)],
        **{f"ap_{name}": figures.precision[a] for a, name in enumerate(matches.areas) if a},
        **{f"ar{most}": figures.recall[m, 0] for m, most in enumerate(MAX_DETECTIONS)},
        **{f"ar_{name}": figures.recall[-1, a] for a, name in enumerate(matches.areas) if a},
    }
    return {name: mean_of_known(values) for name, values in named.items()}


def known_aps(matches: Matches) -> dict[str, float]:
    """AP and AP50, where there is an object."""
    named = summarise(matches)
    return {name: named[name] for name in ("ap", "ap50") if not np.isnan(named[name])}


def mean_of_known(values: np.ndarray) -> float:
    """Of those that are not NaN; NaN where all are."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def curve(matches: Matches, label: int | None = None, iou_threshold: float = 0.5) -> Curve:
    """Precision, recall and F1 by confidence, of one class or of all together.

    Detections of one score are kept or left together. Precision and F1 are 0 where nothing counts; raises ValueError
    for a threshold of IoU that is not in the table, and where there is no object to find.
    """
    t = matches.threshold_place(iou_threshold)
    found, ignored = matches.found[0, t], matches.ignored[0, t]
    positives = ~matches.object_ignored[0] & (label is None or matches.object_labels == label)
    if not positives.any():
        raise ValueError(
            f"no object {'at all' if label is None else f'of class {label}'}: there is no recall"
        )
    counts = ~ignored & (label is None or matches.labels == label)
    order = np.flatnonzero(counts)[(-matches.scores[counts]).argsort(kind="stable")]
    scores, right = matches.scores[order], found[order] >= 0
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # of each run of equal scores
    hits, kept = right.cumsum()[last], last + 1
    num = int(positives.sum())
    return Curve(scores[last], kept, hits / kept, hits / num, 2 * hits / (kept + num), num)


def best_threshold(matches: Matches, label: int | None = None, iou_threshold: float = 0.5) -> float:
    """The score from which on (≥) keeping detections gives the highest F1; of equals the highest, 1 if none is right.

    To be chosen on validation images, not on those that are reported.
    """
    points = curve(matches, label, iou_threshold)
    return float(points.scores[points.f1.argmax()]) if points.f1.any() else 1.0


def at_threshold(matches: Matches, score: float, label: int | None = None, iou_threshold: float = 0.5) -> Cut:
    """What keeping the detections of `score` or more (≥) gives; 0 where none is kept. Raises as `curve` does."""
    points = curve(matches, label, iou_threshold)
    last = int((points.scores >= score).sum()) - 1
    if last < 0:
        return Cut(score, 0.0, 0.0, 0.0)
    return Cut(score, float(points.precision[last]), float(points.recall[last]), float(points.f1[last]))


def threshold_for_precision(
    matches: Matches, precision: float, label: int | None = None, iou_threshold: float = 0.5
) -> Cut | None:
    """The lowest score from which on (≥) at least `precision` of the detections are right, or None if there is none.

    Above it precision may dip below again: it is the cut that is promised, not each one past it. A cut that keeps
    fewer than `FEWEST_KEPT`, or than there are objects where those are fewer, is none: that its boxes are right is
    chance. To be chosen on validation images. Raises as `curve` does, and ValueError for a precision outside (0, 1].
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision (={precision}) must be more than 0 and at most 1")
    points = curve(matches, label, iou_threshold)
    enough = points.kept >= min(FEWEST_KEPT, points.num_objects)
    reached = np.flatnonzero((points.precision >= precision) & enough)
    return (
        at_threshold(matches, float(points.scores[reached[-1]]), label, iou_threshold)
        if len(reached)
        else None
    )


def resampled_ap(matches: Matches, counts: np.ndarray) -> np.ndarray:
    """AP (D,) of D samples of the images: the mean over the classes that a sample has; NaN for none.

    `counts` as for `resampled_class_aps`. For a difference between two detectors on the same images, give both the
    same counts.
    """
    return np.array([mean_of_known(row) for row in resampled_class_aps(matches, counts)])


def resampled_class_aps(matches: Matches, counts: np.ndarray) -> np.ndarray:
    """AP of each class (D, K) in D samples of the images; NaN where a sample has no object of it.

    `counts` (D, num_images) says how often each image is in the sample, as if it were there so often, copies side by
    side.
    """
    right = (matches.found[0] >= 0) & ~matches.ignored[0]
    wrong = (matches.found[0] < 0) & ~matches.ignored[0]
    objects = ~matches.object_ignored[0]
    image, labels = matches.object_image[objects], matches.object_labels[objects]
    drawn = np.full((len(counts), matches.num_classes), np.nan)
    for d, count in enumerate(counts):
        positives = np.bincount(labels, weights=count[image], minlength=matches.num_classes)
        weight = count[matches.image]
        for k, part in class_slices(matches):
            if positives[k]:
                each = interpolated(
                    right[:, part] * weight[part], wrong[:, part] * weight[part], positives[k]
                )
                drawn[d, k] = each.mean()
    return drawn


def ap_interval(
    matches: Matches, generator: np.random.Generator, num_draws: int = 1000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of AP by a bootstrap over images: what other images of the kind would give.

    It lies high where classes have few objects, as AP itself does: docs/detection.md has by how much.
    """
    num, share = matches.num_images, np.full(matches.num_images, 1 / matches.num_images)
    parts = [min(DRAWS_AT_ONCE, num_draws - done) for done in range(0, num_draws, DRAWS_AT_ONCE)]
    drawn = np.concatenate([resampled_ap(matches, generator.multinomial(num, share, part)) for part in parts])
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
