"""Bringing a large file over an unreliable way: into a partial file that the next attempt continues.

A server is a function `opener(start, validator)`: it gives the bytes from `start` on if the file there is still the
one that `validator` names, and all of them otherwise. `data.download` and `data.s3` have one each.
"""

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from data.files import write_whole

CHUNK_BYTES = 256 << 10
ATTEMPTS = 4  # without a new byte
RETRY_DELAY_S = 1.0  # more after each attempt


class BrokenTransferError(ConnectionError):
    """The transfer stopped for a reason that may pass."""


class StaleTransferError(Exception):
    """The server cannot go on from where we are: start again."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server gives."""

    start: int  # the place of the first byte in the file
    total_bytes: int | None  # of the whole file; None if the server does not say
    validator: str  # names this state of the file; "" if the server does not
    chunks: Iterator[bytes]


Opener = Callable[[int, str], AbstractContextManager[Reply]]
Hear = Callable[[int, int | None], None]  # bytes there, all bytes


def transfer(
    opener: Opener, partial: Path, where: str, *, verified: bool, max_bytes: int, hear: Hear
) -> None:
    """Bring a file into `partial`, going on with what is there; `where` names the source in messages.

    A file that the server gives no validator for is continued only if it is `verified` afterwards, since its parts
    may be of different states. Raises a ValueError (too large), ConnectionError, or OSError (no space).
    """
    best = attempts = 0
    while True:
        try:
            _go_on(opener, partial, where, verified, max_bytes, hear)
            return
        except StaleTransferError:
            discard(partial)
            reason = "the server cannot continue a file that it began"
        except BrokenTransferError as error:
            reason = str(error)
        have = partial.stat().st_size if partial.exists() else 0
        attempts = 0 if have > best else attempts + 1
        best = max(best, have)
        if attempts >= ATTEMPTS:
            more = f"; {have:,} bytes are kept for the same command to go on from" if have else ""
            raise ConnectionError(f"{where}: {reason}{more}")
        time.sleep(RETRY_DELAY_S * (attempts + 1))


def _go_on(opener: Opener, partial: Path, where: str, verified: bool, max_bytes: int, hear: Hear) -> None:
    validator, total_bytes = _read_state(partial)
    start = partial.stat().st_size if partial.exists() and (validator or verified) else 0
    if verified and start and start == total_bytes:
        return  # only what comes after was interrupted
    with opener(start, validator) as reply, partial.open("ab") as file:
        _check_room(reply, where, max_bytes, partial)
        file.truncate(reply.start)
        _write_state(partial, reply)
        have = reply.start
        try:
            for chunk in reply.chunks:
                have += len(chunk)
                if have > max_bytes:
                    raise _too_large(where, max_bytes)
                file.write(chunk)
                hear(have, reply.total_bytes)
            file.flush()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            discard(partial)
            raise _no_space(partial, where) from None
    if reply.total_bytes is not None and have != reply.total_bytes:
        raise BrokenTransferError(f"truncated: {have:,} of {reply.total_bytes:,} bytes came")


def _check_room(reply: Reply, where: str, max_bytes: int, partial: Path) -> None:
    if reply.total_bytes is None:
        return
    if reply.total_bytes > max_bytes:
        raise _too_large(where, max_bytes)
    if reply.total_bytes - reply.start > shutil.disk_usage(partial.parent).free:
        raise _no_space(partial, f"{where} ({reply.total_bytes:,} bytes)")


def _too_large(where: str, max_bytes: int) -> ValueError:
    return ValueError(
        f"{where}: larger than {max_bytes / 1e9:g} GB; raise ingest.max_source_gb if it is meant to be so large"
    )


def _no_space(partial: Path, where: str) -> OSError:
    return OSError(errno.ENOSPC, f"no space left in {partial.parent} for {where}; free some, then try again")


def discard(partial: Path) -> None:
    """Remove a partial file, and what is known of it."""
    partial.unlink(missing_ok=True)
    _state_file(partial).unlink(missing_ok=True)


def _state_file(partial: Path) -> Path:
    return partial.with_suffix(".json")


def _read_state(partial: Path) -> tuple[str, int | None]:
    """The validator and the size of the file that `partial` is the beginning of."""
    try:
        state = json.loads(_state_file(partial).read_text())
        return str(state["validator"]), state["total_bytes"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or written by halves: then nothing is known
        return "", None


def _write_state(partial: Path, reply: Reply) -> None:
    state = {"validator": reply.validator, "total_bytes": reply.total_bytes}
    write_whole(_state_file(partial), json.dumps(state))
