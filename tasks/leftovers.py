"""What processes left behind that are no more: half-written files, Ray's sessions, shared memory, locks.

Looking changes nothing, and asks neither DVC nor MLflow; tasks.maintenance frees what is old enough.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import Literal

import psutil

from tasks import versioning, versions
from tasks.paths import downloads, galleries, home, runs, store

Kind = Literal["checkpoints", "cache", "partial", "sessions", "shared memory", "locks"]
SHARED_MEMORY, RAY_SESSIONS = Path("/dev/shm"), Path("/tmp/ray")
PARTIAL = re.compile(r"\..+\.(?:partial-)?(\d+)-(?:[0-9a-f]{8}$|\w+$)")  # data.files.whole, data.storage
DOWNLOAD = re.compile(r"\.[0-9a-f]{32}\.(?:part|json)")  # data.download, which another attempt goes on with
FETCHED = re.compile(r"(?:fetch|mlflow)-\w+")  # tasks.modelstore, tasks.recordstore


@dataclass(frozen=True)
class Item:
    """One thing that may be freed."""

    kind: Kind
    path: Path
    num_files: int
    num_bytes: int
    why: str
    lock: Path | None = None  # to be held while it is freed


def partial_files() -> Iterator[Item]:
    """What a process began to write and did not finish."""
    cache = home() / ".cache"
    of_runs = [runs(), *runs().glob("*/"), *runs().glob("*/*/")]  # checkpoints and models too
    places = [store(), cache, cache / "models", downloads(), *of_runs, galleries()]
    for path in sorted(path for place in places if place.is_dir() for path in place.iterdir()):
        if (found := PARTIAL.fullmatch(path.name)) and not psutil.pid_exists(int(found[1])):
            yield Item("partial", path, *size_of(path), f"process {found[1]}, which wrote it, has ended")
        elif DOWNLOAD.fullmatch(path.name) and path.parent == downloads():
            lock = path.with_suffix(".lock")
            yield Item("partial", path, *size_of(path), "a download that nobody went on with", lock)
        elif FETCHED.fullmatch(path.name) and path.is_relative_to(cache):
            yield Item("partial", path, *size_of(path), "a copy that was not finished")


def ended_sessions() -> Iterator[Item]:
    """Ray's folders of our user whose cluster has ended: no process has their name in its command."""
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    for folder in sorted(RAY_SESSIONS.glob("session_2*")):
        alive = any(folder.name in command for command in commands)
        if is_of_dead(folder.name) and not alive and folder.stat().st_uid == os.getuid():
            yield Item("sessions", folder, *size_of(folder), "its processes have ended")


def left_memory() -> Iterator[Item]:
    """Shared memory of our user whose process has ended."""
    for file in sorted(SHARED_MEMORY.glob("torch_*")):
        if is_of_dead(file.name) and file.stat().st_uid == os.getuid():
            yield Item("shared memory", file, *size_of(file), "its process has ended")


def is_of_dead(name: str) -> bool:
    """Whether the process that a file's name ends in, or begins with after its kind, is gone."""
    found = re.match(r"torch_(\d+)_", name) or re.search(r"_(\d+)$", name)
    return found is not None and not psutil.pid_exists(int(found[1]))


def idle_locks() -> Iterator[Item]:
    """Lock files of datasets that are no more."""
    known = {versions.lock_file(name) for name in versioning.recorded_below(store())}
    for file in sorted(store().glob(".*.versions.lock")):
        name = file.name.removeprefix(".").removesuffix(".versions.lock")
        if file not in known and not (store() / name).exists():
            yield Item("locks", file, *size_of(file), f"there is no dataset {name}", file)


def stats(path: Path) -> Iterator[os.stat_result]:
    """Of all that lies at a path, itself included; links are not followed, and what goes meanwhile is left out."""
    places = [str(path)]
    for folder, below, names in os.walk(path):
        places += [f"{folder}/{name}" for name in (*below, *names)]
    for place in places:
        with suppress(FileNotFoundError):
            yield os.lstat(place)


def size_of(path: Path) -> tuple[int, int]:
    """How many files, and bytes, lie at a path."""
    sizes = [about.st_size for about in stats(path) if not S_ISDIR(about.st_mode)]
    return len(sizes), sum(sizes)


def newest(path: Path) -> float:
    """When anything at a path was last changed, in seconds since 1970."""
    return max((about.st_mtime for about in stats(path)), default=0.0)
