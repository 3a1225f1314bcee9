"""The engines that commands start: Prefect's server for one command, and Ray in a thread."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import psutil
import pytest

from pipelines import server
from pipelines.engines import same_handler
from tasks.paths import ROOT
from tests.servers import serve

PARENT = """
import os, time
from pipelines import environment, server
environment.prepare()
server.start()
server.wait()
print(server._server.pid, os.environ["PREFECT_API_URL"], flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_the_server_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"CONVOY_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        with urllib.request.urlopen(f"{url}/health", timeout=30) as answer:
            assert answer.status == 200
        child = psutil.Process(int(pid))
        assert os.getpgid(child.pid) != os.getpgid(parent.pid)  # Ctrl-C does not reach it
        parent.kill()
        child.wait(timeout=30)


@pytest.mark.parametrize("configured", ["variable", "profile"])
def test_no_server_is_started_where_one_is_configured(
    configured: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(server, "_server", None)
    monkeypatch.setattr(subprocess, "Popen", lambda *_a, **_k: pytest.fail("a server was started"))
    with serve(b"") as theirs:
        if configured == "variable":
            monkeypatch.setenv("PREFECT_API_URL", theirs.url)
        else:
            (tmp_path / "profiles.toml").write_text('active = "mine"')
        server.start()
        server.wait()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/api", "127.0.0.1:1", "here", "http://127.0.0.1:x/api"])
def test_a_configured_server_that_does_not_answer_is_told_at_once_with_the_way_out(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(server, "_server", None)
    named = re.escape(f"Prefect at {os.environ['PREFECT_API_URL']} (PREFECT_API_URL) does not answer: ")
    with pytest.raises(ConnectionError, match=f"{named}.*; start that server, or unset PREFECT_API_URL"):
        server.start()


def test_a_configured_server_that_is_busy_is_left_to_prefect_to_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(server, "_server", None)
    monkeypatch.setattr(server, "PROBE_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/api")
        server.start()


def test_a_server_that_ends_at_once_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(server, "_server", None)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    server.start()
    with pytest.raises(
        RuntimeError, match=r"Prefect's server ended while it started \(code 1\); .*server\.log"
    ):
        server.wait()
    server.stop()
    assert "PREFECT_API_URL" not in os.environ


LEAVER = """
import atexit, threading, time
from pipelines import engines, environment
from pipelines.leaving import leave
environment.prepare()
atexit.register(time.sleep, 3)  # as long as Prefect's server may take
import ray
from ray.experimental import internal_kv
from tasks import cluster
before, asked = internal_kv._internal_kv_get, threading.Event()
def get(*arguments, **options):
    asked.set()
    return before(*arguments, **options)
internal_kv._internal_kv_get = get  # in the middle of starting Ray, and over and over
engines.start_ray()
assert asked.wait(120)
leave(2)
"""


@pytest.mark.slow
def test_a_command_that_ends_while_ray_starts_says_nothing_of_it(tmp_path: Path) -> None:
    environment = {**os.environ, "CONVOY_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LEAVER], env=environment, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def native_handler(number: int) -> str:
    """The kernel's view: whether this process catches the signal."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("SigCgt"):
            return "caught" if int(line.split()[1], 16) >> (number - 1) & 1 else "default"
    raise AssertionError("no SigCgt")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_a_handler_that_a_library_sets_from_a_thread_is_put_back() -> None:
    import ctypes

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        assert native_handler(signal.SIGUSR1) == "caught"

        def meddle() -> None:
            with same_handler(signal.SIGUSR1):
                ctypes.CDLL(None).signal(int(signal.SIGUSR1), 0)  # SIG_DFL, behind Python's back
                assert native_handler(signal.SIGUSR1) == "default"

        thread = threading.Thread(target=meddle)
        thread.start()
        thread.join()
        assert native_handler(signal.SIGUSR1) == "caught"
        signal.raise_signal(signal.SIGUSR1)  # would end the process
    finally:
        signal.signal(signal.SIGUSR1, before)
