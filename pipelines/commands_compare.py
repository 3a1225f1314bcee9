"""`./convoy compare`: trainings over their seeds, and against each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from data.counting import counted
from data.files import write_whole
from pipelines.options import Json, quiet_stdout
from pipelines.render import emit, table
from tasks.compare import Group, compare_pair, describe, early_ends, group_runs, telling
from tasks.runrecords import named_records, read_predictions, records_on

COST_COLUMNS = ("training", "run", "seed", "CPU s", "GPU s", "wall s", "waiting for input")


def compare(
    *runs: str,
    dataset: str | None = None,
    html: Path | None = None,
    as_json: Json = False,
) -> None:
    """Compare tested runs: mean ± sd over the seeds of each training, and how trainings differ on the same images.

    Runs with the same parameters but the seed are one training. Each training is compared with the first.
    Example: ./convoy compare --dataset digits

    Parameters
    ----------
    runs
        Run keys, runs:/ID, models:/NAME@ALIAS or models:/NAME/VERSION.
    dataset
        Instead of runs: all finished runs on this dataset, but for the members of ensembles.
    html
        Write a page with all of it, the learning curves and the pictures of the evaluations to this file.
    """
    if bool(runs) == (dataset is not None):
        raise ValueError("compare needs either runs or --dataset NAME, for example: compare --dataset digits")
    with quiet_stdout(as_json):
        records = records_on(dataset) if dataset is not None else named_records(runs)
        groups, notes = group_runs(records)
        documents = [describe(group) for group in groups]
        pairs = compare_with_first(groups)
    parameters = telling(groups)
    if html is not None:
        from tasks.comparepage import compare_page  # only now: matplotlib takes half a second

        write_whole(html, compare_page(groups, parameters, documents, pairs, notes))
    document = {
        "parameters": parameters,
        "trainings": documents,
        "differences": pairs,
        "notes": notes,
        "html": html,
    }
    said = [*(f"note: {note}" for note in notes), *([f"wrote {html}"] if html else [])]
    emit(document, [*views(parameters, documents, pairs), *said], as_json)


def compare_with_first(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """How each training differs from the first; the predictions of a run are fetched once."""
    first, *others = groups
    if not others:
        return []
    one = [read_predictions(run) for run in first.runs]
    return [
        compare_pair(first, group, one, [read_predictions(run) for run in group.runs]) for group in others
    ]


def views(
    parameters: dict[str, list[str]], documents: list[dict[str, Any]], pairs: list[dict[str, Any]]
) -> list[Table | str]:
    """Trainings and differences as tables."""
    names = [document["training"] for document in documents]
    rows = [(key, *values) for key, values in parameters.items()]
    if ends := early_ends(documents):
        rows.append(("ended early", *ends))
    shown: list[Table | str] = [table("Trainings", ("parameter", *names), rows)]
    for document in documents:
        seeds = document["seeds"]
        columns = ("metric", "mean", "sd", "95% low", "95% high", *(f"seed {seed}" for seed in seeds))
        rows = [
            (name, row["mean"], row["sd"], row["low"], row["high"], *row["values"])
            for name, row in document["metrics"].items()
        ]
        shown.append(table(f"{document['training']}: {counted(len(seeds), 'seed')}", columns, rows))
    shown.append(table("What each run cost", COST_COLUMNS, cost_rows(documents)))
    for pair in pairs:
        shown += difference_views(pair)
    return shown


def cost_rows(documents: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """A row a run, which is named: the letters of trainings come from nowhere else."""
    return [
        (
            document["training"], key, each["seed"], *(each.get(name) for name in ("cpu_s", "gpu_s", "wall_s")),
            None if each["input_wait"] is None else f"{each['input_wait']:.1%}",
        )
        for document in documents
        for key, each in zip(document["runs"], document["cost"], strict=True)
    ]  # fmt: skip


def difference_views(pair: dict[str, Any]) -> list[Table | str]:
    """One difference as a table, with McNemar's test where there is one."""
    title = f"{pair['second']} minus {pair['first']}"
    if "why_not" in pair:
        return [f"{title}: {pair['why_not']}"]
    columns = ("metric", "difference", "images: low", "high", "seeds: low", "high")
    rows = [tuple(row.values()) for row in pair["metrics"]]
    shown: list[Table | str] = [table(f"{title}, {pair['num_images']:,} test images", columns, rows)]
    shown += [f"note: {note}" for note in pair["notes"]]
    if test := pair.get("mcnemar"):
        shown.append(
            f"McNemar: {test['only_first']:,} right only by the first, {test['only_second']:,} only by the second, "
            f"p = {test['p_value']:.3g}"
        )
    return shown
