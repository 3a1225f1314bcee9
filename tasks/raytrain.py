"""A training run on Ray Train: its trainer, a rank's session, and the thread that follows a run on the driver.

What is private to Ray Train is named here, in tasks.raycontroller and in tasks.raysnapshot alone.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from fsspec import AbstractFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from data.dataset import Dataset, Split
from data.files import scratch
from data.stream import Layout
from tasks.calls import compute_features
from tasks.cluster import (
    Crew,
    cluster_info,
    connect,
    cpus_of_each,
    decode_split,
    open_reader,
    readonly_tensors,
)
from tasks.distil import Teacher, taught
from tasks.driverfiles import shared_files
from tasks.families import FAMILIES
from tasks.features import cached_features, caches, started
from tasks.feed import PREFETCH_BATCHES, Feeds, cache_bytes, choose_mode, fit_from, resident, stream_depth
from tasks.loop import Progress, Session
from tasks.mailbox import Bell, open_mailbox, read_mailbox
from tasks.nodes import AGAIN, ClusterLost, beside_driver, gather, is_embedded, use_own_interface
from tasks.raycontroller import PatientTrainController
from tasks.raysnapshot import mend_snapshot
from tasks.result import Listener
from tasks.settings import TrainConfig
from tasks.train import CHECKPOINTS, NUM_KEPT_CHECKPOINTS
from tasks.transfer import Weights

MAX_WORKER_FAILURES = 3
POLL_S = 0.25  # the follower's look at the mailbox, until training is under way
UNDER_WAY_POLL_S = 0.5  # and then: progress is not told more often
MEET_S = 120  # in which workers on several nodes must have reached each other
LAST_WORDS_S = 10.0  # that the follower is given for them; the mailbox may be gone with the cluster
# between two looks for room for more workers: each growth costs the steps since a checkpoint
GROW_EVERY_S = 60.0


def process_group(settings: TrainConfig) -> BackendConfig:
    """How the workers find each other; a lone one needs nobody, and is spared seconds of its start.

    Those that have part of a GPU may be given the same one, and NCCL refuses two processes on one.
    """
    if settings.num_workers == 1:
        return BackendConfig()
    backend = "nccl" if settings.gpus_per_worker >= 1 else "gloo"
    return TorchConfig(backend=backend) if is_embedded() else Group(backend=backend, timeout_s=MEET_S)


def wait_long() -> None:
    """Have this worker, once it has met the others, wait for them half an hour: rank 0 validates while they wait."""
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=TorchConfig.timeout_s))


class OwnInterface(_TorchBackend):
    """Ray Train's process group, whose members listen where the other nodes reach them."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_own_interface)
        super().on_start(worker_group, backend_config)
        worker_group.execute(wait_long)


class Group(TorchConfig):
    """The process group of a cluster of several nodes."""

    @property
    def backend_cls(self) -> type[OwnInterface]:
        return OwnInterface


class Trainer(DataParallelTrainer):
    """Ray Train's trainer, two processes lighter: each would take a core for more than a second before the first step.

    The one hands out Ray Data's datasets, of which there are none here. The other frees a placement group whose
    controller was killed, which matters only where the cluster outlives the driver.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unneeded = (DatasetsCallback, PlacementGroupCleanerCallback) if is_embedded() else (DatasetsCallback,)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, unneeded)]

    def _initialize_and_run_controller(self, **arguments: Any) -> ray.train.Result:
        """As Ray Train's own, with our controller; it looks after the head while it waits, and leaves signals alone.

        Ray Train would wait for ever for a cluster that is gone; at a signal it would abort, and end the process with
        the code 0.
        """
        settings = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"} | get_env_vars_to_propagate()
        start: Any = ray.remote(
            num_cpus=0, scheduling_strategy=beside_driver(), runtime_env={"env_vars": settings}
        )(PatientTrainController)
        controller = start.remote(**arguments)
        gather([controller.run.remote()])
        [result] = gather([controller.get_result.remote()])
        return result


def storage(files: AbstractFileSystem, folder: Path) -> dict[str, Any]:
    """Where Ray Train keeps checkpoints: in the run's folder, which lies on the driver's disk."""
    foreign = None if is_embedded() else PyFileSystem(FSSpecHandler(files))
    return {"storage_path": str(folder.resolve()), "storage_filesystem": foreign}


def scaling(settings: TrainConfig, cpus: int) -> ray.train.ScalingConfig:
    """How many workers there are, and what each gets."""
    gpus = settings.gpus_per_worker
    sizes = settings.world_sizes
    return ray.train.ScalingConfig(
        num_workers=(sizes[0], sizes[-1]) if len(sizes) > 1 else sizes[0],
        use_gpu=bool(gpus),
        resources_per_worker={"CPU": float(cpus)} | ({"GPU": gpus} if gpus else {}),
        elastic_resize_monitor_interval_s=GROW_EVERY_S,
    )


class Follower(threading.Thread):
    """Reads the mailbox of a run while `fit` blocks the main thread, and keeps the first error it meets.

    It tells the workers to stop once the listener says so.
    """

    def __init__(self, mailbox: Any, listener: Listener) -> None:
        super().__init__(name="follow-training", daemon=True)
        self.mailbox, self.listener = mailbox, listener
        self.done, self.under_way = threading.Event(), False
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        told = False
        while not self.done.wait(UNDER_WAY_POLL_S if self.under_way else POLL_S):
            self.read()
            if not told and self.listener.stopping():
                self.mailbox.stop.remote()
                told = True
        self.read()

    def read(self) -> None:
        try:
            for kind, value in read_mailbox(self.mailbox):
                if kind == "start":
                    self.under_way = True
                    self.listener.start(value)
                elif kind == "progress":
                    self.listener.hear(Progress(**value))
                else:
                    self.error = self.error or value
        except Exception as error:  # a thread's exception would be lost: it is raised after the training
            self.error = self.error or error

    def stop(self) -> None:
        self.done.set()
        self.join(LAST_WORDS_S)


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
        with scratch("checkpoint") as folder:
            torch.save(state["random"], folder / f"random-{self.rank}.pt")
            if self.rank == 0:
                torch.save(state, folder / "state.pt")
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def start(self, step: int) -> None:
        """Tell the driver of the first step."""
        if self.rank == 0:
            self.mailbox.put.remote(("start", step))

    def report(self, progress: Progress) -> None:
        # As plain values: the mailbox would import this module, and torch with it, while training runs.
        self.mailbox.put.remote(("progress", asdict(progress)))

    def stopping(self) -> bool:
        return self.bell.rings()


def fit_on_ray(
    family_name: str, config: Any, dataset: Dataset, layout: Layout, folder: Path, listener: Listener,
    weights: Weights | None, teacher: Teacher | None,
) -> dict[str, Any]:  # fmt: skip
    connect()
    settings = config.train
    cpus = cpus_of_each(settings)
    mend_snapshot(folder / CHECKPOINTS["ray"], settings.world_sizes[0])
    mailbox = open_mailbox()
    payload = {
        "family": family_name,
        "config": config,
        "info": dataset.info,
        "layout": layout,
        "weights": [ray.put(weights)],  # in a list, so that it is the worker who fetches them
        "teacher": [ray.put(teacher)],
        **source_of(family_name, config, dataset, layout, weights, listener.features),
        "mailbox": mailbox,
        "threads": cpus,
    }
    trainer = Trainer(
        # Not as `train_loop_config`: the controller would unpickle it, and import torch for that before all else.
        partial(train_on_worker, payload),
        backend_config=process_group(settings),
        scaling_config=scaling(settings, cpus),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS["ray"],
            **storage(shared_files(), folder),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=NUM_KEPT_CHECKPOINTS),
            failure_config=ray.train.FailureConfig(
                max_failures=MAX_WORKER_FAILURES, controller_failure_limit=2
            ),
        ),
    )
    follower = Follower(mailbox, listener)
    helpers = [mailbox, *payload.get("readers", {}).values()]
    try:
        result = fitted(trainer, follower, settings)
    except ClusterLost:
        helpers.clear()  # nobody is there to end them
        raise
    finally:
        follower.stop()
        for actor in helpers:
            ray.kill(actor)
    if follower.error is not None:
        raise follower.error
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as path:
        return torch.load(Path(path) / "state.pt", map_location="cpu", weights_only=True)


def fitted(trainer: Trainer, follower: Follower, settings: TrainConfig) -> ray.train.Result:
    """What a training ends with; raises the error that the follower met, else what `why_failed` finds or raises."""
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        follower.stop()
        raise follower.error or why_failed(error, settings) from error


def why_failed(error: Exception, settings: TrainConfig) -> Exception:
    """What became of a training that Ray Train has given up: often nodes are gone that it ran on.

    Raises ClusterLost where it is the head. Workers that did not meet are that, too: until this process ends Ray Train
    holds their places.
    """
    try:
        cpus_of_each(settings)
    except ValueError as lacking:
        return RuntimeError(f"the cluster has lost nodes that the training ran on: {lacking}")
    failure = getattr(error, "controller_failure", error)
    if isinstance(failure, torch.distributed.DistError):
        return ClusterLost(
            f"the workers' nodes did not reach each other, which they must on all ports ({last_line(failure)}); {AGAIN}"
        )
    return RuntimeError(f"training failed: {last_line(error)}")


def source_key(config: Any) -> str:
    """What the decoded splits, or the features of frozen stages, depend on among the parameters."""
    values = config.model_dump(mode="json")
    kept = [values["train"][name] for name in ("data_mode", "data_gb")]
    parts = {"input": values["input"], "crop_from": values["augment"].get("crop_from"), "kept": kept}
    if caches(config):  # features are of a network, and of what it computes in
        frozen = {name: values["transfer"][name] for name in ("weights", "mode", "num_stages")}
        parts |= {"model": values["model"], "frozen": frozen, "precision": values["train"]["precision"]}
    return json.dumps(parts, sort_keys=True)


def source_of(
    family_name: str, config: Any, dataset: Dataset, layout: Layout, weights: Weights | None,
    on_features: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:  # fmt: skip
    """What workers get their pictures from: references to decoded splits, or actors that hand out rows.

    In place of pictures, references to their features where a run trains on those.
    """
    if weights and caches(config):
        num_parts = cluster_info().num_cpus
        found = cached_features(dataset, config, weights, compute_features, num_parts, on_features)
        return {"resident": {split: [ray.put(arrays)] for split, arrays in found.items()}}
    family = FAMILIES[family_name]
    splits: tuple[Split, ...] = ("train", "val")
    if choose_mode(family, dataset, config) == "resident":
        references = {split: decode_split(family_name, dataset, split, config) for split in splits}
        # in lists: Ray would fetch bare references before the worker starts
        return {"resident": {split: [reference] for split, reference in references.items()}}
    depth = stream_depth(family, dataset, config, layout)
    readers = {
        split: open_reader(family_name, dataset, split, cache_bytes(config, split)) for split in splits
    }
    return {"readers": readers, "depth": depth}


def last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]


def train_on_worker(payload: dict[str, Any]) -> None:
    """What each Ray Train worker runs.

    An exception of ours (a parameter that does not fit, a loss that is not finite) would only come again: the first
    worker to meet one leaves it in the mailbox, and after Ray's restart all workers return at once. A lone worker does
    so with every exception; among several, a RuntimeError may tell of another one's death, which a restart mends.
    """
    mailbox = payload["mailbox"]
    if ray.get(mailbox.failed.remote()):
        return
    lone = ray.train.get_context().get_world_size() == 1
    try:
        session = RaySession(mailbox)
        run_rank(payload, session, session.start)
    except Exception as error:
        if lone or isinstance(error, (ValueError, FloatingPointError)):
            # of a helper's error the error itself, without the helper's traceback in its text
            own = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            ray.get(mailbox.put.remote(("error", own)))
        raise


def run_rank(payload: dict[str, Any], session: Session, on_start: Callable[[int], None]) -> None:
    torch.set_num_threads(payload["threads"])
    config, info, layout = payload["config"], payload["info"], payload["layout"]
    feeds = streamed_feeds(payload) if "readers" in payload else resident_feeds(payload, session.device)
    [weights] = ray.get(payload["weights"])
    [teacher] = ray.get(payload["teacher"])
    family = taught(started(payload["family"], weights, caches(config)), teacher, config, session.device)
    fit_from(feeds, family, config, info, layout, session, on_start)


def resident_feeds(payload: dict[str, Any], device: torch.device) -> Feeds:
    """Batches of splits that lie decoded in the object store, or on this rank's GPU."""
    name, config, info = payload["family"], payload["config"], payload["info"]
    cached = caches(config)  # features are not augmented
    [weights] = ray.get(payload["weights"])
    family, num_workers = started(name, weights, cached), 0 if cached else config.train.augment_workers
    references = {split: reference for split, [reference] in payload["resident"].items()}
    samples = {split: family.records(readonly_tensors(ray.get(references[split]))) for split in references}
    val = resident(family, samples["val"].to(device), info, config)
    if num_workers:
        depth = PREFETCH_BATCHES * num_workers
        crew = Crew(name, info, config, num_workers=num_workers, depth=depth, arrays=references["train"])
        return Feeds(crew.batches, val, len(samples["val"]))
    train = resident(family, samples["train"].to(device), info, config)
    return Feeds(train, val, len(samples["val"]))


def streamed_feeds(payload: dict[str, Any]) -> Feeds:
    """Batches of rows that the readers hand out, made by helpers ahead of training."""
    config, depth, readers = payload["config"], payload["depth"], payload["readers"]
    num_workers = min(config.train.augment_workers, depth)
    crew = Crew(payload["family"], payload["info"], config, num_workers=num_workers, depth=depth)
    return Feeds(
        lambda jobs: crew.batches(jobs, readers["train"]),
        lambda jobs: crew.batches(jobs, readers["val"]),
        payload["info"].num_images("val"),
    )
