"""Trainings, runs that differ in their seed alone: what their seeds say together, and how they differ."""

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tasks.compare import METRICS, mcnemar, paired_differences, spread
from tasks.runrecords import Predictions, RunRecord, read_predictions

SEED = "train.seed"
LETTERS = string.ascii_uppercase  # names of trainings; from the 27th on they are numbers


@dataclass(frozen=True)
class Training:
    """Runs that differ in their seed alone, by seed."""

    name: str  # a letter
    runs: list[RunRecord]


def group_runs(records: Sequence[RunRecord]) -> tuple[list[Training], list[str]]:
    """The trainings that runs belong to, in the order of their first runs, and what is to be known of them."""
    found: dict[Any, list[RunRecord]] = {}
    for record in records:
        fixed = frozenset((name, value) for name, value in record.parameters.items() if name != SEED)
        found.setdefault((record.experiment, record.digest, fixed), []).append(record)
    groups: list[Training] = []
    notes = []
    for members in found.values():
        name = LETTERS[len(groups)] if len(groups) < len(LETTERS) else str(len(groups) + 1)
        latest = {run.seed: run for run in sorted(members, key=lambda run: run.start_ms)}
        groups.append(Training(name, [latest[seed] for seed in sorted(latest)]))
        again = sorted(seed for seed, times in Counter(run.seed for run in members).items() if times > 1)
        if again:
            notes.append(
                f"{name}: several runs of seed {', '.join(map(str, again))}, of which the latest counts"
            )
        if len({run.commit for run in latest.values()}) > 1:
            notes.append(f"{name}: its runs were made by different code")
    return groups, notes


def telling(groups: Sequence[Training]) -> dict[str, list[str]]:
    """The parameters that are not the same in all trainings, with the value in each; of one, its dataset and model."""
    parameters = [{**group.runs[0].parameters, "data": group.runs[0].digest[:8]} for group in groups]
    keys = sorted({name for values in parameters for name in values} - {SEED})
    columns = {key: [values.get(key, "-") for values in parameters] for key in keys}
    different = {key: values for key, values in columns.items() if len(set(values)) > 1}
    return different or {key: columns[key] for key in ("dataset", "model.name")}


def describe(group: Training) -> dict[str, Any]:
    """A training over its seeds."""
    shared = [name for name in METRICS if all(name in run.metrics for run in group.runs)]
    return {
        "training": group.name,
        "seeds": [run.seed for run in group.runs],
        "runs": [run.key for run in group.runs],
        "metrics": {
            name: asdict(spread(values)) | {"values": values}
            for name in shared
            for values in [[run.metrics[name] for run in group.runs]]
        },
    }


def compare_with_first(groups: Sequence[Training]) -> list[dict[str, Any]]:
    """How each later training differs from the first."""
    if len(groups) < 2:
        return []
    first, *others = groups
    known = [read_predictions(run) for run in first.runs]
    return [
        {"first": first.name, "second": other.name}
        | difference(known, [read_predictions(run) for run in other.runs])
        for other in others
    ]


def difference(one: Sequence[Predictions], other: Sequence[Predictions]) -> dict[str, Any]:
    """How the second training differs from the first on the same test images; why not, if they are not the same."""
    if not all(same_images(one[0], each) for each in (*one, *other)):
        return {"why_not": "they were not tested on the same images"}
    labels = one[0].labels
    found = paired_differences(
        [each.probabilities for each in one], [each.probabilities for each in other], labels
    )
    document: dict[str, Any] = {"num_images": len(labels), "metrics": [asdict(each) for each in found]}
    if len(one) == len(other) == 1:
        right = [each.probabilities.argmax(1) == labels for each in (one[0], other[0])]
        document["mcnemar"] = asdict(mcnemar(*right))
    return document


def same_images(one: Predictions, other: Predictions) -> bool:
    """Whether two tests were of the same images with the same labels, in the same order."""
    return one.ids == other.ids and np.array_equal(one.labels, other.labels)
