"""What fits on the nodes of a cluster, whether its head answers, and the driver's files as other nodes have them."""

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs
import pytest
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem

from tasks import cluster, nodes
from tasks.driverfiles import DriverFiles, Keeper
from tasks.nodes import ClusterLost, Head, inventory, places_on
from tasks.train import LocalSession
from tests.tiny import tiny_config

NODE = {"CPU": 8.0, "GPU": 3.0}


@pytest.mark.parametrize(("cpus", "gpus", "places"), [
    (1, 0, 8), (3, 0, 2), (9, 0, 0), (1, 1, 3), (1, 2, 1), (4, 1, 2), (1, 4, 0),
    (0, 0.5, 6), (0, 0.1, 30),  # 1 // 0.1 is 9 in floating point
    (0, 0.6, 3),  # part of a GPU is part of one GPU: what is left of three together holds none
])  # fmt: skip
def test_as_many_fit_as_a_node_has_whole_places_for(cpus: float, gpus: float, places: int) -> None:
    assert places_on(NODE, cpus, gpus) == places


def test_nodes_that_are_alike_are_told_together() -> None:
    assert inventory([{"CPU": 4.0}, NODE, {"CPU": 4.0}]) == "8 CPUs and 3 GPUs, 2 × 4 CPUs and 0 GPUs"


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What takes the head's place; it is asked each time."""
    monkeypatch.setattr(nodes, "ASK_EVERY_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        context = SimpleNamespace(gcs_address=f"127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(nodes.ray, "get_runtime_context", lambda: context)
        yield server


@pytest.mark.parametrize(("address", "limit", "told"), [
    (None, "EMBEDDED_LOST_AFTER_S", "head of the embedded Ray ({}) has not answered for"),
    ("head:6379", "LOST_AFTER_S", "head of the Ray cluster ({}) has not answered for"),
], ids=["embedded", "cluster"])  # fmt: skip
def test_a_head_that_is_silent_for_long_is_lost_and_the_error_says_how_to_go_on(
    address: str | None, limit: str, told: str, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    head = Head()
    head.require()
    head.wait()
    listening.close()
    head.require()  # it may come back
    monkeypatch.setattr(nodes, limit, 0.0)
    for ask in (head.require, head.wait):
        with pytest.raises(ClusterLost) as lost:
            ask()
        [line] = str(lost.value).splitlines()
        assert told.format(head.address) in line
        assert "what was done is kept: type the same command again, with --resume KEY" in line
        assert ("start the cluster again" in line) == (address is not None)


@pytest.mark.usefixtures("listening")
def test_a_question_that_is_lost_after_long_without_one_is_no_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While results flow nobody asks; nor does a driver that was stopped."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    clock = SimpleNamespace(now_s=0.0, monotonic=lambda: clock.now_s)
    monkeypatch.setattr(nodes, "time", clock)
    head = Head()
    monkeypatch.setattr(head, "fault", lambda: TimeoutError("timed out"))
    for _ in range(3):
        clock.now_s += 600
        head.require()
    clock.now_s += nodes.EMBEDDED_LOST_AFTER_S / 2
    head.require()
    clock.now_s += nodes.EMBEDDED_LOST_AFTER_S / 2 + 1
    with pytest.raises(ClusterLost, match="has not answered for 11 s: timed out"):
        head.require()


def test_an_embedded_ray_whose_head_is_gone_is_not_waited_for_at_the_end(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes end with this one; Ray would wait for the head, and end this one without a word."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done: list[Any] = []
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: done.append("shut down"))
    monkeypatch.setattr(cluster.atexit, "unregister", done.append)
    cluster.disconnect()
    assert done == ["shut down"]
    listening.close()
    cluster.disconnect()
    assert done[1:] == [cluster.ray.shutdown]


def test_what_the_cluster_has_is_not_asked_of_a_head_that_is_gone(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    for limit in ("EMBEDDED_LOST_AFTER_S", "LOST_AFTER_S"):
        monkeypatch.setattr(nodes, limit, 0.0)
    listening.close()
    with pytest.raises(ClusterLost):
        cluster.cluster_info()


@pytest.mark.parametrize(("changes", "fault"), [
    ({"num_workers": 2, "min_workers": 3}, r"min_workers \(=3\) must be at most num_workers \(=2\)"),
    (
        {"num_workers": 4, "min_workers": 2, "batch_size": 64},
        r"batch_size \(=64\) must be divisible by every number of workers from min_workers \(=2\).* not by 3",
    ),
    ({"gpus_per_worker": 1.5}, "must be a whole number, or less than one"),
])  # fmt: skip
def test_what_no_cluster_could_do_is_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        tiny_config("classification", **{f"train__{name}": value for name, value in changes.items()})


def test_an_elastic_runs_batch_divides_at_every_size() -> None:
    settings = tiny_config("classification", train__num_workers=4, train__min_workers=2, train__batch_size=60)
    assert list(settings.train.world_sizes) == [2, 3, 4]
    assert list(tiny_config("classification", train__num_workers=4).train.world_sizes) == [4]


@pytest.fixture(scope="module")
def files() -> Iterator[DriverFiles]:
    cluster.connect()
    yield DriverFiles(Keeper.remote())
    cluster.disconnect()


def test_what_ray_train_does_with_a_storage_it_can_do_with_the_drivers_files(
    files: DriverFiles, tmp_path: Path
) -> None:
    storage = PyFileSystem(FSSpecHandler(files))
    near, far = tmp_path / "near", tmp_path / "far"
    (near / "deep").mkdir(parents=True)
    (near / "deep" / "a.bin").write_bytes(bytes(range(256)) * 1000)
    (near / "b.txt").write_bytes(b"")
    storage.create_dir(str(far))
    pyarrow.fs.copy_files(str(near), str(far), destination_filesystem=storage)
    assert (far / "deep" / "a.bin").read_bytes() == (near / "deep" / "a.bin").read_bytes()
    assert (far / "b.txt").read_bytes() == b""
    assert [path.name for path in far.rglob(".*")] == []  # nothing half written stays
    pyarrow.fs.copy_files(str(far), str(tmp_path / "back"), source_filesystem=storage)
    assert (tmp_path / "back" / "deep" / "a.bin").read_bytes() == (near / "deep" / "a.bin").read_bytes()
    kinds = [storage.get_file_info(str(path)).type.name for path in (far, far / "b.txt", far / "none")]
    assert kinds == ["Directory", "File", "NotFound"]
    storage.delete_dir(str(far / "deep"))
    assert sorted(path.name for path in far.iterdir()) == ["b.txt"]


def test_what_was_removed_may_be_removed_again(files: DriverFiles, tmp_path: Path) -> None:
    """As Ray has it done where the keeper died before it could say that it is done."""
    (tmp_path / "a.bin").write_bytes(b"1")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for _ in range(2):
        files.rm(str(tmp_path / "a.bin"))
        files.rm(str(tmp_path / "deep"), recursive=True)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_kept_where_the_driver_is(files: DriverFiles, tmp_path: Path) -> None:
    session = LocalSession(tmp_path / "[odd] run", torch.device("cpu"), lambda _: None, files=files)
    assert session.load() is None
    for step in (1, 2, 3):
        session.save({"step": step, "model": {"w": torch.full((2,), float(step))}}, step)
    with pytest.raises(Exception, match="pickle"):
        session.save({"step": lambda: 4}, 4)  # half of it is not sent
    assert [file.name for file in sorted((tmp_path / "[odd] run").iterdir())] == [
        "step-000000002.pt", "step-000000003.pt",
    ]  # fmt: skip
    here = LocalSession(tmp_path / "[odd] run", torch.device("cpu"), lambda _: None)
    for each in (session, here):
        state = each.load()
        assert state is not None and state["step"] == 3 and state["model"]["w"].tolist() == [3.0, 3.0]
