"""Real trainings that are stopped from outside: nothing stays behind, and the next attempt goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
import pytest
import torch

from data.dataset import Dataset
from tasks.paths import ROOT, runs
from tasks.recordstore import connect
from tests.platforms import key_of_training

pytestmark = [pytest.mark.slow, pytest.mark.chaos]
CHANGES = {  # only what is told to stop keeps a checkpoint of an endless run
    "endless": ("train.epochs=100000", "train.checkpoint_every_steps=100000000"),
    "long": ("train.epochs=60", "train.checkpoint_every_steps=20"),
}
START_S, STOP_S = 240, 60
# The agents of Ray look for their parent now and then, and nobody can tell them when it was killed.
RAY_AGENTS_S = 90


@dataclass
class Training:
    """A command that trains, in a process group of its own as a terminal would start it."""

    process: subprocess.Popen[str]
    home: Path
    key: str
    errors: IO[str]

    def family(self) -> list[psutil.Process]:
        """Every living process that works in this home, whoever its parent is by now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("CONVOY_HOME") == str(self.home) and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.pid != os.getpid()]

    def left_after(self, seconds: float) -> list[str]:
        """Command lines of the processes that are still there after `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.family():
            time.sleep(0.2)
        return [" ".join(process.cmdline())[:120] for process in self.family()]


def start(home: Path, *arguments: str) -> Training:
    """Start a training and return when it has taken its first steps."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"CONVOY_HOME": str(home), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "train", *arguments],
        env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    return Training(process, home, key_of_training(process.stderr), process.stderr)


@pytest.fixture(params=["endless"])
def training(module_home: Path, digits: Dataset, request: pytest.FixtureRequest) -> Iterator[Training]:
    changes = [word for change in CHANGES[request.param] for word in ("--set", change)]
    running = start(module_home, "classification", "--dataset", digits.info.name, *changes)
    yield running
    for process in running.family():  # only where the test failed
        process.kill()
    running.process.communicate()


def mlflow_status(key: str) -> list[str]:
    client = connect()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`convoy.key` = '{key}'")
    return [str(run.info.status) for run in found]


@pytest.mark.parametrize(
    ("number", "group", "code"),
    [
        (signal.SIGTERM, False, 143),
        (signal.SIGTERM, True, 143),
        (signal.SIGINT, True, 130),
        (signal.SIGINT, False, 130),
    ],
    ids=["kill", "kill-group", "ctrl-c", "interrupt"],
)
def test_a_stopped_training_leaves_no_process_and_is_marked_killed(
    number: signal.Signals, group: bool, code: int, training: Training
) -> None:
    assert len(training.family()) > 5
    if group:
        os.killpg(training.process.pid, number)
    else:
        training.process.send_signal(number)
    out, err = training.process.communicate(timeout=STOP_S)
    assert training.process.returncode == code, err
    assert training.left_after(5) == []
    assert mlflow_status(training.key) == ["KILLED"]
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "convoy: stopped"
    assert out == ""
    told = re.search(r"^stopped after step (\d+): no step is lost; go on: (.*)$", err, re.MULTILINE)
    # Ray's own processes have ended too, and nobody was left to keep anything
    if number == signal.SIGTERM and group:
        # which of the two is told: whether the command hears first that they are gone, or stops waiting
        assert told is None
        assert "stopped without waiting for a checkpoint" in err or "no checkpoint could be kept" in err
        assert f"go on: ./convoy train --resume {training.key}" in err
        return
    assert told is not None, err
    assert told[2] == f"./convoy train --resume {training.key}"
    newest = max((runs() / training.key / "ray").rglob("state.pt"))
    state = torch.load(newest, weights_only=True)
    assert (state["step"], state["ended"]) == (int(told[1]), False)


@pytest.mark.parametrize("training", ["long"], indirect=True)
def test_a_training_killed_without_warning_goes_on_where_it_was(training: Training) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and not list((runs() / training.key / "ray").rglob("state.pt")):
        time.sleep(0.2)
    training.process.kill()
    training.process.wait()
    assert training.left_after(RAY_AGENTS_S) == []
    assert mlflow_status(training.key) == ["RUNNING"]  # nobody was left to say otherwise

    command = [sys.executable, "-m", "pipelines", "train", "--resume", training.key, "--json"]
    environment = {**os.environ, "CONVOY_HOME": str(training.home), "PYTHONPATH": str(ROOT)}
    environment.pop("PREFECT_API_URL", None)
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert child.returncode == 0, child.stderr
    summary = json.loads(child.stdout)
    assert summary["key"] == training.key
    assert 20 <= summary["resumed_from_step"] < summary["num_steps"]
    assert mlflow_status(training.key) == ["FINISHED"]
