"""A model kept fresh: data brought up to date, a challenger trained, judged against the champion, and promoted or not.

    refresh → same data and parameters as the champion's? skipped → checks → train → gate → approval → aliases → told

Each step that is done is written to `runs/<key>/retrain.json`, so that a run which was cut off anywhere goes on from
there (`./convoy retrain --resume KEY`), with one MLflow run, one look at the test split, and one record in the ledger.
The training itself is that of pipelines.training.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from prefect.runtime import flow_run
from prefect.states import Completed

from data.files import write_whole
from pipelines import approval, environment, steps, training
from pipelines.artifacts import publish_artifact
from pipelines.engines import start_ray
from pipelines.families import AskedExecutor, Executor, registered_name
from pipelines.interruption import resume_command
from pipelines.judging import judge, require_paired
from pipelines.notification import notify
from pipelines.parameters import flatten, section
from pipelines.refresh import Refresh, refresh_dataset
from pipelines.reporting import Reporter
from pipelines.training import HELD, Job
from tasks import ledger, registry, retrainings
from tasks.cluster import disconnect
from tasks.gate import GateConfig
from tasks.lineage import Lineage
from tasks.reasons import why_skip, why_train
from tasks.retrainings import Outcome

Approval = Literal["ask", "none", "as_params"]
FILE = "retrain.json"
STATE_NAMES: dict[Outcome, str] = {
    "first": "Promoted", "promoted": "Promoted", "held": "Held", "inconclusive": "Inconclusive",
    "declined": "Declined", "skipped": "Skipped",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What a person asked for beside a training."""

    refresh: Refresh
    approval: Approval
    force: bool  # train even where nothing has changed
    gate: dict[str, Any]  # changes to the section of params.yaml


class Journal:
    """The steps that a run has done, with what came of them, on disk as soon as they are done."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def once(self, name: str, do: Callable[[], Any]) -> Any:
        """What the step gave, now or in an earlier attempt; a value that JSON can hold."""
        if name not in self.done:
            value = do()
            self.done[name] = value
            write_whole(self.file, json.dumps(self.done, indent=2) + "\n")
        return self.done[name]


def run_retrain(
    family: str, dataset: str, recipe: str, changes: dict[str, Any], request: Request, *,
    resume: str | None, executor: AskedExecutor, accept: Sequence[str] = (),
) -> Any:  # fmt: skip
    """A retraining, inside a flow: a completed state whose name is the outcome, with the summary that commands print.

    Raises ValueError, before anything is done, for a family that has no paired comparison or no rules for it.
    """
    environment.prepare()
    require_paired(family)
    key = resume or str(flow_run.id)
    folder = training.run_folder(key)
    with training.exclusive(folder):
        job = (
            training.read_job(folder)
            if resume
            else training.start_job(family, dataset, recipe, changes, accept, folder)
        )
        journal = Journal(folder / FILE)
        if resume and not journal.done:
            raise ValueError(
                f"the run {key} is no retraining: go on with it by ./convoy train --resume {key}"
            )
        job = training.trained_by(job, folder, executor)
        training.write_job(job, folder)
        asked = journal.once("request", lambda: complete(request, family))
        if asked["approval"] == "ask":
            approval.require_somebody()
        reporter = steps.reporter_here()
        going_on = resume_command("retrain", key)
        reporter.note(f"run {key}: {job.dataset} by recipe {job.recipe}; if cut off: {going_on}")
        try:
            summary = retrain(job, key, folder, journal, asked, reporter, job.executor)
        except BaseException as error:
            if not isinstance(error, Exception):
                disconnect()
            raise
    return Completed(name=STATE_NAMES[summary["outcome"]], message=summary["reason"], data=summary)


def complete(request: Request, family: str) -> dict[str, Any]:
    """The request with the whole gate, as JSON holds it; raises ValueError for what is no gate."""
    config = section("gate", GateConfig, {"gate": request.gate})
    config.rules(family)
    asks = config.approval if request.approval == "as_params" else request.approval
    return {**asdict(request), "approval": asks, "gate": config.model_dump(mode="json")}


def retrain(
    job: Job, key: str, folder: Path, journal: Journal, asked: dict[str, Any], reporter: Reporter,
    executor: Executor,
) -> dict[str, Any]:  # fmt: skip
    """The steps in their order; returns the summary."""
    name = registered_name(job.family, job.dataset)
    refreshed = journal.once("refresh", lambda: refresh(job.dataset, asked["refresh"], reporter))
    if asked["refresh"] != "none":
        reporter.note(refreshed)
    found = journal.once("compare", lambda: compare(job, name, key, asked["force"], reporter))
    summary = {
        "key": key, "family": job.family, "dataset": job.dataset, "recipe": job.recipe, "model": name,
        "folder": str(folder), "refreshed": refreshed, "why": found["why"],
    }  # fmt: skip
    if found["skip"]:
        return conclude(
            summary, journal, "skipped", found["skip"], found["champion"], found["run_id"], reporter
        )
    job = replace(job, origin={retrainings.MODEL_TAG: name, retrainings.WHY_TAG: found["why"]})
    if "trained" not in journal.done and executor == "ray":
        start_ray()
    trained = journal.once(
        "trained", lambda: training.run_steps(job, key, folder, reporter, executor, "retrain")
    )
    journal.once("published", lambda: steps.publish(trained))
    summary |= {"trained": trained, "version": trained["version"]}
    run_id = trained["mlflow_run"]
    if trained["alias"] == "champion":
        reason = f"version {trained['version']} is the first of {name}: there was no champion to compare with"
        return conclude(summary, journal, "first", reason, None, run_id, reporter)
    outcome, reason, champion = promote_if_better(
        job, name, trained, key, folder, journal, asked, reporter, executor
    )
    summary["gate"] = journal.done["verdict"]
    return conclude(summary, journal, outcome, reason, champion, run_id, reporter)


@steps.step("refresh data")
def refresh(dataset: str, how: Refresh, reporter: Reporter) -> str:
    """Bring the dataset up to date, and say what that did."""
    return refresh_dataset(dataset, how, reporter)


@steps.step("compare with the champion's data")
def compare(job: Job, name: str, key: str, force: bool, reporter: Reporter) -> dict[str, Any]:
    """Why to train, or why not: `why`, `skip`, the champion, and the record's run where nothing is trained."""
    data = steps.check_dataset.fn(job.family, job.dataset, steps.splits_needed("promote"))
    lineage: Lineage = steps.resolve_lineage.fn(job.config, data, key, str(flow_run.id))
    version = ledger.aliases(name).get("champion")
    champion = None if version is None else retrainings.champion_of(name, version)
    skip = why_skip(name, job.family, champion, lineage)
    if skip and not force:
        assert version is not None
        run_id = retrainings.record_skip(job.family, name, job.dataset, lineage, skip, version)
        return {"skip": skip, "why": "", "champion": version, "run_id": run_id}
    parameters = {name: str(value) for name, value in flatten(job.config.model_dump()).items()}
    why = (
        f"it was asked for, although {skip}"
        if skip
        else why_train(name, champion, lineage, job.dataset, parameters)
    )
    reporter.note(f"retrains because {why}")
    return {"skip": "", "why": why, "champion": version, "run_id": ""}


def promote_if_better(
    job: Job, name: str, trained: dict[str, Any], key: str, folder: Path, journal: Journal, asked: dict[str, Any],
    reporter: Reporter, executor: Executor,
) -> tuple[Outcome, str, int]:  # fmt: skip
    """The gate, the approval, and the move of the aliases: outcome, reason, and the champion that it was against."""
    config = GateConfig.parse(asked["gate"], "gate")
    champion = journal.once("champion", lambda: ledger.aliases(name)["champion"])
    data = steps.check_dataset(job.family, job.dataset, ("test",), folder / HELD, reporter)
    verdict = journal.once(
        "verdict",
        lambda: judge(
            job.family, name, (champion, trained["version"]), data, job.config.evaluate, config,
            trained["mlflow_run"], folder, reporter,
        ),
    )  # fmt: skip
    reason, page = verdict["reasons"][0], folder / "gate" / "gate.md"
    evidence = page.read_text() if page.is_file() else reason
    described = f"gate of {name}: {verdict['decision']}"
    journal.once("shown", lambda: publish_artifact("markdown", evidence, described, f"gate-{name}"))
    if verdict["decision"] != "promote":
        return "held" if verdict["decision"] == "hold" else "inconclusive", reason, champion
    because, who = reason, ledger.me()
    if asked["approval"] == "ask":
        if executor == "ray":
            disconnect()  # the process may end here, and be started again with the answer
        timeout_s = 3600 * config.approval_timeout_h
        answer = journal.once("approval", lambda: asdict(approval.ask(evidence, timeout_s)))
        if not answer["approved"]:
            return (
                "declined",
                f"the gate would promote it, and {answer['who']} did not: {answer['because']}",
                champion,
            )
        because, who = f"{reason}; approved: {answer['because']}", answer["who"]
    rests_on = {
        "run": trained["mlflow_run"], "key": key, "page": "gate/gate.html", "decision": verdict["decision"],
        "retrained because": journal.done["compare"]["why"],
    }  # fmt: skip
    try:
        ledger.promote(
            name, trained["version"], because=because, expected=champion, who=who, evidence=rests_on, key=key
        )
    except ledger.Overtaken as error:
        return "held", str(error), champion
    return "promoted", because, champion


def conclude(
    summary: dict[str, Any], journal: Journal, outcome: Outcome, reason: str, champion: int | None, run_id: str,
    reporter: Reporter,
) -> dict[str, Any]:  # fmt: skip
    """Keep the outcome with the run's record, tell of it once, and complete the summary."""
    name, version = summary["model"], summary.get("version", 0)
    retrainings.record_outcome(run_id, name, outcome, reason, summary["why"], champion)
    payload = {
        "outcome": outcome,
        "reason": reason,
        "version": version,
        "champion": champion,
        "run": summary["key"],
    }

    def tell() -> bool:
        what = f"version {version} of {name}" if version else name
        text = f"{what}: {outcome}: {reason}"
        reporter.note(text)
        notify(f"convoy.retrain.{outcome}", name, summary["family"], text, payload, reporter)
        return True

    journal.once("told", tell)
    record = {"mlflow_run": run_id, "mlflow_url": registry.run_url(run_id), "version": version}
    return {**summary, **record, "outcome": outcome, "reason": reason, "champion": champion}
