"""The record of a search, by Optuna: which trials there were, what came of them, which is next, and which is stopped.

It lies in the search's folder as a journal to which every event is appended before anything follows from it, so that a
search that is killed goes on from there. Ray Tune's own record is a picture of the whole taken every ten seconds or
more, in which neither the last trials nor the scheduler's rungs are found again.

Suggestions are those of TPE (Bergstra et al. 2011, https://papers.nips.cc/paper/4443). Each has a generator of its own,
seeded by (seed, number of the trial), so that a search that goes on suggests what it would have suggested. Trials are
stopped by asynchronous successive halving (Li et al. 2018, https://arxiv.org/abs/1810.05934), in units of validations:
of those that had 1, 3, 9, … of them, the best third goes on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from data.files import cut_tail, read_objects
from tasks.space import Choice, SearchConfig, Space, Span, Value

State = Literal["running", "finished", "stopped early", "failed"]
STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Report:
    """How far a trial is, at one of its validations."""

    validation: int  # 1, 2, …
    value: float  # of the metric that is searched by
    step: int
    epoch: float
    time_s: float  # of training, validations included
    metrics: dict[str, float]
    cpu_s: float = 0.0  # processor seconds of its process so far


@dataclass(frozen=True)
class Trial:
    """One set of values, and what came of it."""

    number: int
    changes: dict[str, Value]  # by dotted keys
    state: State
    value: float | None  # of the metric at its last validation
    values: dict[int, float]  # of the metric, by the number of validations
    epoch: float  # how far it came
    time_s: float  # of training, validations included
    metrics: dict[str, float]  # at its last validation
    reason: str  # why it failed, or was stopped
    cpu_s: float = 0.0  # processor seconds of the process that ran it, up to its last validation


class Study:
    """The trials of one search, in a file. One process at a time has it open."""

    def __init__(self, file: Path, space: Space, config: SearchConfig) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # What a killed process left locked; nobody else can be writing, for the search's folder is held.
        file.with_name(f"{file.name}.lock").unlink(missing_ok=True)
        cut_tail(file)
        # Optuna's own error would not name the file, and come after it has appended to it
        read_objects(file, "start the search anew without --resume")
        self.space, self.seed = space, config.seed
        self.maximize = config.metric != "val_loss"
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(file))),
            study_name="search",
            direction="maximize" if self.maximize else "minimize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=config.reduction),
            load_if_exists=True,
        )
        self.distributions = {key: distribution(values) for key, values in space.items()}

    def propose(self, changes: Mapping[str, Value]) -> None:
        """Have these values tried first, in a study that has no trial yet."""
        if not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(
                {key: own_label(self.space[key], value) for key, value in changes.items()}
            )

    def ask(self) -> Trial:
        """A new trial."""
        trials = self.study.get_trials(deepcopy=False)
        number = next((t.number for t in trials if t.state == TrialState.WAITING), len(trials))
        self.study.sampler = self.sampler(number)
        return self.trial(self.study.ask(self.distributions).number)

    def go_on(self, number: int) -> Trial:
        """A trial that is running, as an earlier process left it, perhaps before it had kept all of its values."""
        kept = self.frozen(number).params
        if kept.keys() != self.distributions.keys():
            sampler = self.study.sampler = self.sampler(number)
            trial = self.open(number)
            for key, values in self.distributions.items():
                if key in kept and key not in trial.relative_params:
                    # drawn again, so that the next are what they would have been
                    sampler.sample_independent(self.study, self.frozen(number), key, values)
                trial._suggest(key, values)
        return self.trial(number)

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """What suggests a trial's values."""
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        return optuna.samplers.TPESampler(seed=seed)

    def hear(self, number: int, report: Report) -> bool:
        """Keep what a trial says of itself; whether it is to be stopped."""
        # it went on from a checkpoint before that
        if report.validation in self.frozen(number).intermediate_values:
            return False
        trial = self.open(number)
        self.keep(trial, report)
        return trial.should_prune()

    def finish(self, number: int, report: Report) -> Trial:
        """Close a trial that came to its end; `report` is of its last validation."""
        if report.validation not in self.frozen(number).intermediate_values:
            self.keep(self.open(number), report)
        self.study.tell(number, report.value)
        return self.trial(number)

    def break_off(self, number: int, state: Literal["stopped early", "failed"], reason: str = "") -> Trial:
        """Close a trial that did not come to its end. Its value is that of its last validation, if it had one."""
        self.open(number).set_user_attr("reason", reason)
        self.study.tell(number, state=next(theirs for theirs, ours in STATES.items() if ours == state))
        return self.trial(number)

    def keep(self, trial: optuna.trial.Trial, report: Report) -> None:
        for name in ("epoch", "time_s", "metrics", "cpu_s"):
            trial.set_user_attr(name, getattr(report, name))
        trial.report(report.value, report.validation)

    def open(self, number: int) -> optuna.trial.Trial:
        """A running trial, of whichever process asked for it."""
        return optuna.trial.Trial(self.study, self.frozen(number)._trial_id)

    def frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def trial(self, number: int) -> Trial:
        return self.read(self.frozen(number))

    def read(self, frozen: FrozenTrial) -> Trial:
        changes = {key: unlabel(self.space[key], value) for key, value in frozen.params.items()}
        values = dict(sorted(frozen.intermediate_values.items()))
        kept = frozen.user_attrs
        last = frozen.value if frozen.value is not None else next(reversed(values.values()), None)
        return Trial(
            frozen.number, changes, STATES[frozen.state], last, values, kept.get("epoch", 0.0),
            kept.get("time_s", 0.0), kept.get("metrics", {}), kept.get("reason", ""),
            kept.get("cpu_s", 0.0),
        )  # fmt: skip

    def trials(self) -> list[Trial]:
        """All that have begun, in their order."""
        return [
            self.read(each)
            for each in self.study.get_trials(deepcopy=False)
            if each.state != TrialState.WAITING
        ]

    def best(self) -> Trial | None:
        """The best of the trials that ran to their end: no other was judged at the end of its schedule."""
        finished = [trial for trial in self.trials() if trial.state == "finished"]
        return max(finished, key=self.rank) if finished else None

    def rank(self, trial: Trial) -> float:
        """Greater is better."""
        assert trial.value is not None
        return trial.value if self.maximize else -trial.value

    @property
    def spent_s(self) -> float:
        """Seconds of the search so far, over all attempts."""
        return float(self.study.user_attrs.get("spent_s", 0.0))

    def spend(self, total_s: float) -> None:
        self.study.set_user_attr("spent_s", total_s)

    def importances(self) -> dict[str, float]:
        """Share of the variance of the value that each parameter explains, by fANOVA (Hutter et al. 2014)."""
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.seed)
        found = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {key: float(share) for key, share in found.items()}


def distribution(values: Span | Choice) -> BaseDistribution:
    """The same for Optuna."""
    if isinstance(values, Choice):
        return CategoricalDistribution([label(option) for option in values.options])
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def label(value: Value) -> Value:
    """An option as Optuna can keep it: lists as JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def own_label(values: Span | Choice, value: Value) -> Value:
    """The label of the option that equals a value: 1.0 for 1."""
    return value if isinstance(values, Span) else label(values.options[values.options.index(value)])


def unlabel(values: Span | Choice, kept: Value) -> Value:
    """The option of a label."""
    if isinstance(values, Span):
        return kept
    return next(option for option in values.options if label(option) == kept)
