"""The deployment of prefect.yaml, on a real server and a real worker: run, and cancelled, from outside."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.dataset import Dataset
from tasks.paths import ROOT, store
from tests.tiny import TINY, tiny_dataset

pytestmark = [pytest.mark.slow, pytest.mark.chaos]
DEPLOYMENT = "train-classifier/train-classifier"
START_S, RUN_S, CANCEL_S = 120, 400, 120
CHANGES = {name: part for name, part in TINY["classification"].items() if name != "dataset"}


@dataclass
class Platform:
    """A server and a worker."""

    home: Path
    environment: dict[str, str]
    url: str

    def prefect(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def run(self, **parameters: Any) -> str:
        """Trigger the deployment as the UI does; the id of the flow run."""
        deployment = self.ask(f"/deployments/name/{DEPLOYMENT}")
        created = self.ask(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        return str(created["id"])

    def state(self, run: str) -> str:
        return str(self.ask(f"/flow_runs/{run}")["state_name"])

    def others(self) -> list[str]:
        """Command lines of the processes of this home that are neither server nor worker."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("CONVOY_HOME") == str(self.home) and process.pid != os.getpid():
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return [
            line for line in found if line and "prefect server" not in line and "prefect worker" not in line
        ]


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(0.5)


def mlflow_status(home: Path, key: str) -> str:
    with sqlite3.connect(home / "mlflow.db") as database:
        query = (
            "select status from runs join tags on tags.run_uuid = runs.run_uuid where key = ? and value = ?"
        )
        return str(database.execute(query, ("convoy.key", key)).fetchone()[0])


@pytest.fixture(scope="module")
def digits(module_home: Path) -> Dataset:
    assert store().is_relative_to(module_home)
    return tiny_dataset("classification", store())


@pytest.fixture(scope="module")
def platform(module_home: Path, digits: Dataset) -> Iterator[Platform]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    environment = {
        **os.environ, "CONVOY_HOME": str(module_home), "PYTHONPATH": path, "PREFECT_API_URL": url,
        "PREFECT_HOME": str(module_home / ".prefect"), "PREFECT_WORKER_QUERY_SECONDS": "1",
    }  # fmt: skip
    del environment["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"]
    platform = Platform(module_home, environment, url)
    children = []

    def start(*arguments: str) -> None:
        log = (module_home / f"{arguments[0]}.log").open("w")
        command = [sys.executable, "-m", "prefect", *arguments]
        children.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log))
        log.close()

    def answers() -> bool:
        try:
            return bool(platform.ask("/health"))
        except (urllib.error.URLError, OSError):
            return False

    try:
        start("server", "start", "--host", "127.0.0.1", "--port", str(port))
        wait_for(answers, START_S, "the server answers")
        platform.prefect("work-pool", "create", "local", "--type", "process")
        platform.prefect("deploy", "--all")
        start("worker", "start", "--pool", "local")
        assert digits.info.name == "digits"
        yield platform
    finally:
        for child in reversed(children):
            child.terminate()
            child.wait(30)


def test_the_form_offers_the_recipes_and_each_parameter(platform: Platform) -> None:
    schema = platform.ask(f"/deployments/name/{DEPLOYMENT}")["parameter_openapi_schema"]
    fields = schema["properties"]
    assert schema["required"] == ["dataset"]
    assert "digits" in fields["recipe"]["enum"]
    assert fields["stop_after"]["enum"] == ["train", "evaluate", "promote"]
    assert fields["changes"]["properties"]["optim"]["properties"]["lr"]["exclusiveMinimum"] == 0
    assert all(field["description"] for field in fields.values())


def test_the_server_refuses_what_the_parameters_do_not_allow(platform: Platform) -> None:
    with pytest.raises(urllib.error.HTTPError, match="409") as refused:
        platform.run(dataset="digits", changes={"optim": {"lr": -1}})
    assert "-1 is less than or equal to the minimum of 0" in refused.value.read().decode()


def test_a_worker_runs_the_deployment_to_a_registered_model(platform: Platform) -> None:
    untouched = {
        "recipe": "auto",
        "stop_after": "promote",
        "resume": None,
        "executor": "ray",
        "accept": [],
    }  # as the form sends them
    run = platform.run(dataset="digits", changes=CHANGES, **untouched)
    wait_for(lambda: platform.state(run) in ("Completed", "Failed", "Crashed"), RUN_S, "the run has ended")
    assert platform.state(run) == "Completed", (platform.home / "worker.log").read_text()
    assert (platform.home / "runs" / run / "model" / "model.json").is_file()
    assert mlflow_status(platform.home, run) == "FINISHED"
    names = {task["name"].rsplit("-", 1)[0] for task in platform.ask(
        "/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}}
    )}  # fmt: skip
    assert {"check dataset", "train", "evaluate", "register", "promote if first", "publish result"} <= names


def test_a_cancelled_run_leaves_no_process_and_is_marked_killed(platform: Platform) -> None:
    endless = {**CHANGES, "train": {**CHANGES["train"], "epochs": 100000}}
    run = platform.run(dataset="digits", changes=endless)
    history = platform.home / "runs" / run / "history.jsonl"
    wait_for(lambda: history.is_file() and history.stat().st_size > 0, RUN_S, "the run trains")
    platform.prefect("flow-run", "cancel", run)
    wait_for(lambda: platform.state(run) == "Cancelled", CANCEL_S, "the run is cancelled")
    wait_for(lambda: not platform.others(), 10, "its processes are gone")
    assert mlflow_status(platform.home, run) == "KILLED"
