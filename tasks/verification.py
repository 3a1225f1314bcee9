"""Verification: are two pictures of one person? Rates of pairs by the distance of their embeddings.

A pair is accepted where its distance, the squared L2 distance of two unit vectors (0 to 4), is at most the threshold.
TAR is the share of pairs of one person that are accepted, FAR that of pairs of two. P pairs: `distances` (P,), `same`
(P,) bool. Intervals are those of tasks/personbootstrap.py. LFW's protocol: Huang et al. 2007,
https://vis-www.cs.umass.edu/lfw/; accuracy is chosen on nine folds and measured on the tenth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist

UNIT_TOLERANCE = 1e-3  # of a vector's length: float32 and bfloat16 networks miss 1 by less
BLOCK = 1 << 15  # pairs whose differences are in memory at once
NOTHING = -1.0  # a threshold that no distance meets
ENOUGH_ERRORS = 30  # Doddington's rule (1998): 30 errors tell a rate to ±30% at 90% confidence


@dataclass(frozen=True)
class Roc:
    """What each threshold accepts, the strictest first: thresholds, FAR and TAR (T,). The first accepts nothing."""

    thresholds: np.ndarray
    far: np.ndarray
    tar: np.ndarray
    num_same: int
    num_different: int


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold for a stated FAR, and what it does on the pairs that it was fitted on.

    `supported` is whether those pairs would hold `ENOUGH_ERRORS` false accepts at the stated rate: below that, the
    rate on other people may be several times what is stated.
    """

    stated_far: float
    threshold: float
    far: float
    tar: float
    num_same: int
    num_different: int

    @property
    def supported(self) -> bool:
        return self.stated_far * self.num_different >= ENOUGH_ERRORS


@dataclass(frozen=True)
class FoldAccuracy:
    """Accuracy over folds: the mean, the standard deviation of folds (n - 1) and the standard error of the mean."""

    mean: float
    sd: float
    standard_error: float
    accuracies: np.ndarray
    thresholds: np.ndarray


def check_unit(embeddings: np.ndarray) -> None:
    """Raises ValueError unless the rows of embeddings (N, D) have unit length."""
    if embeddings.ndim != 2 or not embeddings.size:
        raise ValueError(f"embeddings {embeddings.shape} must be (N, D) with N and D ≥ 1")
    length = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64))
    wrong = ~(abs(length - 1) <= UNIT_TOLERANCE)  # NaN is wrong too
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"{wrong.sum()} of {len(length)} embeddings have no unit length; the first is row {first}, of length "
            f"{length[first]:.4g}: divide each by its length"
        )


def pair_distances(embeddings: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Squared L2 distances (P,) float64 of the rows of embeddings (N, D) that pairs (P, 2) name."""
    check_unit(embeddings)
    if (
        pairs.ndim != 2
        or pairs.shape[1] != 2
        or (pairs.size and not 0 <= pairs.min() <= pairs.max() < len(embeddings))
    ):
        raise ValueError(f"pairs {pairs.shape} must be (P, 2) places of {len(embeddings)} embeddings")
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), BLOCK):
        first, second = pairs[start : start + BLOCK].T
        gap = embeddings[first].astype(np.float64) - embeddings[second]
        found[start : start + BLOCK] = np.einsum("pd,pd->p", gap, gap)
    return found


def all_pairs(num: int) -> np.ndarray:
    """All pairs of 0…num - 1, the smaller first, in order: (num · (num - 1) / 2, 2)."""
    return np.stack(np.triu_indices(num, 1), axis=1)


def all_distances(embeddings: np.ndarray) -> np.ndarray:
    """The distances of `all_pairs`, as `pair_distances` gives them."""
    check_unit(embeddings)
    return np.asarray(pdist(embeddings, "sqeuclidean"))


def check_pairs(distances: np.ndarray, same: np.ndarray) -> None:
    """What the functions below rely on; raises ValueError."""
    if distances.ndim != 1 or same.shape != distances.shape or same.dtype != bool:
        raise ValueError(f"distances {distances.shape} and same {same.shape}, bool, must be (P,)")
    if not np.isfinite(distances).all() or (distances < 0).any():
        raise ValueError("distances must be finite and not negative: has the training diverged?")
    if not same.any() or same.all():
        raise ValueError(
            f"{same.sum()} pairs of one person and {(~same).sum()} of two: rates need both kinds; "
            "take pictures of two people or more, and two or more of one"
        )


def roc(distances: np.ndarray, same: np.ndarray) -> Roc:
    """FAR and TAR at every distance that occurs."""
    check_pairs(distances, same)
    order = np.argsort(distances)
    ordered, is_same = distances[order], same[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # equal distances are accepted together
    num_same = int(is_same.sum())
    num_different = len(same) - num_same
    return Roc(
        thresholds=np.append(NOTHING, ordered[last]),
        far=np.append(0, np.cumsum(~is_same)[last]) / num_different,
        tar=np.append(0, np.cumsum(is_same)[last]) / num_same,
        num_same=num_same,
        num_different=num_different,
    )


def auc(curve: Roc) -> float:
    """Area under TAR against FAR: the chance that a pair of one person is nearer than one of two, a tie half."""
    return float(np.trapezoid(curve.tar, curve.far))


def equal_error(curve: Roc) -> tuple[float, float]:
    """EER and its threshold: where |FAR - FRR| is least, the mean of both; of equals the strictest."""
    rejected = 1 - curve.tar
    place = int(np.argmin(abs(curve.far - rejected)))
    return float((curve.far[place] + rejected[place]) / 2), float(curve.thresholds[place])


def tar_at_far(curve: Roc, far: float) -> float:
    """The highest TAR of a threshold whose FAR is at most `far`: nothing is interpolated."""
    return float(curve.tar[_place_at(curve, far)])


def _place_at(curve: Roc, far: float) -> int:
    """The loosest place of a curve whose FAR is at most `far`; raises ValueError where one false accept is more."""
    if not 0 < far <= 1:
        raise ValueError(f"far (={far}) must lie in (0, 1]")
    if far * curve.num_different < 1:
        raise ValueError(
            f"{curve.num_different:,} pairs of two people cannot show a false-accept rate of {far:g}: one of them is "
            f"{1 / curve.num_different:.2g}; at least {np.ceil(1 / far):,.0f} are needed, and {ENOUGH_ERRORS} times as "
            "many to know it well"
        )
    counts = curve.far * curve.num_different
    return int(np.searchsorted(counts, far * curve.num_different * (1 + 1e-12), side="right")) - 1


def fit_threshold(distances: np.ndarray, same: np.ndarray, far: float) -> OperatingPoint:
    """The loosest threshold whose FAR on these pairs, of validation, is at most `far`.

    Raises ValueError where there are fewer than 1 / far pairs of two people; see `OperatingPoint.supported` for what
    more are good for.
    """
    curve = roc(distances, same)
    place = _place_at(curve, far)
    return OperatingPoint(
        stated_far=far,
        threshold=float(curve.thresholds[place]),
        far=float(curve.far[place]),
        tar=float(curve.tar[place]),
        num_same=curve.num_same,
        num_different=curve.num_different,
    )


def supported_fars(fars: Sequence[float], num_different: int) -> list[float]:
    """Those of `fars` for which a threshold can be fitted at all on so many pairs of two people."""
    return [far for far in fars if far * num_different >= 1]


def accuracy_at(distances: np.ndarray, same: np.ndarray, threshold: float) -> float:
    """Share of a plain list of pairs that a threshold judges right; it should come from other pairs."""
    check_pairs(distances, same)
    return float(((distances <= threshold) == same).mean())


def best_threshold(distances: np.ndarray, same: np.ndarray) -> float:
    """The threshold of highest accuracy, half-way between two distances; of equals the strictest."""
    curve = roc(distances, same)
    right = curve.tar * curve.num_same + (1 - curve.far) * curve.num_different
    place = int(np.argmax(np.round(right)))
    following = curve.thresholds[place + 1 :]
    if place == 0:
        return NOTHING
    return float((curve.thresholds[place] + following[0]) / 2 if len(following) else curve.thresholds[place])


def even_folds(same: np.ndarray, num_folds: int = 10) -> np.ndarray:
    """Folds (P,) of a list of pairs: the pairs of one person and those of two are each cut in order, evenly.

    For LFW's `pairs.txt`, read in order, these are its own ten, whose people are disjoint. Of another list two folds
    may share people, so that its accuracy is a little optimistic.
    """
    folds = np.empty(len(same), np.int64)
    for side in (same, ~same):
        num = int(side.sum())
        if num < num_folds:
            raise ValueError(f"{num} pairs of a kind cannot be cut into num_folds (={num_folds}); take fewer")
        folds[side] = np.arange(num) * num_folds // num
    return folds


def fold_accuracy(distances: np.ndarray, same: np.ndarray, folds: np.ndarray) -> FoldAccuracy:
    """Accuracy by LFW's protocol: of each fold, at the best threshold of all others."""
    check_pairs(distances, same)
    names = np.unique(folds)
    if folds.shape != same.shape or len(names) < 2:
        raise ValueError(f"folds {folds.shape} must be (P,) = {same.shape} and of two numbers or more")
    accuracies, thresholds = np.empty(len(names)), np.empty(len(names))
    for place, name in enumerate(names):
        held = folds == name
        thresholds[place] = best_threshold(distances[~held], same[~held])
        accuracies[place] = ((distances[held] <= thresholds[place]) == same[held]).mean()
    sd = float(accuracies.std(ddof=1))
    return FoldAccuracy(float(accuracies.mean()), sd, sd / len(names) ** 0.5, accuracies, thresholds)


def far_name(far: float) -> str:
    """How metrics name a false-accept rate: 0.01 is `1e-2`, 0.05 is `5e-2`."""
    digits, power = f"{far:e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def summarise(
    distances: np.ndarray,
    same: np.ndarray,
    fars: Sequence[float],
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, float]:
    """AUC, EER and TAR at each FAR that the pairs can show, by name, with the given intervals as `_low` and `_high`."""
    curve = roc(distances, same)
    figures = {"auc": auc(curve), "eer": equal_error(curve)[0]}
    for far in supported_fars(fars, curve.num_different):
        figures[f"tar_at_far_{far_name(far)}"] = tar_at_far(curve, far)
    for name, (low, high) in (intervals or {}).items():
        figures |= {f"{name}_low": low, f"{name}_high": high}
    return figures
