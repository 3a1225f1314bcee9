"""Real processes that run commands of ours side by side.

A racer is a process that has imported everything and runs commands, one after the other, each at the time that it is
told: so that several meet where it hurts, and not while Python starts.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tasks.paths import ROOT

LEAD_S = 0.05  # from the word to the start
RACER = """
import contextlib, io, json, sys, time
from pipelines import environment
environment.prepare()
import pipelines.commands_aliases, pipelines.commands_add, pipelines.commands_remove
from pipelines.commands import main
answers = sys.stdout
print(file=answers, flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    out, err = io.StringIO(), io.StringIO()
    time.sleep(max(0.0, asked["at"] - time.time()))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(asked["arguments"])
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What it said, where it was told --json and went well."""
        assert self.code == 0, self.err
        return json.loads(self.out)


def environment(home: Any, **more: str) -> dict[str, str]:
    """For a process of ours in a home: nothing of the engines that this one uses."""
    foreign = ("PREFECT_", "MLFLOW_", "RAY_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "CONVOY_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def start(own: Mapping[str, str], *arguments: str) -> "subprocess.Popen[str]":
    """`./convoy ARGUMENTS` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *arguments], env=dict(own), cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]", timeout_s: float = 600) -> Done:
    """What became of a process that `start` started."""
    out, err = process.communicate(timeout=timeout_s)
    assert isinstance(process.args, list)
    return Done(tuple(process.args[3:]), process.returncode, out, err)


def side_by_side(own: Mapping[str, str], *commands: Sequence[str]) -> list[Done]:
    """Run commands at once, each in a process of its own."""
    return [ended(process) for process in [start(own, *command) for command in commands]]


class Racer:
    """A process that waits for commands."""

    def __init__(self, own: Mapping[str, str]) -> None:
        self.arguments: tuple[str, ...] = ()
        self.process = subprocess.Popen(
            [sys.executable, "-c", RACER], env=dict(own), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the racer ended with {self.process.wait()}"
        return line

    def run(self, at: float, arguments: Sequence[str]) -> None:
        """Let it run a command at a time."""
        assert self.process.stdin is not None
        self.arguments = tuple(arguments)
        self.process.stdin.write(json.dumps({"at": at, "arguments": list(arguments)}) + "\n")
        self.process.stdin.flush()

    def done(self) -> Done:
        return Done(self.arguments, *json.loads(self.hear()))


@contextmanager
def racers(*own: Mapping[str, str]) -> Iterator[list[Racer]]:
    """Racers, one for each environment, that are ready."""
    found = [Racer(each) for each in own]
    try:
        for racer in found:
            racer.hear()
        yield found
    finally:
        for racer in found:
            racer.process.kill()
            racer.process.communicate()


def race(field: Sequence[Racer], commands: Sequence[Sequence[str]], delays_s: Sequence[float]) -> list[Done]:
    """Run a command in each racer, so many seconds after a common start."""
    at = time.time() + LEAD_S
    for racer, command, delay_s in zip(field, commands, delays_s, strict=True):
        racer.run(at + delay_s, command)
    return [racer.done() for racer in field]
