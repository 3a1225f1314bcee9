"""`./convoy search`: better parameters by many trials."""

import json
import shlex
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from data.findings import parse_accepted
from pipelines.commands_train import summary_views
from pipelines.engines import start_engines
from pipelines.families import PIPELINES, FamilyName, SearchStop
from pipelines.options import Accept, Changes, Json, quiet_stdout
from pipelines.parameters import AUTO, parse_changes
from pipelines.render import emit, pairs, table
from pipelines.runfolders import begun, run_folder
from pipelines.runner import call_flow
from tasks.cost import Cost, told
from tasks.space import SearchMetric

MAX_LISTED = 10  # trials
Spaces = Annotated[
    list[str] | None,
    Parameter(
        name="--space",
        metavar="KEY=RANGE",
        consume_multiple=False,
        negative=(),
        help="What is searched, as KEY=LOW..HIGH, KEY=log:LOW..HIGH or KEY=A,B; may be given often.",
    ),
]


def search(
    family: FamilyName | None = None,
    /,
    *,
    dataset: str | None = None,
    space: Spaces = None,
    recipe: str = AUTO,
    changes: Changes = None,
    trials: int | None = None,
    metric: SearchMetric | None = None,
    reduction: int | None = None,
    seed: int | None = None,
    max_concurrent: int | None = None,
    time_budget_s: float | None = None,
    resume: str | None = None,
    stop_after: SearchStop | None = None,
    accept: Accept = None,
    as_json: Json = False,
) -> None:
    """Search the parameters of a training on Ray, stop bad trials early, and train, test and register the best.

    Trials are judged by the validation split; the test split is seen once, by the winner. The recipe's own values are
    the first trial, where the space holds them. What is not given is as params.yaml has it, section search.
    Example: ./convoy search classification --dataset digits --space optim.lr=log:1e-4..1e-1 --trials 20

    Parameters
    ----------
    family
        What kind of model.
    dataset
        Name of an ingested dataset; ./convoy data list shows them.
    recipe
        Which recipe of params.yaml, for all that is not searched; auto: the one called like the dataset, else
        `default`.
    trials
        Sets of values to try, those that are stopped early included.
    metric
        What a better trial is: higher val_accuracy (of detectors val_ap) or lower val_loss.
    reduction
        After 1, so many, so many squared validations, the best in so many trials goes on.
    seed
        Decides what is suggested.
    max_concurrent
        Trials at a time; 0: as many as the cluster holds.
    time_budget_s
        Seconds after which no trial goes on; 0: none.
    resume
        Key of a search that was cut off: go on with it, by its own parameters; trials that have ended stay.
    stop_after
        The last step: search, train (the best), evaluate (test, do not register), or promote (everything); otherwise
        everything, and with --resume what was asked for at first.
    """
    nested = parse_changes(changes or [])
    accepted = parse_accepted(accept or [])
    asked = {
        "trials": trials, "metric": metric, "reduction": reduction, "seed": seed,
        "max_concurrent": max_concurrent, "time_budget_s": time_budget_s,
    }  # fmt: skip
    how = {name: value for name, value in asked.items() if value is not None}
    if resume is not None:
        if family or dataset or space or recipe != AUTO or nested or accepted or how:
            raise ValueError(
                "--resume goes on with the parameters of that search: give nothing else that decides it"
            )
        begun(run_folder(resume), "search")  # first, for a key that is none needs no engines
    start_engines("ray")
    # Only now, for torch takes seconds that the engines can use.
    from pipelines.beforehand import require_beginning
    from pipelines.search import job_of, read_job

    if resume is not None:
        job = read_job(run_folder(resume))
    elif family is None or dataset is None:
        raise ValueError(
            "search needs a family and --dataset NAME, for example: search classification --dataset digits "
            "--space optim.lr=log:1e-4..1e-1"
        )
    else:
        job = job_of(family, dataset, space or [], recipe, nested, how, accepted, stop_after or "promote")
        require_beginning(family, dataset, [job.config], accepted)
    with quiet_stdout(as_json):
        summary = call_flow(
            PIPELINES[job.family].search, job.dataset, tuple(space or ()), recipe, nested or None, how or None,
            stop_after=stop_after or job.stop_after, resume=resume, accept=accepted,
        )  # fmt: skip
    emit(summary, views(summary), as_json)


def views(summary: dict[str, Any]) -> list[Any]:
    """A search's summary, for a person: the trials, and what became of the winner."""
    shown = [trials_table(summary), pairs("", about(summary))]
    if "winner" in summary:
        winner = summary["winner"] | {"to_first_step_s": None}  # of no interest after a search
        shown += summary_views(winner)
    return shown


def trials_table(summary: dict[str, Any]) -> Table:
    """The best trials, by how they ended and by value."""
    sign = 1.0 if summary["metric"] == "val_loss" else -1.0
    order = ["finished", "stopped early", "failed"]

    def rank(row: dict[str, Any]) -> tuple[int, float]:
        return order.index(row["state"]), float("inf") if row["value"] is None else sign * row["value"]

    rows = sorted(summary["trials"], key=rank)
    keys = list(summary["best"]["changes"])
    lines = [
        (
            row["trial"], row["state"], row["value"], round(row["epochs"], 1), round(row["time_s"], 1),
            *(row["changes"][key] for key in keys),
        )
        for row in rows[:MAX_LISTED]
    ]  # fmt: skip
    more = f", the best {MAX_LISTED} of {len(rows)}" if len(rows) > MAX_LISTED else ""
    columns = ("trial", "state", summary["metric"], "epochs", "s", *keys)
    return table(f"Trials on {summary['dataset']}{more}", columns, lines)


def about(summary: dict[str, Any]) -> dict[str, Any]:
    """What came of it, and where it lies."""
    best, rows = summary["best"], summary["trials"]
    counts = {state: sum(row["state"] == state for row in rows) for state in ("stopped early", "failed")}
    others = "".join(f", {count} {state}" for state, count in counts.items() if count)
    values = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in best["changes"].items()
    }
    chosen = " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in values.items())
    return {
        "trials": f"{len(rows)} in {summary['spent_s']:.0f} s{others}",
        "best": f"trial {best['trial']}: {summary['metric']} {best['value']:.4g} "
        f"on {summary['num_validation']:,} validation samples",
        "as parameters": chosen,
        "figures": f"{summary['folder']}/history.png, slices.png",
        "cost": told(Cost(**summary["cost"])),
        "key": summary["key"],
        "the search": summary["mlflow_url"],
    }
