"""Trials on Ray Tune: what they train, what ends them, and how a search goes on."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from data.dataset import Dataset
from pipelines.search import MEASURED
from tasks import cluster
from tasks.families import FAMILIES
from tasks.nodes import ClusterLost
from tasks.search import (
    JOURNAL,
    TRIALS,
    Ledger,
    Rungs,
    Suggestions,
    Tuning,
    fit_trial,
    require_trainable,
    search,
    trial_config,
)
from tasks.space import SearchConfig, parse_space
from tasks.study import Report, Study, Trial
from tasks.train import train
from tests.test_tasks_distil import teacher_of
from tests.test_tasks_study import HOW
from tests.tiny import tiny_config, tiny_dataset, tiny_weights

FAMILY = "classification"
QUICK = {"train__epochs": 4.0, "train__validate_every_epochs": 1}
RATES = "optim.lr=0.05,0.0001"
DIVERGING = {"optim__clip_norm": 0.0, "optim__bias_lr": 0.05}


def validation(metrics: dict[str, float]) -> dict[str, float]:
    """Those that do not depend on the clock: means over steps are taken twice a second."""
    return {name: value for name, value in metrics.items() if name.startswith("val_")}


class Audience:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.reports: dict[int, list[Report]] = {}
        self.over: dict[int, Trial] = {}

    def started(self, study: Study, trial: Trial) -> None:
        assert study.trial(trial.number) == trial
        self.began.append(trial.number)

    def validated(self, trial: Trial, report: Report) -> None:
        self.reports.setdefault(trial.number, []).append(report)

    def ended(self, study: Study, trial: Trial) -> None:
        assert study.trial(trial.number) == trial
        self.over[trial.number] = trial


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """The tiny datasets, without the files of their test splits: a search that opened them would fail."""
    store = tmp_path_factory.mktemp("store")
    found = {family: tiny_dataset(family, store) for family in FAMILIES}
    for dataset in found.values():
        for shard in dataset.shards("test"):
            shard.unlink()
    return found


@pytest.fixture(scope="module")
def digits(datasets: dict[str, Dataset]) -> Dataset:
    return datasets[FAMILY]


@pytest.fixture(scope="module", autouse=True)
def embedded_ray() -> Iterator[None]:
    cluster.connect()
    yield
    cluster.disconnect()


def run(
    dataset: Dataset, folder: Path, *texts: str, family: str = FAMILY, audience: Any = None,
    how: dict[str, Any] | None = None, teacher: Any = None, **changes: Any,
) -> Study:  # fmt: skip
    config = tiny_config(family, **QUICK | changes)
    plan = SearchConfig.parse(HOW | {"max_concurrent": 1} | (how or {}), "")
    folder.mkdir(exist_ok=True)
    return search(
        family, config, parse_space(texts, config), plan, dataset, folder, audience or Audience(),
        tiny_weights(family, config), teacher,
    )  # fmt: skip


@pytest.mark.parametrize(
    "family",
    [
        "classification",
        *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "classification"),
    ],
)
def test_a_trial_is_the_training_that_its_values_would_be(
    family: str, datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    config = tiny_config(family, **QUICK)
    space = f"optim.lr={config.optim.lr},{config.optim.lr / 1000}"
    audience, metric = Audience(), MEASURED.get(family, ("val_accuracy",))[0]
    study = run(
        datasets[family], tmp_path / "search", space, family=family, audience=audience,
        how={"trials": 2, "metric": metric},
    )  # fmt: skip
    first = study.trials()[0]
    assert first.changes == {"optim.lr": config.optim.lr}  # the recipe's own
    result = train(
        family, config, datasets[family], folder=tmp_path / "run", key="k", digest="", executor="in_process",
        weights=tiny_weights(family, config),
    )  # fmt: skip
    assert first.state == "finished" and first.epoch == 4.0
    assert validation(first.metrics) == pytest.approx(validation(result.metrics), abs=1e-6)
    assert first.value == first.metrics[metric]
    assert [report.validation for report in audience.reports[0]] == [1, 2, 3, 4]
    assert list((tmp_path / "search" / TRIALS).iterdir()) == []


def test_a_trial_learns_from_the_teacher_that_its_training_would_have(
    digits: Dataset, tmp_path: Path
) -> None:
    teacher = teacher_of(tmp_path / "teacher", digits)
    taught = {"distil__teacher": teacher.source, "distil__weight": 1.0}
    study = run(
        digits, tmp_path / "search", RATES, how={"trials": 1}, teacher=teacher, train__epochs=1.0, **taught
    )
    config = tiny_config(FAMILY, **{**QUICK, "train__epochs": 1.0}, **taught)
    result = train(
        FAMILY, config, digits, folder=tmp_path / "run", key="k", digest="", executor="in_process", teacher=teacher
    )  # fmt: skip
    [trial] = study.trials()
    assert validation(trial.metrics) == pytest.approx(validation(result.metrics), abs=1e-6)
    assert "from_teacher" in trial.metrics


def test_a_teacher_that_was_not_read_ends_a_search_before_its_first_trial(digits: Dataset) -> None:
    config = tiny_config(FAMILY, distil__teacher="models:/x@champion")
    with pytest.raises(ValueError, match=r"distil.teacher \(=models:/x@champion\) was not read"):
        require_trainable(FAMILY, config, parse_space([RATES], config), digits)


def test_a_trial_of_a_recipe_for_several_workers_runs_in_one() -> None:
    several = tiny_config(FAMILY, train__num_workers=2, train__min_workers=2)
    settings = trial_config(several).train
    assert (settings.num_workers, settings.min_workers, settings.augment_workers) == (1, 0, 0)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_search(digits: Dataset, tmp_path: Path) -> None:
    texts = ("optim.lr=log:1e-4..1e-1", "train.batch_size=32..64")
    found = [run(digits, tmp_path / name, *texts, how={"trials": 3}).trials() for name in "ab"]
    plain = [[(trial.changes, trial.state, trial.values) for trial in trials] for trials in found]
    assert plain[0] == plain[1]
    assert len(plain[0]) == 3


def test_a_hopeless_trial_is_stopped_and_the_next_one_is_not_disturbed(
    digits: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    config = tiny_config(FAMILY, **QUICK)
    space = parse_space([RATES], config)
    ahead = Study(tmp_path / "run" / JOURNAL, space, SearchConfig.parse(HOW, ""))
    for lr in (0.05, 0.0001, 0.05):
        ahead.study.enqueue_trial({"optim.lr": lr})
    trials = run(digits, tmp_path / "run", RATES, how={"trials": 3}).trials()
    assert [trial.state for trial in trials] == ["finished", "stopped early", "finished"]
    assert trials[1].epoch < 4.0 and trials[1].value == trials[1].values[int(trials[1].epoch)]
    assert trials[0].values == trials[2].values


@pytest.mark.slow
def test_a_trial_that_diverges_has_failed_and_the_others_go_on(digits: Dataset, tmp_path: Path) -> None:
    study = run(digits, tmp_path / "run", "optim.lr=0.05,1e9", how={"trials": 4}, **DIVERGING)
    trials = study.trials()
    failed = [trial for trial in trials if trial.changes["optim.lr"] == 1e9]
    assert failed and all(trial.state == "failed" for trial in failed)
    assert all("not finite at step" in trial.reason for trial in failed)
    best = study.best()
    assert best is not None and best.changes["optim.lr"] == 0.05


@pytest.mark.slow
def test_a_search_in_which_all_fail_says_why(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"all 2 trials failed; the first: the loss is not finite at step"):
        run(digits, tmp_path / "run", "optim.lr=1e9,1e10", how={"trials": 2}, **DIVERGING)


def test_what_would_fail_every_trial_is_refused_at_once(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"batch_size \(=33\) must be divisible by .*accumulate_batches \(=2\)"
    ):
        run(digits, tmp_path / "run", "train.batch_size=32,33", train__accumulate_batches=2)
    with pytest.raises(ValueError, match=r"gpus_per_worker \(=99\) do not fit"):
        run(digits, tmp_path / "run", RATES, train__gpus_per_worker=99.0)


@pytest.mark.slow
def test_ended_trials_are_not_run_again_and_more_can_be_asked_for(digits: Dataset, tmp_path: Path) -> None:
    texts, again = ("optim.lr=log:1e-3..1e-1",), Audience()
    before = run(digits, tmp_path / "run", *texts, how={"trials": 2}).trials()
    after = run(digits, tmp_path / "run", *texts, how={"trials": 3}, audience=again).trials()
    assert after[:2] == before and again.began == [2]
    straight = run(digits, tmp_path / "straight", *texts, how={"trials": 3}).trials()
    assert [trial.changes for trial in straight] == [trial.changes for trial in after]
    assert [trial.values for trial in straight] == [trial.values for trial in after]


@pytest.mark.slow
def test_a_search_whose_time_is_up_says_so_and_starts_nothing(digits: Dataset, tmp_path: Path) -> None:
    audience = Audience()
    with pytest.raises(ValueError, match="none of 1 trials came to its end; give the search more time"):
        run(
            digits, tmp_path / "run", RATES, how={"time_budget_s": 4.0}, audience=audience,
            train__epochs=100000.0,
        )  # fmt: skip
    assert [trial.state for trial in audience.over.values()] == ["stopped early"]
    assert audience.over[0].reason == "the search's time was up"
    again = Audience()
    with pytest.raises(ValueError, match="none of 1 trials"):
        run(digits, tmp_path / "run", RATES, how={"time_budget_s": 4.0}, audience=again)
    assert again.began == []


class KillTrial(Audience):
    """Sends SIGKILL to the process of a trial once, at its second validation."""

    def __init__(self) -> None:
        super().__init__()
        self.killed = 0

    def validated(self, trial: Trial, report: Report) -> None:
        super().validated(trial, report)
        if not self.killed and report.validation == 2:
            family = psutil.Process().children(recursive=True)
            kinds = {process.pid: process.name() + " ".join(process.cmdline()) for process in family}
            [victim] = [pid for pid, kind in kinds.items() if "ImplicitFunc" in kind]
            os.kill(victim, signal.SIGKILL)
            self.killed = victim


@pytest.mark.chaos
def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(digits: Dataset, tmp_path: Path) -> None:
    killer = KillTrial()
    one = run(digits, tmp_path / "killed", RATES, how={"trials": 1}, audience=killer, train__epochs=6.0)
    straight = run(digits, tmp_path / "straight", RATES, how={"trials": 1}, train__epochs=6.0)
    assert killer.killed
    assert one.trials()[0].values == straight.trials()[0].values


@pytest.mark.slow
def test_an_unfinished_trial_of_an_earlier_attempt_is_the_first_to_go_on(
    digits: Dataset, tmp_path: Path
) -> None:
    """As after a kill: the journal has a trial that runs, and its folder a checkpoint from before the end."""
    (tmp_path / "run").mkdir()
    config = tiny_config(FAMILY, **QUICK)
    space = parse_space([RATES], config)
    ahead = Study(tmp_path / "run" / JOURNAL, space, SearchConfig.parse(HOW, ""))
    ahead.study.enqueue_trial({"optim.lr": 0.05})
    assert ahead.ask().number == 0
    train(
        FAMILY, tiny_config(FAMILY, **QUICK), digits, folder=tmp_path / "straight", key="k", digest="",
        executor="in_process",
    )  # fmt: skip
    checkpoints = sorted((tmp_path / "straight" / "checkpoints").glob("step-*.pt"))
    folder = tmp_path / "run" / TRIALS / "0"
    folder.mkdir(parents=True)
    checkpoints[0].rename(folder / checkpoints[0].name)  # the last but one
    audience = Audience()
    trials = run(digits, tmp_path / "run", RATES, how={"trials": 2}, audience=audience).trials()
    assert audience.began == [0, 1]
    assert trials[0].state == "finished" and trials[0].changes == {"optim.lr": 0.05}
    assert 1 <= len(audience.reports[0]) < 4
    result = json.loads((tmp_path / "straight" / "result.json").read_text())
    assert validation(trials[0].metrics) == pytest.approx(validation(result["metrics"]), abs=1e-6)


def test_pictures_are_decoded_once_for_all_trials_that_look_at_them_alike(digits: Dataset) -> None:
    import ray

    from data.stream import layout_of
    from tasks.search import open_source

    source = open_source(FAMILY, digits, layout_of(digits, "train"), None)
    config = tiny_config(FAMILY)
    one, same, other = (
        ray.get(source.of.remote(each))["resident"]["train"][0]
        for each in (
            config,
            tiny_config(FAMILY, optim__lr=0.1, augment__cutout_px=0),
            tiny_config(FAMILY, input__stored_px=20),
        )
    )
    assert one == same and one != other
    ray.kill(source)


def test_what_a_trial_raises_is_told_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import search as module

    def fails(*_arguments: Any) -> None:
        raise KeyError("classes")

    monkeypatch.setattr(module, fit_trial.__name__, fails)
    assert module.run_trial({"number": 0, "changes": "{}"}, {}) == {"failed": "KeyError: 'classes'"}


class Looping:
    """A Tune that takes steps, and no more."""

    def __init__(self, rungs: Rungs) -> None:
        self.rungs = rungs

    def fit(self) -> None:
        while True:
            self.rungs.choose_trial_to_run(SimpleNamespace(get_trials=list))
            time.sleep(0.01)


def raising(error: BaseException) -> type:
    """A head at which whoever looks after it meets this."""

    class Head:
        def require(self) -> None:
            raise error

    return Head


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Of a search of which nothing has run."""
    plan = SearchConfig.parse(HOW, "")
    study = Study(tmp_path / JOURNAL, parse_space([RATES], tiny_config(FAMILY)), plan)
    return Ledger(study, plan, tmp_path / TRIALS, Audience())


def test_nobody_waits_for_a_tune_whose_cluster_is_gone_and_nothing_that_it_says_counts(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.search.Head", raising(ClusterLost("the head has not answered for 41 s")))
    tuning = Tuning(Looping(Rungs(ledger)), ledger)
    with pytest.raises(ClusterLost, match="has not answered for 41 s"):
        tuning.follow()
    with pytest.raises(ClusterLost):  # as when Tune misses the process of a trial
        Suggestions(ledger).on_trial_complete("id", error=True)
    assert ledger.study.trials() == [] and not tuning.over.is_set()
    ledger.left = True
    assert tuning.over.wait(10)


def test_a_signal_ends_tune_at_its_next_step(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.search.Head", raising(KeyboardInterrupt()))
    tuning = Tuning(Looping(Rungs(ledger)), ledger)
    with pytest.raises(KeyboardInterrupt):
        tuning.follow()
    assert tuning.over.is_set() and tuning.error is None


@pytest.mark.slow
def test_a_search_that_is_stopped_leaves_its_trial_to_go_on(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Audience()

    class Head:
        def require(self) -> None:
            if heard.reports:
                raise KeyboardInterrupt

    monkeypatch.setattr("tasks.search.Head", Head)
    slowly = {"train__epochs": 2000.0, "train__checkpoint_every_steps": 3}
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "run", RATES, how={"trials": 1}, audience=heard, **slowly)
    assert not [thread for thread in threading.enumerate() if isinstance(thread, Tuning)]
    config = tiny_config(FAMILY, **QUICK | slowly)
    [left] = Study(
        tmp_path / "run" / JOURNAL, parse_space([RATES], config), SearchConfig.parse(HOW, "")
    ).trials()
    assert left.state == "running" and heard.over == {}
    assert list((tmp_path / "run" / TRIALS / "0").glob("step-*.pt"))


@pytest.mark.slow
def test_what_whoever_is_told_raises_ends_the_search_as_itself(digits: Dataset, tmp_path: Path) -> None:
    class Deaf(Audience):
        def ended(self, study: Study, trial: Trial) -> None:
            super().ended(study, trial)
            raise ConnectionError("MLflow is away")

    with pytest.raises(ConnectionError, match="MLflow is away"):
        run(digits, tmp_path / "run", RATES, how={"trials": 1}, audience=Deaf())
