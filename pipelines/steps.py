"""The steps of every training flow, one Prefect task each.

A step that fails for a reason that may pass (a lost process, a full disk, a server away) is tried once more; one
that fails for what a person gave is not. A step that is run again goes on where it stopped: training resumes from
its checkpoint, the MLflow run is the same one, and a model is not registered twice.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from data.checks import shard_fault
from data.dataset import Dataset, Split, noun_of, way_back
from data.parameters import Parameters
from pipelines.artifacts import ProgressBar, publish_result
from pipelines.course import Course, values_of
from pipelines.families import PIPELINES, Executor, load, registered_name
from pipelines.interruption import interruptible, resume_command
from pipelines.reporting import Reporter, Status, current_reporter, features_of, progress_of, shown
from tasks import cluster, ledger, modellist, registry, runrecords
from tasks.batches import BatchPlan
from tasks.distil import Teacher
from tasks.families import FAMILIES
from tasks.lineage import Lineage, resolve
from tasks.loop import Progress
from tasks.nodes import ClusterLost
from tasks.train import TrainResult, train
from tasks.transfer import Weights
from tasks.versions import held, open_stored
from tasks.weights import teacher_of

RETRY_DELAY_S = 2
LOG_EVERY_S = 5.0
PERMANENT = (ValueError, FileNotFoundError, FloatingPointError, ClusterLost)
# tags of a run that its model gets too
FOLLOWING = ("ray.job_id", "checks.accepted", "ensemble.members", "search.run_id", runrecords.TRIAL_TAG)
NUM_EXAMPLES = 4  # test images kept with a registered model, to try it on


def may_pass(_task: Any, _run: Any, state: State) -> bool:
    """Whether a step is worth trying again: not if the same input would fail again."""
    return not isinstance(state.data, PERMANENT)


def step(name: str) -> Callable[[Callable[..., Any]], Any]:
    """A Prefect task for a step: called directly, in the main thread, so that signals reach what it runs."""
    return task(
        name=name, retries=1, retry_delay_seconds=RETRY_DELAY_S, retry_condition_fn=may_pass,
        cache_policy=NO_CACHE, persist_result=False,
    )  # fmt: skip


class LogReporter:
    """Reports to the log of the Prefect run."""

    def __init__(self) -> None:
        self.logger = get_run_logger()
        self.last_s = -LOG_EVERY_S
        self.line = ""  # the last one of progress

    def note(self, text: str) -> None:
        self.logger.info("%s", shown(text))

    def show(self, status: Status) -> None:
        if status.ended and str(status) == self.line:
            return
        if time.monotonic() - self.last_s >= LOG_EVERY_S or status.over:
            self.last_s, self.line = time.monotonic(), str(status)
            self.logger.info(self.line)


def reporter_here() -> Reporter:
    """Whom a flow tells: whoever has asked to be told, else the log of its run."""
    return current_reporter() or LogReporter()


def splits_needed(stop_after: str) -> tuple[Split, ...]:
    """What a flow that trains needs pictures in: those that it tests on only if it gets that far."""
    return ("train",) if stop_after in ("search", "train") else ("train", "test")


@step("check dataset")
def check_dataset(
    family: str,
    name: str,
    splits: Sequence[Split],
    hold: Path | None = None,
    reporter: Reporter | None = None,
) -> Dataset:
    """The dataset of that name, of that family, whole, with images in these splits.

    With the folder `hold`, it stays as it is now when others take its place, see tasks.versions. Raises ValueError or
    FileNotFoundError for one that training or evaluation could not use.
    """
    dataset = held(name, hold, (reporter or LogReporter()).note) if hold else open_stored(name)
    dataset.require_family(family)
    for split in splits:
        dataset.require(split)
    for shard in dataset.info.shards:
        fault = shard_fault(dataset.files / shard.file, shard, dataset.info)
        if fault:
            raise ValueError(f"{dataset.path / shard.file}: {fault}; {way_back(dataset.path)}")
    return dataset


def tell_before_training(family: str, config: Any, dataset: Dataset, reporter: Reporter) -> None:
    """Say so where there are fewer training pictures than a batch is to have, and what else stands out."""
    asked, layout = config.train.batch_size, FAMILIES[family].layout(config, dataset)
    taken = BatchPlan.of(config.train, layout, 0, config.train.num_workers).batch_size
    if taken < asked:
        reporter.note(
            f"note: train.batch_size (={asked}) is more than the {layout.num_rows:,} training {noun_of(family)}: a "
            f"step takes {taken:,}"
        )
    for text in FAMILIES[family].notes(config, dataset):
        reporter.note(f"note: {text}")


@step("resolve weights")
def resolve_weights(config: Any, dataset: Dataset) -> Weights | None:
    """What training starts from, read here: a worker has neither the file nor the registry. None: from chance."""
    read = load(PIPELINES[dataset.info.family].weights)
    return read(config, dataset.info, registry.resolve_model)


@step("resolve teacher")
def resolve_teacher(config: Any) -> Teacher | None:
    """Whom training learns from, read here for the same reason. None: nobody."""
    return teacher_of(config, registry.resolve_model)


@step("resolve lineage")
def resolve_lineage(
    config: Parameters,
    dataset: Dataset,
    key: str,
    flow_run_id: str,
    weights: Weights | None = None,
    teacher: Teacher | None = None,
) -> Lineage:
    """Which code, data and parameters this run is made of: found here, since a worker has no repository."""
    return resolve(
        config=config,
        dataset_path=dataset.path,
        files=dataset.files,
        key=key,
        flow_run_id=flow_run_id,
        weights=weights,
        teacher=teacher,
    )


@step("open MLflow run")
def open_run(family: str, config: Any, dataset: Dataset, lineage: Lineage, parameters: dict[str, Any]) -> str:
    """Start the run's record, or go on with it if this is not its first attempt; returns its id."""
    digest = lineage.dvc_digest
    runrecords.close_lost()
    return registry.start_run(
        key=lineage.key,
        experiment=f"convoy/{family}",
        name=f"{dataset.info.name}-{config.model.name}-{digest[:8] or 'untracked'}",
        tags=lineage.tags(),
        parameters=parameters,
        dataset=dataset,
        digest=digest,
    )


@step("train")
def train_model(
    family: str, config: Any, dataset: Dataset, folder: Path, key: str, digest: str, run_id: str,
    executor: Executor, reporter: Reporter, under_way: Callable[[Reporter], None],
    weights: Weights | None = None, teacher: Teacher | None = None, command: str = "train",
) -> tuple[TrainResult, float | None]:  # fmt: skip
    """Train, telling the console or log, MLflow and Prefect's progress bar how far it is.

    `under_way` is called each time that steps have been done: for what the first of them should not wait for.
    `command` is what goes on with the run.
    Returns the result, and the time of the first step, in seconds since the epoch: None where the run was trained
    already. Told to stop by a signal, it keeps a checkpoint first.
    """
    bar = ProgressBar(f"training on {dataset.info.name}")
    again = (folder / "history.jsonl").is_file()
    course = Course(run_id, again)

    status: Status | None = None

    def hear(progress: Progress) -> None:
        nonlocal status
        texts = [f"{name} {value:.3f}" for name, value in progress.metrics.items()]
        status = Status("train", progress.step, progress.num_steps, progress.images_per_s, ", ".join(texts))
        reporter.show(status)
        course.hear(progress.step, values_of(progress))
        bar.show(progress.step / progress.num_steps)
        under_way(reporter)

    first_step_at: float | None = None

    def begin(step: int) -> None:
        nonlocal first_step_at
        first_step_at, stop.under_way = time.time(), True
        course.begin()
        if again:
            reporter.note(
                f"goes on after step {step}" if step else "no checkpoint had been kept yet: starts over"
            )

    going_on = resume_command(command, key)
    with bar, registry.system_metrics(run_id), interruptible(executor, reporter.note, going_on) as stop:
        result = train(
            family, config, dataset,
            folder=folder, key=key, digest=digest, executor=executor, on_progress=hear,
            on_start=begin, on_features=features_of(reporter), stopping=stop.asked.is_set,
            weights=weights, teacher=teacher,
        )  # fmt: skip
    if status is not None and result.ended_early:
        reporter.show(replace(status, ended=True))
    course.end()
    if executor == "ray":  # known only once Ray is connected, which training does
        tag_cluster(run_id)
    log_training(run_id, folder, result, executor)
    return result, first_step_at


def tag_cluster(*run_ids: str) -> None:
    """Keep with records on which cluster they were computed, and as which job of it; Ray must be connected."""
    tags = {"ray.job_id": cluster.job_id(), "ray.address": cluster.cluster_info().address}
    for run_id in run_ids:
        registry.set_tags(run_id, tags)


def log_training(run_id: str, folder: Path, result: TrainResult, executor: Executor) -> None:
    """Keep what training took, its course, and what it computed on, with the run's record."""
    early = {"ended_early": result.ended_early} if result.ended_early else {}
    own = {"executor": executor, **result.trained_on, **early}
    registry.set_tags(run_id, {f"trained.{name}": value for name, value in own.items()})
    registry.log_metrics(
        run_id,
        {
            "train_time_s": result.train_time_s,
            "first_step_s": result.first_step_s,
            "train_images_per_s": result.images_per_s,
            "train_input_wait": result.input_wait,
            "train_cpu_s": result.cpu_s,
        },
    )
    registry.log_folder(run_id, folder / "history.csv", "history")


@step("calibrate")
def calibrate_model(
    family: str, dataset: Dataset, config: Any, model: Path, run_id: str, reporter: Reporter
) -> None:
    """Fit what the family fits to the validation split, as a temperature, and keep it in the model's card."""
    if not PIPELINES[family].fit:
        return
    found = load(PIPELINES[family].fit)(
        model,
        dataset,
        batch_size=config.evaluate.batch_size,
        on_progress=progress_of(reporter, "calibrate"),
    )
    reporter.note(found.note)
    registry.log_metrics(run_id, found.metrics)


@step("evaluate")
def evaluate_model(
    family: str, config: Any, dataset: Dataset, model: Path, folder: Path, run_id: str, reporter: Reporter
) -> dict[str, float]:
    """Look at the model on the test split in every way that the parameters list, and keep the report: its metrics."""
    report = load(PIPELINES[family].evaluate)(
        [model], dataset, split="test", config=config.evaluate, on_progress=progress_of(reporter, "evaluate"),
        called=(folder.name,),
    )  # fmt: skip
    report.write(folder / "evaluation")
    registry.log_metrics(run_id, {f"test.{name}": value for name, value in report.metrics.items()})
    registry.log_folder(run_id, folder / "evaluation", "evaluation")
    return dict(report.metrics)


@step("register")
def register_model(
    family: str, dataset: Dataset, model: Path, run_id: str, lineage: Lineage
) -> dict[str, Any]:
    """Put the model into the registry: `model`, its name there, and `version`."""
    name = registered_name(family, dataset.info.name)
    images = dataset.table("test", ["image"])["image"][:NUM_EXAMPLES].to_pylist()
    tags = lineage.tags() | registry.get_tags(run_id, FOLLOWING)
    version = registry.register(run_id, model, name=name, example=images, tags=tags)
    return {"model": name, "version": version}


@step("promote if first")
def promote_model(name: str, version: int, key: str) -> dict[str, Any]:
    """Make the version of the run `key` the challenger, and the champion too where there is none.

    Returns its `alias`, and the other version that is `champion`, see tasks.modellist.champion_beside.
    """
    alias = ledger.promote_first(name, version, f"trained and registered by the run {key}", key)
    return {"alias": alias, "champion": modellist.champion_beside(name, version)}


@step("publish result")
def publish(summary: dict[str, Any]) -> None:
    """Leave the result on the flow run's page."""
    publish_result(summary)
