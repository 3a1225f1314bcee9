"""The processes of the platform: which there are, how long, and how they are ended.

Each is known by a variable of its environment, which its children inherit: no list of ours can be out of date, and a
number that the kernel has given to another process is never taken for ours.
"""

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipelines.keeper import record_file

MARK = "CONVOY_SERVICE"  # its value: the service's name, "@", the platform's folder
KEEPER = "pipelines.keeper"
KILLED_S = 10.0  # for the kernel to end what was killed


@dataclass(frozen=True)
class Record:
    """What a service's keeper has noted."""

    pid: int
    created: float  # as the kernel says; with the pid it names one process for ever
    started_at: float  # seconds since 1970
    code: int | None = None  # of its exit
    ended_at: float | None = None

    def process(self) -> psutil.Process | None:
        """The process, if it lives."""
        try:
            process = psutil.Process(self.pid)
            same = process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return process if same else None


def read_record(folder: Path, name: str) -> Record | None:
    """The newest record of a service, or None where it was never started."""
    try:
        note = json.loads(record_file(folder, name).read_text())
    except FileNotFoundError:
        return None
    return Record(note["pid"], note["created"], note["started_at"], note.get("code"), note.get("ended_at"))


def mark(folder: Path, name: str) -> str:
    """The value of MARK for a service."""
    return f"{name}@{folder}"


def find(folder: Path, name: str = "") -> list[psutil.Process]:
    """All living processes of a service, keeper first, or of the whole platform; with what they have started."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            value = process.environ().get(MARK, "")
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if value == mark(folder, name) or (not name and value.endswith(f"@{folder}")):
                found[process.pid] = process
                # Some write their title over their environment (Ray's workers).
                found.update({child.pid: child for child in process.children(recursive=True)})
        except psutil.Error:  # gone meanwhile, or another user's
            continue
    return sorted(found.values(), key=lambda process: process.create_time() if process.is_running() else 0)


def is_kept(folder: Path, name: str) -> bool:
    """Whether a service runs, or is about to: its main process lives, or a keeper that has not noted it yet."""
    record = read_record(folder, name)
    if record is not None and record.process() is not None:
        return True
    return any(is_keeper(process) for process in find(folder, name)) and (
        record is None or record.ended_at is None
    )


def is_keeper(process: psutil.Process) -> bool:
    """Whether a process keeps a service, rather than being one."""
    try:
        return KEEPER in process.cmdline()
    except psutil.Error:
        return False


def roots(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those whose parent is not among them."""
    numbers = {process.pid for process in processes}
    return [process for process in processes if parent_of(process) not in numbers]


def parent_of(process: psutil.Process) -> int:
    """The number of a process's parent; 0 where it has none any more."""
    try:
        return process.ppid()
    except psutil.Error:
        return 0


def end(processes: Sequence[psutil.Process], seconds: float, *, kill: bool = True) -> list[psutil.Process]:
    """Tell processes to end, and wait; those that have not ended in time are killed, and returned."""
    for process in processes:
        send(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    if kill:
        for process in alive:
            send(process, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=KILLED_S)
    return list(alive)


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process, if it is still the same one."""
    try:
        process.send_signal(number)  # psutil compares the start time first
    except psutil.Error:
        return


def memory_mb(processes: Sequence[psutil.Process]) -> float:
    """Memory of processes together, in 10^6 bytes; what several share is counted once."""
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 1e6


def wait_until_gone(folder: Path, name: str, seconds: float) -> None:
    """Return when no process of a service is left, or the time is over."""
    end_s = time.monotonic() + seconds
    while find(folder, name) and time.monotonic() < end_s:
        time.sleep(0.1)
