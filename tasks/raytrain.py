"""Ray Train: its trainer, a rank's session with it, and the thread that follows a run on the driver.

What is private to Ray Train is named here alone.
"""

import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from tasks.cluster import cluster_info
from tasks.loop import Progress
from tasks.mailbox import Bell, read_mailbox
from tasks.result import Listener
from tasks.settings import TrainConfig

POLL_S = 0.25  # the follower's look at the mailbox


def process_group(settings: TrainConfig) -> BackendConfig:
    """How the workers find each other; a lone one needs nobody, and is spared seconds of its start."""
    if settings.num_workers == 1:
        return BackendConfig()
    return TorchConfig(backend="nccl" if settings.gpus_per_worker else "gloo")


class Trainer(DataParallelTrainer):
    """Ray Train's trainer, two processes lighter: each would take a core for more than a second before the first step.

    The one hands out Ray Data's datasets, of which there are none here. The other frees a placement group whose
    controller was killed, which matters only where the cluster outlives the driver.
    """

    def _create_default_callbacks(self) -> list[Any]:
        embedded = cluster_info().address == "embedded"
        unneeded = (DatasetsCallback, PlacementGroupCleanerCallback) if embedded else (DatasetsCallback,)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, unneeded)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave signals to whoever called: Ray Train would abort, and end the process with the code 0."""


class Follower(threading.Thread):
    """Reads the mailbox of a run while `fit` blocks the main thread, and keeps the first error it meets.

    It tells the workers to stop once the listener says so.
    """

    def __init__(self, mailbox: Any, listener: Listener) -> None:
        super().__init__(name="follow-training", daemon=True)
        self.mailbox, self.listener = mailbox, listener
        self.done = threading.Event()
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        told = False
        while not self.done.wait(POLL_S):
            self.read()
            if not told and self.listener.stopping():
                self.mailbox.stop.remote()
                told = True
        self.read()

    def read(self) -> None:
        try:
            for kind, value in read_mailbox(self.mailbox):
                if kind == "start":
                    self.listener.start(value)
                elif kind == "progress":
                    self.listener.hear(Progress(**value))
                else:
                    self.error = self.error or value
        except Exception as error:  # a thread's exception would be lost: it is raised after the training
            self.error = self.error or error

    def stop(self) -> None:
        self.done.set()
        self.join()


class RaySession:
    """One rank of a Ray Train run. Ray keeps the checkpoints, and starts the ranks again when one is lost."""

    def __init__(self, mailbox: Any) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.mailbox, self.bell = mailbox, Bell(mailbox)

    def load(self) -> dict[str, Any] | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as path:
            state = torch.load(Path(path) / "state.pt", map_location="cpu", weights_only=True)
            random = Path(path) / f"random-{self.rank}.pt"
            state["random"] = torch.load(random, weights_only=True) if random.is_file() else None
        return state

    def save(self, state: dict[str, Any], step: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state["random"], Path(folder) / f"random-{self.rank}.pt")
            if self.rank == 0:
                torch.save(state, Path(folder) / "state.pt")
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def report(self, progress: Progress) -> None:
        # As plain values: the mailbox would import this module, and torch with it, while training runs.
        self.mailbox.put.remote(("progress", asdict(progress)))

    def stopping(self) -> bool:
        return self.bell.rings()
