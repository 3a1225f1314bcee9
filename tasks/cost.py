"""What a run costs: processor and GPU seconds, wall time; measured, and added up over its attempts.

Processor seconds are those of this process and all that descend from it, which are Ray's workers too where Ray was
started here. A process is looked at every two seconds, so one that lives for less may be missed. On a cluster that was
there before, the ranks of the training tell theirs (`train_cpu_s`); what augments pictures for them is not counted.
GPU seconds are the GPUs that training held times its seconds, whether they were busy or not.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from data.counting import counted

LOOK_EVERY_S = 2.0
CPU, GPU, WALL = "cost.cpu_s", "cost.gpu_s", "cost.wall_s"
RANKS, WAITED = "train_cpu_s", "train_input_wait"


@dataclass(frozen=True)
class Cost:
    """What one run, or several, took."""

    runs: int
    cpu_s: float
    gpu_s: float
    wall_s: float


def cost_of(metrics: Mapping[str, float], tags: Mapping[str, str]) -> Cost | None:
    """The cost that a run's record has; None for one of before it was measured, or that trained nothing."""
    if CPU not in metrics:
        return None
    elsewhere = tags.get("ray.address", "embedded") != "embedded"
    ranks_s = metrics.get(RANKS, 0.0) if elsewhere else 0.0
    return Cost(1, metrics[CPU] + ranks_s, metrics[GPU], metrics[WALL])


def summed(costs: Iterable[Cost]) -> Cost:
    """All of them together."""
    known = list(costs)
    return Cost(
        sum(each.runs for each in known), sum(each.cpu_s for each in known), sum(each.gpu_s for each in known),
        sum(each.wall_s for each in known),
    )  # fmt: skip


def told(cost: Cost) -> str:
    """A cost in a line."""
    return (
        f"{counted(cost.runs, 'run')}: {cost.cpu_s:,.0f} CPU s, {cost.gpu_s:,.0f} GPU s, {cost.wall_s:,.0f} s"
    )


class Meter:
    """Adds up what this process and its descendants compute."""

    def __init__(self) -> None:
        self.started, self.lock = time.perf_counter(), threading.Lock()
        # (pid, begin) → seconds, of processes that ended too
        self.latest: dict[tuple[int, float], float] = {}
        self.look()
        self.at_first = sum(self.latest.values())

    def look(self) -> None:
        """Note the seconds of all processes that there are now."""
        me = psutil.Process()
        with self.lock:
            for process in [me, *me.children(recursive=True)]:
                with suppress(psutil.Error):  # it has just ended
                    spent = process.cpu_times()
                    self.latest[process.pid, process.create_time()] = spent.user + spent.system

    def cost(self, before: Mapping[str, float], gpu_s: float) -> dict[str, float]:
        """The metrics of a run so far, with what its earlier attempts had cost; `gpu_s` is of this attempt."""
        self.look()
        cpu_s = sum(self.latest.values()) - self.at_first
        now = {CPU: cpu_s, GPU: gpu_s, WALL: time.perf_counter() - self.started}
        return {name: before.get(name, 0.0) + value for name, value in now.items()}

    def cost_of_many(
        self, before: Mapping[str, float], parts: Iterable[tuple[float, float]], gpus: float
    ) -> dict[str, float]:
        """The same of a run of many trainings, with `gpus` each; `parts`: seconds and processor seconds of each.

        Their seconds are over all attempts.
        """
        seconds, ranks_s = zip(*parts, strict=True)
        return {**self.cost({**before, GPU: 0.0}, gpus * sum(seconds)), RANKS: sum(ranks_s)}


@contextmanager
def metered() -> Iterator[Meter]:
    """A meter that looks by itself, for as long as the block runs."""
    meter, over = Meter(), threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY_S):
            meter.look()

    watcher = threading.Thread(target=watch, name="cost", daemon=True)
    watcher.start()
    try:
        yield meter
    finally:
        over.set()
        watcher.join()
