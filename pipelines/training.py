"""One training job from parameters to a registered model: what the training flow of every family does.

The run key names everything: the Prefect flow run, the folder below `runs/`, the Ray Train run and the MLflow run.
The parameters of a run are written to its folder before anything else and read from there ever after, so that a
run which is tried again or resumed is the same run, whatever has become of params.yaml.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from data.files import locked, write_whole
from data.findings import parse_accepted
from pipelines import checks, environment, steps
from pipelines.configuration import configuration
from pipelines.engines import start_ray
from pipelines.families import AskedExecutor, Executor, StopAfter
from pipelines.interruption import resume_command, undisturbed
from pipelines.parameters import choose_recipe, flatten
from pipelines.reporting import Reporter
from pipelines.runfolders import begun, run_folder
from tasks import registry
from tasks.cluster import disconnect
from tasks.cost import Meter, metered
from tasks.families import FAMILIES
from tasks.paths import JOB_FILE
from tasks.reproduction import JOB_ARTIFACTS
from tasks.result import require_same_beginning
from tasks.train import TrainResult, require_same_executor

TRAINED_BEFORE = {"min_workers": 0}  # what runs did of before these parameters were there
HELD = "data"  # in a run's folder: links to the dataset's files, while they are read


@dataclass(frozen=True)
class Job:
    """What a person asked for, complete."""

    family: str
    dataset: str
    recipe: str
    config: Any
    accept: tuple[str, ...] = ()  # checks of the dataset whose errors are waived
    origin: dict[str, str] = field(default_factory=dict)  # tags that say what chose the parameters
    stop_after: StopAfter = "promote"
    executor: Executor = "ray"  # where it is trained, at its last attempt


def start_job(
    family: str, dataset: str, recipe: str, changes: dict[str, Any], accept: Sequence[str], folder: Path
) -> Job:
    """The job of a run's folder; at the first attempt, made from the parameters."""
    if (folder / JOB_FILE).is_file():
        return read_job(folder)
    config = configuration(family, dataset, recipe, changes)
    return Job(family, dataset, choose_recipe(family, dataset, recipe), config, parse_accepted(accept))


def write_job(job: Job, folder: Path) -> None:
    """Put the parameters of a run into its folder, before anything else."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "family": job.family,
        "dataset": job.dataset,
        "recipe": job.recipe,
        "accept": job.accept,
        "origin": job.origin,
        "stop_after": job.stop_after,
        "executor": job.executor,
        "config": job.config.model_dump(mode="json"),
    }
    write_whole(folder / JOB_FILE, json.dumps(values, indent=2) + "\n")


def read_job(folder: Path) -> Job:
    """The job of a run that was started before; raises ValueError if there is none in `folder`."""
    file = folder / JOB_FILE
    values = begun(folder, "run")
    return Job(
        values["family"],
        values["dataset"],
        values["recipe"],
        begun_config(values["family"], values["config"], file),
        tuple(values["accept"]),
        values["origin"],
        values.get("stop_after", "promote"),  # these two are not in runs of before they were kept
        values.get("executor", "ray"),
    )


def trained_by(job: Job, folder: Path, asked: AskedExecutor) -> Job:
    """The job with the executor that trains it, in `folder`, from here on.

    Raises ValueError, before anything is written, where another one has left checkpoints there.
    """
    executor: Executor = job.executor if asked == "auto" else asked
    require_same_executor(folder, executor)
    return replace(job, executor=executor)


def begun_config(family: str, values: dict[str, Any], file: Path) -> Any:
    """The parameters of a run as `file` keeps them; raises ValueError where they are not those of this code."""
    try:
        return FAMILIES[family].config.parse(
            {**values, "train": {**TRAINED_BEFORE, **values["train"]}}, str(file)
        )
    except ValueError as error:
        raise ValueError(
            f"{error}; another version of the code began this: go on with it by that version, or start it anew"
        ) from None


@contextmanager
def exclusive(folder: Path, doing: str = "trained") -> Iterator[None]:
    """Hold a run's folder, and let go of its dataset at the end; raises ValueError while another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)

    def refuse(who: str) -> None:
        raise ValueError(
            f"run {folder.name} is being {doing} by {who}; wait for it, stop it, or start a run of its own"
        ) from None

    with locked(folder / "lock", refuse):
        try:
            yield
        finally:
            shutil.rmtree(folder / HELD, ignore_errors=True)


class Phases:
    """Wall-clock seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - started


def run_job(
    family: str,
    dataset: str,
    recipe: str,
    changes: dict[str, Any],
    *,
    stop_after: StopAfter,
    resume: str | None,
    executor: AskedExecutor,
    accept: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything from the dataset to the registry; returns the summary that commands print.

    Runs inside a flow. Stopped from outside, it keeps a checkpoint, marks the MLflow run KILLED and leaves no process
    of Ray behind.
    """
    environment.prepare()
    key = resume or str(flow_run.id)
    folder = run_folder(key)
    with exclusive(folder):
        job = read_job(folder) if resume else start_job(family, dataset, recipe, changes, accept, folder)
        job = trained_by(job, folder, executor)
        if job.executor == "ray":
            start_ray()
        job = replace(job, stop_after=stop_after)  # a run that goes on may be asked for more
        write_job(job, folder)
        reporter = steps.reporter_here()
        going_on = resume_command("train", key)
        reporter.note(f"run {key}: {job.dataset} by recipe {job.recipe}; if cut off: {going_on}")
        summary = run_steps(job, key, folder, reporter, job.executor)
    steps.publish(summary)
    return summary


def run_steps(
    job: Job, key: str, folder: Path, reporter: Reporter, executor: Executor, command: str = "train"
) -> dict[str, Any]:
    """The steps in their order, inside the record that MLflow keeps of them; returns the summary.

    `command` is what a person types to go on with the run, where it is cut off.
    """
    with metered() as meter:
        return metered_steps(job, key, folder, reporter, executor, command, meter)


def metered_steps(
    job: Job, key: str, folder: Path, reporter: Reporter, executor: Executor, command: str, meter: Meter
) -> dict[str, Any]:
    """The steps, whose cost is kept with the record, however they end."""
    phase = Phases()
    model: dict[str, Any] = {"model": "", "version": 0, "alias": "", "champion": None}
    run_id = ""
    spent: dict[str, float] = {}  # by earlier attempts
    try:
        with phase("prepare"):
            splits = steps.splits_needed(job.stop_after)
            data = steps.check_dataset(job.family, job.dataset, splits, folder / HELD, reporter)
            findings, verdict = checks.run_checks(data, job.accept, reporter)
            weights = steps.resolve_weights(job.config, data)
            teacher = steps.resolve_teacher(job.config)
            lineage = steps.resolve_lineage(job.config, data, key, str(flow_run.id), weights, teacher)
            require_same_beginning(folder, *lineage.beginning)
            for problem in lineage.problems:
                reporter.note(f"note: {problem}")
            steps.tell_before_training(job.family, job.config, data, reporter)
            run_id = steps.open_run(job.family, job.config, data, lineage, flatten(job.config.model_dump()))
            spent = registry.get_metrics(run_id)
            registry.set_tags(run_id, job.origin)
            registry.log_folder(run_id, folder / JOB_FILE, JOB_ARTIFACTS)
            checks.keep_findings(findings, verdict, folder, run_id)
            page = checks.CheckPage(data, findings, verdict, folder, run_id)
        with phase("train"):
            result, first_step_at = steps.train_model(
                job.family, job.config, data, folder, key, lineage.dvc_digest, run_id, executor, reporter,
                page.leave, weights, teacher, command,
            )  # fmt: skip
            page.leave(reporter)  # of a resumed run that had been trained
        with phase("calibrate"):
            steps.calibrate_model(job.family, data, job.config, result.model_folder, run_id, reporter)
        metrics = dict(result.metrics)
        if job.stop_after != "train":
            with phase("evaluate"):
                metrics = steps.evaluate_model(
                    job.family, job.config, data, result.model_folder, folder, run_id, reporter
                )
        if job.stop_after == "promote":
            with phase("register"):
                model = steps.register_model(job.family, data, result.model_folder, run_id, lineage)
                model |= steps.promote_model(model["model"], model["version"], key)
        keep_cost(run_id, job, meter, spent, phase)
        registry.finish_run(run_id, "FINISHED")
    except BaseException as error:
        if run_id:
            with undisturbed():
                keep_cost(run_id, job, meter, spent, phase)
        end_badly(run_id, error)
        raise
    about = {"key": key, "family": job.family, "dataset": job.dataset, "recipe": job.recipe}
    record = {"mlflow_run": run_id, "mlflow_url": registry.run_url(run_id), "metrics": metrics}
    seconds = {"first_step_at": first_step_at, "phases_s": phase.seconds}
    return about | model | record | summary_of(job, folder, result) | seconds


def keep_cost(run_id: str, job: Job, meter: Meter, spent: dict[str, float], phase: Phases) -> None:
    """Keep what a run has cost so far with its record; a server that is away stops nothing."""
    settings = job.config.train
    gpu_s = settings.num_workers * settings.gpus_per_worker * phase.seconds.get("train", 0.0)
    registry.log_progress(run_id, 0, meter.cost(spent, gpu_s))


def summary_of(job: Job, folder: Path, result: TrainResult) -> dict[str, Any]:
    """What the training itself adds to the summary."""
    return {
        "architecture": job.config.model.name,
        "folder": str(folder),
        "view": "" if job.stop_after == "train" else job.config.evaluate.registered_view,  # of the test
        "num_steps": result.num_steps,
        "resumed_from_step": result.resumed_from_step,
        "train_time_s": result.train_time_s,
        "images_per_s": result.images_per_s,
        "input_wait": result.input_wait,
        "ended_early": result.ended_early,
    }


def end_badly(run_id: str, error: BaseException) -> None:
    """Put a run in order that failed (an exception) or was stopped (a signal, a cancellation)."""
    stopped = not isinstance(error, Exception)
    with undisturbed():
        try:
            if run_id:
                registry.end_run(run_id, "KILLED" if stopped else "FAILED")
        finally:
            if stopped:
                disconnect()
