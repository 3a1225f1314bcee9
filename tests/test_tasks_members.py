"""Members trained side by side: each as if it were alone, on one decode, and killed and resumed without a trace."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.dataset import Dataset
from tasks import cluster, features, members, raytrain, train
from tasks.loop import Progress
from tasks.members import MemberRun, share_of_cpus, train_members
from tasks.nodes import ClusterLost
from tests.test_families import assert_equal_weights
from tests.test_tasks_transfer import config_of, given
from tests.tiny import tiny_config, tiny_dataset

FAMILY = "classification"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(FAMILY, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module", autouse=True)
def embedded_ray() -> Iterator[None]:
    cluster.connect()
    yield
    cluster.disconnect()


def runs_in(folder: Path, **changes: Any) -> list[MemberRun]:
    """Three members: of two seeds, and of another network."""
    networks = ("lenet5", "lenet5", "resnet8_cifar")
    return [
        MemberRun(
            tiny_config(FAMILY, train__seed=seed, model__name=name, **changes), folder / f"k-{seed}", f"k-{seed}"
        )
        for seed, name in enumerate(networks)
    ]  # fmt: skip


@pytest.mark.slow
def test_members_are_the_runs_that_they_would_be_alone_and_share_one_decode(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def counting(family: str, dataset: Dataset, split: Any, config: Any) -> Any:
        decoded.append(split)
        return cluster.decode_split(family, dataset, split, config)

    monkeypatch.setattr(raytrain, "decode_split", counting)
    heard: dict[int, list[Progress]] = {0: [], 1: [], 2: []}
    begun: list[tuple[int, int]] = []
    results = train_members(
        FAMILY, runs_in(tmp_path / "together"), digits, digest="d",
        on_progress=lambda place, progress: heard[place].append(progress),
        on_start=lambda place, step: begun.append((place, step)),
    )  # fmt: skip
    assert decoded == ["train", "val"]
    assert sorted(begun) == [(0, 0), (1, 0), (2, 0)]
    alone = runs_in(tmp_path / "alone")
    for place, (run, result) in enumerate(zip(alone, results, strict=True)):
        train.train(
            FAMILY, run.config, digits, folder=run.folder, key=run.key, digest="d", executor="in_process"
        )
        assert_equal_weights(tmp_path / "together" / run.key, run.folder)
        assert heard[place][-1].step == result.num_steps
        assert (tmp_path / "together" / run.key / "history.csv").is_file()


@pytest.mark.parametrize("executor", ["in_process", "ray"])
def test_features_that_members_share_are_told_of_once_while_they_are_computed(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: Any
) -> None:
    monkeypatch.setattr(features, "features", lambda: tmp_path / "features")
    heads = {"transfer__mode": "head", "transfer__cache_features": True, "train__epochs": 0.2}
    weights = given()
    runs = [
        MemberRun(config_of(train__seed=seed, **heads), tmp_path / f"k-{seed}", f"k-{seed}", weights)
        for seed in range(2)
    ]
    told: list[tuple[int, int]] = []
    train_members(
        FAMILY, runs, digits, digest="", executor=executor, on_features=lambda *heard: told.append(heard)
    )
    num = digits.info.num_images("train") + digits.info.num_images("val")
    assert told[0] == (0, num) and told == sorted(told) and told.count((num, num)) == 1


@pytest.mark.slow
def test_what_has_ended_is_not_trained_again_and_what_was_stopped_goes_on(
    digits: Dataset, tmp_path: Path
) -> None:
    runs = runs_in(tmp_path, train__epochs=3.0, train__checkpoint_every_steps=2)
    train_members(FAMILY, runs[:1], digits, digest="")
    before = (runs[0].folder / "result.json").stat().st_mtime_ns

    class Stop(Exception):
        pass

    def stop(_place: int, progress: Progress) -> None:
        if progress.step >= 1:
            raise Stop

    with pytest.raises(Stop):
        train_members(FAMILY, runs, digits, digest="", on_progress=stop)
    assert not all((run.folder / "result.json").is_file() for run in runs)
    train_members(FAMILY, runs, digits, digest="")
    assert (runs[0].folder / "result.json").stat().st_mtime_ns == before
    straight = runs_in(tmp_path / "straight", train__epochs=3.0, train__checkpoint_every_steps=2)
    for run, reference in zip(runs[1:], straight[1:], strict=True):
        train.train(
            FAMILY, reference.config, digits, folder=reference.folder, key=run.key, digest="", executor="in_process"
        )  # fmt: skip
        assert_equal_weights(run.folder, reference.folder)


@pytest.mark.chaos
def test_a_killed_member_is_begun_again_and_nothing_changes(digits: Dataset, tmp_path: Path) -> None:
    runs = runs_in(tmp_path / "killed", train__epochs=40.0, train__checkpoint_every_steps=3)[:1]
    killed: list[int] = []

    def kill(_place: int, progress: Progress) -> None:
        for process in psutil.process_iter(["cmdline", "ppid"]):
            if (
                not killed
                and progress.step > 3
                and "ray::train_member" in " ".join(process.info["cmdline"] or ())
            ):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)

    train_members(FAMILY, runs, digits, digest="", on_progress=kill)
    assert killed
    reference = runs_in(tmp_path / "alone", train__epochs=40.0, train__checkpoint_every_steps=3)[0]
    train.train(
        FAMILY, reference.config, digits, folder=reference.folder, key="k-0", digest="", executor="in_process"
    )
    assert_equal_weights(runs[0].folder, reference.folder)


@pytest.mark.slow
def test_members_do_not_wait_for_a_cluster_that_is_gone(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost:
        def require(self) -> None:
            raise ClusterLost("the head has not answered for 41 s")

    monkeypatch.setattr(members, "Head", Lost)
    with pytest.raises(ClusterLost):
        train_members(FAMILY, runs_in(tmp_path, train__epochs=100000.0)[:1], digits, digest="")


@pytest.mark.slow
def test_a_members_error_is_raised_as_itself(digits: Dataset, tmp_path: Path) -> None:
    runs = runs_in(tmp_path, optim__lr=1e30, optim__clip_norm=0.0)
    with pytest.raises(FloatingPointError, match="the loss is not finite at step"):
        train_members(FAMILY, runs, digits, digest="")


def test_a_member_of_several_workers_is_refused(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_workers \(=2\) must be 1 in an ensemble"):
        train_members(FAMILY, runs_in(tmp_path, train__num_workers=2), digits, digest="")


def test_more_cpus_than_there_are_is_refused(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cpus_per_worker \(=5000\).* do not fit: 0 such members do"):
        train_members(FAMILY, runs_in(tmp_path, train__cpus_per_worker=5000), digits, digest="")


@pytest.mark.parametrize(
    ("num_members", "num_cpus", "share"), [(5, 2, 1), (5, 16, 3), (1, 16, 16), (2, 1, 1), (3, 8, 2)]
)
def test_members_share_the_cores_evenly(num_members: int, num_cpus: int, share: int) -> None:
    assert share_of_cpus(num_members, num_cpus) == share
    assert members.share_of_cpus(num_members, num_cpus) * min(num_members, num_cpus) <= max(num_cpus, 1)
