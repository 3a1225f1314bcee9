"""A platform that a test starts by `./convoy up`, in a home and on ports of its own."""

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipelines.services import insist
from tasks.paths import ROOT
from tests.tiny import TINY

DEPLOYMENT = "train-classifier/train-classifier"
CHANGES = {name: part for name, part in TINY["classification"].items() if name != "dataset"}
ENDLESS = {**CHANGES, "train": {**CHANGES["train"], "epochs": 100000}}
LONG = {**CHANGES, "train": {**CHANGES["train"], "epochs": 600, "checkpoint_every_steps": 20}}
RUN_S = 400  # until a flow run has come to where it is waited for
OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")  # types of states; a flow gives them names of its own
PORTS = ("prefect_port", "mlflow_port", "ray_port", "dashboard_port")
FOREIGN = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "PREFECT_HOME", "RAY_AUTH_MODE")


@dataclass
class Platform:
    """What `up` was told, and ways to ask what it started."""

    home: Path
    environment: dict[str, str]
    ports: dict[str, int]
    root: Path = ROOT  # the checkout whose code it runs

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.ports['prefect_port']}/api"

    @property
    def folder(self) -> Path:
        return self.home / ".platform"

    def command(self, *arguments: str) -> list[str]:
        settings = (
            [f"--set={name}={port}" for name, port in self.ports.items()] if arguments[0] == "up" else []
        )
        return [sys.executable, "-m", "pipelines", *arguments, *settings]

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ours to its end, whatever that is."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
        )

    def convoy(self, *arguments: str) -> Any:
        """Run a command of ours, which must succeed: its JSON document."""
        done = self.call(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def status(self) -> dict[str, dict[str, Any]]:
        """The services by name."""
        document = json.loads(self.call("status", "--json").stdout)
        return {service["service"]: service for service in document["services"]}

    def kill(self, name: str) -> None:
        """Kill a service and its processes, of which some would answer without it, until `status` knows."""
        pid = self.status()[name]["pid"]
        assert pid, f"{name} does not run"  # psutil takes None for this process
        server = psutil.Process(pid)
        for process in (*server.children(recursive=True), server):
            process.kill()
        wait_for(lambda: self.status()[name]["state"] == "stopped", 20, "the death is seen")

    def prefect(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        environment = {**self.environment, "PREFECT_API_URL": self.api}
        done = subprocess.run(
            command, env=environment, cwd=self.root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return insist(f"{self.api}{path}", body)

    def run(self, **parameters: Any) -> str:
        """Trigger the deployment that trains classifiers as the UI does; the id of the flow run."""
        return self.trigger(DEPLOYMENT, parameters)

    def trigger(self, name: str, parameters: dict[str, Any]) -> str:
        """Trigger a deployment, FLOW/NAME, as the UI does; the id of the flow run."""
        deployment = self.ask(f"/deployments/name/{name}")
        created = self.ask(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        return str(created["id"])

    def state(self, run: str) -> str:
        return str(self.ask(f"/flow_runs/{run}")["state_name"])

    def long_run(self) -> str:
        """A flow run that the worker has started on the digits, and that has kept a checkpoint; its id."""
        run = self.run(dataset="digits", changes=LONG, executor="in_process", stop_after="train")
        wait_for(lambda: list((self.home / "runs" / run / "checkpoints").glob("*")), RUN_S, "a checkpoint")
        return run

    def is_over(self, run: str) -> bool:
        return str(self.ask(f"/flow_runs/{run}")["state_type"]) in OVER

    def await_end(self, run: str, state: str = "Completed") -> None:
        """Wait for a flow run, which must end in this state."""
        wait_for(lambda: self.is_over(run), RUN_S, "the run has ended")
        self.require_state(run, state)

    def require_state(self, run: str, state: str) -> None:
        """Fail with the worker's log unless a flow run is in this state."""
        assert self.state(run) == state, (self.folder / "logs" / "worker.log").read_text()

    def await_training(self, run: str) -> None:
        """Wait for a flow run that trains, which must end well and be one finished record."""
        self.await_end(run)
        assert self.mlflow(run) == ["FINISHED"]

    def processes(self) -> list[psutil.Process]:
        """Living processes that work in this home, whoever started them."""
        return processes_with("CONVOY_HOME", str(self.home))

    def mlflow(self, key: str) -> list[str]:
        """The states of all of MLflow's runs with a key."""
        query = "select status from runs join tags using (run_uuid) where key = 'convoy.key' and value = ?"
        with contextlib.closing(sqlite3.connect(self.home / "mlflow.db")) as database:
            return [str(row[0]) for row in database.execute(query, (key,))]


def processes_with(name: str, value: str) -> list[psutil.Process]:
    """Living processes whose environment has a variable of this value, but for this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            here = process.environ().get(name) == value
            if here and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def tiny_changes() -> list[str]:
    """What makes a classifier's training the smallest one, for the command line."""
    return [
        f"--set={section}.{name}={json.dumps(value)}"
        for section, values in CHANGES.items()
        for name, value in (values.items() if isinstance(values, dict) else ())
    ]


def free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        return {name: int(probe.getsockname()[1]) for name, probe in zip(PORTS, probes, strict=True)}


def new_platform(home: Path, root: Path = ROOT) -> Platform:
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    path = os.pathsep.join(part for part in (str(root), os.environ.get("PYTHONPATH", "")) if part)
    own = {"CONVOY_HOME": str(home), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    return Platform(home, {**environment, **own}, free_ports(), root)


@contextlib.contextmanager
def running(home: Path, root: Path = ROOT) -> Iterator[Platform]:
    """A platform from `up` to `down`, after which no process is left; by the code of the checkout at `root`."""
    platform = new_platform(home, root)
    try:
        platform.convoy("up")
        yield platform
    finally:
        ended = platform.call("down")
        left = [" ".join(process.cmdline())[:120] for process in platform.processes()]
        for process in platform.processes():
            process.kill()
    assert ended.returncode == 0, ended.stderr
    assert left == []


def listening(processes: list[psutil.Process]) -> list[tuple[str, int, str]]:
    """Address, port and program of what listens for TCP in these processes."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            found += [
                (each.laddr.ip, each.laddr.port, " ".join(process.cmdline())[:90])
                for each in process.net_connections(kind="inet")
                if each.status == psutil.CONN_LISTEN
            ]
    return found


def key_of_training(errors: Iterable[str]) -> str:
    """The run key that a training tells on stderr; returns once it has taken its first steps."""
    key = ""
    for line in errors:
        if line.startswith("run "):
            key = line.split()[1].rstrip(":")
        if line.startswith("train "):
            return key
    raise AssertionError("the training ended before its first step")


def wait_for(condition: Callable[[], object], seconds: float, what: str, every_s: float = 0.3) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(every_s)
