"""`./convoy compare`: trainings over their seeds, and against each other."""

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from pipelines.families import FamilyName
from pipelines.options import Json, quiet_stdout
from pipelines.render import emit, table
from tasks.compare import METRICS, mcnemar, paired_differences, spread
from tasks.runrecords import Predictions, RunRecord, named_records, read_predictions, records_on

SEED = "train.seed"
LETTERS = string.ascii_uppercase  # names of trainings; from the 27th on they are numbers


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, by seed."""

    name: str  # a letter
    runs: list[RunRecord]


def compare(
    *runs: str,
    family: FamilyName = "classification",
    dataset: str | None = None,
    as_json: Json = False,
) -> None:
    """Compare tested runs: mean ± sd over the seeds of each training, and how trainings differ on the same images.

    Runs with the same parameters but the seed are one training. Each training is compared with the first.
    Example: ./convoy compare --dataset digits

    Parameters
    ----------
    runs
        Run keys, runs:/ID, models:/NAME@ALIAS or models:/NAME/VERSION.
    family
        With --dataset: what kind of model.
    dataset
        Instead of runs: all finished runs on this dataset.
    """
    if bool(runs) == (dataset is not None):
        raise ValueError("compare needs either runs or --dataset NAME, for example: compare --dataset digits")
    with quiet_stdout(as_json):
        records = records_on(family, dataset) if dataset is not None else named_records(runs)
        groups, notes = group_runs(records)
        documents = [describe(group) for group in groups]
        pairs = [compare_pair(groups[0], group) for group in groups[1:]]
    parameters = telling(groups)
    document = {"parameters": parameters, "trainings": documents, "differences": pairs, "notes": notes}
    emit(document, [*views(parameters, documents, pairs), *(f"note: {note}" for note in notes)], as_json)


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
        latest = {run.seed: run for run in sorted(members, key=lambda run: run.start_ms)}
        groups.append(Group(name, [latest[seed] for seed in sorted(latest)]))
        again = sorted(seed for seed, times in Counter(run.seed for run in members).items() if times > 1)
        if again:
            notes.append(
                f"{name}: several runs of seed {', '.join(map(str, again))}, of which the latest counts"
            )
        if len({run.commit for run in latest.values()}) > 1:
            notes.append(f"{name}: its runs were made by different code")
    return groups, notes


def telling(groups: Sequence[Group]) -> dict[str, list[str]]:
    """The parameters that are not the same in all trainings, with the value in each; of one, its dataset and model."""
    parameters = [{**group.runs[0].parameters, "data": group.runs[0].digest[:8]} for group in groups]
    keys = sorted({name for values in parameters for name in values} - {SEED})
    columns = {key: [values.get(key, "-") for values in parameters] for key in keys}
    different = {key: values for key, values in columns.items() if len(set(values)) > 1}
    return different or {key: columns[key] for key in ("dataset", "model.name")}


def describe(group: Group) -> dict[str, Any]:
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


def compare_pair(first: Group, second: Group) -> dict[str, Any]:
    """How the second training differs from the first on the same test images; why not, if they are not the same."""
    document: dict[str, Any] = {"first": first.name, "second": second.name}
    one, other = ([read_predictions(run) for run in group.runs] for group in (first, second))
    if not all(same_images(one[0], each) for each in (*one, *other)):
        return document | {"why_not": "they were not tested on the same images"}
    labels = one[0].labels
    found = paired_differences(
        [each.probabilities for each in one], [each.probabilities for each in other], labels
    )
    document |= {"num_images": len(labels), "metrics": [asdict(each) for each in found]}
    if len(one) == len(other) == 1:
        right = [each.probabilities.argmax(1) == labels for each in (one[0], other[0])]
        document["mcnemar"] = asdict(mcnemar(*right))
    return document


def same_images(one: Predictions, other: Predictions) -> bool:
    """Whether two tests were of the same images with the same labels, in the same order."""
    return one.ids == other.ids and np.array_equal(one.labels, other.labels)


def views(
    parameters: dict[str, list[str]], documents: list[dict[str, Any]], pairs: list[dict[str, Any]]
) -> list[Table | str]:
    """Trainings and differences as tables."""
    names = [document["training"] for document in documents]
    rows = [(key, *values) for key, values in parameters.items()]
    shown: list[Table | str] = [table("Trainings", ("parameter", *names), rows)]
    for document in documents:
        seeds = document["seeds"]
        columns = ("metric", "mean", "sd", "95% low", "95% high", *(f"seed {seed}" for seed in seeds))
        rows = [
            (name, row["mean"], row["sd"], row["low"], row["high"], *row["values"])
            for name, row in document["metrics"].items()
        ]
        count = f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
        shown.append(table(f"{document['training']}: {count}", columns, rows))
    for pair in pairs:
        shown += difference_views(pair)
    return shown


def difference_views(pair: dict[str, Any]) -> list[Table | str]:
    """One difference as a table, with McNemar's test where there is one."""
    title = f"{pair['second']} minus {pair['first']}"
    if "why_not" in pair:
        return [f"{title}: {pair['why_not']}"]
    columns = ("metric", "difference", "images: low", "high", "seeds: low", "high")
    rows = [tuple(row.values()) for row in pair["metrics"]]
    shown: list[Table | str] = [table(f"{title}, {pair['num_images']:,} test images", columns, rows)]
    if test := pair.get("mcnemar"):
        shown.append(
            f"McNemar: {test['only_first']:,} right only by the first, {test['only_second']:,} only by the second, "
            f"p = {test['p_value']:.3g}"
        )
    return shown
