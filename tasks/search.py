"""A search for hyper-parameters: many trainings at once on Ray Tune, suggested and stopped early by `tasks.study`.

Tune places the trials, keeps so many of them at work, and starts those again whose process was lost. What is suggested,
kept and stopped is the study's, through Tune's own doors for that, a Searcher and a TrialScheduler: its OptunaSearch
tells Optuna that a trial which was stopped is complete, has one generator for all suggestions, so that a search that
goes on repeats its first ones, and with ASHAScheduler and Tuner.restore it forgets rungs and the last trials. Tune asks
the head of the cluster now and then, and waits for one that is gone until Ray ends the process without a word: it has a
thread of its own, beside which the head is looked after.

A trial is the ordinary training loop in one process on the train split, validated on the val split; nothing here opens
the test split. Pictures are decoded once for all trials. Each keeps checkpoints in `trials/` of the search's folder,
until it ends.
"""

import atexit
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.tune
import torch
from ray.tune.error import TuneError
from ray.tune.registry import _unregister_all
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from data.dataset import Dataset
from data.stream import Layout
from tasks.batches import BatchPlan
from tasks.cluster import connect, require_resources
from tasks.distil import Teacher, require_teacher, taught
from tasks.driverfiles import shared_files
from tasks.families import FAMILIES, Family
from tasks.features import caches, started
from tasks.feed import fit_from
from tasks.loop import Progress
from tasks.nodes import WAIT_S, ClusterLost, Head, beside_driver, num_places
from tasks.raytrain import resident_feeds, source_key, source_of, streamed_feeds
from tasks.space import SearchConfig, SearchMetric, Space, changed, end_configs, own_values
from tasks.study import Report, Study, Trial
from tasks.train import LocalSession
from tasks.transfer import Weights

JOURNAL, TRIALS, TUNE = "trials.journal", "trials", "tune"  # in a search's folder
MAX_LOST_PROCESSES = 3  # of one trial
LEAVE_S = 5.0  # for Tune to leave when it is told to: it takes ten steps a second, but may be at something with MLflow
TIME_UP = "the search's time was up"
# Tune's own: no files of each trial's results, no tables on the console, no handler of Ctrl-C that would go on as if
# all were well, no change of folder in the trials, and no picture of the whole, since the study holds it.
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}


class Left(BaseException):
    """Ends Tune's thread: at an Exception it would wait for its trials to end."""


class Audience(Protocol):
    """Whoever is told of the trials. Called in Tune's thread; at the end, in the one that called `search`."""

    def started(self, study: Study, trial: Trial) -> None:
        """A trial begins, or goes on."""

    def validated(self, trial: Trial, report: Report) -> None:
        """A trial was validated."""

    def ended(self, study: Study, trial: Trial) -> None:
        """A trial has ended, one way or another."""


def search(
    family: str, config: Any, space: Space, plan: SearchConfig, dataset: Dataset, folder: Path, audience: Audience,
    weights: Weights | None = None, teacher: Teacher | None = None,
) -> Study:  # fmt: skip
    """Run the trials of `plan` in `space` around the parameters `config`; with some in `folder`, the remaining ones.

    `weights` and `teacher` are what `config` names, as in tasks.train. Raises ValueError for parameters that do not fit
    the dataset or the cluster, and where no trial came to its end, and ClusterLost.
    """
    connect()
    layout = require_trainable(family, config, space, dataset, teacher)
    study = Study(folder / JOURNAL, space, plan)
    own = own_values(config, space)
    if own is not None:
        study.propose(own)
    ledger = Ledger(study, plan, folder / TRIALS, audience)
    budget_s = plan.time_budget_s - study.spent_s if plan.time_budget_s else None
    if ledger.num_left and (budget_s is None or budget_s > 0):
        task = {
            "family": family, "config": config, "info": dataset.info, "layout": layout, "metric": plan.metric,
            "weights": [ray.put(weights)], "teacher": [ray.put(teacher)], "folder": folder / TRIALS,
            "files": shared_files(),
        }  # fmt: skip
        run_trials(
            task, config, plan, ledger, open_source(family, dataset, layout, weights), folder, budget_s
        )
    ledger.close_running(TIME_UP)
    require_winner(study)
    return study


def require_trainable(
    family: str, config: Any, space: Space, dataset: Dataset, teacher: Teacher | None = None
) -> Layout:
    """Raise ValueError if the dataset or some end of the space would fail every trial; else the split's layout."""
    dataset.require("train")
    if not dataset.info.num_images("val"):
        raise ValueError(
            f"dataset {dataset.info.name} has no validation pictures to search by; "
            "ingest it again with a larger ingest.val_fraction"
        )
    layout = FAMILIES[family].layout(config, dataset)
    drawn = [key for key in space if key.startswith("sampling.")]
    if drawn:
        raise ValueError(
            f"--space {drawn[0]}: how batches are drawn is the same for all trials; leave it out"
        )
    require_teacher(config, dataset.info, teacher)
    for end in end_configs(config, space):
        BatchPlan.of(end.train, layout, 0, end.train.num_workers)
        require_teacher(end, dataset.info, teacher)
    if config.transfer.weights if "transfer" in type(config).model_fields else "":
        fixed = [key for key in space if key.startswith("model.")]
        if fixed:
            raise ValueError(
                f"--space {fixed[0]}: transfer.weights (={config.transfer.weights}) fit one network"
            )
    return layout


def require_winner(study: Study) -> None:
    """Raise ValueError if no trial came to its end."""
    if study.best() is not None:
        return
    trials = study.trials()
    failed = [trial for trial in trials if trial.state == "failed"]
    if failed and len(failed) == len(trials):
        raise ValueError(f"all {len(trials)} trials failed; the first: {failed[0].reason}")
    failures = f", {len(failed)} failed (the first: {failed[0].reason})" if failed else ""
    raise ValueError(
        f"none of {len(trials)} trials came to its end{failures}; give the search more time or more trials"
    )


def run_trials(
    task: dict[str, Any], config: Any, plan: SearchConfig, ledger: "Ledger", source: Any, folder: Path,
    budget_s: float | None,
) -> None:  # fmt: skip
    """Have Tune run what is left."""
    os.environ.update(SETTINGS)
    cpus, gpus = config.train.cpus_per_worker or 1, config.train.gpus_per_worker
    require_resources(1, cpus, gpus)
    trainable = ray.tune.with_parameters(run_trial, task=task | {"source": source, "threads": cpus})
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, {"CPU": cpus} | ({"GPU": gpus} if gpus else {})),
        tune_config=ray.tune.TuneConfig(
            search_alg=Suggestions(ledger),
            scheduler=Rungs(ledger),
            num_samples=ledger.num_left,
            max_concurrent_trials=num_concurrent(plan, cpus, gpus),
            time_budget_s=budget_s,
            reuse_actors=True,  # the next trial is spared the start of a process
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name=TUNE,
            storage_path=str(folder.resolve()),
            failure_config=ray.tune.FailureConfig(max_failures=MAX_LOST_PROCESSES),
            verbose=0,
        ),
    )
    helpers = [source]
    try:
        Tuning(tuner, ledger).follow()
        _unregister_all()
    except TuneError as error:
        raise ledger.error or error from None  # Tune raises the text of a traceback in place of what it met
    except ClusterLost:
        helpers.clear()  # nobody is there to end them
        raise
    finally:
        for actor in helpers:
            ray.kill(actor)
        atexit.unregister(_unregister_all)  # which would ask the head when the process ends, gone or not
        shutil.rmtree(folder / TUNE, ignore_errors=True)
    if ledger.error is not None:
        raise ledger.error


def num_concurrent(plan: SearchConfig, cpus: int, gpus: float) -> int:
    """Trials at a time: as many as were asked for and the cluster holds. Tune would ask for suggestions ahead of it."""
    fitting = num_places(cpus, gpus)
    return min(plan.max_concurrent or fitting, fitting)


# --- in the process that searches ----------------------------------------------------------------------------------


class Tuning(threading.Thread):
    """Tune at work."""

    def __init__(self, tuner: Any, ledger: "Ledger") -> None:
        super().__init__(name="tune", daemon=True)
        self.tuner, self.ledger = tuner, ledger
        # not `join`: a signal in the middle of it would have the thread pass for dead (bpo-46726)
        self.over = threading.Event()
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.tuner.fit()
        except Left:
            pass
        except Exception as error:  # a thread's exception would be lost
            self.error = error
        finally:
            self.over.set()

    def follow(self) -> None:
        """Wait for the end, and raise what Tune raised; ClusterLost where the head is lost before that.

        Raises what a signal's handler raises, and Tune leaves its trials where they are.
        """
        head = Head()
        try:
            while not self.over.wait(WAIT_S):
                head.require()
        except ClusterLost as lost:
            # Tune is left alone: what it has, the head is asked to free, by whichever thread frees it.
            self.ledger.error = ClusterLost(*lost.args)
            raise
        except BaseException:
            self.ledger.left = True
            self.over.wait(LEAVE_S)
            raise
        if self.error is not None:
            raise self.error


@dataclass
class Ledger:
    """Between Tune, which has ids, and the study, which has numbers; and whoever is told."""

    study: Study
    plan: SearchConfig
    checkpoints: Path
    audience: Audience
    numbers: dict[str, int] = field(default_factory=dict)  # of trials that run, by Tune's ids
    stopped: set[int] = field(default_factory=set)
    error: Exception | None = None  # what was raised here first, or ended the search
    left: bool = False  # whether Tune is to end at once

    def __post_init__(self) -> None:
        trials = self.study.trials()
        self.unfinished = [trial.number for trial in trials if trial.state == "running"]
        self.num_left = self.plan.trials - len(trials) + len(self.unfinished)
        self.spent_before_s, self.began = self.study.spent_s, time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its parts to restore them some day; here that is what the journal is for."""
        return {}

    def stay(self) -> None:
        """End Tune's thread if it is to end."""
        if self.left:
            raise Left

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Raise what was raised here before: Tune logs what a trial's end raises, and runs the trial again."""
        self.stay()
        if self.error is not None:
            raise self.error
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    def begin(self, id: str) -> dict[str, Any]:
        """What Tune's new trial is to do: first those that an earlier attempt did not finish, then new ones."""
        trial = self.study.go_on(self.unfinished.pop(0)) if self.unfinished else self.study.ask()
        self.numbers[id] = trial.number
        self.audience.started(self.study, trial)
        return {"number": trial.number, "changes": json.dumps(trial.changes)}

    def hear(self, id: str, report: Report) -> bool:
        """Whether a trial is to be stopped."""
        number = self.numbers[id]
        stop = self.study.hear(number, report)
        if stop:
            self.stopped.add(number)
        self.audience.validated(self.study.trial(number), report)
        return stop

    def end(self, id: str, result: dict[str, Any]) -> None:
        """Close a trial; `result` is what it said last, and empty where its process was lost."""
        number = self.numbers.pop(id)
        if number in self.stopped:
            trial = self.study.break_off(number, "stopped early", "")
        elif "ended" in result:
            trial = self.study.finish(number, result["ended"])
            self.audience.validated(trial, result["ended"])
        else:
            lost = f"its process was lost {MAX_LOST_PROCESSES + 1} times"
            trial = self.study.break_off(number, "failed", result.get("failed", lost))
        self.tidy(trial)

    def close_running(self, reason: str) -> None:
        """Close what was cut off."""
        for trial in self.study.trials():
            if trial.state == "running":
                self.tidy(self.study.break_off(trial.number, "stopped early", reason))

    def tidy(self, trial: Trial) -> None:
        self.study.spend(self.spent_before_s + time.monotonic() - self.began)
        shutil.rmtree(self.checkpoints / str(trial.number), ignore_errors=True)
        self.audience.ended(self.study, trial)


class Suggestions(Searcher):
    """Tune's door to what is tried next."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def suggest(self, trial_id: str) -> dict[str, Any]:
        with self.ledger.remembering():
            return self.ledger.begin(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        with self.ledger.remembering():
            self.ledger.end(trial_id, {} if error else result or {})

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's journal has it all."""


class Rungs(FIFOScheduler):
    """Tune's door to what is stopped."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        self.ledger.stay()  # here, since Tune comes by at each of its steps
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        with self.ledger.remembering():
            stop = "report" in result and self.ledger.hear(trial.trial_id, result["report"])
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)


# --- on the cluster ------------------------------------------------------------------------------------------------


@ray.remote(num_cpus=0)
class Source:
    """Where trials get their pictures from, beside the files. Decodes a split once for all that look at it alike."""

    def __init__(self, family: str, dataset: Dataset, layout: Layout, weights: Weights | None) -> None:
        self.make = partial(source_of, family, dataset=dataset, layout=layout, weights=weights)
        self.resident: dict[str, dict[str, Any]] = {}

    def of(self, config: Any) -> dict[str, Any]:
        """As `source_of` has it; readers of a streamed split belong to the one who asked."""
        key = source_key(config)
        if key in self.resident:
            return self.resident[key]
        made = self.make(config=config)
        if "resident" in made:
            self.resident[key] = made
        return made


def open_source(family: str, dataset: Dataset, layout: Layout, weights: Weights | None) -> Any:
    start: Any = Source
    return start.options(scheduling_strategy=beside_driver()).remote(family, dataset, layout, weights)


def run_trial(values: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """What a trial's process runs. Tune tries again what raises, so only the loss of a process may."""
    try:
        return {"ended": fit_trial(values["number"], json.loads(values["changes"]), task)}
    except Exception as error:
        own = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        known = isinstance(own, ValueError | FloatingPointError)
        return {"failed": str(own) if known else f"{type(own).__name__}: {own}"}


def fit_trial(number: int, changes: dict[str, Any], task: dict[str, Any]) -> Report:
    """Train to the end; the last report."""
    whole = changed(task["config"], changes)
    BatchPlan.of(whole.train, task["layout"], 0, whole.train.num_workers)  # its training in full must go too
    config = trial_config(whole)
    torch.set_num_threads(task["threads"])
    [weights] = ray.get(task["weights"])
    device = torch.device("cuda" if config.train.gpus_per_worker else "cpu")
    payload = {**task, "config": config, **ray.get(task["source"].of.remote(config))}
    feeds = streamed_feeds(payload) if "readers" in payload else resident_feeds(payload, device)
    watch = Watch(BatchPlan.of(config.train, task["layout"], 0, 1), config, task["metric"])
    [teacher] = ray.get(task["teacher"])
    family = watch.over(taught(started(task["family"], weights, caches(config)), teacher, config, device))
    session = LocalSession(task["folder"] / str(number), device, watch.hear, files=task["files"])
    state = fit_from(feeds, family, config, task["info"], task["layout"], session, lambda step: None)
    return watch.report(state["step"], state["time_s"], state["metrics"])


def trial_config(config: Any) -> Any:
    """The parameters as a trial has them: in one process, and validated at least once an epoch."""
    every = config.train.validate_every_epochs or 1
    alone = {"train.num_workers": 1, "train.min_workers": 0, "train.augment_workers": 0}
    return changed(config, {**alone, "train.validate_every_epochs": every})


class Watch:
    """Hears a trial's loop, and reports each of its validations but the last, which is the end."""

    def __init__(self, plan: BatchPlan, config: Any, metric: SearchMetric) -> None:
        self.plan, self.metric = plan, metric
        self.every = config.train.validate_every_epochs * plan.steps_per_epoch
        self.validated = False
        self.cpu_began_s = time.process_time()  # a process runs one trial after the other

    def over(self, family: Family) -> Family:
        """The family, whose validations are noticed: what the loop says next is said of one."""

        def validate(*arguments: Any) -> dict[str, float]:
            self.validated = True
            return family.validate(*arguments)

        return replace(family, validate=validate)

    def hear(self, progress: Progress) -> None:
        if self.validated and progress.step < progress.num_steps:
            self.validated = False
            report = self.report(progress.step, progress.time_s, progress.metrics)
            ray.tune.report({"report": report})  # the process may be told here to stop

    def report(self, step: int, time_s: float, metrics: dict[str, float]) -> Report:
        epoch = step / self.plan.steps_per_epoch
        cpu_s = time.process_time() - self.cpu_began_s
        return Report(-(-step // self.every), metrics[self.metric], step, epoch, time_s, metrics, cpu_s)
