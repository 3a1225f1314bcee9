"""Whose turn it is to move the aliases of a model: one process at a time, on one machine and across machines.

Records in a local file: a lock of the file system, which ends with its process. Records on a server: that lock for this
machine, and a tag of the registered model for the others. MLflow cannot compare and set, so the tag is written, left to
settle, and read again: the last writer has the turn, the others see that it is not theirs (Fischer's algorithm: Lamport
1987, "A fast mutual exclusion algorithm", section 2). It is safe while a write takes less than `SETTLE_S`. A turn whose
process died ends by itself after `LEASE_S`. Who waits gives up after `WAIT_S` in which the same one has the turn.

Nobody knows of a process whether it died or sleeps. So whoever has the turn asks before each move whether that is still
so, and for `MARGIN_S` more: one that wakes after its lease moves nothing more. What is left is a single move that takes
longer than `MARGIN_S`, or as much less as the clock of another machine is ahead: clocks must agree to well below that.
"""

import fcntl
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from mlflow.exceptions import MlflowException

from tasks.paths import home
from tasks.recordstore import connect, tracking_uri

TAG = "convoy.turn"  # "<token> <expires, seconds since the epoch> <who>"
SETTLE_S = 1.0
MARGIN_S = 60.0  # for one move, with MLflow's tries of it where a server refuses: see pipelines.environment
LEASE_S = 120.0
WAIT_S = 150.0  # for one other process: longer than a lease, so that one who died keeps nobody from going on
POLL_S = 0.05


@contextmanager
def turn(name: str) -> Iterator[Callable[[], None]]:
    """Hold the turn of a registered model; raises ValueError if another process keeps it for longer than `WAIT_S`.

    Gives what is to be called before each move, and raises RuntimeError where the turn is not ours any more.
    """
    folder = home() / ".cache" / "turns"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("a+") as file:
        patience = Patience(name)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                patience.wait_for(f"process {file.read().strip() or '?'}")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        if not tracking_uri().startswith("sqlite:"):
            with leased(name) as require_mine:
                yield require_mine
        else:
            yield lambda: None  # nobody takes a lock of the file system from a process that lives


class Patience:
    """How long somebody waits for one that has the turn."""

    def __init__(self, name: str) -> None:
        self.name, self.who, self.end_s = name, "", 0.0

    def wait_for(self, who: str) -> None:
        """Wait a moment; raises ValueError where the same one has had the turn for `WAIT_S`."""
        now_s = time.monotonic()
        if who != self.who:
            self.who, self.end_s = who, now_s + WAIT_S
        elif now_s > self.end_s:
            raise ValueError(
                f"{who} is moving the aliases of {self.name}; nothing was changed, try again when it is done"
            )
        time.sleep(POLL_S)


@contextmanager
def leased(name: str) -> Iterator[Callable[[], None]]:
    """Hold the tag of a model on a server; gives what `turn` does."""
    client, token = connect(), secrets.token_hex(8)
    patience = Patience(name)
    while True:
        holder = standing(name)
        if holder is None:
            claim(name, f"{token} {time.time() + LEASE_S:.0f} {socket.gethostname()}:{os.getpid()}")
            time.sleep(SETTLE_S)
            holder = standing(name)
            if holder is not None and holder.startswith(token):
                break
        patience.wait_for((holder or "? ? another process").split(" ", 2)[2])
    try:
        yield partial(require_standing, name, token)
    finally:
        with suppress(MlflowException):  # of a server that is away: the lease ends by itself
            if (standing(name) or "").startswith(token):  # not somebody else's, after a lease that ran out
                client.delete_registered_model_tag(name, TAG)


def require_standing(name: str, token: str) -> None:
    """Raise RuntimeError where the tag is not of this token, or will not be for `MARGIN_S` more."""
    holder = (standing(name) or "").split(" ")
    if holder[0] != token or float(holder[1]) < time.time() + MARGIN_S:
        raise RuntimeError(
            f"this process took so long that it is not its turn to move the aliases of {name} any more; "
            f"what it had begun, others finish or undo: see ./convoy history {name}, and give the command again"
        )


def claim(name: str, value: str) -> None:
    """Write the tag, which another may write too; of two that make it at once, a database refuses one."""
    try:
        connect().set_registered_model_tag(name, TAG, value)
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise


def standing(name: str) -> str | None:
    """The tag of whoever has the turn; None if nobody has, or the lease is over."""
    try:
        value = connect().get_registered_model(name).tags.get(TAG)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ValueError(f"no registered model {name!r}: {error.message}") from None
    if value is None or float(value.split(" ")[1]) < time.time():
        return None
    return str(value)
