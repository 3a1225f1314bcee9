"""Whose turn it is to move the aliases of a model: one process at a time, on one machine and across machines.

Records in a local file: a lock of the file system, which ends with its process. Records on a server: that lock for this
machine, and a tag of the registered model for the others. MLflow cannot compare and set, so the tag is written, left to
settle, and read again: the last writer has the turn, the others see that it is not theirs (Fischer's algorithm: Lamport
1987, "A fast mutual exclusion algorithm", section 2). It is safe while a write takes less than `SETTLE_S`. A turn whose
process died ends by itself after `LEASE_S`.
"""

import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

from tasks.paths import home
from tasks.recordstore import connect, tracking_uri

TAG = "convoy.turn"  # "<token> <expires, seconds since the epoch> <who>"
SETTLE_S = 1.0
LEASE_S = 60.0
WAIT_S = 30.0  # for another process
POLL_S = 0.05


@contextmanager
def turn(name: str) -> Iterator[None]:
    """Hold the turn of a registered model; raises ValueError if another process keeps it for longer than `WAIT_S`."""
    folder = home() / ".cache" / "turns"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("a+") as file:
        end_s = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end_s:
                    file.seek(0)
                    raise ValueError(busy(name, f"process {file.read().strip() or '?'}")) from None
                time.sleep(POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        if not tracking_uri().startswith("sqlite:"):
            with leased(name):
                yield
        else:
            yield


def busy(name: str, who: str) -> str:
    """Why somebody has to wait."""
    return f"{who} is moving the aliases of {name}; nothing was changed, try again when it is done"


@contextmanager
def leased(name: str) -> Iterator[None]:
    """Hold the tag of a model on a server."""
    client, token = connect(), secrets.token_hex(8)
    end_s = time.monotonic() + WAIT_S
    while True:
        holder = standing(name)
        if holder is None:
            value = f"{token} {time.time() + LEASE_S:.0f} {socket.gethostname()}:{os.getpid()}"
            claim(name, value)
            time.sleep(SETTLE_S)
            holder = standing(name)
            if holder is not None and holder.startswith(token):
                break
        if time.monotonic() > end_s:
            raise ValueError(busy(name, (holder or "? ? another process").split(" ", 2)[2]))
        time.sleep(POLL_S)
    try:
        yield
    finally:
        if (standing(name) or "").startswith(token):  # not somebody else's, after a lease that ran out
            client.delete_registered_model_tag(name, TAG)


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
        raise ValueError(f"no registered model {name!r}: {error.message}") from None
    if value is None or float(value.split(" ")[1]) < time.time():
        return None
    return str(value)
