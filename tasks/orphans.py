"""Ray's processes whose driver is no more.

The kernel ends most of them with it, and others look for it now and then; one that hangs would stay for ever. The
folder of an embedded Ray's session says which process started it. A cluster of `ray start` has no such note: it is to
outlive whoever started it.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

NOTE = "convoy-driver"  # a file of a session: "<pid>@<when it began>"
# as Ray itself chooses
SESSIONS = Path(os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))) / "ray"
# of a command; what else names a session may read its logs, say, and is a person's
RAYS = re.compile(r"ray::|ray-dashboard-|.*/ray/(?:core|_private|autoscaler|dashboard)/")
END_S = 5.0  # for a process to end when told


def note_driver(session: Path) -> None:
    """Keep with an embedded Ray's session that this process is its driver."""
    (session / NOTE).write_text(f"{os.getpid()}@{psutil.Process().create_time()}")


def driver_of(session: Path) -> int | None:
    """The number of the process that a session was embedded in, where that has ended; else None."""
    try:
        pid, began = (session / NOTE).read_text().split("@")
    except (OSError, ValueError):  # none, or cut off
        return None
    try:
        process = psutil.Process(int(pid))
        lives = process.create_time() == float(began) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        lives = False
    return None if lives else int(pid)


def orphans(sessions: Path) -> Iterator[tuple[psutil.Process, str, int]]:
    """Living processes of embedded sessions whose driver has ended, each with the session's name and that driver."""
    ended = {
        folder.name: driver
        for folder in sessions.glob("session_2*")
        if (driver := driver_of(folder)) is not None
    }
    for process in psutil.process_iter() if ended else ():
        try:
            told = told_by(process)
        except psutil.Error:  # gone meanwhile, or another user's
            continue
        for name, driver in ended.items():
            if name in told and RAYS.match(told):
                yield process, name, driver


def told_by(process: psutil.Process) -> str:
    """What a process of Ray says of its session; "" of one that has ended."""
    if process.status() == psutil.STATUS_ZOMBIE or process.uids().real != os.getuid():
        return ""
    told = " ".join(process.cmdline())
    # a worker's title has taken the place of its command: its logs are in the session
    if told.startswith("ray::"):
        told += " ".join(file.path for file in process.open_files())
    return told


def memory_of(process: psutil.Process) -> int:
    """Bytes that a process has for itself; 0 of one that is gone."""
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0


def end(process: psutil.Process) -> None:
    """Tell a process to end, and kill it where it does not; psutil knows it from one that has its number by now."""
    try:
        process.terminate()
        process.wait(END_S)
    except psutil.TimeoutExpired:
        process.kill()
        psutil.wait_procs([process], END_S)
    except psutil.NoSuchProcess:
        return
