"""What to say where a command ended because something was full: what it was, and what to do.

The engines say it in ways of their own: an errno, SQLite's "database or disk is full", a checkpoint's "file write
failed", a text from another process; or Prefect's server alone knows it. So what is full is looked for.
"""

import errno
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tasks.paths import home, runs, store

FULL = re.compile(
    r"No space left on device|disk is full|Disk quota exceeded|file write failed", re.IGNORECASE
)
NEARLY_FULL_BYTES = 1 << 20  # free: less than what a command needs to end


def full_disk(error: BaseException) -> str:
    """A sentence that says what is full and what to do; "" where nothing is.

    It does not say that the error came of it unless the error does: a small place may be full at any time.
    """
    told = any(tells(each) for each in causes(error))
    places = {name: place for name, place in watched().items() if free_bytes(place) < NEARLY_FULL_BYTES}
    if not told and not places:
        return ""
    files = [getattr(each, "filename", None) for each in causes(error) if tells(each)]
    named = next((str(file) for file in files if file), "")
    full = " and ".join(f"{name} ({place})" for name, place in places.items())
    where = full or named or " or ".join(f"{name} ({place})" for name, place in watched().items())
    cause = "" if told else ", and this may have come of it"
    return (
        f"no space is left in {where}{cause}; what was stored is whole. Make room (./convoy maintain lists what "
        "nothing needs), then type the same command again; a run that had a key goes on by --resume KEY"
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def of_database(error: BaseException) -> bool:
    """Whether an error came of one of SQLite's, which our own words have taken the place of."""
    return any(isinstance(each, sqlite3.OperationalError) for each in causes(error))


def tells(error: BaseException) -> bool:
    """Whether an error says that something is full."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or FULL.search(str(error)) is not None


def watched() -> dict[str, Path]:
    """What may be full, by what a person knows it as."""
    places = {
        "CONVOY_HOME": home(),
        "the store of datasets": store(),
        "the folder of runs": runs(),
        "MLflow's folder": home() / "mlflow",
        "PREFECT_HOME": Path(os.environ.get("PREFECT_HOME", home())),
        "the temporary folder": Path(tempfile.gettempdir()),
        "Ray's folder": Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())),
        "shared memory": Path("/dev/shm"),
    }
    seen: dict[int, str] = {}
    for name, place in places.items():
        if place.exists():
            seen.setdefault(place.stat().st_dev, name)
    return {name: places[name] for name in seen.values()}


def free_bytes(place: Path) -> int:
    about = os.statvfs(place)
    return about.f_bavail * about.f_frsize
