"""What processes left behind that are no more: half-written files, Ray's sessions and processes, shared memory, locks.

Looking changes nothing, and asks neither DVC nor MLflow; tasks.maintenance frees what is old enough.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Literal

import psutil

from data.files import holding
from tasks import orphans, versioning, versions
from tasks.paths import downloads, features, galleries, home, recordings, runs, store

Kind = Literal["checkpoints", "cache", "partial", "sessions", "processes", "jobs", "shared memory", "locks"]
SHARED_MEMORY, RAY_SESSIONS, SCRATCH = Path("/dev/shm"), orphans.SESSIONS, Path(tempfile.gettempdir())
# The number is their process's.
PARTIAL = re.compile(r"\..+\.(?:partial-)?(\d+)-(?:[0-9a-f]{8}$|\w+$)")  # data.files, data.storage
FOR_A_WHILE = re.compile(r"convoy-[a-z]+-(\d+)-\w+")  # data.files.scratch
DOWNLOAD = re.compile(r"\.[0-9a-f]{32}\.(?:part|json)")  # data.download, which another attempt goes on with
LOCK = re.compile(r"\.(?P<name>(?!watched\.lock)[a-z0-9][a-z0-9_-]*)(?:\.versions)?\.lock")  # of a dataset


@dataclass(frozen=True)
class Item:
    """One thing that may be freed."""

    kind: Kind
    path: Path  # of a process the one below /proc, of a job the cluster's address and its name
    num_files: int
    num_bytes: int
    why: str
    lock: Path | None = None  # to be held while it is freed
    process: psutil.Process | None = None


def partial_files() -> Iterator[Item]:
    """What a process began to write and did not finish, and datasets that it held."""
    cache = home() / ".cache"
    of_runs = [Path(place) for place, _, _ in os.walk(runs())]  # checkpoints, models and trials too
    beside = [cache, cache / "models", downloads(), features(), *recordings().glob("*/")]
    places = [store(), *beside, *of_runs, galleries(), SCRATCH]
    whole: set[Path] = set()  # folders that go with all that is in them
    for path in sorted(path for place in places for path in entries(place)):
        if not whole.isdisjoint(path.parents):
            continue
        found = FOR_A_WHILE.fullmatch(path.name)
        if path.parent != SCRATCH:
            found = found or PARTIAL.fullmatch(path.name)
        if found:
            if not psutil.pid_exists(int(found[1])) and is_ours(path):
                whole.add(path)
                yield Item("partial", path, *size_of(path), f"process {found[1]}, which wrote it, has ended")
        elif DOWNLOAD.fullmatch(path.name) and path.parent == downloads():
            lock = path.with_suffix(".lock")
            yield Item("partial", path, *size_of(path), "a download that nobody went on with", lock)
        elif path.name == "data" and path.parent.parent == runs() and path.is_dir():
            why = "links to the dataset of a run whose process has ended"
            yield Item("partial", path, *size_of(path), why, path.with_name("lock"))


def entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it is none, or none any more: trainings remove their old checkpoints."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def ended_sessions() -> Iterator[Item]:
    """Ray's folders of our user whose cluster has ended: no process tells that it belongs to it."""
    told = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            told.append(orphans.told_by(process))
    for folder in sorted(RAY_SESSIONS.glob("session_2*")):
        alive = any(folder.name in each for each in told)
        if is_of_dead(folder.name) and not alive and is_ours(folder):
            yield Item("sessions", folder, *size_of(folder), "its processes have ended")


def orphaned_processes() -> Iterator[Item]:
    """Processes of Ray whose driver has ended without them."""
    for process, session, driver in orphans.orphans(RAY_SESSIONS):
        with suppress(psutil.NoSuchProcess):
            why = f"{process.name()} of Ray's {session}, whose driver, process {driver}, has ended"
            place = Path("/proc") / str(process.pid)
            yield Item("processes", place, 0, orphans.memory_of(process), why, process=process)


def left_memory() -> Iterator[Item]:
    """Shared memory of our user whose process has ended."""
    for file in sorted(SHARED_MEMORY.glob("torch_*")):
        if is_of_dead(file.name) and is_ours(file):
            yield Item("shared memory", file, *size_of(file), "its process has ended")


def is_of_dead(name: str) -> bool:
    """Whether the process that a file's name ends in, or begins with after its kind, is gone."""
    found = re.match(r"torch_(\d+)_", name) or re.search(r"_(\d+)$", name)
    return found is not None and not psutil.pid_exists(int(found[1]))


def is_ours(path: Path) -> bool:
    """Whether a path belongs to our user; not if it is gone."""
    try:
        return path.lstat().st_uid == os.getuid()
    except FileNotFoundError:
        return False


def idle_locks() -> Iterator[Item]:
    """Lock files of datasets that are no more."""
    known = {versions.lock_file(name) for name in versioning.recorded_below(store())}
    for file in sorted(store().glob(".*.lock")):
        found = LOCK.fullmatch(file.name)
        if (
            found
            and not (store() / found["name"]).exists()
            and versions.lock_file(found["name"]) not in known
        ):
            yield Item("locks", file, *size_of(file), f"there is no dataset {found['name']}", file)


def stale_dvc_lock() -> Iterator[Item]:
    """DVC's list of who reads and writes what, where nobody who stands in it lives, or it was cut off.

    DVC itself waits for a number that another process has by now, and refuses to read a list that a kill cut off.
    """
    file = home() / ".dvc" / "tmp" / "rwlock"
    guard = file.with_name("rwlock.lock")
    with holding(guard) as quiet:
        if quiet and file.is_file() and (why := why_stale(file)):
            yield Item("locks", file, *size_of(file), why, guard)


def why_stale(file: Path) -> str:
    """Why DVC's list of locks holds for nobody; "" where it holds for somebody, or for nothing."""
    try:
        listed = json.loads(file.read_text())
    except ValueError:
        return "DVC was killed while it wrote it, and cannot read it"
    holders: list[dict[str, Any]] = [
        *listed.get("write", {}).values(), *(each for some in listed.get("read", {}).values() for each in some)
    ]  # fmt: skip
    written = file.stat().st_mtime
    if not holders or any(held_since(int(each["pid"]), written) for each in holders):
        return ""
    return f"process {holders[0]['pid']} ({holders[0]['cmd']}), which locked it, has ended"


def held_since(pid: int, when: float) -> bool:
    """Whether the process of that number is the one that had it at a time, in seconds since 1970."""
    try:
        return bool(psutil.Process(pid).create_time() <= when)
    except psutil.NoSuchProcess:
        return False


def stats(path: Path) -> Iterator[os.stat_result]:
    """Of all that lies at a path, itself included; links are not followed, and what goes meanwhile is left out."""
    places = [str(path)]
    for folder, below, names in os.walk(path):
        places += [f"{folder}/{name}" for name in (*below, *names)]
    for place in places:
        with suppress(FileNotFoundError):
            yield os.lstat(place)


def size_of(path: Path) -> tuple[int, int]:
    """How many files lie at a path, and the bytes that would be free without them: none of one with a second name."""
    found = [about for about in stats(path) if not S_ISDIR(about.st_mode)]
    return len(found), sum(about.st_size for about in found if about.st_nlink < 2)


def newest(path: Path) -> float:
    """When anything at a path was last changed, in seconds since 1970."""
    return max((about.st_mtime for about in stats(path)), default=0.0)
