"""What several seeds of one training say together, and what tells two trainings apart.

Runs that differ in their seed alone are one training. What they say is plain statistics.
An interval over seeds is Student's t: what another seed would give, on the same test images. An interval over images is
a paired bootstrap (Efron and Tibshirani 1993, chapter 13): what other test images would give, with these networks.
Images of one group (near-duplicates, a person) are drawn together, as the gate does: copies are no further evidence.
Both are 95%.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, t

from tasks.metrics import (
    brier_losses,
    confidence_bins,
    confusion_matrix,
    log_losses,
    per_class,
    reliability_in,
)
from tasks.pairing import cluster_counts, group_notes
from tasks.runrecords import JOINED, Predictions, RunRecord

SEED = "train.seed"
LETTERS = string.ascii_uppercase  # names of trainings; from the 27th on they are numbers
CONFIDENCE = 0.95
NUM_DRAWS, SEED_OF_DRAWS = 2000, 0  # of the bootstrap
WHOLE = re.compile(r"-?\d+\.0")
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


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, by seed."""

    name: str  # a letter
    runs: list[RunRecord]


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
        self.num_classes = probabilities.shape[1]
        self.labels, self.predicted = labels, probabilities.argmax(1)
        self.right = self.predicted == labels
        self.top = probabilities.max(1).astype(np.float64)
        self.bins = confidence_bins(self.top)
        self.nll, self.brier = log_losses(probabilities, labels), brier_losses(probabilities, labels)

    def metrics(self, chosen: np.ndarray) -> np.ndarray:
        """`PAIRED`, in that order, of the images at the places `chosen`, each as often as it is there."""
        right = self.right[chosen]
        confusion = confusion_matrix(self.labels[chosen], self.predicted[chosen], self.num_classes)
        return np.array(
            [
                right.mean(),
                per_class(confusion).macro_f1,
                self.nll[chosen].mean(),
                self.brier[chosen].mean(),
                reliability_in(self.bins[chosen], self.top[chosen], right).expected_error,
            ]
        )


def paired_differences(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], labels: np.ndarray, groups: Sequence[str]
) -> list[Difference]:
    """Second minus first of each of `PAIRED`, from the probabilities (N, K) of each seed on the same N images.

    `groups` (N,) are drawn whole.
    """
    networks = [[Resampled(each, labels) for each in side] for side in (first, second)]

    def differ(chosen: np.ndarray) -> np.ndarray:
        means = [np.mean([network.metrics(chosen) for network in side], axis=0) for side in networks]
        return np.asarray(means[1] - means[0])

    everything = np.arange(len(labels))
    drawn = cluster_counts(groups, NUM_DRAWS, SEED_OF_DRAWS)
    draws = np.array([differ(np.repeat(everything, counts)) for counts in drawn])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, (tail, 1 - tail), axis=0)
    seeds = [np.array([network.metrics(everything) for network in side]) for side in networks]
    found = []
    for i, (metric, value) in enumerate(zip(PAIRED, differ(everything).tolist(), strict=True)):
        seeds_low, seeds_high = welch(seeds[0][:, i], seeds[1][:, i]) or (None, None)
        found.append(Difference(metric, value, float(low[i]), float(high[i]), seeds_low, seeds_high))
    return found


def group_runs(records: Sequence[RunRecord]) -> tuple[list[Group], list[str]]:
    """The trainings that runs belong to, in the order of their first runs, and what is to be known of them."""
    found: dict[Any, list[RunRecord]] = {}
    for record in records:
        fixed = frozenset((name, value) for name, value in record.parameters.items() if name != SEED)
        found.setdefault((record.experiment, record.digest, fixed), []).append(record)
    groups: list[Group] = []
    notes = []
    for members in found.values():
        name = LETTERS[len(groups)] if len(groups) < len(LETTERS) else str(len(groups) + 1)
        latest = {run.seeds: run for run in sorted(members, key=lambda run: run.start_ms)}
        groups.append(Group(name, [latest[seeds] for seeds in sorted(latest)]))
        again = sorted(seeds for seeds, times in Counter(run.seeds for run in members).items() if times > 1)
        if again:
            named = ", ".join(str(latest[seeds].seed) for seeds in again)
            notes.append(f"{name}: several runs of seed {named}, of which the latest counts")
        if len({run.commit for run in latest.values()}) > 1:
            notes.append(f"{name}: its runs were made by different code")
    return groups, notes


def telling(groups: Sequence[Group]) -> dict[str, list[str]]:
    """The parameters that are not the same in all trainings, with the value in each; of one, its dataset and model."""
    parameters = [{**group.runs[0].parameters, "data": group.runs[0].digest[:8]} for group in groups]
    keys = sorted({name for values in parameters for name in values} - {SEED})
    columns = {key: [without_zero(values.get(key, "-")) for values in parameters] for key in keys}
    different = {key: values for key, values in columns.items() if len(set(values)) > 1}
    return different or {key: columns[key] for key in ("dataset", "model.name")}


def without_zero(value: str) -> str:
    """A parameter's value; whole numbers as whole ones, 15 for 15.0, of an ensemble's members each."""
    return JOINED.join(
        part.removesuffix(".0") if WHOLE.fullmatch(part) else part for part in value.split(JOINED)
    )


def describe(group: Group) -> dict[str, Any]:
    """A training over its seeds."""
    shared = [name for name in METRICS if all(name in run.metrics for run in group.runs)]
    return {
        "training": group.name,
        "seeds": [run.seed for run in group.runs],
        "runs": [run.key for run in group.runs],
        "ended_early": [run.ended_early for run in group.runs],
        "cost": [
            {"seed": run.seed, "input_wait": run.input_wait, **(asdict(run.cost) if run.cost else {})}
            for run in group.runs
        ],
        "metrics": {
            name: asdict(spread(values)) | {"values": values}
            for name in shared
            for values in [[run.metrics[name] for run in group.runs]]
        },
    }


def early_ends(documents: Sequence[dict[str, Any]]) -> list[str]:
    """Why runs of each training, of `describe`, ended before their epochs were over, "-" where none did; [] if none."""
    told = []
    for each in documents:
        ends = [(seed, why) for seed, why in zip(each["seeds"], each["ended_early"], strict=True) if why]
        several = len(each["seeds"]) > 1
        told.append("; ".join(f"seed {seed} {why}" if several else why for seed, why in ends) or "-")
    return told if set(told) != {"-"} else []


def compare_pair(
    first: Group, second: Group, tests: Sequence[Predictions | None], others: Sequence[Predictions | None]
) -> dict[str, Any]:
    """How the second training differs from the first on the same test images; why not, if they are not the same.

    `tests` and `others` are what the tests of their runs gave, None where no predictions are kept.
    """
    document: dict[str, Any] = {"first": first.name, "second": second.name}
    one, other = ([each for each in side if each is not None] for side in (tests, others))
    if len(one) < len(tests) or len(other) < len(others):
        return document | {
            "why_not": "of some of their runs no predictions are kept, as of the members of an ensemble, which were "
            "tested together"
        }
    if not all(same_images(one[0], each) for each in (*one, *other)):
        return document | {"why_not": "they were not tested on the same images"}
    labels, groups = one[0].labels, one[0].groups
    found = paired_differences(
        [each.probabilities for each in one], [each.probabilities for each in other], labels, groups
    )
    document |= {
        "num_images": len(labels),
        "metrics": [asdict(each) for each in found],
        "notes": list(group_notes(groups, "images")),
    }
    if len(one) == len(other) == 1:
        right = [each.probabilities.argmax(1) == labels for each in (one[0], other[0])]
        document["mcnemar"] = asdict(mcnemar(*right))
    return document


def same_images(one: Predictions, other: Predictions) -> bool:
    """Whether two tests were of the same images with the same labels, in the same order."""
    return one.ids == other.ids and np.array_equal(one.labels, other.labels)
