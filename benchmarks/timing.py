"""How benchmarks time several ways of one thing."""

import statistics
import time
from collections.abc import Callable


def milliseconds(rounds: int, *ways: Callable[[], object]) -> list[float]:
    """Of each way, the median over rounds in which they take turns, after one that warms up."""
    taken: list[list[float]] = [[] for _ in ways]
    for number in range(rounds + 1):
        for way, mine in zip(ways, taken, strict=True):
            began = time.perf_counter()
            way()
            if number:  # the first is a warm-up
                mine.append((time.perf_counter() - began) * 1000)
    return [statistics.median(mine) for mine in taken]
