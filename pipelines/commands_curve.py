"""`./convoy learning-curve`: which mode of transfer learning wins at 1, 5, 20, 100 pictures a class."""

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.table import Table

from data.findings import parse_accepted
from pipelines.engines import start_engines
from pipelines.families import Executor
from pipelines.options import Accept, Changes, Json, quiet_stdout
from pipelines.parameters import AUTO, merge, parse_changes
from pipelines.render import emit, pairs, table
from pipelines.runfolders import begun, run_folder
from pipelines.runner import call_flow
from tasks.curveplan import SPLITS, WAIVED, Mode

FLOW = "pipelines.curve:learning_curve"
FILES = ("cells.csv", "curve.json", "curve.png")


def learning_curve(
    family: Literal["classification"] | None = None,
    /,
    *,
    dataset: str | None = None,
    recipe: str = AUTO,
    weights: str | None = None,
    shots: Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())] = None,
    modes: Annotated[list[Mode] | None, Parameter(consume_multiple=True, negative=())] = None,
    seeds: int | None = None,
    steps: int | None = None,
    stages: int | None = None,
    changes: Changes = None,
    resume: str | None = None,
    executor: Executor = "ray",
    accept: Accept = None,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Train each mode of transfer learning on few and on many pictures a class, and compare them on validation.

    Every run takes the same number of steps. What is not given is as params.yaml has it, section learning_curve.
    Example: ./convoy learning-curve classification --dataset ants --recipe finetune --shots 1 5 20 100

    Parameters
    ----------
    family
        What kind of model.
    dataset
        Name of an ingested dataset; ./convoy data list shows them.
    recipe
        Which recipe of params.yaml; auto: the one called like the dataset, else `default`.
    weights
        What training begins with, as transfer.weights: a file, URL, package or trained model; else the recipe's.
    shots
        Training pictures a class.
    modes
        What is trained: head (on cached features), stages (the head and some before it), all, scratch (from chance).
    seeds
        Runs of each mode at each number of pictures: other pictures, initial weights, order.
    steps
        Optimizer steps of every run; 0: as many as the recipe takes on the whole train split.
    stages
        How many stages before the head the mode stages trains.
    resume
        Key of a curve that was cut off: go on with it, by its own parameters; runs that are done stay.
    executor
        Where to train: on Ray, or inside this process, for debugging.
    out
        Folder to copy cells.csv, curve.json and curve.png to.
    """
    asked = {"shots": shots, "modes": modes, "num_seeds": seeds, "num_steps": steps, "num_stages": stages}
    curve = {name: value for name, value in asked.items() if value is not None}
    nested, accepted = parse_changes(changes or []), parse_accepted(accept or [])
    if weights is not None:
        nested = merge(nested, {"transfer": {"weights": weights}})
    if resume is not None and (family or dataset or recipe != AUTO or nested or accepted or curve):
        raise ValueError(
            "--resume goes on with the parameters of that curve: give nothing else that decides it"
        )
    if resume is not None:
        begun(run_folder(resume), "learning curve")  # first, for a key that is none needs no engines
    start_engines(executor)
    if resume is None:
        require_curve(family, dataset, recipe, nested, curve, accepted, executor)
    with quiet_stdout(as_json):
        summary = call_flow(
            FLOW, dataset or "", recipe, nested or None, curve or None, resume=resume, executor=executor,
            accept=accepted,
        )  # fmt: skip
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                shutil.copy2(Path(summary["folder"]) / name, out / name)
    emit(summary, [points_table(summary), pairs("", about(summary))], as_json)


def require_curve(
    family: str | None,
    dataset: str | None,
    recipe: str,
    changes: dict[str, Any],
    curve: dict[str, Any],
    accepted: tuple[str, ...],
    executor: Executor,
) -> None:
    """Raise ValueError for what the flow would refuse too, but only when engines have started."""
    if family is None or dataset is None:
        raise ValueError(
            "learning-curve needs a family and --dataset NAME, for example: learning-curve classification "
            "--dataset ants --recipe finetune"
        )
    # Only now, for torch takes seconds that the engines can use.
    from pipelines.beforehand import require_beginning
    from pipelines.curve import job_of

    job = job_of(dataset, recipe, changes, curve, accepted)
    alone = job.config.train.model_copy(update={"num_workers": 1, "min_workers": 0})  # as each of its runs is
    config = job.config.model_copy(update={"train": alone})
    require_beginning(family, dataset, [config], accepted, SPLITS, WAIVED, executor)


def points_table(summary: dict[str, Any]) -> Table:
    """A line a number of pictures, a column a mode: mean ± standard deviation of the seeds, in percent."""
    points = summary["points"]
    modes = list(dict.fromkeys(point["mode"] for point in points))
    at: dict[int, dict[str, dict[str, Any]]] = {}
    for point in points:
        at.setdefault(point["shots"], {})[point["mode"]] = point
    lines = []
    for shots, own in at.items():
        best = [mode for mode in modes if own[mode]["best"]]
        num_images = next(iter(own.values()))["num_images"]
        lines.append([shots, num_images, *(cell(own[mode]) for mode in modes), *best])
    title = f"{summary['dataset']}, {summary['architecture']}: accuracy on validation, %"
    return table(title, ("a class", "pictures", *modes, "best"), lines)


def cell(point: dict[str, Any]) -> str:
    spread = "" if point["deviation"] is None else f" ± {100 * point['deviation']:.1f}"
    return f"{100 * point['accuracy']:.1f}{spread}"


def about(summary: dict[str, Any]) -> dict[str, Any]:
    """What was measured, and where it lies."""
    first = summary["points"][0]
    seeds = "one seed" if first["num_seeds"] == 1 else f"{first['num_seeds']} seeds"
    return {
        "validation": f"{summary['num_validation']:,} pictures, {seeds}",
        "each run": f"{summary['num_steps']:,} steps of up to {summary['batch_size']} pictures",
        "weights": summary["weights"],
        **({"note": "; ".join(summary["notes"])} if summary["notes"] else {}),
        "figure": f"{summary['folder']}/curve.png",
        "key": summary["key"],
        "look at it": summary["mlflow_url"],
    }
