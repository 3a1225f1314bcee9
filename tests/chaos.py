"""A command of ours as a real process that is sent to a point of its work, hurt there, typed again, and judged.

A point is a call of a function, before it happens (tests/points/sitecustomize.py). What is hurt, and how, is up to the
test: these processes are killed, stopped and frozen for real. `Judge` says whether all is as if nothing had happened.
"""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from data.checks import check
from data.dataset import Dataset, list_names
from data.files import file_sha256, holding
from tasks import ledger, registry, versioning, versions
from tasks.modelfile import load_model
from tasks.modelstore import find_aliases, find_versions
from tasks.paths import ROOT, home, runs, store
from tasks.recordstore import connect
from tests.platforms import FOREIGN, processes_with, tiny_changes, wait_for

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's background job ignores it, and all its children
    signal.signal(signal.SIGINT, signal.default_int_handler)

POINTS = Path(__file__).parent / "points"
OWNER = "CHAOS_COMMAND"  # a variable by which a command and all that it starts are known, servers of its home are not
REACH_S, END_S = 600.0, 600.0
LEAVE_S = 0.05  # for what stands at a point to leave it, which it looks for every 5 ms
# The agents of Ray look for their parent now and then, and nobody can tell them when it was killed.
RAY_AGENTS_S = 90.0
TRAIN = ("train", "classification", "--dataset", "digits")
IN_PROCESS = "--executor=in_process"


@dataclass
class Command:
    """A command that runs, in a process group of its own as a terminal would start it."""

    process: "subprocess.Popen[bytes]"
    folder: Path  # of its output, and of the mark of its point
    seen: dict[int, psutil.Process] = field(default_factory=dict)  # by id: all that ever belonged to it

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    @property
    def key(self) -> str:
        """The key of the run, or of the search, that it told."""
        found = re.search(r"^(?:run|search) ([\w-]+):", self.err, re.MULTILINE)
        assert found, self.err
        return found[1]

    def reach(self) -> psutil.Process:
        """Wait until a process stands at the point; that process."""
        mark = self.folder / "mark"
        wait_for(
            lambda: mark.exists() or self.process.poll() is not None, REACH_S, "the point is reached", 0.01
        )
        assert mark.exists(), f"it ended with {self.process.returncode} before the point:\n{self.err}"
        self.family()
        return psutil.Process(int(mark.read_text()))

    def let_go(self) -> None:
        """Let what stands at the point go on."""
        (self.folder / "mark.go").touch()

    def family(self) -> list[psutil.Process]:
        """Every living process of the command: below it, or with its mark in the environment."""
        with contextlib.suppress(psutil.NoSuchProcess):
            head = psutil.Process(self.process.pid)
            self.seen |= {each.pid: each for each in (head, *head.children(recursive=True))}
        for process in processes_with(OWNER, str(self.folder)):
            self.seen.setdefault(process.pid, process)
        return [each for each in self.seen.values() if lives(each)]

    def named(self, name: str) -> list[psutil.Process]:
        """Those of its processes whose command has `name` in it."""
        found = []
        for each in self.family():
            with contextlib.suppress(psutil.Error):
                if name in " ".join([each.name(), *each.cmdline()]):
                    found.append(each)
        return found

    def end(self, seconds: float = END_S) -> tuple[int, str]:
        """Wait for its end: its exit code, and what it said on stderr."""
        return self.process.wait(seconds), self.err

    def document(self) -> dict[str, Any]:
        """What it printed, having ended well."""
        code, err = self.end()
        assert code == 0, err
        return dict(json.loads((self.folder / "out").read_text()))

    def left_after(self, seconds: float) -> list[str]:
        """Command lines of the processes that are still there after `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.family():
            time.sleep(0.1)
        left = []
        for each in self.family():
            with contextlib.suppress(psutil.Error):
                left.append(" ".join(each.cmdline())[:120])
        return left


def lives(process: psutil.Process) -> bool:
    return state(process) not in ("", psutil.STATUS_ZOMBIE)


def state(process: psutil.Process) -> str:
    """What a process does, as psutil calls it; "" of one that is no more."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(process.status()) if process.is_running() else ""
    return ""


@contextlib.contextmanager
def running(
    home: Path, folder: Path, words: Sequence[str], point: str = "", environment: dict[str, str] | None = None
) -> Iterator[Command]:
    """A command in `home`, sent to a point if one is named; at the end of the block nothing of it is left.

    `folder`, made here, gets its output. `environment` is added to what it inherits.
    """
    folder.mkdir(parents=True)
    own = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    path = [str(ROOT), *([str(POINTS)] if point else [])]
    own |= {"CONVOY_HOME": str(home), "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    own[OWNER] = str(folder)
    own |= {"CHAOS_POINT": point, "CHAOS_MARK": str(folder / "mark")} if point else {}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *words], env=own | (environment or {}), cwd=ROOT,
            stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
        )  # fmt: skip
    command = Command(process, folder)
    try:
        yield command
    finally:
        for each in command.family():  # of what is meant to end nothing is there, unless the test failed
            with contextlib.suppress(psutil.NoSuchProcess):
                each.resume()
                each.kill()
        process.wait()


def run(home: Path, folder: Path, *words: str, **environment: str) -> dict[str, Any]:
    """A command that must end well: what it prints by --json."""
    with running(home, folder, [*words, "--json"], environment=environment) as command:
        return command.document()


# --- faults ----------------------------------------------------------------------------------------------------


def freeze(command: Command, seconds: float) -> None:
    """What the sleep of a laptop does to all processes of a command: they stand still, and go on.

    They have left the point, so that it meets them at work.
    """
    command.family()
    command.let_go()
    time.sleep(LEAVE_S)
    while moving := [each for each in command.family() if state(each) != psutil.STATUS_STOPPED]:
        for each in moving:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()
        time.sleep(LEAVE_S)
    time.sleep(seconds)
    family = command.family()
    assert lives(psutil.Process(command.process.pid)), "it ended before it slept"
    assert {state(each) for each in family} == {psutil.STATUS_STOPPED}
    for each in family:
        each.resume()


FAULTS: dict[str, Callable[[Command], None]] = {
    "kill": lambda command: command.process.kill(),
    "kill-group": lambda command: os.killpg(command.process.pid, signal.SIGKILL),
    "term": lambda command: command.process.terminate(),
    "ctrl-c": lambda command: os.killpg(command.process.pid, signal.SIGINT),  # as a terminal sends it
}
CODES = {"kill": -signal.SIGKILL, "kill-group": -signal.SIGKILL, "term": 143, "ctrl-c": 130}


# --- judging ---------------------------------------------------------------------------------------------------


def statuses(key: str) -> list[str]:
    """The states of all of MLflow's runs with a key."""
    client = connect()
    experiments = [each.experiment_id for each in client.search_experiments()]
    return [str(run.info.status) for run in client.search_runs(experiments, f"tags.`convoy.key` = '{key}'")]


def running_records() -> list[str]:
    """Names of the runs that MLflow believes to be under way."""
    client = connect()
    experiments = [each.experiment_id for each in client.search_experiments()]
    return [
        str(run.info.run_name) for run in client.search_runs(experiments, "attributes.status = 'RUNNING'")
    ]


def weights_of(run: Path) -> str:
    """The SHA-256 of a run's weights."""
    return file_sha256(run / "model" / "member-0.safetensors")


def judge_store() -> None:
    """Every dataset of the home is whole, and is what DVC recorded."""
    for name in list_names(store()):
        dataset = Dataset.open(store() / name)
        assert check(dataset).problems == ()
        assert (
            versioning.digest(dataset.path)
            == versioning.measure(dataset.path)
            == versions.history(name)[-1].md5
        )
        assert all(versioning.is_cached(version.md5) for version in versions.history(name))


def judge_registry() -> None:
    """Every version of every registered model loads; every alias names one; no move and no run is half-done."""
    client = connect()
    for version in find_versions(client, ""):
        assert version.status == "READY"
        load_model(registry.resolve_model(f"models:/{version.name}/{version.version}"))
    for name, aliases in find_aliases(client).items():
        assert ledger.unfinished(name) == []
        for alias in (alias for some in aliases.values() for alias in some):
            load_model(registry.resolve_model(f"models:/{name}@{alias}"))
    assert running_records() == []


def judge_locks() -> None:
    """Nobody holds a lock, and DVC's list of paths in use names nobody."""
    for file in home().rglob("*lock"):
        if file.is_file():
            with holding(file) as free:
                assert free, f"{file} is held"
    listed = home() / ".dvc" / "tmp" / "rwlock"
    if listed.is_file():
        assert not any(json.loads(listed.read_text()).values())


def judge_home() -> None:
    """All of a home (CONVOY_HOME) after a fault and what mended it."""
    judge_store()
    judge_registry()
    judge_locks()
    for file in home().rglob("*.db"):
        with contextlib.closing(sqlite3.connect(file)) as database:
            assert database.execute("PRAGMA quick_check").fetchall() == [("ok",)], file


# --- beside a training that nobody disturbed -------------------------------------------------------------------


@dataclass(frozen=True)
class Straight:
    """A home with the digits and a run that nobody disturbed, whose model is the champion."""

    home: Path
    weights: str
    metrics: dict[str, float]


def undisturbed(home: Path, folder: Path) -> Straight:
    """Train in a home that has the digits and no model yet."""
    document = run(home, folder, *TRAIN, IN_PROCESS, *tiny_changes())
    assert document["alias"] == "champion"
    return Straight(home, weights_of(Path(document["folder"])), repeatable(document["metrics"]))


def repeatable(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that do not tell how fast or large something was."""
    return {name: value for name, value in metrics.items() if not name.endswith(("_s", "_ms", "_mb"))}


def judge_run(straight: Straight, key: str, document: dict[str, Any]) -> None:
    """A run has the bits, the record and the one version that an undisturbed run has."""
    assert document["key"] == key
    points = connect().get_metric_history(document["mlflow_run"], "epoch")
    steps = [step for _, step in sorted((point.timestamp, point.step) for point in points)]
    assert steps and steps == sorted(steps), f"steps in the order in which they were logged: {steps}"
    assert weights_of(runs() / key) == straight.weights
    assert repeatable(document["metrics"]) == straight.metrics
    assert statuses(key) == ["FINISHED"]
    made = find_versions(connect(), f"run_id = '{document['mlflow_run']}'")
    assert [int(version.version) for version in made] == [document["version"]]
    experiment = connect().get_run(document["mlflow_run"]).info.experiment_id
    logged = connect().search_logged_models([experiment], f"source_run_id = '{document['mlflow_run']}'")
    assert [str(model.status) for model in logged] == ["READY"]
    assert ledger.aliases(document["model"])[document["alias"]] == document["version"]
    judge_home()
