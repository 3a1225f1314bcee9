"""`./convoy retrain`: train again when there is reason to, and promote by the gate."""

import sys
from typing import Annotated, Any

from cyclopts import Parameter

from data.findings import parse_accepted
from pipelines import server
from pipelines.commands_train import early_end_of
from pipelines.families import PIPELINES, Executor, FamilyName
from pipelines.options import Accept, Changes, Json, quiet_stdout, require_nothing_beside_resume
from pipelines.parameters import AUTO, choose_recipe, parse_changes
from pipelines.refresh import Refresh
from pipelines.render import emit, pairs, table
from pipelines.runfolders import begun, run_folder
from tasks.gate import numbers

NOBODY = "nobody was there to ask"


def retrain(
    family: FamilyName | None = None,
    /,
    *,
    dataset: str | None = None,
    recipe: str = AUTO,
    changes: Changes = None,
    refresh: Refresh = "none",
    approve: Annotated[bool, Parameter(negative=())] = False,
    force: Annotated[bool, Parameter(negative=())] = False,
    resume: str | None = None,
    executor: Executor | None = None,
    accept: Accept = None,
    as_json: Json = False,
) -> None:
    """Bring the data up to date, train on it, and promote the new model if the gate finds it better.

    Example: ./convoy retrain classification --dataset products --refresh source
    Nothing is trained where the champion has the same data and parameters. The gate's own parameters are changed by
    --set gate.alpha=0.01 and its like; see docs/retraining.md.

    Parameters
    ----------
    family
        What kind of model.
    dataset
        Name of an ingested dataset; ./convoy data list shows them.
    recipe
        Which recipe of params.yaml; auto: the one called like the dataset, else `default`.
    refresh
        The data: none, as it lies there; dvc, from DVC's remote; source, from where it was added from.
    approve
        Approve beforehand: nobody is asked before the champion changes.
    force
        Train even where the data and the parameters are those of the champion.
    resume
        Key of a run that was cut off: go on with it, by its own parameters.
    executor
        Where to train: ray, or in_process, inside this process, for debugging; otherwise on Ray, and with
        --resume as it was begun.
    """
    nested = parse_changes(changes or [])
    gate = nested.pop("gate", {})
    accepted = parse_accepted(accept or [])
    if resume is not None:
        require_nothing_beside_resume(family, dataset, recipe != AUTO, nested, gate, accepted)
        begun(run_folder(resume), "run")  # first, for a key that is none needs no engines
    elif family is None or dataset is None:
        raise ValueError(
            "retrain needs a family and --dataset NAME, for example: retrain classification --dataset digits"
        )
    else:
        choose_recipe(family, dataset, recipe)
    with quiet_stdout(as_json):
        options = {"recipe": recipe, "changes": nested or None, "refresh": refresh, "force": force,
                   "gate": gate or None, "resume": resume, "executor": executor or "auto",
                   "accept": accepted}  # fmt: skip
        summary = run(family, dataset, approve, options)
    emit(summary, views(summary), as_json)


def run(family: str | None, dataset: str | None, approve: bool, options: dict[str, Any]) -> dict[str, Any]:
    """The summary of the family's flow, run in this process."""
    server.start()
    # Only now, for these imports take seconds that the server can use.
    from pipelines.approval import set_asker
    from pipelines.beforehand import require_engines
    from pipelines.configuration import configuration
    from pipelines.judging import require_paired
    from pipelines.runner import call_flow
    from pipelines.training import read_job

    if options["resume"] is not None:
        job = read_job(run_folder(options["resume"]))
        family, dataset = job.family, job.dataset
    assert family is not None and dataset is not None
    if options["resume"] is None:
        config = configuration(family, dataset, options["recipe"], options["changes"] or {})
        require_engines([config], "in_process" if options["executor"] == "in_process" else "ray")
    require_paired(family)
    set_asker(lambda evidence: answer(evidence, approve))
    summary: dict[str, Any] = call_flow(PIPELINES[family].retrain, dataset, **options)
    return summary


def answer(evidence: str, approve: bool) -> Any:
    """What the person at the command line says of the evidence."""
    from pipelines.approval import Answer
    from tasks.ledger import me

    if approve:
        return Answer(True, me(), "beforehand, by --approve")
    if not sys.stdin.isatty():
        return Answer(False, NOBODY, "give --approve, or promote it by hand: ./convoy promote MODEL VERSION")
    sys.stderr.write(f"\n{evidence}\nLet the challenger take the champion's place? [y/N] ")
    sys.stderr.flush()
    said = sys.stdin.readline().strip().lower()
    if said not in ("y", "yes"):
        return Answer(False, me(), f"answered {said or 'nothing'} on the command line")
    sys.stderr.write("Why? ")
    sys.stderr.flush()
    return Answer(True, me(), sys.stdin.readline().strip() or "answered yes on the command line")


def views(summary: dict[str, Any]) -> list[Any]:
    """A retraining for a person: what came of it and why, and the gate's table."""
    gate = summary.get("gate") or {}
    trained = summary.get("trained")
    values = {
        "outcome": summary["outcome"],
        "because": summary["reason"],
        **({"retrained because": summary["why"]} if summary["why"] else {}),
        "data": summary["refreshed"],
        "champion": f"models:/{summary['model']}/{summary['champion']}" if summary["champion"] else None,
        "challenger": f"models:/{summary['model']}/{summary['version']}" if summary["version"] else None,
        "run": summary["key"],
        **({"evidence": f"{summary['folder']}/gate/gate.html"} if gate.get("metrics") else {}),
        **({"training": f"{trained['train_time_s']:.1f} s, {trained['num_steps']:,} steps"} if trained else {}),
        **(early_end_of(trained) if trained else {}),
        "look at it": summary["mlflow_url"],
    }  # fmt: skip
    shown: list[Any] = [pairs(f"Retraining of {summary['model']}", values)]
    if gate.get("metrics"):
        columns = ("metric", "champion", "challenger", "gain", "from", "to", "p", "detectable", "test")
        rows = [
            [
                test["name"], test["champion"], test["challenger"], test["gain"], test["low"], test["high"],
                test["p_value"], numbers(test["detectable"]), test["test"],
            ]
            for test in gate["metrics"]
        ]  # fmt: skip
        shown.append(table("The gate", columns, rows))
    shown += [f"- {reason}" for reason in gate.get("reasons", [])[1:]]
    return shown
