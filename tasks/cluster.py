"""Ray: where work runs. An embedded Ray by default, the cluster of RAY_ADDRESS where that is set.

Decoding and augmentation run here as Ray tasks and actors. Shards travel through the object store, never by path,
so that a node needs no disk in common with the driver.
"""

import itertools
import os
import signal
import socket
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from data.dataset import Dataset, DatasetInfo, Split, read_rows
from tasks.families import FAMILIES
from tasks.loop import BatchPlan
from tasks.paths import ROOT

# glibc gives memory back and asks for it again at every step otherwise; worth 15-30% of a training step. And Ray Train
# calls us in a thread of its own, whose arena cannot hold a block of more than 64 MB: one arena for all, 13% more.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
# Ray's own settings: quiet, private, and quick to start; the default health check delays each report by 1-2 s.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
ANSWER_TIMEOUT_S = 5.0
PREFETCH_BATCHES = 3  # per augmentation worker

_connecting = threading.Lock()


@dataclass(frozen=True)
class ClusterInfo:
    """What there is to run on."""

    address: str  # "embedded" or RAY_ADDRESS
    num_nodes: int
    num_cpus: int
    num_gpus: int


def connect() -> ClusterInfo:
    """Start or join Ray once per process; later calls answer at once. May be called from any thread.

    Raises ConnectionError if the cluster of RAY_ADDRESS does not answer.
    """
    with _connecting:
        if not ray.is_initialized():
            _start()
    return cluster_info()


def _start() -> None:
    address = os.environ.get("RAY_ADDRESS")
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # Inherited by Ray's prestarted workers. As a runtime_env, they would be thrown away and started anew.
        os.environ.update(ALLOCATOR, PYTHONPATH=path)
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=object_store_bytes(),
        )
    else:
        require_answer(address)
        environment = {
            "working_dir": str(ROOT),
            "env_vars": {**SETTINGS, **ALLOCATOR},
            "excludes": ["/data/store/", "/runs/", "/.venv/", "/.git/", "/out/", "/.cache/"],
        }
        ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
    if threading.current_thread() is threading.main_thread():
        # Ray replaces the handler of SIGTERM by one that exits without unwinding: no hook would run.
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def require_answer(address: str) -> None:
    """Raise ConnectionError unless something listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto" finds the cluster of this machine
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster answers at RAY_ADDRESS (={address}): {error}; "
            "start one with `ray start --head`, or unset RAY_ADDRESS to run embedded"
        ) from None


def object_store_bytes() -> int:
    """A third of the memory, at most 8 GB and at most what shared memory has free."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    shared = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None  # noqa: PTH112
    free = shared.f_bavail * shared.f_frsize if shared else 8 << 30
    return max(128 << 20, min(pages * page // 3, 8 << 30, int(free * 0.9)))


def disconnect() -> None:
    """Leave the cluster; an embedded one ends with all its processes."""
    with _connecting:
        if ray.is_initialized():
            ray.shutdown()


def cluster_info() -> ClusterInfo:
    """What the connected cluster has; raises RuntimeError if there is none."""
    if not ray.is_initialized():
        raise RuntimeError("not connected to Ray; call connect() first")
    total = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    address = os.environ.get("RAY_ADDRESS", "embedded")
    return ClusterInfo(address, nodes, int(total.get("CPU", 0)), int(total.get("GPU", 0)))


def job_id() -> str:
    """The id of this driver's Ray job, or "" without Ray."""
    return ray.get_runtime_context().get_job_id() if ray.is_initialized() else ""


# --- decoding: shards → one resident copy per node -------------------------------------------------------------


# Both ask for no CPU: training workers may hold all of them while they wait for these. What bounds them is their
# number: one task for each CPU of the cluster.
@ray.remote(num_cpus=0, max_retries=3, scheduling_strategy="SPREAD")
def _decode(family: str, shards: list[bytes], info: DatasetInfo, config: Any) -> dict[str, np.ndarray]:
    entry = FAMILIES[family]
    pieces = [entry.decode(read_rows(shard, entry.columns), info, config) for shard in shards]
    return join_arrays(pieces, entry.empty(info, config))


@ray.remote(num_cpus=0, max_retries=3)
def _join(empty: dict[str, np.ndarray], *pieces: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return join_arrays(list(pieces), empty)


def join_arrays(pieces: list[dict[str, np.ndarray]], empty: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Concatenate the pieces of a split; `empty` has the right shapes for a split without a shard."""
    return {name: np.concatenate([piece[name] for piece in pieces] or [empty[name]]) for name in empty}


def decode_split(family: str, dataset: Dataset, split: Split, config: Any) -> ray.ObjectRef:
    """Decode a split on the cluster: a reference to its arrays, concatenated in the order of indices.

    Returns at once; the arrays lie in the object store, where every process of a node reads them without a copy.
    """
    shards = [shard.read_bytes() for shard in dataset.shards(split)]
    num_tasks = min(len(shards), max(1, cluster_info().num_cpus))
    bounds = [len(shards) * i // num_tasks for i in range(num_tasks + 1)] if num_tasks else []
    pieces = [
        _decode.remote(family, shards[start:stop], dataset.info, config)
        for start, stop in itertools.pairwise(bounds)
    ]
    return _join.remote(FAMILIES[family].empty(dataset.info, config), *pieces)


def readonly_tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Tensors over the object store's memory. They must not be written to: other processes read the same bytes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


# --- augmentation beside training ------------------------------------------------------------------------------


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Augmenter:
    """Makes batches of one split ahead of the training process that reads them. Keeps nothing: it may die."""

    def __init__(self, family: str, arrays: dict[str, np.ndarray], info: DatasetInfo, config: Any) -> None:
        torch.set_num_threads(1)
        self.family, self.info, self.config = FAMILIES[family], info, config
        self.records = self.family.records(readonly_tensors(arrays))
        self.epoch, self.order = -1, np.empty(0, np.int64)

    def make(self, plan: BatchPlan, step: int) -> Any:
        epoch = step // plan.steps_per_epoch
        if epoch != self.epoch:
            self.epoch, self.order = epoch, plan.order(epoch)
        indices = plan.indices(step, self.order)
        return self.family.batch(
            self.records, indices, self.info, self.config, plan.generator(epoch), plan.shrink_px(step)
        )


def augmented_batches(
    family: str,
    arrays: ray.ObjectRef,
    info: DatasetInfo,
    config: Any,
    plan: BatchPlan,
    first_step: int,
    num_workers: int,
) -> Iterator[Any]:
    """Batches from `num_workers` Ray processes, in order; at most PREFETCH_BATCHES a worker wait to be read."""
    start: Any = Augmenter  # mypy does not see what the decorator adds
    workers = [start.remote(family, arrays, info, config) for _ in range(num_workers)]
    pending: deque[ray.ObjectRef] = deque()
    ahead = first_step
    try:
        for _ in range(first_step, plan.num_steps):
            while ahead < plan.num_steps and len(pending) < PREFETCH_BATCHES * num_workers:
                pending.append(workers[ahead % num_workers].make.remote(plan, ahead))
                ahead += 1
            yield ray.get(pending.popleft())
    finally:
        for worker in workers:
            ray.kill(worker)


# --- progress: from the first rank to the driver ---------------------------------------------------------------


@ray.remote(num_cpus=0)
class Mailbox:
    """Holds what a training run reports until the driver reads it. It outlives the workers that write to it."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Any]] = []
        self.has_failed = False

    def put(self, message: tuple[str, Any]) -> None:
        self.messages.append(message)
        self.has_failed |= message[0] == "error"

    def take(self) -> list[tuple[str, Any]]:
        messages, self.messages = self.messages, []
        return messages

    def failed(self) -> bool:
        return self.has_failed


def open_mailbox() -> Any:
    start: Any = Mailbox
    return start.remote()


def read_mailbox(mailbox: Any) -> list[tuple[str, Any]]:
    """Messages since the last call: ("start", step), ("progress", values) or ("error", exception)."""
    return ray.get(mailbox.take.remote())


def require_resources(num_workers: int, cpus_per_worker: int, gpus_per_worker: float) -> int:
    """CPUs that each training worker gets; raises ValueError if the cluster cannot hold `num_workers`.

    A worker lives on one node: what counts is how many fit on each. Without a wish for CPUs, workers share them evenly.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def fitting(cpus: int) -> int:
        places = [node.get("CPU", 0) // cpus for node in nodes]
        if gpus_per_worker:
            places = [
                min(n, node.get("GPU", 0) // gpus_per_worker) for n, node in zip(places, nodes, strict=True)
            ]
        return int(sum(places))

    info = cluster_info()
    even = max(1, info.num_cpus // num_workers)
    wished = [cpus_per_worker] if cpus_per_worker else range(even, 0, -1)
    for cpus in wished:
        if fitting(cpus) >= num_workers:
            return cpus
    each = f"train.cpus_per_worker (={cpus_per_worker}) and train.gpus_per_worker (={gpus_per_worker:g})"
    have = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    raise ValueError(
        f"train.num_workers (={num_workers}) with {each} do not fit: {fitting(max(1, cpus_per_worker))} such workers "
        f"do; nodes of the cluster ({info.address}): {have}"
    )
