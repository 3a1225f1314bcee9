"""Two processes that train side by side, as ranks of one job."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

JOIN_S = 120


def run_two(target: Callable[[int, Path], None], folder: Path) -> None:
    """Call `target(rank, folder)` in two processes, and wait until both have ended well; one that hangs is killed."""
    start = multiprocessing.get_context("spawn").Process
    processes = [start(target=target, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(JOIN_S)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
