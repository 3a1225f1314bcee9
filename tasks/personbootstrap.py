"""Intervals over people: what other people, drawn like these, would have given.

Pairs that share a person, and pictures of one, are not independent, so people are drawn, with replacement, and not
pairs. A pair of two people counts with the product of how often each was drawn, a pair of one person with how often
that one was: the vertex bootstrap (Snijders and Borgatti 1999, "Non-parametric standard errors and tests for network
statistics"; without its pairs of a person's own copies, which here would be pairs of one). Fogliato, Patil and Perona
2024 (https://arxiv.org/abs/2306.01198) review such intervals for 1:1 matching; their double-or-nothing weights have the
same first two moments. All are percentiles, 95%.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.verification import check_pairs, far_name, supported_fars

NUM_DRAWS = 1000
CONFIDENCE = 0.95
MAX_CELLS = 1 << 22  # pairs × draws in memory at once
FEWEST_PEOPLE = 5  # fewer make an interval that says nothing

Intervals = dict[str, tuple[float, float]]


def draw_people(num_people: int, num_draws: int, generator: np.random.Generator) -> np.ndarray:
    """How often each person was drawn: (num_draws, num_people), each row sums to num_people."""
    if num_people < FEWEST_PEOPLE:
        raise ValueError(
            f"{num_people} people give no interval over people; take {FEWEST_PEOPLE} or more, or none"
        )
    return generator.multinomial(num_people, np.full(num_people, 1 / num_people), size=num_draws)


def pair_intervals(
    distances: np.ndarray, people: np.ndarray, fars: Sequence[float], seed: int, num_draws: int = NUM_DRAWS
) -> Intervals:
    """Intervals of `auc`, `eer` and `tar_at_far_…` of tasks.verification.summarise; people (P, 2) are those of pairs.

    A draw without a pair of one person, or without one of two, is left out.
    """
    curves = _curves(distances, people, seed, num_draws)
    names = supported_fars(fars, int((people[:, 0] != people[:, 1]).sum()))
    drawn: dict[str, list[np.ndarray]] = {"auc": [], "eer": []}
    drawn |= {f"tar_at_far_{far_name(far)}": [] for far in names}
    for far_curve, tar_curve in curves:
        drawn["auc"].append(np.trapezoid(tar_curve, far_curve, axis=1))
        drawn["eer"].append(_equal_errors(far_curve, tar_curve))
        for far in names:
            drawn[f"tar_at_far_{far_name(far)}"].append(_tar_at(far_curve, tar_curve, far))
    return {name: percentiles(np.concatenate(parts)) for name, parts in drawn.items()}


def paired_gains(
    first: np.ndarray,
    second: np.ndarray,
    people: np.ndarray,
    fars: Sequence[float],
    seed: int,
    num_draws: int,
) -> dict[str, np.ndarray]:
    """Second minus first of `auc` and `tar_at_far_…`, in each draw (D,): distances (P,) of two embedders on one list.

    Both see the same draws of people, since a draw depends on the people, their number and the seed alone.
    """
    drawn: dict[str, list[np.ndarray]] = {}
    curves = zip(
        _curves(first, people, seed, num_draws), _curves(second, people, seed, num_draws), strict=True
    )
    for one, other in curves:
        drawn.setdefault("auc", []).append(np.trapezoid(other[1], other[0]) - np.trapezoid(one[1], one[0]))
        for far in fars:
            gains = _tar_at(*other, far) - _tar_at(*one, far)
            drawn.setdefault(f"tar_at_far_{far_name(far)}", []).append(gains)
    return {name: np.concatenate(parts) for name, parts in drawn.items()}


def curve_band(
    distances: np.ndarray, people: np.ndarray, fars: np.ndarray, seed: int, num_draws: int = NUM_DRAWS
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high TAR at each of fars (F,), pointwise."""
    parts = [
        np.stack([_tar_at(far_curve, tar_curve, float(far)) for far in fars], axis=1)
        for far_curve, tar_curve in _curves(distances, people, seed, num_draws)
    ]
    low, high = np.quantile(np.concatenate(parts), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The interval of drawn values."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _curves(
    distances: np.ndarray, people: np.ndarray, seed: int, num_draws: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """FAR and TAR (draws, T) of each draw at every distance that occurs, as tasks.verification.roc has them."""
    if people.shape != (len(distances), 2):
        raise ValueError(f"people {people.shape} must be (P, 2), P = {len(distances)}")
    same = people[:, 0] == people[:, 1]
    check_pairs(distances, same)
    names, codes = np.unique(people, return_inverse=True)
    order = np.argsort(distances)
    first, second = codes.reshape(-1, 2)[order].T
    ordered, is_same = distances[order], same[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    generator = np.random.default_rng(seed)
    step = max(1, MAX_CELLS // len(distances))
    for start in range(0, num_draws, step):
        drawn = draw_people(len(names), min(step, num_draws - start), generator).astype(np.float64)
        weights = drawn[:, first] * np.where(is_same, 1.0, drawn[:, second])
        rates = [
            np.concatenate([np.zeros((len(drawn), 1)), np.cumsum(weights * side, axis=1)[:, last]], axis=1)
            for side in (~is_same, is_same)
        ]
        far_counts, tar_counts = rates
        whole = (far_counts[:, -1] > 0) & (tar_counts[:, -1] > 0)
        yield (
            far_counts[whole] / far_counts[whole, -1:],
            tar_counts[whole] / tar_counts[whole, -1:],
        )


def _tar_at(far_curve: np.ndarray, tar_curve: np.ndarray, far: float) -> np.ndarray:
    places = (far_curve <= far * (1 + 1e-12)).sum(axis=1) - 1
    return np.asarray(tar_curve[np.arange(len(places)), places])


def _equal_errors(far_curve: np.ndarray, tar_curve: np.ndarray) -> np.ndarray:
    rows, places = np.arange(len(far_curve)), np.argmin(abs(far_curve - (1 - tar_curve)), axis=1)
    return np.asarray((far_curve[rows, places] + 1 - tar_curve[rows, places]) / 2)
