"""The model that answers now, and the one that takes its place when its alias moves.

The next version is read beside the one that answers, and takes over in one assignment: what is under way ends with the
version that it began with. A version that cannot be read changes nothing: the old one goes on, and one line says why.
"""

import io
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from PIL import Image

from data.dataset import NUM_AXES
from tasks.predictors import Answering, open_predictor
from tasks.resolution import Resolved, exact_name, follows_alias, resolve

RETRY_S = 60.0  # until a version that could not be read is tried again
FIRST_PX = 64


@dataclass(frozen=True)
class Served:
    """A model that answers."""

    resolved: Resolved
    predictor: Answering
    since: datetime  # when it took over

    @property
    def version(self) -> str:
        """models:/NAME/VERSION, or what the model was given as."""
        return self.resolved.exact


def open_served(resolved: Resolved, device: torch.device | None = None) -> Served:
    """Read a model, and have pictures' models answer once: the first answer takes longer than others.

    `device` None: the first GPU, else the CPU.
    """
    predictor = open_predictor(resolved.folder, device)
    if predictor.card.family not in NUM_AXES:
        stream = io.BytesIO()
        Image.new("L", (FIRST_PX, FIRST_PX)).save(stream, "PNG")
        predictor.predict([stream.getvalue()])
    return Served(resolved, predictor, datetime.now(UTC))


class Follower:
    """Holds what answers as `current`, which `check` may replace; read from any thread, checked from one."""

    def __init__(
        self,
        uri: str,
        say: Callable[[str], None],
        ask: Callable[[str], str] = exact_name,
        find: Callable[[str], Resolved] = resolve,
        open_model: Callable[[Resolved], Served] = open_served,
    ) -> None:
        """Read the model that `uri` names now; raises what that raises. `say` is told of changes, a line each."""
        self.uri, self.say = uri, say
        self.ask, self.find, self.open_model = ask, find, open_model
        self.current = open_model(find(uri))
        self.fault = ""  # why the newest version does not answer; "" while all is well
        self.checked_at = datetime.now(UTC)
        self.refused, self.retry_s = "", 0.0  # the version that could not be read, and when to try it again
        self.changes = 0

    def check(self) -> None:
        """Look which version is named now, and take it over if it is another."""
        try:
            exact = self.ask(self.uri)
        except Exception as error:  # whatever the registry's engine raises while it is away
            self._fail(f"{self.uri}: the registry does not answer ({one_line(error)})")
            return
        self.checked_at = datetime.now(UTC)
        if exact == self.current.version:
            self.fault = self.refused = ""
            return
        if exact == self.refused and time.monotonic() < self.retry_s:
            return
        try:
            following = self.open_model(self.find(exact))
        except Exception as error:  # a model may be wrong in any way: what answers must go on
            self.refused, self.retry_s = exact, time.monotonic() + RETRY_S
            self._fail(f"{exact} cannot be served: {one_line(error)}")
            return
        before, self.current = self.current.version, following
        self.fault = self.refused = ""
        self.changes += 1
        self.say(f"{following.version} answers from now on; {before} did before")

    def _fail(self, fault: str) -> None:
        if fault != self.fault:
            self.say(f"{fault}; {self.current.version} goes on answering")
        self.fault = fault

    def follow(self, poll_s: float, over: threading.Event) -> None:
        """Check every `poll_s` seconds until `over`; a name that cannot move is not asked about."""
        while follows_alias(self.uri) and not over.wait(poll_s):
            self.check()

    def state(self) -> dict[str, Any]:
        """What answers, for a person."""
        served = self.current
        return {
            "model": self.uri,
            "version": served.version,
            "model_sha256": served.resolved.sha256,
            "family": served.predictor.card.family,
            "dataset": served.predictor.card.dataset,
            "dataset_digest": served.predictor.card.dataset_digest,
            "since": served.since.isoformat(timespec="milliseconds"),
            "checked_at": self.checked_at.isoformat(timespec="milliseconds"),
            "fault": self.fault or None,
        }


@dataclass(frozen=True)
class Answered:
    """Rows for the items of one request, all by one model."""

    served: Served
    rows: list[dict[str, Any]]


def answer_together(served: Served, requests: Sequence[Sequence[bytes]]) -> list[Answered]:
    """Predict the items of several requests in one go; each request's rows are its own again."""
    rows = served.predictor.predict([blob for blobs in requests for blob in blobs]).to_pylist()
    answers, start = [], 0
    for blobs in requests:
        answers.append(Answered(served, rows[start : start + len(blobs)]))
        start += len(blobs)
    return answers


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
