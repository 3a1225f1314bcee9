"""Several training runs side by side: the members of an ensemble, each by the loop and with a folder of its own.

A member is an ordinary run of one process. On Ray it is a task, not a Ray Train run of its own: those block the main
thread each, handle signals, and start a controller for every run. A task holds as many CPUs as the member has threads;
`at_once` members run at a time, and the next one starts when one has ended. What members decode alike is decoded once
and read by all from the object store. Checkpoints lie in the member's folder, so a task whose process dies is begun
again and goes on from there, and so does a member when everything was killed: one that has ended is not trained again.

A member's weights are those of the same run alone, with the same `train.cpus_per_worker`, bit for bit on a CPU.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from data.dataset import Dataset
from data.stream import Layout
from tasks.cluster import connect
from tasks.distil import Teacher
from tasks.driverfiles import shared_files
from tasks.loop import Progress
from tasks.mailbox import open_mailbox, read_mailbox
from tasks.nodes import ClusterLost, Head, require_places
from tasks.raytrain import run_rank, source_key, source_of
from tasks.result import Listener, TrainResult, read_result
from tasks.train import CHECKPOINTS, Executor, LocalSession, begin_run, keep, train
from tasks.transfer import Weights

POLL_S = 0.25
MAX_LOST_PROCESSES = 3  # of a member, until it fails

Hear = Callable[[int, Progress], None]  # (place of the member, what it says)
Begin = Callable[[int, int], None]  # (place of the member, its first step)


@dataclass(frozen=True)
class MemberRun:
    """One member, complete."""

    config: Any
    folder: Path
    key: str
    weights: Weights | None = None
    teacher: Teacher | None = None


def share_of_cpus(num_members: int, num_cpus: int) -> int:
    """CPUs of each member where as many as there are CPUs, at most, run at a time."""
    return max(1, num_cpus // max(1, min(num_members, num_cpus)))


def members_at_once(config: Any) -> int:
    """How many members such as this one the cluster holds; raises ValueError if it is none."""
    cpus, gpus = config.train.cpus_per_worker, config.train.gpus_per_worker
    asked = f"members with train.cpus_per_worker (={cpus}) and train.gpus_per_worker (={gpus:g})"
    return require_places(1, cpus, gpus, asked, "members")


def train_members(
    family_name: str,
    runs: Sequence[MemberRun],
    dataset: Dataset,
    *,
    digest: str,
    executor: Executor = "ray",
    on_progress: Hear = lambda _place, _progress: None,
    on_start: Begin = lambda _place, _step: None,
    on_features: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[TrainResult]:
    """Train what has not been trained of `runs`, whose configs have one worker each; their results, in their order.

    `on_features` hears of how many of how many pictures there are cached features, where they are computed.
    Raises what `tasks.train.train` raises; the members that are still under way are stopped then, and resume when this
    is called again.
    """
    for run in runs:
        if run.config.train.num_workers != 1:
            raise ValueError(
                f"train.num_workers (={run.config.train.num_workers}) must be 1 in an ensemble: its members are what "
                "runs in parallel"
            )
    waiting = [place for place, run in enumerate(runs) if not (run.folder / "result.json").is_file()]
    if executor == "in_process":
        for place in waiting:
            run = runs[place]
            train(
                family_name, run.config, dataset, folder=run.folder, key=run.key, digest=digest, weights=run.weights,
                teacher=run.teacher, executor=executor, on_progress=partial(on_progress, place),
                on_start=partial(on_start, place), on_features=on_features,
            )  # fmt: skip
    elif waiting:
        connect()
        Crowd(family_name, runs, dataset, digest, on_progress, on_start, on_features).train(waiting)
    return [read_result(run.folder) for run in runs]


@ray.remote
def train_member(payload: dict[str, Any]) -> None:
    """Run a member's loop to its end; the result is its last checkpoint."""
    place, mailbox = payload["place"], payload["mailbox"]
    device = torch.device("cuda" if payload["config"].train.gpus_per_worker else "cpu")

    def hear(progress: Progress) -> None:
        mailbox.put.remote(("progress", (place, asdict(progress))))

    folder = Path(payload["folder"]) / CHECKPOINTS["in_process"]
    session = LocalSession(folder, device, hear, files=payload["files"])
    run_rank(payload, session, lambda step: mailbox.put.remote(("start", (place, step))))


class Crowd:
    """Members under way on Ray, and those that wait for their turn."""

    def __init__(
        self, family_name: str, runs: Sequence[MemberRun], dataset: Dataset, digest: str, hear: Hear, begin: Begin,
        on_features: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        self.family_name, self.runs, self.dataset, self.digest = family_name, runs, dataset, digest
        self.hear, self.begin, self.on_features = hear, begin, on_features
        self.mailbox, self.files = open_mailbox(), shared_files()
        self.sources: dict[str, dict[str, Any]] = {}  # decoded splits that members share
        self.readers: list[Any] = []
        self.listeners: dict[int, Listener] = {}

    def train(self, waiting: Sequence[int]) -> None:
        """Train the members at these places, and write what each leaves as soon as it has ended."""
        queue, head, lost = deque(waiting), Head(), False
        layouts = {place: self.begun(place) for place in waiting}
        at_once = min(members_at_once(self.runs[place].config) for place in waiting)
        running: dict[Any, int] = {}
        try:
            while queue or running:
                while queue and len(running) < at_once:
                    place = queue.popleft()
                    running[self.start(place, layouts[place])] = place
                ended, _ = ray.wait([*running], timeout=POLL_S)
                head.require()
                self.deliver()
                for reference in ended:
                    self.finish(running.pop(reference), reference)
        except ClusterLost:
            lost = True
            raise
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if not lost:  # else nobody is there to end them
                for actor in (self.mailbox, *self.readers):
                    ray.kill(actor)

    def begun(self, place: int) -> Layout:
        run = self.runs[place]
        return begin_run(
            self.family_name, run.config, self.dataset, run.folder, self.digest, run.weights, run.teacher
        )

    def start(self, place: int, layout: Layout) -> Any:
        """Send a member to the cluster."""
        run = self.runs[place]
        settings = run.config.train
        hear, begin = partial(self.hear, place), partial(self.begin, place)
        self.listeners[place] = Listener(run.folder, hear, begin, lambda: False)
        payload = {
            "place": place,
            "folder": str(run.folder.resolve()),
            "family": self.family_name,
            "config": run.config,
            "info": self.dataset.info,
            "layout": layout,
            "weights": [ray.put(run.weights)],
            "teacher": [ray.put(run.teacher)],
            **self.source(run, layout),
            "mailbox": self.mailbox,
            "files": self.files,
            "threads": settings.cpus_per_worker,
        }
        task: Any = train_member
        return task.options(
            num_cpus=settings.cpus_per_worker,
            num_gpus=settings.gpus_per_worker,
            max_retries=MAX_LOST_PROCESSES,
        ).remote(payload)

    def source(self, run: MemberRun, layout: Layout) -> dict[str, Any]:
        """Where a member's pictures come from: decoded once for all that decode alike, or readers of its own."""
        key = source_key(run.config)
        if key in self.sources:
            return self.sources[key]
        found = source_of(self.family_name, run.config, self.dataset, layout, run.weights, self.on_features)
        if "resident" in found:
            self.sources[key] = found
        self.readers += found.get("readers", {}).values()
        return found

    def deliver(self) -> None:
        """Pass on what members have said."""
        for kind, (place, value) in read_mailbox(self.mailbox):
            if kind == "start":
                self.listeners[place].start(value)
            else:
                self.listeners[place].hear(Progress(**value))

    def finish(self, place: int, reference: Any) -> None:
        """Write what a member leaves; raises the error that ended it."""
        run = self.runs[place]
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.WorkerCrashedError:
            raise RuntimeError(f"the process of {run.key} died {MAX_LOST_PROCESSES + 1} times") from None
        self.deliver()  # its last words
        session = LocalSession(run.folder / CHECKPOINTS["in_process"], torch.device("cpu"), lambda _: None)
        state = session.load()
        assert state is not None and state["ended"]
        keep(
            self.family_name, run.config, self.dataset, run.folder, run.key, self.digest, state,
            self.listeners[place], run.weights, run.teacher,
        )  # fmt: skip
