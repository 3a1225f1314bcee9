"""Where a running flow says how far it is: the console of a command, or the log of a Prefect run.

A flow's parameters must be plain values, so the place to report to is a context variable: the command line sets
it, and a flow that a worker runs finds the log.
"""

import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from data.address import without_password

# What steers a terminal, begins a line or turns the direction of writing, and bytes of names that are no UTF-8.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")


def shown(text: str) -> str:
    """A text for a terminal or a log: without passwords; what a file's name could steer a terminal by, written out."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), without_password(text))


@dataclass(frozen=True)
class Status:
    """How far a step is."""

    step: str  # "train", "evaluate", ...
    done: int
    total: int | None  # None: not known
    images_per_s: float | None
    text: str = ""  # what else there is to say, such as the loss
    unit: str = "images"  # what `images_per_s` counts
    ended: bool = False  # nothing more will be said of the step, though it may not have reached its total

    @property
    def over(self) -> bool:
        """Whether this is the last that is said of the step."""
        return self.ended or self.done == self.total

    def __str__(self) -> str:
        of = "" if self.total is None else f"/{self.total:,}"
        rate = f", {self.rate}" if self.rate else ""
        return f"{self.step} {self.done:,}{of}{rate}" + (f", {self.text}" if self.text else "")

    @property
    def rate(self) -> str:
        """How fast the step goes on, with its unit; nothing where that is not known."""
        if self.images_per_s is None:
            return ""
        digits = 1 if self.unit == "MB" else 0  # 0.4 MB/s is slow, and not 0
        return f"{self.images_per_s:,.{digits}f} {self.unit}/s"


class Clock:
    """How fast something goes on."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.before: int | None = None  # what was done already when first told of

    def rate(self, done: int) -> float | None:
        """Items a second so far; None before anything can be said."""
        time_s = self.seconds()
        return done / time_s if done and time_s > 0 else None

    def own_rate(self, done: int) -> float | None:
        """The same without what was done when this was first asked: what an earlier attempt left is not fast."""
        if self.before is None:
            self.before = done
        return self.rate(done - self.before)

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started_s


class Reporter(Protocol):
    """Somebody who is told. Called from any thread."""

    def note(self, text: str) -> None:
        """Say one line."""

    def show(self, status: Status) -> None:
        """Show how far a step is; called often."""


def progress_of(reporter: Reporter, step: str, unit: str = "images") -> Callable[[int, int | None], None]:
    """What a step calls with how many are done, and how many there are: None where that is not known."""
    clock = Clock()

    def hear(done: int, total: int | None) -> None:
        reporter.show(Status(step, done, total, clock.rate(done), unit=unit))

    return hear


def features_of(reporter: Reporter) -> Callable[[int, int], None]:
    """What training calls with how many pictures have features to train on, and how many will, while they are computed.

    Without a rate: on Ray they come in parts that end together.
    """

    def hear(done: int, total: int) -> None:
        reporter.show(Status("features", done, total, None))

    return hear


_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


def set_reporter(reporter: Reporter) -> None:
    """From here on, flows called from this thread report to `reporter`."""
    _reporter.set(reporter)


def current_reporter() -> Reporter | None:
    """Who is told, if anybody has asked to be."""
    return _reporter.get()
