"""The flow that trains an ensemble: its members side by side, one decode, one test, one registered model.

    ./convoy ensemble classification --dataset digits --members 5

The ensemble and each member have a run key, a folder below `runs/` and an MLflow run; the members' keys are the
ensemble's with their number behind, and their MLflow runs lie below its own. Every member's parameters are written
before anything else, the list of members last, so that what was cut off goes on as it was begun: members that have
been trained are not trained again.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run

from data.dataset import Dataset
from data.files import write_whole
from data.findings import parse_accepted
from pipelines import checks, environment, steps
from pipelines.artifacts import ProgressBar
from pipelines.configuration import AcceptForm, ChangesForm, RecipeForm
from pipelines.course import Course, values_of
from pipelines.engines import start_ray
from pipelines.families import Executor, StopAfter
from pipelines.interruption import interruptible, resume_command, undisturbed
from pipelines.members import plan_members, require_one_input, with_train
from pipelines.parameters import AUTO, flatten
from pipelines.reporting import Reporter, Status, features_of, progress_of
from pipelines.runfolders import BEGUN, begun, run_folder
from pipelines.steps import step
from pipelines.training import (
    HELD,
    Job,
    Phases,
    end_badly,
    exclusive,
    read_job,
    write_job,
)
from tasks import cluster, registry
from tasks.cost import Meter, metered
from tasks.distil import Teacher
from tasks.ensemble import combine
from tasks.lineage import Lineage, params_sha256
from tasks.loop import Progress
from tasks.machine import THEN
from tasks.members import MemberRun, share_of_cpus, train_members
from tasks.paths import JOB_FILE
from tasks.reproduction import JOB_ARTIFACTS
from tasks.result import require_same_beginning
from tasks.runrecords import EARLY_TAG, JOINED, MEMBERS_TAG, PARENT_TAG, recorded_cost
from tasks.train import TrainResult
from tasks.transfer import Weights

FAMILY = "classification"
RECORD = BEGUN["ensemble"]


@dataclass(frozen=True)
class Member:
    """One member's run: what it trains, and where."""

    key: str
    job: Job

    @property
    def folder(self) -> Path:
        return run_folder(self.key)


@flow(name="train-ensemble", flow_run_name="train-ensemble-{dataset}", persist_result=False)
def train_ensemble(
    dataset: str,
    members: int = 0,
    models: tuple[str, ...] = (),
    recipe: Annotated[str, RecipeForm(FAMILY)] = AUTO,
    changes: Annotated[dict[str, Any] | None, ChangesForm(FAMILY)] = None,
    stop_after: StopAfter = "promote",
    resume: str | None = None,
    executor: Executor = "ray",
    accept: Annotated[tuple[str, ...], AcceptForm()] = (),
) -> dict[str, Any]:
    """Train several classifiers in parallel, test them together, and register them as one model.

    Args:
        dataset: name of an ingested dataset (./convoy data list)
        members: how many; 0: one of each of `models`, or five. Their seeds follow each other
        models: networks or recipes that the members take in turn; none: the recipe's network
        recipe: parameters by name; auto: the recipe called like the dataset, else `default`
        changes: parameters of all members that differ from the recipe; an empty field stays as the recipe says
        stop_after: the last step: train, evaluate (no registration), or promote (everything)
        resume: key of an ensemble that was cut off, to go on with it; its own parameters count then
        executor: ray, or in_process to train one member after the other inside the flow's process
        accept: checks of the dataset whose errors are waived (./convoy data check NAME)
    """
    environment.prepare()
    if executor == "ray":
        start_ray()
    key = resume or str(flow_run.id)
    with ExitStack() as held:
        held.enter_context(exclusive(run_folder(key)))
        if resume or (run_folder(key) / RECORD).is_file():
            team = read_team(key)
        else:
            jobs = plan_members(
                FAMILY, dataset, members, models, recipe, changes or {}, parse_accepted(accept)
            )
            team = begin_team(key, with_cpus(jobs, executor))
        write_record(key, team, stop_after)  # an ensemble that goes on may be asked for more
        for member in team:
            held.enter_context(exclusive(member.folder))
        reporter = steps.reporter_here()
        going_on = resume_command("ensemble", key, executor)
        reporter.note(f"ensemble {key}: {len(team)} members; if cut off: {going_on}")
        summary = run_team(key, team, reporter, stop_after, executor)
    steps.publish(summary)
    return summary


def with_cpus(jobs: list[Job], executor: Executor) -> list[Job]:
    """The jobs with their threads written down, which decide the last bits: an even share of the cluster's CPUs."""
    if executor != "ray":
        return jobs
    share = share_of_cpus(len(jobs), cluster.connect().num_cpus)
    return [with_train(job, cpus_per_worker=job.config.train.cpus_per_worker or share) for job in jobs]


def begin_team(key: str, jobs: list[Job]) -> list[Member]:
    """Begin the members' folders; the ensemble's record comes after them."""
    team = [Member(f"{key}-{place}", job) for place, job in enumerate(jobs)]
    for member in team:
        write_job(member.job, member.folder)
    return team


def write_record(key: str, team: list[Member], stop_after: StopAfter) -> None:
    """Keep which runs an ensemble is made of, and where it is to end."""
    values = {"members": [member.key for member in team], "stop_after": stop_after}
    write_whole(run_folder(key) / RECORD, json.dumps(values) + "\n")


def read_team(key: str) -> list[Member]:
    """The members of an ensemble that was begun before; raises ValueError if there is none of that key."""
    keys = begun(run_folder(key), "ensemble")["members"]
    return [Member(each, read_job(run_folder(each))) for each in keys]


def run_team(
    key: str, team: list[Member], reporter: Reporter, stop_after: StopAfter, executor: Executor
) -> dict[str, Any]:
    """The steps in their order, inside the records that MLflow keeps of them; returns the summary."""
    with metered() as meter:
        return metered_team(key, team, reporter, stop_after, executor, meter)


def metered_team(
    key: str, team: list[Member], reporter: Reporter, stop_after: StopAfter, executor: Executor, meter: Meter
) -> dict[str, Any]:
    """The steps, whose cost is kept with the ensemble's record, however they end."""
    folder, job, phase = run_folder(key), team[0].job, Phases()
    model: dict[str, Any] = {"model": "", "version": 0, "alias": "", "champion": None}
    run_ids: list[str] = []  # the ensemble's, then the members'
    rows: list[dict[str, Any]] = []
    spent: dict[str, float] = {}  # by earlier attempts
    try:
        require_one_input([member.job for member in team])
        with phase("prepare"):
            splits = steps.splits_needed(stop_after)
            data = steps.check_dataset(job.family, job.dataset, splits, folder / HELD, reporter)
            findings, verdict = checks.run_checks(data, job.accept, reporter)
            weights = [steps.resolve_weights(member.job.config, data) for member in team]
            teachers = resolve_teachers(team)
            lineage = steps.resolve_lineage(job.config, data, key, str(flow_run.id))
            hashes = [params_sha256(member.job.config)[:12] for member in team]
            lineage = replace(lineage, params_sha256="+".join(hashes), **joined_origins(weights, teachers))
            require_same_beginning(folder, *lineage.beginning)
            for problem in lineage.problems:
                reporter.note(f"note: {problem}")
            for config in {member.job.config.train.batch_size: member.job.config for member in team}.values():
                steps.tell_before_training(job.family, config, data, reporter)
            open_runs(team, data, lineage, weights, teachers, run_ids)
            spent = registry.get_metrics(run_ids[0])
            checks.keep_findings(findings, verdict, folder, run_ids[0])
        with phase("train"):
            results = train_team(
                key, team, data, weights, teachers, lineage.dvc_digest, run_ids, executor, reporter
            )
        with phase("calibrate"):
            join_members([result.model_folder for result in results], folder / "model")
            for member, model_folder, run_id in zip(
                [team[0], *team], [folder / "model", *(r.model_folder for r in results)], run_ids, strict=True
            ):
                steps.calibrate_model(
                    member.job.family, data, member.job.config, model_folder, run_id, reporter
                )
        metrics: dict[str, float] = {}
        if stop_after != "train":
            with phase("evaluate"):
                metrics, rows = test_team(team, data, results, folder, run_ids, reporter)
        if stop_after == "promote":
            with phase("register"):
                model = steps.register_model(job.family, data, folder / "model", run_ids[0], lineage)
                model |= steps.promote_model(model["model"], model["version"], key)
        parts = [(result.train_time_s, result.cpu_s) for result in results]
        registry.log_metrics(run_ids[0], meter.cost_of_many(spent, parts, job.config.train.gpus_per_worker))
        for run_id in run_ids:
            registry.finish_run(run_id, "FINISHED")
    except BaseException as error:
        if run_ids:
            with undisturbed():
                registry.log_progress(run_ids[0], 0, meter.cost(spent, 0.0))
        for run_id in run_ids or [""]:
            end_badly(run_id, error)
        raise
    about = {
        "key": key,
        "family": job.family,
        "dataset": job.dataset,
        "recipe": job.recipe,
        "folder": str(folder),
        "view": "" if stop_after == "train" else job.config.evaluate.registered_view,
    }
    record = {"mlflow_run": run_ids[0], "mlflow_url": registry.run_url(run_ids[0]), "metrics": metrics}
    cost = recorded_cost(run_ids[0])
    assert cost is not None
    costs = {"comparison": rows, "phases_s": phase.seconds, "cost": asdict(cost)}
    return about | model | record | summary_of(team, results) | costs


def summary_of(team: list[Member], results: list[TrainResult]) -> dict[str, Any]:
    """What training adds to the summary: sums over the members, and a row for each."""
    time_s = sum(result.train_time_s for result in results)  # of members that ran beside each other
    images = sum(result.images_per_s * result.train_time_s for result in results)
    any_early = any(result.ended_early for result in results)
    rows = [
        {
            "key": member.key,
            "architecture": member.job.config.model.name,
            "seed": member.job.config.train.seed,
            "cpus": cpus_of(member, result),
            "train_time_s": result.train_time_s,
            "resumed_from_step": result.resumed_from_step,
            **{name: value for name, value in result.metrics.items() if name == "val_accuracy"},
            **({"ended_early": result.ended_early} if any_early else {}),
        }
        for member, result in zip(team, results, strict=True)
    ]
    return {
        "members": rows,
        "num_steps": sum(result.num_steps for result in results),
        "train_time_s": time_s,
        "images_per_s": images / time_s,
    }


def cpus_of(member: Member, result: TrainResult) -> int:
    """The threads of a member: those that it asked for, else as many as the process that trained it had."""
    threads = result.trained_on.get("threads", "0").split(THEN)[-1]  # not in runs of before it was kept
    return member.job.config.train.cpus_per_worker or int(threads)


def resolve_teachers(team: list[Member]) -> list[Teacher | None]:
    """Whom each member learns from: recipes may differ in it. A teacher of several is read once."""
    found: dict[str, Teacher | None] = {}
    for member in team:
        name = member.job.config.distil.teacher
        if name not in found:
            found[name] = steps.resolve_teacher(member.job.config)
    return [found[member.job.config.distil.teacher] for member in team]


def joined_origins(weights: Sequence[Weights | None], teachers: Sequence[Teacher | None]) -> dict[str, Any]:
    """What members begin with and whom they learn from, as fields of a lineage: all, where they differ."""

    def joined(named: Sequence[Weights | Teacher | None], what: str) -> str:
        return " + ".join(dict.fromkeys(getattr(each, what) for each in named if each is not None))

    return {
        "weights_source": joined(weights, "source"), "weights_sha256": joined(weights, "sha256"),
        "teacher_source": joined(teachers, "source"), "teacher_sha256": joined(teachers, "sha256"),
    }  # fmt: skip


@step("open MLflow runs")
def open_runs(
    team: list[Member], data: Dataset, lineage: Lineage, weights: Sequence[Weights | None],
    teachers: Sequence[Teacher | None], run_ids: list[str],
) -> None:  # fmt: skip
    """Open the ensemble's record and the members', or go on with them; their ids go to `run_ids`, its own first."""
    run_ids.clear()
    digest = lineage.dvc_digest
    run_ids.append(
        registry.start_run(
            key=lineage.key,
            experiment=f"convoy/{team[0].job.family}",
            name=f"{data.info.name}-ensemble{len(team)}-{digest[:8] or 'untracked'}",
            tags={**lineage.tags(), MEMBERS_TAG: ", ".join(member.key for member in team)},
            parameters=parameters_of(team),
            dataset=data,
            digest=digest,
        )
    )
    for member, each, teacher in zip(team, weights, teachers, strict=True):
        seed = member.job.config.train.seed
        its = replace(
            lineage, key=member.key, params_sha256=params_sha256(member.job.config), seed=seed,
            **joined_origins([each], [teacher]),
        )  # fmt: skip
        parameters = flatten(member.job.config.model_dump())
        run_ids.append(steps.open_run(member.job.family, member.job.config, data, its, parameters))
        registry.set_tags(run_ids[-1], {PARENT_TAG: run_ids[0]})
        registry.log_folder(run_ids[-1], member.folder / JOB_FILE, JOB_ARTIFACTS)


def parameters_of(team: list[Member]) -> dict[str, Any]:
    """The members' parameters as one list: what differs has each value, in their order."""
    flat = [flatten(member.job.config.model_dump()) for member in team]
    return {
        name: value
        if all(other[name] == value for other in flat)
        else JOINED.join(str(f[name]) for f in flat)
        for name, value in flat[0].items()
    }


@step("train members")
def train_team(
    key: str, team: list[Member], data: Dataset, weights: Sequence[Weights | None],
    teachers: Sequence[Teacher | None], digest: str, run_ids: Sequence[str], executor: Executor, reporter: Reporter,
) -> list[TrainResult]:  # fmt: skip
    """Train the members that are not trained yet, telling console or log, MLflow and the progress bar of it."""
    latest: dict[int, Progress] = {}
    status: Status | None = None
    waiting = [place for place, member in enumerate(team) if not (member.folder / "result.json").is_file()]
    num_waiting = len(waiting)
    courses = {
        place: Course(run_ids[1 + place], again=(team[place].folder / "history.jsonl").is_file())
        for place in waiting
    }
    runs = [
        MemberRun(member.job.config, member.folder, member.key, each, teacher)
        for member, each, teacher in zip(team, weights, teachers, strict=True)
    ]
    bar = ProgressBar(f"training {len(team)} members on {data.info.name}")

    def hear(place: int, progress: Progress) -> None:
        nonlocal status
        courses[place].hear(progress.step, values_of(progress))
        latest[place] = progress
        done, begun = sum(each.step for each in latest.values()), len(latest)
        # those that wait for their turn have not said how many steps they will take: the mean of the others
        total = round(sum(each.num_steps for each in latest.values()) * num_waiting / begun)
        active = [each.images_per_s for each in latest.values() if each.step < each.num_steps]
        values = ", ".join(f"{name} {value:.3f}" for name, value in progress.metrics.items())
        text = f"{begun} of {num_waiting} members begun; member {place}: {values}"
        status = Status("train", done, total, sum(active) or progress.images_per_s, text)
        reporter.show(status)
        bar.show(sum(each.step / each.num_steps for each in latest.values()) / num_waiting)

    def begin(place: int, step: int) -> None:
        courses[place].begin()
        if step:
            reporter.note(f"member {place} goes on after step {step}")

    going_on = resume_command("ensemble", key, executor)
    stopped = "stopped: each member goes on from its last checkpoint"
    with bar, registry.system_metrics(run_ids[0]), interruptible(executor, reporter.note, going_on, stopped):
        results = train_members(
            team[0].job.family, runs, data, digest=digest, executor=executor, on_progress=hear, on_start=begin,
            on_features=features_of(reporter),
        )  # fmt: skip
    if status is not None and any(results[place].ended_early for place in waiting):
        reporter.show(replace(status, ended=True))
    for course in courses.values():
        course.end()
    if executor == "ray":
        steps.tag_cluster(*run_ids)
    for run_id, run, result in zip(run_ids[1:], runs, results, strict=True):
        # a member's loop is that of one process, on Ray too
        steps.log_training(run_id, run.folder, result, "in_process")
    ends = [f"member {i} {result.ended_early}" for i, result in enumerate(results) if result.ended_early]
    if ends:
        registry.set_tags(run_ids[0], {EARLY_TAG: "; ".join(ends)})
    return results


@step("combine")
def join_members(models: Sequence[Path], target: Path) -> None:
    """Write the ensemble as one model, if that is not done."""
    if not (target / "model.json").is_file():
        combine(models, target)


@step("evaluate")
def test_team(
    team: list[Member], data: Dataset, results: Sequence[TrainResult], folder: Path, run_ids: Sequence[str],
    reporter: Reporter,
) -> tuple[dict[str, float], list[dict[str, Any]]]:  # fmt: skip
    """Test the members alone and together, on one decode, by each view: the ensemble's metrics, and the comparison."""
    from tasks.evaluate import evaluate
    from tasks.pareto import table_rows

    report = evaluate(
        [result.model_folder for result in results],
        data,
        split="test",
        config=team[0].job.config.evaluate,
        on_progress=progress_of(reporter, "evaluate"),
        called=[member.key for member in team],
    )
    report.write(folder / "evaluation")
    registry.log_metrics(run_ids[0], {f"test.{name}": value for name, value in report.metrics.items()})
    registry.log_folder(run_ids[0], folder / "evaluation", "evaluation")
    rows = report.comparison.rows()
    for name, run_id in zip(report.comparison.names, run_ids[1:], strict=True):
        accuracies = {row.view: row.accuracy for row in rows if row.model == name}
        values = {f"test.{view}.accuracy": accuracy for view, accuracy in accuracies.items()}
        registry.log_metrics(run_id, {**values, "test.accuracy": accuracies[report.registered_view]})
    return dict(report.metrics), table_rows(rows)
