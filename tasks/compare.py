"""What several seeds of one training say together, and what tells two trainings apart: plain statistics.

An interval over seeds is Student's t: what another seed would give, on the same test images. An interval over images is
a paired bootstrap (Efron and Tibshirani 1993, chapter 13): what other test images would give, with these networks.
Both are 95%.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, t

from tasks.metrics import (
    LEAST_PROBABILITY,
    NUM_BINS,
    confusion_matrix,
    per_class,
)

CONFIDENCE = 0.95
NUM_DRAWS = 2000  # of the bootstrap
METRICS = ("accuracy", "top5_accuracy", "macro_f1", "nll", "brier", "ece")
PAIRED = ("accuracy", "macro_f1", "nll", "brier", "ece")


@dataclass(frozen=True)
class Spread:
    """A number over seeds: sd with n - 1, and the interval of the mean; None for one seed."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Second minus first, of a metric that is the mean over the seeds of each."""

    metric: str
    difference: float
    low: float  # over images
    high: float
    seeds_low: float | None  # over seeds, Welch's; None where one of the two has one seed
    seeds_high: float | None


@dataclass(frozen=True)
class McNemar:
    """Two networks on the same images: how many only one of them gets right, and how likely so uneven a split is."""

    only_first: int
    only_second: int
    p_value: float  # exact, two-sided


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and t-interval of the mean."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Spread(mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / n**0.5
    return Spread(mean, sd, mean - half, mean + half)


def welch(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray
) -> tuple[float, float] | None:
    """Interval of mean(second) - mean(first) by Welch's t (1947); None where one of the two has one value."""
    if min(len(first), len(second)) < 2:
        return None
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    difference, variance = float(np.mean(second) - np.mean(first)), sum(parts)
    if not variance:
        return difference, difference
    freedom = variance**2 / sum(
        part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True)
    )
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * variance**0.5
    return difference - half, difference + half


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """McNemar's exact test of which images (N,) each of two networks gets right (1947)."""
    first, second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    p_value = float(binomtest(first, first + second).pvalue) if first + second else 1.0
    return McNemar(first, second, p_value)


class Resampled:
    """The metrics of one network on any choice of its N images: prepared once, for many draws."""

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        rows = probabilities.astype(np.float64)
        true = rows[np.arange(len(labels)), labels]
        self.num_classes = probabilities.shape[1]
        self.predicted = probabilities.argmax(1)
        self.labels = labels
        self.right = (self.predicted == labels).astype(np.float64)
        self.top = rows.max(1)
        self.bins = np.clip(np.ceil(self.top * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
        self.nll = -np.log(np.maximum(true, LEAST_PROBABILITY))
        self.brier = (rows**2).sum(1) - 2 * true + 1

    def metrics(self, chosen: np.ndarray) -> np.ndarray:
        """`PAIRED`, in that order, of the images at the places `chosen`, each as often as it is there."""
        right = self.right[chosen]
        confusion = confusion_matrix(self.labels[chosen], self.predicted[chosen], self.num_classes)
        gaps = np.bincount(self.bins[chosen], right - self.top[chosen], NUM_BINS)
        ece = np.abs(gaps).sum() / len(chosen)
        means = (
            right.mean(),
            per_class(confusion).macro_f1,
            self.nll[chosen].mean(),
            self.brier[chosen].mean(),
        )
        return np.array([*means, ece])


def paired_differences(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], labels: np.ndarray
) -> list[Difference]:
    """Second minus first of each of `PAIRED`, from the probabilities (N, K) of each seed on the same N images."""
    networks = [[Resampled(each, labels) for each in side] for side in (first, second)]

    def differ(chosen: np.ndarray) -> np.ndarray:
        means = [np.mean([network.metrics(chosen) for network in side], axis=0) for side in networks]
        return np.asarray(means[1] - means[0])

    N, generator = len(labels), np.random.default_rng(0)
    everything = np.arange(N)
    draws = np.array([differ(generator.integers(N, size=N)) for _ in range(NUM_DRAWS)])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, (tail, 1 - tail), axis=0)
    seeds = [np.array([network.metrics(everything) for network in side]) for side in networks]
    found = []
    for i, (metric, value) in enumerate(zip(PAIRED, differ(everything).tolist(), strict=True)):
        seeds_low, seeds_high = welch(seeds[0][:, i], seeds[1][:, i]) or (None, None)
        found.append(Difference(metric, value, float(low[i]), float(high[i]), seeds_low, seeds_high))
    return found
