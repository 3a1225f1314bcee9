"""What is left of a Ray whose driver was killed is found, named and ended; what a living driver has is not touched."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks import leftovers, orphans
from tasks.maintenance import MaintainConfig, document, find, free
from tasks.paths import ROOT, runs
from tests.platforms import key_of_training, wait_for
from tests.recording import make_model

pytestmark = pytest.mark.chaos
NOW, LATER = MaintainConfig(keep_days=0), MaintainConfig(keep_days=1)
WAIT_S = 120
DRIVER = """
import time
from tasks.cluster import connect
import ray
connect()
print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
time.sleep(6000)
"""


@pytest.fixture
def place(module_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray keeps its sessions: a folder of our own, whose name is short enough for a socket."""
    assert module_home.is_dir()
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    monkeypatch.setattr(leftovers, "RAY_SESSIONS", folder / "ray")
    monkeypatch.setattr(leftovers, "SHARED_MEMORY", folder / "none")
    monkeypatch.setattr(leftovers, "SCRATCH", folder / "none")
    yield folder
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join(process.cmdline()):  # only where the test failed
                process.kill()
    shutil.rmtree(folder)


def environment(place: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(place), **more}


def belonging_to(session: Path) -> list[psutil.Process]:
    """Living processes of a session, those too whose command says nothing of it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if session.name in orphans.told_by(process):
                found.append(process)
    return found


def is_agent(process: psutil.Process) -> bool:
    """Whether a process is one of those that look for their parent now and then."""
    return " ".join(process.cmdline()).startswith("ray::RuntimeEnvAgent")


@pytest.mark.slow
def test_a_process_that_hangs_outlives_its_killed_driver_until_it_is_ended(place: Path) -> None:
    command = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, env=environment(place), stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        session = Path(driver.stdout.readline().strip())
        assert session.parent == leftovers.RAY_SESSIONS
        assert len(belonging_to(session)) > 2
        assert find(NOW) == [], "its driver lives"
        wait_for(lambda: [each for each in belonging_to(session) if is_agent(each)], WAIT_S, "the agent runs")
        [hung] = [each for each in belonging_to(session) if is_agent(each)]
        hung.suspend()
        driver.kill()
    wait_for(
        lambda: [each.pid for each in belonging_to(session)] == [hung.pid],
        WAIT_S,
        "all but what hangs have ended",
    )
    for config in (NOW, LATER):
        found = find(config)
        assert len(found) == 1, found
        [item] = found
        assert (item.kind, item.process, item.path) == ("processes", hung, Path("/proc") / str(hung.pid))
        assert item.num_bytes > 1e6
        assert session.name in item.why and f"process {driver.pid}, has ended" in item.why
    assert document(find(NOW), dry_run=True)["num_bytes"] > 1e6
    assert hung.is_running(), "looking ends nothing"
    assert [item.process for item in free(NOW, print)] == [hung]
    assert belonging_to(session) == []
    [item] = find(NOW)
    assert (item.kind, item.path) == ("sessions", session)
    assert item.num_bytes > 1000 and [each.path for each in free(NOW, print)] == [session]
    assert find(NOW) == []


def waiting(name: str, session: Path) -> subprocess.Popen[bytes]:
    """A process of that name whose command names the session, until it is killed."""
    return subprocess.Popen([name, "-c", "read x", session], executable="/bin/sh", stdin=subprocess.PIPE)


@pytest.mark.parametrize(("name", "is_rays"), [
    ("tail", False), ("ray::RuntimeEnvAgent", True), ("ray::IDLE", True),
    ("/venv/lib/python3.11/site-packages/ray/core/src/ray/raylet/raylet", True),
    ("/venv/lib/python3.11/site-packages/ray/core/src/ray/gcs/gcs_server", True),
    ("python /venv/lib/python3.11/site-packages/ray/_private/log_monitor.py", True),
    ("python /venv/lib/python3.11/site-packages/ray/_private/workers/default_worker.py", True),
    ("python /venv/lib/python3.11/site-packages/ray/autoscaler/_private/monitor.py", True),
])  # fmt: skip
def test_only_what_is_rays_is_an_orphan_and_not_who_reads_its_logs(
    name: str, is_rays: bool, tmp_path: Path
) -> None:
    session = tmp_path / "session_2026-01-01_00-00-00_1_1"
    session.mkdir()
    (session / orphans.NOTE).write_text(f"{os.getpid()}@1.0")  # of one that had our number before
    with waiting(name, session) as started:
        try:
            found = [process.pid for process, *_ in orphans.orphans(tmp_path)]
            assert found == ([started.pid] if is_rays else [])
        finally:
            started.kill()


def test_a_session_without_a_note_of_its_driver_has_no_orphans(tmp_path: Path) -> None:
    session = tmp_path / "session_2026-01-01_00-00-00_1_1"
    session.mkdir()
    with waiting("ray::IDLE", session) as started:
        try:
            assert list(orphans.orphans(tmp_path)) == []  # as of `ray start`
            (session / orphans.NOTE).write_text("12")  # cut off
            assert list(orphans.orphans(tmp_path)) == []
            orphans.note_driver(session)
            assert list(orphans.orphans(tmp_path)) == []  # this process lives
            (session / orphans.NOTE).write_text(f"{os.getpid()}@1.0")  # of one that had our number before
            [(process, name, driver)] = orphans.orphans(tmp_path)
            assert (process.pid, name, driver) == (started.pid, session.name, os.getpid())
            orphans.end(process)
            assert not process.is_running()
        finally:
            started.kill()
    orphans.end(process)  # it is gone: nothing to do


@pytest.mark.slow
def test_maintenance_beside_a_training_takes_nothing_of_it(place: Path, module_home: Path) -> None:
    own = environment(place, CONVOY_HOME=str(module_home), TMPDIR=str(place))
    own.pop("CONVOY_PLATFORM", None)
    command = [sys.executable, "-m", "pipelines"]
    add = [*command, "data", "add", "sklearn:digits", "--name", "digits"]
    subprocess.run(add, env=own, cwd=ROOT, check=True, capture_output=True)
    endless = ["--set", "train.epochs=100000", "--set", "train.checkpoint_every_steps=5"]
    training = subprocess.Popen(
        [*command, "train", "classification", "--dataset", "digits", *endless], env=own, cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert training.stderr is not None
        folder = runs() / key_of_training(training.stderr)
        wait_for(lambda: list(folder.rglob("state.pt")), WAIT_S, "a checkpoint is kept")
        [session] = (place / "ray").glob("session_2*")
        maintain = [*command, "maintain", "--apply", "--set", "keep_days=0", "--json"]
        done = subprocess.run(maintain, env=own, cwd=ROOT, capture_output=True, text=True, check=True)
        taken = [item["path"] for item in json.loads(done.stdout)["items"]]
        assert not [path for path in taken if folder.name in path or session.name in path or "/proc/" in path]
        assert (folder / "data" / "dataset.json").is_file() and list(folder.rglob("state.pt"))
        training.terminate()
        _, err = training.communicate(timeout=WAIT_S)
        assert training.returncode == 143 and "no step is lost" in err, err
    finally:
        training.kill()
        training.communicate()
    assert not (folder / "data").exists()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_a_model_whose_server_was_killed_is_served_on_a_cluster_until_it_is_ended(
    place: Path, module_home: Path
) -> None:
    address, at = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    model = make_model(module_home / "model")
    own = environment(place, RAY_AUTH_MODE="disabled", CONVOY_HOME=str(module_home))
    start = ["start", "--head", "--block", "--port", address.split(":")[1], "--node-ip-address", "127.0.0.1",
             "--num-cpus", "2", "--include-dashboard", "false", "--temp-dir", str(place / "ray"),
             "--ray-client-server-port", str(free_port()),
             "--dashboard-agent-listen-port", str(free_port())]  # fmt: skip
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *start], env=own, stdout=subprocess.DEVNULL
    )
    own |= {"RAY_ADDRESS": address}

    def convoy(*arguments: str) -> Any:
        command = [sys.executable, "-m", "pipelines", *arguments, "--json"]
        done = subprocess.run(command, env=own, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [item for item in json.loads(done.stdout)["items"] if item["kind"] in ("jobs", "processes")]

    try:
        wait_for(lambda: answers(address), WAIT_S, "Ray's head answers")
        command = [sys.executable, "-m", "pipelines", "serve", str(model), "--port", at.split(":")[1]]
        server = subprocess.Popen(command, env=own, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        assert any("answers at" in line for line in server.stderr)
        assert convoy("maintain") == [], "its driver lives"
        server.kill()
        server.communicate()
        wait_for(lambda: answers(at), WAIT_S, "the model is still served")
        wait_for(lambda: convoy("maintain"), WAIT_S, "Ray has seen that the driver is gone")
        [job] = convoy("maintain")
        assert (job["kind"], job["path"]) == ("jobs", f"{address}/serve/convoy")
        assert answers(at), "looking ends nothing"
        assert convoy("maintain", "--apply") == [job]
        wait_for(lambda: not answers(at), WAIT_S, "nobody serves it any more")
        assert convoy("maintain") == []
        told = subprocess.Popen(
            command, env=own, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert told.stderr is not None
        assert any("answers at" in line for line in told.stderr)
        told.terminate()
        out, err = told.communicate()
        # cut off while it is written, the line before may come twice
        assert (out, err.splitlines()[-2:]) == (
            "",
            ["stopping: what was taken is answered first", "convoy: stopped"],
        )
        assert "(raylet)" not in err and "failed" not in err
        assert convoy("maintain") == []
    finally:
        head.terminate()
        head.wait(60)


def answers(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True
