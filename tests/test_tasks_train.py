"""Training on Ray: the same weights as in this process, whatever happens to a worker."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from data.dataset import Dataset
from tasks import cluster
from tasks.families import FAMILIES
from tasks.loop import Progress
from tasks.result import read_result
from tasks.stopping import Interrupted
from tasks.train import train
from tests.test_families import assert_equal_weights, weights
from tests.test_families import run as run_family
from tests.tiny import tiny_config, tiny_dataset

FAMILY = "classification"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(FAMILY, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def reference(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in this process."""
    return run(digits, tmp_path_factory.mktemp("reference") / "run", "in_process")


@pytest.fixture(scope="module", autouse=True)
def embedded_ray() -> Iterator[None]:
    cluster.connect()
    yield
    cluster.disconnect()


def run(
    dataset: Dataset,
    folder: Path,
    executor: Any = "ray",
    on_progress: Any = None,
    stopping: Any = lambda: False,
    **changes: Any,
) -> Path:
    config = tiny_config(FAMILY, **changes)
    train(
        FAMILY, config, dataset, folder=folder, key="k", digest="", executor=executor, on_progress=on_progress,
        stopping=stopping,
    )  # fmt: skip
    return folder


def test_ray_gives_the_weights_of_this_process(digits: Dataset, reference: Path, tmp_path: Path) -> None:
    messages: list[Progress] = []
    run(digits, tmp_path / "run", on_progress=messages.append)
    assert_equal_weights(tmp_path / "run", reference)
    assert messages[-1].step == messages[-1].num_steps and messages[-1].metrics["val_accuracy"] > 0


@pytest.mark.slow
def test_augmentation_workers_change_no_bit(digits: Dataset, reference: Path, tmp_path: Path) -> None:
    run(digits, tmp_path / "run", train__augment_workers=2)
    assert_equal_weights(tmp_path / "run", reference)


# of the families whose batches are more than pictures and labels always; of the others among the slow ones
OTHERS = [
    name if name in ("detection", "landmarks") else pytest.param(name, marks=pytest.mark.slow)
    for name in FAMILIES
    if name != FAMILY
]


@pytest.mark.parametrize("family", OTHERS)
def test_streamed_and_augmented_on_ray_every_family_learns_the_weights_of_this_process(
    family: str, tmp_path: Path
) -> None:
    dataset, few = tiny_dataset(family, tmp_path / "store"), {"train__epochs": 0.2}
    run_family(family, dataset, tmp_path / "here", **few)
    streamed = {"train__data_mode": "streaming", "train__augment_workers": 1}
    run_family(family, dataset, tmp_path / "ray", "ray", **streamed, **few)
    assert_equal_weights(tmp_path / "here", tmp_path / "ray")


# a window of less than half of the split
STREAMED = {"train__data_mode": "streaming", "train__data_gb": 1.5e-4}


@pytest.mark.parametrize("num_helpers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_streaming_changes_no_bit(digits: Dataset, tmp_path: Path, num_helpers: int) -> None:
    run(digits, tmp_path / "run", **STREAMED, train__augment_workers=num_helpers, train__batch_size=16)
    run(digits, tmp_path / "held", "in_process", train__data_gb=1.5e-4, train__batch_size=16)
    assert_equal_weights(tmp_path / "run", tmp_path / "held")


@pytest.mark.slow
def test_two_workers_come_close_to_one(digits: Dataset, tmp_path: Path) -> None:
    run(digits, tmp_path / "run", train__num_workers=2, optim__clip_norm=0.0)
    run(digits, tmp_path / "one", "in_process", optim__clip_norm=0.0)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "run")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


class StopAfter:
    """Wants the run to stop at its first message past a step."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def __call__(self, progress: Progress) -> None:
        self.seen = progress.step

    def stopping(self) -> bool:
        return self.seen >= self.step


LONG = {"train__epochs": 60.0}  # enough to be told to stop before the end


@pytest.fixture(scope="module")
def straight(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Uninterrupted long runs, by their number of workers."""

    @cache
    def made(num_workers: int) -> Path:
        folder = tmp_path_factory.mktemp("straight") / "run"
        executor = "in_process" if num_workers == 1 else "ray"
        return run(digits, folder, executor, **LONG, train__num_workers=num_workers)

    return made


def stopped(digits: Dataset, folder: Path, num_workers: int) -> tuple[dict[str, Any], int]:
    """A long run that is told to stop after its first step: its changes, and the step at which it did."""
    changes = {**LONG, "train__num_workers": num_workers, "train__checkpoint_every_steps": 10**6}
    stop = StopAfter(1)
    with pytest.raises(Interrupted) as interrupted:
        run(digits, folder, on_progress=stop, stopping=stop.stopping, **changes)
    assert stop.seen == interrupted.value.step  # the last step was told of
    return changes, interrupted.value.step


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_run_told_to_stop_goes_on_at_that_step_and_nothing_changes(
    num_workers: int, digits: Dataset, straight: Callable[[int], Path], tmp_path: Path
) -> None:
    changes, stopped_at = stopped(digits, tmp_path / "run", num_workers)
    run(digits, tmp_path / "run", **changes)
    result = read_result(tmp_path / "run")
    assert 1 < result.resumed_from_step == stopped_at < result.num_steps
    assert_equal_weights(tmp_path / "run", straight(num_workers))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_list_of_checkpoints_that_was_cut_short_is_written_anew(
    num_workers: int, digits: Dataset, straight: Callable[[int], Path], tmp_path: Path
) -> None:
    """As a kill or a full disk leaves it: Ray Train writes its list in place."""
    changes, stopped_at = stopped(digits, tmp_path / "run", num_workers)
    [listed] = (tmp_path / "run" / "ray").glob("*snapshot.json")
    listed.write_bytes(listed.read_bytes()[:40])
    newest = max((tmp_path / "run" / "ray").glob("checkpoint_*/"))
    half = Path(shutil.copytree(newest, newest.with_name("checkpoint_9")))  # as one that was being copied
    os.truncate(half / "state.pt", (half / "state.pt").stat().st_size // 2)
    run(digits, tmp_path / "run", **changes)
    assert read_result(tmp_path / "run").resumed_from_step == stopped_at
    assert_equal_weights(tmp_path / "run", straight(num_workers))


def ranks_at_the_end(folder: Path) -> list[str]:
    """Which ranks kept the last checkpoint together: Ray Train puts what each hands in into one folder."""
    newest = max((folder / "ray").rglob("state.pt")).parent
    return sorted(file.name for file in newest.glob("random-*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"train__time_budget_s": 1.0},
        # at this rate no validation is better than the first, or only a few are
        {"train__patience": 2, "train__validate_every_epochs": 1, "optim__lr": 1e-9, "optim__bias_lr": 1e-9},
    ],
    ids=["time-budget", "patience"],
)
def test_two_workers_end_early_at_the_same_step(
    changes: dict[str, Any], digits: Dataset, tmp_path: Path
) -> None:
    changes |= {"train__epochs": 10_000.0, "train__num_workers": 2, "train__checkpoint_every_steps": 10**6}
    run(digits, tmp_path / "run", **changes)
    result = read_result(tmp_path / "run")
    assert 0 < result.num_steps < 10_000
    assert ranks_at_the_end(tmp_path / "run") == ["random-0.pt", "random-1.pt"]


class KillWorker:
    """Sends SIGKILL to the training worker once, at its first message past a checkpoint."""

    def __init__(self) -> None:
        self.killed_at = 0

    def __call__(self, progress: Progress) -> None:
        if not self.killed_at and progress.step >= 10:
            [worker] = training_workers()
            os.kill(worker, signal.SIGKILL)
            self.killed_at = progress.step


def training_workers() -> list[int]:
    """Process ids of Ray Train's workers below this process."""
    family = psutil.Process().children(recursive=True)
    return [
        process.pid for process in family if "RayTrainWorker" in process.name() + " ".join(process.cmdline())
    ]


@pytest.mark.chaos
def test_a_killed_worker_is_replaced_and_nothing_changes(digits: Dataset, tmp_path: Path) -> None:
    changes = {"train__epochs": 40.0}
    killer = KillWorker()
    run(digits, tmp_path / "killed", on_progress=killer, **changes)
    run(digits, tmp_path / "straight", "in_process", **changes)
    assert killer.killed_at
    assert_equal_weights(tmp_path / "killed", tmp_path / "straight")


class KillWhileStopping(StopAfter):
    """Wants the run to stop, and kills one of its workers in the same moment."""

    def __init__(self) -> None:
        super().__init__(10)
        self.killed: list[int] = []

    def __call__(self, progress: Progress) -> None:
        super().__call__(progress)
        if self.stopping() and not self.killed:
            self.killed = training_workers()[-1:]
            os.kill(self.killed[0], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_worker_killed_while_the_run_stops_is_replaced_for_that(
    digits: Dataset, straight: Callable[[int], Path], tmp_path: Path
) -> None:
    killer = KillWhileStopping()
    with pytest.raises(Interrupted) as stopped:
        run(
            digits,
            tmp_path / "run",
            on_progress=killer,
            stopping=killer.stopping,
            **LONG,
            train__num_workers=2,
        )
    assert killer.killed
    run(digits, tmp_path / "run", **LONG, train__num_workers=2)
    assert read_result(tmp_path / "run").resumed_from_step == stopped.value.step
    assert_equal_weights(tmp_path / "run", straight(2))


class KillHelpers:
    """Sends SIGKILL to all that read rows and make batches, once, while they are at it."""

    def __init__(self) -> None:
        self.killed: list[str] = []

    def __call__(self, progress: Progress) -> None:
        if not self.killed and progress.step >= 10:
            for process in psutil.Process().children(recursive=True):
                kind = process.name() + " ".join(process.cmdline())
                if "ray::Reader" in kind or "ray::Augmenter" in kind:
                    process.kill()
                    self.killed.append(kind)


@pytest.mark.chaos
@pytest.mark.slow
def test_killed_readers_and_augmenters_are_replaced_and_nothing_changes(
    digits: Dataset, tmp_path: Path
) -> None:
    changes = {"train__epochs": 8.0, "train__batch_size": 16}
    killer = KillHelpers()
    run(digits, tmp_path / "run", on_progress=killer, **changes, **STREAMED, train__augment_workers=2)
    run(digits, tmp_path / "held", "in_process", **changes, train__data_gb=1.5e-4)
    assert any("Reader" in kind for kind in killer.killed) and any("Augm" in kind for kind in killer.killed)
    assert_equal_weights(tmp_path / "run", tmp_path / "held")


@pytest.mark.slow
def test_an_error_of_ours_is_raised_as_itself(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="not finite at step"):
        run(digits, tmp_path / "run", optim__lr=1e9, optim__bias_lr=1e9, optim__clip_norm=0.0)


def test_more_workers_than_cpus_is_refused_at_once(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"num_workers \(=999\) .* do not fit: \d+ such workers do; .*\(embedded\): \d+ CPUs"
    ):
        run(digits, tmp_path / "run", train__num_workers=999, train__batch_size=999)


def test_more_gpus_than_there_are_is_refused_at_once(digits: Dataset, tmp_path: Path) -> None:
    told = (
        r"0 such workers do; .* GPUs"
        if torch.cuda.is_available()
        else r".*\(embedded\) has no GPU: set train"
    )
    with pytest.raises(ValueError, match=rf"gpus_per_worker \(=99\) do not fit: {told}"):
        run(digits, tmp_path / "run", train__gpus_per_worker=99.0)
