"""The search flow of every family: trials by validation (tasks.search), then the best one trained in full (training).

    ./convoy search classification --dataset digits --space optim.lr=log:1e-4..1e-1 --trials 20

The run key names the flow run, the folder below `runs/` and the MLflow run, in which each trial has a run of its own.
The winner is an ordinary run with the key KEY-winner, so that nothing about it differs from a training that somebody
asked for: the trial has seen the same pictures in the same order, but its folder, record and lineage are not a run's.
A search that was cut off goes on by `resume`, with its own parameters; trials that have ended are not run again.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.runtime import flow_run

from data.dataset import Dataset, noun_of
from data.files import write_whole
from data.findings import parse_accepted
from data.parameters import Parameters
from pipelines import checks, environment, steps, training
from pipelines.artifacts import ProgressBar, publish_search
from pipelines.configuration import configuration
from pipelines.course import Course
from pipelines.engines import start_ray
from pipelines.families import SearchStop, StopAfter
from pipelines.interruption import interruptible, resume_command, undisturbed
from pipelines.parameters import choose_recipe, flatten, merge, section
from pipelines.reporting import Reporter, Status
from pipelines.runfolders import BEGUN, begun, run_folder
from pipelines.training import (
    HELD,
    Job,
    begun_config,
    end_badly,
    exclusive,
)
from tasks import registry
from tasks.cost import RANKS, Cost, metered, summed
from tasks.distil import Teacher
from tasks.families import FAMILIES
from tasks.lineage import Lineage
from tasks.result import require_same_beginning
from tasks.runrecords import FAMILY_TAG, SEARCHES, TRIAL_TAG, recorded_cost
from tasks.space import Choice, SearchConfig, SearchMetric, Space, changed, parse_space
from tasks.transfer import Weights

if TYPE_CHECKING:  # Ray Tune and Optuna take three seconds to import
    from tasks.study import Report, Study, Trial

SECTION, JOB_FILE = "search", BEGUN["search"]
# in a validation, and first what a search of the family goes by; the others as params.yaml has it
MEASURED: dict[str, tuple[SearchMetric, ...]] = {
    "detection": ("val_ap", "val_loss"),
    "faces": ("val_loss", "val_accuracy"),
    "landmarks": ("val_loss",),
    "style": ("val_loss",),
}


@dataclass(frozen=True)
class SearchJob:
    """What a person asked for, complete."""

    family: str
    dataset: str
    recipe: str
    config: Any
    texts: tuple[str, ...]  # the space as it was written
    search: SearchConfig
    accept: tuple[str, ...]
    stop_after: SearchStop

    @property
    def space(self) -> Space:
        return parse_space(self.texts, self.config)


def run_search(
    family: str,
    dataset: str,
    space: Sequence[str],
    recipe: str,
    changes: dict[str, Any],
    search: dict[str, Any],
    *,
    stop_after: SearchStop,
    resume: str | None,
    accept: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything from the space to the registered winner, inside a flow; returns the summary that commands print."""
    environment.prepare()
    start_ray()
    key = resume or str(flow_run.id)
    folder = run_folder(key)
    with exclusive(folder):
        if resume or (folder / JOB_FILE).is_file():
            job = read_job(folder)
        else:
            job = job_of(family, dataset, space, recipe, changes, search, accept, stop_after)
        job = replace(job, stop_after=stop_after)  # a search that goes on may be asked for more
        write_job(job, folder)
        reporter = steps.reporter_here()
        going_on = resume_command("search", key, "ray")
        reporter.note(f"search {key}: {job.dataset} by recipe {job.recipe}; if cut off: {going_on}")
        summary = run_steps(job, key, folder, reporter)
    publish_search(summary)
    return summary


def job_of(
    family: str, dataset: str, space: Sequence[str], recipe: str, changes: dict[str, Any],
    search: dict[str, Any], accept: Sequence[str], stop_after: SearchStop,
) -> SearchJob:  # fmt: skip
    """The complete parameters; raises ValueError for those that are unknown, out of range, or not to be searched."""
    config = configuration(family, dataset, recipe, changes)
    require_read(family, parse_space(space, config), config)
    own = {"metric": MEASURED[family][0]} if family in MEASURED else {}
    plan = section(SECTION, SearchConfig, merge(own, search))
    require_measured(family, plan.metric)
    return SearchJob(
        family, dataset, choose_recipe(family, dataset, recipe), config, tuple(space), plan,
        parse_accepted(accept), stop_after,
    )  # fmt: skip


def require_read(family: str, space: Space, config: Parameters) -> None:
    """Raise ValueError for a searched parameter that no combination of the space's choices reads."""
    choices = {key: values.options for key, values in space.items() if isinstance(values, Choice)}
    never: dict[str, str] = dict.fromkeys(space, "")
    for options in product(*choices.values()):
        try:
            trial = changed(config, dict(zip(choices, options, strict=True)))
        except ValueError:  # options that do not go together: no trial of theirs reads anything
            continue
        unread = FAMILIES[family].unread(trial)
        never = {key: unread[key] for key in never if key in unread}
        if not never:
            return
    faults = [
        f"--space {key}=…: it would change nothing in any trial, as {why}: leave it out"
        for key, why in never.items()
        if why
    ]
    if faults:
        raise ValueError("\n".join(faults))


def require_measured(family: str, metric: SearchMetric) -> None:
    """Raise ValueError for a metric that a validation of the family does not give: each trial would end by it."""
    measured = MEASURED.get(family, ("val_accuracy", "val_loss"))
    if metric not in measured:
        raise ValueError(
            f"search.metric (={metric}) is not measured in a validation of {family}: give --metric "
            f"{' or '.join(measured)}"
        )


def write_job(job: SearchJob, folder: Path) -> None:
    """Keep a job in the folder of its search."""
    values = {
        "family": job.family,
        "dataset": job.dataset,
        "recipe": job.recipe,
        "space": job.texts,
        "search": job.search.model_dump(mode="json"),
        "accept": job.accept,
        "stop_after": job.stop_after,
        "config": job.config.model_dump(mode="json"),
    }
    write_whole(folder / JOB_FILE, json.dumps(values, indent=2) + "\n")


def read_job(folder: Path) -> SearchJob:
    """The job of a search that was started before; raises ValueError if there is none in `folder`."""
    file = folder / JOB_FILE
    values = begun(folder, "search")
    return SearchJob(
        values["family"], values["dataset"], values["recipe"],
        begun_config(values["family"], values["config"], file),
        tuple(values["space"]), SearchConfig.parse(values["search"], str(file)), tuple(values["accept"]),
        values.get("stop_after", "promote"),  # not in searches of before it was kept
    )  # fmt: skip


def run_steps(job: SearchJob, key: str, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """The steps in their order, inside the record that MLflow keeps of them; returns the summary."""
    run_id = ""
    try:
        splits = steps.splits_needed(job.stop_after)
        data = steps.check_dataset(job.family, job.dataset, splits, folder / HELD, reporter)
        checks.run_checks(data, job.accept, reporter)
        weights = steps.resolve_weights(job.config, data)
        teacher = steps.resolve_teacher(job.config)
        lineage = steps.resolve_lineage(job.config, data, key, str(flow_run.id), weights, teacher)
        for problem in lineage.problems:
            reporter.note(f"note: {problem}")
        require_same_beginning(folder, *lineage.beginning)  # trials are held against each other
        steps.tell_before_training(job.family, job.config, data, reporter)
        run_id = open_record(job, data, lineage)
        study = run_trials(job, data, weights, teacher, lineage, folder, run_id, reporter)
        summary = keep(job, data, study, key, folder, run_id)
        if job.stop_after != "search":
            winner = winner_job(job, summary["best"], run_id, job.stop_after)
            summary["winner"] = train_winner(winner, f"{key}-winner", reporter)
            registry.set_tags(run_id, {"winner.run_id": summary["winner"]["mlflow_run"]})
        summary["cost"] = asdict(cost_of_all(run_id, summary.get("winner")))
        registry.finish_run(run_id, "FINISHED")
    except BaseException as error:
        end_badly(run_id, error)
        raise
    return summary


@steps.step("open MLflow run")
def open_record(job: SearchJob, data: Dataset, lineage: Lineage) -> str:
    """Start the search's record, or go on with it; returns its id."""
    own = {f"{SECTION}.{name}": value for name, value in job.search.model_dump(mode="json").items()}
    searched = dict(text.split("=", 1) for text in job.texts)
    fixed = {name: value for name, value in flatten(job.config.model_dump()).items() if name not in searched}
    return registry.start_run(
        key=lineage.key,
        experiment=SEARCHES,
        name=f"{data.info.name}-{lineage.dvc_digest[:8] or 'untracked'}",
        tags={**lineage.tags(), FAMILY_TAG: job.family},
        parameters={**own, **{f"space.{name}": text for name, text in searched.items()}, **fixed},
        dataset=data,
        digest=lineage.dvc_digest,
    )


@steps.step("run trials")
def run_trials(
    job: SearchJob, data: Dataset, weights: Weights | None, teacher: Teacher | None, lineage: Lineage, folder: Path,
    run_id: str, reporter: Reporter,
) -> "Study":  # fmt: skip
    """Run what is left of the trials, and keep with the record what they cost."""
    from tasks.search import search

    stopped = "stopped: trials that have ended are kept, others go on from their last checkpoint"
    bar = ProgressBar(f"searching on {data.info.name}")
    record = Record(job, data, lineage, run_id, reporter, bar)
    spent = registry.get_metrics(run_id)  # by earlier attempts
    going_on = resume_command("search", lineage.key, "ray")
    with metered() as meter, bar, interruptible("ray", reporter.note, going_on, stopped):
        try:
            study = search(
                job.family, job.config, job.space, job.search, data, folder, record, weights, teacher
            )
        except BaseException:
            record.close()
            with undisturbed():
                registry.log_progress(run_id, 0, meter.cost(spent, 0.0))
            raise
        parts = [(trial.time_s, trial.cpu_s) for trial in study.trials()]
        costs = meter.cost_of_many(spent, parts, job.config.train.gpus_per_worker)
    registry.log_metrics(run_id, costs)
    steps.tag_cluster(run_id)
    return study


class Record:
    """Hears of the trials: a run of MLflow for each, below the search's, and one line for whoever looks on."""

    def __init__(
        self, job: SearchJob, data: Dataset, lineage: Lineage, run_id: str, reporter: Reporter, bar: ProgressBar
    ) -> None:  # fmt: skip
        self.job, self.data, self.lineage, self.run_id = job, data, lineage, run_id
        self.reporter, self.bar = reporter, bar
        self.runs: dict[int, str] = {}  # of trials that run
        self.courses: dict[int, Course] = {}

    def started(self, study: "Study", trial: "Trial") -> None:
        self.runs[trial.number] = registry.start_run(
            key=f"{self.lineage.key}.{trial.number}",
            experiment=SEARCHES,
            name=f"trial-{trial.number}",
            tags={"mlflow.parentRunId": self.run_id, TRIAL_TAG: str(trial.number)},
            parameters=trial.changes,
            dataset=self.data,
            digest=self.lineage.dvc_digest,
        )
        self.courses[trial.number] = Course(self.runs[trial.number], again=True)
        self.show(study)

    def validated(self, trial: "Trial", report: "Report") -> None:
        self.courses[trial.number].hear(report.step, {**report.metrics, "epoch": report.epoch})

    def ended(self, study: "Study", trial: "Trial") -> None:
        course = self.courses.pop(trial.number, None)
        if course is not None:
            course.end()
        run_id = self.runs.pop(trial.number, None) or registry.run_id_of(f"{self.lineage.key}.{trial.number}")
        registry.set_tags(run_id, {"trial.state": trial.state, "trial.reason": trial.reason})
        registry.log_progress(run_id, 0, {RANKS: trial.cpu_s})
        registry.end_run(run_id, "FAILED" if trial.state == "failed" else "FINISHED")
        best = study.best()
        if best is not None and best.value is not None:
            registry.log_progress(self.run_id, trial.number, {f"best.{self.job.search.metric}": best.value})
        if trial.state == "failed":
            self.reporter.note(f"trial {trial.number} failed: {trial.reason}")
        self.show(study)

    def show(self, study: "Study") -> None:
        trials, best = study.trials(), study.best()
        counts = {
            state: sum(trial.state == state for trial in trials)
            for state in ("running", "stopped early", "failed")
        }
        texts = [f"{count} {state}" for state, count in counts.items() if count]
        if best is not None:
            texts.append(f"best {self.job.search.metric} {best.value:.4g} (trial {best.number})")
        done, total = len(trials) - counts["running"], self.job.search.trials
        self.reporter.show(Status("trials", done, total, None, ", ".join(texts)))
        self.bar.show(done / total)

    def close(self) -> None:
        """End the records of trials that were cut off."""
        with undisturbed():
            for run_id in [*self.runs.values()]:  # where the cluster was lost, Tune is still there
                registry.end_run(run_id, "KILLED")


@steps.step("keep search")
def keep(
    job: SearchJob, data: Dataset, study: "Study", key: str, folder: Path, run_id: str
) -> dict[str, Any]:
    """Write the search's files, log them, and return the summary that the command prints."""
    from tasks.searchreport import rows_of, write_search  # only now: matplotlib takes half a second

    best = study.best()
    assert best is not None and best.value is not None
    what = (
        f"{data.info.name} by {job.recipe}, {data.info.num_images('val'):,} validation {noun_of(job.family)}"
    )
    for file in write_search(folder, study, job.search.metric, what):
        registry.log_folder(run_id, file, "search")
    registry.log_metrics(run_id, {job.search.metric: best.value, "spent_s": study.spent_s})
    return {
        "key": key,
        "folder": str(folder),
        "family": job.family,
        "dataset": job.dataset,
        "recipe": job.recipe,
        "space": list(job.texts),
        "metric": job.search.metric,
        "num_validation": data.info.num_images("val"),
        "spent_s": study.spent_s,
        "trials": rows_of(study),
        "best": rows_of(study)[best.number],
        "mlflow_run": run_id,
        "mlflow_url": registry.run_url(run_id),
    }


def cost_of_all(run_id: str, winner: dict[str, Any] | None) -> Cost:
    """What the trials took, and the winner's training."""
    return summed(
        cost
        for run in (run_id, *([winner["mlflow_run"]] if winner else []))
        if (cost := recorded_cost(run)) is not None
    )


def winner_job(job: SearchJob, best: dict[str, Any], run_id: str, stop_after: StopAfter) -> Job:
    """What trains the best trial's values in full, and says where they come from."""
    return Job(
        job.family, job.dataset, job.recipe, changed(job.config, best["changes"]), job.accept,
        {"search.run_id": run_id, TRIAL_TAG: str(best["trial"])}, stop_after,
    )  # fmt: skip


def train_winner(job: Job, key: str, reporter: Reporter) -> dict[str, Any]:
    """Train, test and register, as `train` would; goes on where an earlier attempt stopped."""
    folder = run_folder(key)
    with exclusive(folder):
        training.write_job(job, folder)
        reporter.note(f"the best, trial {job.origin[TRIAL_TAG]}, is trained in full: run {key}")
        summary = training.run_steps(job, key, folder, reporter, "ray")
    steps.publish(summary)
    return summary
