"""The learning-curve flow: which mode of transfer learning wins with few pictures, and with how many (tasks.curve).

    ./convoy learning-curve classification --dataset ants --recipe finetune --shots 1 5 20 100

The run key names the flow run, the folder below `runs/` and the MLflow run, as in training. A curve that was cut off
goes on by `resume`, with its own parameters; cells that are done are not run again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run

from data.dataset import Dataset
from data.files import write_whole
from data.findings import parse_accepted
from pipelines import checks, environment, steps
from pipelines.artifacts import publish_curve
from pipelines.configuration import AcceptForm, ChangesForm, RecipeForm, SectionForm, configuration
from pipelines.engines import start_ray
from pipelines.families import Executor
from pipelines.interruption import interruptible, resume_command
from pipelines.parameters import AUTO, choose_recipe, flatten, section
from pipelines.reporting import Reporter, Status, features_of
from pipelines.runfolders import BEGUN, begun, run_folder
from pipelines.training import (
    HELD,
    begun_config,
    end_badly,
    exclusive,
)
from tasks import registry
from tasks.classification import ClassificationConfig
from tasks.curve import Point, measure, points_of, scarce, steps_of
from tasks.curvedata import FAMILY
from tasks.curveplan import SPLITS, WAIVED, CellResult, CurveConfig
from tasks.lineage import Lineage
from tasks.result import require_same_beginning
from tasks.transfer import Weights

SECTION, JOB_FILE = "learning_curve", BEGUN["learning curve"]
EXPERIMENT = "convoy/learning-curves"


@dataclass(frozen=True)
class CurveJob:
    """What a person asked for, complete."""

    dataset: str
    recipe: str
    config: ClassificationConfig
    curve: CurveConfig
    accept: tuple[str, ...]


@flow(name="learning-curve", flow_run_name="learning-curve-{dataset}", persist_result=False)
def learning_curve(
    dataset: str,
    recipe: Annotated[str, RecipeForm(FAMILY)] = AUTO,
    changes: Annotated[dict[str, Any] | None, ChangesForm(FAMILY)] = None,
    curve: Annotated[dict[str, Any] | None, SectionForm(CurveConfig)] = None,
    resume: str | None = None,
    executor: Executor = "ray",
    accept: Annotated[tuple[str, ...], AcceptForm()] = (),
) -> dict[str, Any]:
    """Train each mode of transfer learning on few and on many pictures of a dataset, and compare them on validation.

    Args:
        dataset: name of an ingested dataset (./convoy data list)
        recipe: parameters by name, with transfer.weights; auto: the recipe called like the dataset, else `default`
        changes: parameters that differ from the recipe; an empty field stays as the recipe says
        curve: what the curve is made of; an empty field stays as params.yaml says
        resume: key of a curve that was cut off, to go on with it; its own parameters count then
        executor: ray, or in_process to train inside the flow's process
        accept: checks of the dataset whose errors are waived (./convoy data check NAME)
    """
    environment.prepare()
    if executor == "ray":
        start_ray()
    key = resume or str(flow_run.id)
    folder = run_folder(key)
    with exclusive(folder):
        job = (
            read_job(folder)
            if resume
            else start_job(dataset, recipe, changes or {}, curve or {}, accept, folder)
        )
        reporter = steps.reporter_here()
        going_on = resume_command("learning-curve", key, executor)
        reporter.note(f"learning curve {key}: {job.dataset} by recipe {job.recipe}; if cut off: {going_on}")
        return run_steps(job, key, folder, reporter, executor)


def job_of(
    dataset: str, recipe: str, changes: dict[str, Any], curve: dict[str, Any], accept: Sequence[str]
) -> CurveJob:
    """The complete parameters; raises ValueError for those that do not fit, or without weights to begin with."""
    config = configuration(FAMILY, dataset, recipe, changes)
    assert isinstance(config, ClassificationConfig)
    name = choose_recipe(FAMILY, dataset, recipe)
    if config.distil.teacher:
        raise ValueError(
            f"a learning curve trains by labels alone: leave distil.teacher (={config.distil.teacher}) empty"
        )
    if not config.transfer.weights:
        raise ValueError(
            f"a learning curve compares ways to use weights, and the recipe {name} begins with none: give --weights, "
            "and by --set model.name=... the network that they are of"
        )
    return CurveJob(dataset, name, config, section(SECTION, CurveConfig, curve), parse_accepted(accept))


def start_job(
    dataset: str,
    recipe: str,
    changes: dict[str, Any],
    curve: dict[str, Any],
    accept: Sequence[str],
    folder: Path,
) -> CurveJob:
    """The job of a run's folder; at the first attempt, made from the parameters and written there."""
    file = folder / JOB_FILE
    if file.is_file():
        return read_job(folder)
    job = job_of(dataset, recipe, changes, curve, accept)
    values = {
        "dataset": job.dataset,
        "recipe": job.recipe,
        "config": job.config.model_dump(mode="json"),
        "curve": job.curve.model_dump(mode="json"),
        "accept": job.accept,
    }
    write_whole(file, json.dumps(values, indent=2) + "\n")
    return job


def read_job(folder: Path) -> CurveJob:
    """The job of a curve that was started before; raises ValueError if there is none in `folder`."""
    file = folder / JOB_FILE
    values = begun(folder, "learning curve")
    return CurveJob(
        values["dataset"],
        values["recipe"],
        begun_config(FAMILY, values["config"], file),
        CurveConfig.parse(values["curve"], str(file)),
        tuple(values["accept"]),
    )


def run_steps(
    job: CurveJob, key: str, folder: Path, reporter: Reporter, executor: Executor
) -> dict[str, Any]:
    """The steps in their order, inside the record that MLflow keeps of them; returns the summary."""
    run_id = ""
    try:
        data = steps.check_dataset(FAMILY, job.dataset, SPLITS, folder / HELD, reporter)
        checks.run_checks(data, job.accept, reporter, WAIVED)
        weights = steps.resolve_weights(job.config, data)
        assert weights is not None
        lineage = steps.resolve_lineage(job.config, data, key, str(flow_run.id), weights)
        for problem in lineage.problems:
            reporter.note(f"note: {problem}")
        require_same_beginning(folder, *lineage.beginning)
        run_id = open_record(job, data, lineage)
        for note in notes_of(job, data):
            reporter.note(note)
        results = run_cells(job, data, weights, key, folder, executor, reporter)
        summary = keep(job, data, weights, key, folder, run_id, results)
        registry.finish_run(run_id, "FINISHED")
    except BaseException as error:
        end_badly(run_id, error)
        raise
    publish_curve(summary)
    return summary


def notes_of(job: CurveJob, data: Dataset) -> list[str]:
    """What a reader of the curve must know of its places."""
    return [note for shots in sorted(set(job.curve.shots)) if (note := scarce(data.info, shots))]


@steps.step("open MLflow run")
def open_record(job: CurveJob, data: Dataset, lineage: Lineage) -> str:
    """Start the curve's record, or go on with it; returns its id."""
    own = {f"{SECTION}.{name}": value for name, value in job.curve.model_dump(mode="json").items()}
    return registry.start_run(
        key=lineage.key,
        experiment=EXPERIMENT,
        name=f"{data.info.name}-{job.config.model.name}-{lineage.dvc_digest[:8] or 'untracked'}",
        tags=lineage.tags(),
        parameters={**flatten(job.config.model_dump()), **own},
        dataset=data,
        digest=lineage.dvc_digest,
    )


@steps.step("run cells")
def run_cells(
    job: CurveJob,
    data: Dataset,
    weights: Weights,
    key: str,
    folder: Path,
    executor: Executor,
    reporter: Reporter,
) -> list[CellResult]:
    """Run what is left of the curve's cells."""

    def hear(done: int, total: int, result: CellResult | None) -> None:
        if result is None and done:
            reporter.note(f"goes on after {done} of {total} cells")
        told = (
            f"{result.mode}, {result.shots} a class, seed {result.seed}: {result.accuracy:.1%}"
            if result
            else ""
        )
        reporter.show(Status("cells", done, total, None, told))

    stopped = "stopped: cells that were done are kept"
    with interruptible(executor, reporter.note, resume_command("learning-curve", key, executor), stopped):
        return measure(job.config, job.curve, data, weights, folder, executor, hear, features_of(reporter))


@steps.step("keep curve")
def keep(
    job: CurveJob,
    data: Dataset,
    weights: Weights,
    key: str,
    folder: Path,
    run_id: str,
    results: list[CellResult],
) -> dict[str, Any]:
    """Write the curve's files, log them, and return the summary that the command prints."""
    from tasks.curvereport import rows_of, write_curve  # only now: matplotlib takes half a second

    points = points_of(results)
    about = {
        "dataset": data.info.name,
        "split": "val",
        "num_validation": data.info.num_images("val"),
        "architecture": job.config.model.name,
        "recipe": job.recipe,
        "weights": weights.source,
        "weights_sha256": weights.sha256,
        "crop_px": job.config.input.crop_px,
        "num_steps": steps_of(job.config, job.curve, data),
        "batch_size": job.config.train.batch_size,
        "num_stages": job.curve.num_stages,
        "notes": notes_of(job, data),
    }
    what = (
        f"{data.info.name}, {job.config.model.name}, {about['num_validation']:,} validation pictures; "
        f"{about['num_steps']} steps each, "
        + ("one seed" if job.curve.num_seeds == 1 else f"mean and deviation of {job.curve.num_seeds} seeds")
    )
    for file in write_curve(folder, results, points, about, what):
        registry.log_folder(run_id, file, "curve")
    log_points(run_id, points)
    record = {"mlflow_run": run_id, "mlflow_url": registry.run_url(run_id)}
    return {"key": key, "folder": str(folder), **about, "points": rows_of(points), **record}


def log_points(run_id: str, points: list[Point]) -> None:
    """MLflow's charts get a line a mode: the step is the number of pictures a class."""
    for point in points:
        values = {f"val_accuracy.{point.mode}": point.mean}
        if len(point.accuracies) > 1:
            values[f"val_accuracy_deviation.{point.mode}"] = point.deviation
        registry.log_metrics(run_id, values, step=point.shots)
