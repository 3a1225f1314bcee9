"""`./convoy ensemble`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from data.findings import parse_accepted
from pipelines import server
from pipelines.commands_train import champion_of, collect, course_of, model_of, require_replaceable, whole_of
from pipelines.engines import start_engines
from pipelines.families import Executor, StopAfter
from pipelines.options import Accept, Changes, Json, quiet_stdout
from pipelines.parameters import AUTO, parse_changes
from pipelines.render import emit, pairs, table
from pipelines.runfolders import begun, run_folder
from pipelines.runner import call_flow
from tasks.cost import Cost, told
from tasks.intervals import measured_on, metric_table

Models = Annotated[
    list[str] | None,
    Parameter(
        name="--model",
        metavar="NAME",
        consume_multiple=False,
        negative=(),
        help="A network or a recipe that members take in turn; may be given often.",
    ),
]


def ensemble(
    family: Literal["classification"] | None = None,
    /,
    *,
    dataset: str | None = None,
    members: int = 0,
    models: Models = None,
    recipe: str = AUTO,
    changes: Changes = None,
    resume: str | None = None,
    stop_after: StopAfter | None = None,
    executor: Executor = "ray",
    accept: Accept = None,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Train several models in parallel, test them together, and register them as one.

    Their outputs are averaged, never their weights. Members differ by their seeds, and by their networks if
    --model is given more than once.
    Example: ./convoy ensemble classification --dataset digits --model lenet5 --model resnet8_cifar --members 4

    Parameters
    ----------
    family
        What kind of model.
    dataset
        Name of an ingested dataset; ./convoy data list shows them.
    members
        How many; otherwise one of each --model, or five.
    recipe
        Which recipe of params.yaml; auto: the one called like the dataset, else `default`.
    resume
        Key of an ensemble that was cut off: go on with it, by its own parameters.
    stop_after
        The last step: train, evaluate (test, do not register), or promote (everything); otherwise
        everything, and with --resume what was asked for at first.
    executor
        Where to train: side by side on Ray, or one after the other inside this process, for debugging.
    out
        Folder to copy the model and the test's results to.
    """
    nested, accepted = parse_changes(changes or []), parse_accepted(accept or [])
    if out is not None:
        require_replaceable(out / "model")
    if resume is not None:
        if family or dataset or members or models or recipe != AUTO or nested or accepted:
            raise ValueError(
                "--resume goes on with the parameters of that ensemble: give no family, dataset, members, model, "
                "recipe, --set, --accept"
            )
        values = begun(run_folder(resume), "ensemble")  # first, for a key that is none needs no engines
        stop_after = stop_after or values.get("stop_after")  # not in those of before it was kept
    elif family is None or dataset is None:
        raise ValueError(
            "ensemble needs a family and --dataset NAME, for example: ensemble classification --dataset digits"
        )
    else:
        server.start()
        # Only now, for torch takes seconds that the server can use.
        from pipelines.beforehand import require_beginning
        from pipelines.members import plan_members

        jobs = plan_members(family, dataset, members, models or (), recipe, nested, accepted)
        require_beginning(family, dataset, [job.config for job in jobs], accepted, executor=executor)
    with quiet_stdout(as_json):
        start_engines(executor)
        summary = call_flow(
            "pipelines.ensemble:train_ensemble", dataset or "", members=members, models=tuple(models or ()),
            recipe=recipe, changes=nested or None, stop_after=stop_after or "promote", resume=resume, executor=executor,
            accept=accepted,
        )  # fmt: skip
        if out is not None:
            collect(Path(summary["folder"]), out)
    emit(summary, summary_views(summary, executor), as_json)


def summary_views(summary: dict[str, Any], executor: Executor) -> list[Any]:
    """An ensemble's summary, for a person."""
    from tasks.pareto import shown_rows  # with it comes matplotlib

    ran = "side by side" if executor == "ray" else "one after the other"
    values = {
        "ensemble": summary["key"],
        "model": model_of(summary),
        **champion_of(summary),
        "training": f"{summary['train_time_s']:.1f} s, {summary['num_steps']:,} steps, "
        f"{summary['images_per_s']:,.0f} images/s; summed over members that ran {ran}",
        "cost": told(Cost(**summary["cost"])),
        **course_of(summary),
    }
    together = whole_of(summary)
    members = summary["members"]
    views = [
        pairs(f"Trained on {summary['dataset']}", values),
        table("Members", tuple(members[0]), [tuple(member.values()) for member in members]),
    ]
    if together:
        title = f"Together on {measured_on(summary['dataset'], 'test', summary['view'])}"
        views += [table(*metric_table(title, together)), table(*shown_rows(summary["comparison"]))]
    return views
