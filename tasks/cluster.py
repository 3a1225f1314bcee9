"""Ray: where work runs. An embedded Ray by default, the cluster of RAY_ADDRESS where that is set.

Decoding and augmentation run here as Ray tasks and actors; other pieces of work run by tasks.calls. Shards and rows
travel through the object store, so that a node needs no disk in common with the driver: only a `Reader` opens files, on
the driver's own node.
"""

import atexit
import itertools
import os
import signal
import socket
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from pyarrow import Table
from ray._private import ray_constants
from ray._private import worker as ray_worker

from data.address import is_loopback
from data.dataset import Dataset, DatasetInfo, Split, read_rows
from data.stream import RowReader
from tasks.batches import Job, batch_of, batch_of_rows, join_arrays
from tasks.families import FAMILIES
from tasks.memory import ALLOCATOR
from tasks.nodes import Head, Nodes, beside_driver, num_places, own_machine, require_places
from tasks.orphans import note_driver
from tasks.paths import ROOT
from tasks.settings import TrainConfig

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
    "RAY_worker_niceness": "0",  # Ray's 15 lets whatever else runs here interrupt training
}
# What an embedded Ray's own processes need not do beside training, since nobody looks at it: there is no dashboard, its
# logs are not shown, and nothing is to be scaled. Read by those processes when they start (Ray 2.60).
IDLE = {
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # from so many files on, the next counts; else it looks every 0.1 s
    "LOG_NAME_UPDATE_INTERVAL_S": "86400",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",  # statistics of the node and of each worker; every 5 s
    "AUTOSCALER_UPDATE_INTERVAL_S": "60",  # every 5 s
    "METRICS_RECORD_INTERVAL_S": "60",  # of the process that would be the dashboard; every 5 s
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "60",  # every 2 s
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "10000",  # each process sends what became of its tasks; every second
}
ANSWER_TIMEOUT_S = 5.0
# What no worker needs of the checkout: data, records, and what holds secrets, whatever .gitignore says.
KEPT_BACK = [
    "/data/store/", "/runs/", "/galleries/", "/recordings/", "/.venv/", "/.git/", "/out/", "/.cache/", "/.platform/",
    "/.prefect/", "/.dvc/", "/mlflow/", "/mlflow.db", "/.env*", "/.netrc", "/.aws/",
]  # fmt: skip

# What Ray tells of nodes and tasks that died goes to stderr: a command's stdout is its result alone.
_told = ray_worker.print_to_stdstream
ray_worker.print_to_stdstream = lambda data, ignore_prefix: _told({**data, "is_err": True}, ignore_prefix)

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
    if address is None or is_loopback(address.removeprefix("ray://").rpartition(":")[0].strip("[]")):
        keep_to_loopback()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    if address is None:
        for name, value in {"RAY_AUTH_MODE": "disabled", **IDLE}.items():
            os.environ.setdefault(name, value)
        # Inherited by Ray's prestarted workers. As a runtime_env, they would be thrown away and started anew.
        os.environ.update(ALLOCATOR, PYTHONPATH=path)
        # Before Ray's own, which would take away what a thread that is still in the next line stands on.
        atexit.register(disconnect)
        context = ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=object_store_bytes(),
        )
        note_driver(Path(context.address_info["session_dir"]))
    else:
        require_joinable(address)
        environment = {
            "working_dir": str(ROOT),
            "env_vars": {**SETTINGS, **ALLOCATOR},
            "excludes": KEPT_BACK,
        }
        ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
    if threading.current_thread() is threading.main_thread():
        # Ray replaces the handler of SIGTERM by one that exits without unwinding: no hook would run.
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def untold() -> Iterator[None]:
    """Inside, what Ray tells of nodes and tasks that died is dropped."""
    told, ray_worker.print_to_stdstream = ray_worker.print_to_stdstream, lambda data, ignore_prefix: None
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = told


def keep_to_loopback() -> None:
    """Have what Ray starts here listen at 127.0.0.1, and what it seeks there be sought there.

    Ray puts this machine's address in the network in place of 127.0.0.1, wherever that is given, unless there are to
    be no clusters: then, as by itself on a Mac, it stays on the loopback.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that it starts
    ray_constants.ENABLE_RAY_CLUSTER = False


def require_joinable(address: str) -> None:
    """Raise ConnectionError where nothing listens at RAY_ADDRESS, or this machine is no node; else ValueError."""
    require_answer(address)
    require_node(address)


def require_answer(address: str) -> None:
    """Raise ConnectionError unless something listens at host:port; Ray itself would try for minutes.

    Raises ValueError for an address of Ray Client's.
    """
    if address.startswith("ray://"):
        raise ValueError(
            f"RAY_ADDRESS (={address}) is one of Ray Client's, under which no file of this machine is read: give the "
            "head's HOST:PORT on a machine that is a node itself (ray start --address HOST:PORT --num-cpus 0)"
        )
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # "auto" finds the cluster of this machine
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster answers at RAY_ADDRESS (={address}): {error}; "
            "start one with `ray start --head`, or unset RAY_ADDRESS to run embedded"
        ) from None


def require_node(address: str) -> None:
    """Raise ConnectionError unless this machine is a node of Ray: a driver works through one, and Ray waits for it."""
    if not any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"])):
        raise ConnectionError(
            f"this machine is no node of the Ray cluster at RAY_ADDRESS (={address}); make it one, that takes no work "
            f"of others: ray start --address {address} --num-cpus 0 --num-gpus 0"
        )


def object_store_bytes() -> int:
    """A third of the memory, at most 8 GB and at most what shared memory has free."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    shared = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None  # noqa: PTH112
    free = shared.f_bavail * shared.f_frsize if shared else 8 << 30
    return max(128 << 20, min(pages * page // 3, 8 << 30, int(free * 0.9)))


def disconnect() -> None:
    """Leave the cluster; an embedded one ends with all its processes, or with this one where its head is gone.

    Where another thread is connecting, it is waited for.
    """
    with _connecting:
        if not ray.is_initialized():
            return
        if Head().fault() is None:
            ray.shutdown()
        else:  # it would wait for a head that is gone, and after a minute end the process without a word
            atexit.unregister(ray.shutdown)


def cluster_info() -> ClusterInfo:
    """What the connected cluster has; raises RuntimeError if there is none, ClusterLost if its head is gone."""
    if not ray.is_initialized():
        raise RuntimeError("not connected to Ray; call connect() first")
    Head().wait()  # Ray would ask one that is gone for a minute, and then end the process without a word
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


# --- batches made beside training ------------------------------------------------------------------------------


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Reader:
    """Hands out rows of a split, still encoded, on the node where the dataset lies. It may die: it reads again."""

    def __init__(self, dataset: Dataset, split: Split, columns: tuple[str, ...], cache_bytes: int) -> None:
        self.open = partial(RowReader, dataset, split, columns, cache_bytes)
        self.rows: RowReader | None = None

    def take(self, indices: np.ndarray) -> Table:
        if self.rows is None:  # not in __init__: what it raises there, Ray tells as the death of an actor
            self.rows = self.open()
        return self.rows.take(indices)


def open_reader(family: str, dataset: Dataset, split: Split, cache_bytes: int) -> Any:
    """A reader of a split, beside the driver, where the dataset lies."""
    start: Any = Reader  # mypy does not see what the decorator adds
    return start.options(scheduling_strategy=beside_driver()).remote(
        dataset, split, FAMILIES[family].columns, cache_bytes
    )


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Augmenter:
    """Makes batches ahead of the training process. Keeps nothing but the resident samples: it may die."""

    def __init__(
        self, family: str, info: DatasetInfo, config: Any, arrays: dict[str, np.ndarray] | None = None
    ) -> None:
        torch.set_num_threads(1)
        self.family, self.info, self.config = FAMILIES[family], info, config
        self.samples = self.family.records(readonly_tensors(arrays)) if arrays is not None else None

    def make(self, job: Job) -> "Packed":
        return pack(batch_of(self.family, self.samples, job, self.info, self.config))

    def make_of_rows(self, rows: Table, job: Job) -> "Packed":
        return pack(batch_of_rows(self.family, rows, job, self.info, self.config))


# a batch's class, its tensors as arrays, the rest, and which arrays have their channels last
Packed = tuple[type, dict[str, np.ndarray], dict[str, Any], set[str]]


def pack(batch: Any) -> Packed:
    """A batch (a dataclass) for the object store: it keeps arrays as they lie, but copies tensors three times.

    Pictures whose channels lie last are packed as (B, H, W, C): of other strides than plain ones there would be copies.
    """
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    last = {name for name, value in tensors.items() if value.dim() == 4 and not value.is_contiguous()}
    arrays = {
        name: (value.permute(0, 2, 3, 1) if name in last else value).numpy()
        for name, value in tensors.items()
    }
    rest = {name: value for name, value in values.items() if name not in tensors}
    return type(batch), arrays, rest, last


def unpack(packed: Packed) -> Any:
    """The batch again, over the object store's memory: not to be written to."""
    kind, arrays, rest, last = packed
    tensors = readonly_tensors(arrays)
    return kind(**tensors | {name: tensors[name].permute(0, 3, 1, 2) for name in last}, **rest)


class Crew:
    """The Ray processes that make a rank's batches, and end with this; without any, the rank makes them itself.

    `arrays` refers to the split where it is resident. At most `depth` batches are under way or wait to be read.
    """

    def __init__(
        self,
        family: str,
        info: DatasetInfo,
        config: Any,
        *,
        num_workers: int,
        depth: int,
        arrays: ray.ObjectRef | None = None,
    ) -> None:
        self.family, self.info, self.config, self.depth = family, info, config, depth
        start: Any = Augmenter
        self.workers = [start.remote(family, info, config, arrays) for _ in range(num_workers)]

    def batches(self, jobs: Iterator[Job], reader: Any = None) -> Iterator[Any]:
        """The batches of the jobs, in their order; of rows that `reader` hands out where the split is streamed."""
        pending: deque[tuple[Job, ray.ObjectRef]] = deque()
        for number, job in enumerate(jobs):
            pending.append((job, self._order(number, job, reader)))
            if len(pending) == self.depth:
                yield self._receive(*pending.popleft())
        while pending:
            yield self._receive(*pending.popleft())

    def _order(self, number: int, job: Job, reader: Any) -> ray.ObjectRef:
        rows = None if reader is None else reader.take.remote(job.indices)
        if not self.workers:
            return rows
        worker = self.workers[number % len(self.workers)]
        return worker.make.remote(job) if rows is None else worker.make_of_rows.remote(rows, job)

    def _receive(self, job: Job, reference: ray.ObjectRef) -> Any:
        answer = ray.get(reference)
        if self.workers:
            return unpack(answer)
        return batch_of_rows(FAMILIES[self.family], answer, job, self.info, self.config)


def cpus_of_each(settings: TrainConfig, nodes: Nodes | None = None) -> int:
    """CPUs of each worker; raises ValueError where not even the fewest fit that there may be.

    The nodes are those of the cluster where none are given.
    """
    sizes, cpus = settings.world_sizes, settings.cpus_per_worker
    if len(sizes) > 1 and not cpus:
        # that of the most workers: it stays when some are gone
        cpus = max(1, cpus_of_all(nodes) // sizes[-1])
    return require_resources(sizes[0], cpus, settings.gpus_per_worker, nodes)


def cpus_of_all(nodes: Nodes | None) -> int:
    """CPUs of the nodes together, of the cluster's where none are given."""
    return cluster_info().num_cpus if nodes is None else int(sum(node.get("CPU", 0) for node in nodes))


def require_resources(
    num_workers: int, cpus_per_worker: int, gpus_per_worker: float, nodes: Nodes | None = None
) -> int:
    """CPUs that each training worker gets; raises ValueError if the cluster, or `nodes`, cannot hold `num_workers`.

    A worker lives on one node: what counts is how many fit on each. Without a wish for CPUs, workers share them evenly.
    """
    even = max(1, cpus_of_all(nodes) // num_workers)
    for cpus in range(even, 0, -1) if not cpus_per_worker else ():
        if num_places(cpus, gpus_per_worker, nodes) >= num_workers:
            return cpus
    require_places(
        num_workers,
        cpus_per_worker or 1,
        gpus_per_worker,
        f"train.num_workers (={num_workers}) with train.cpus_per_worker (={cpus_per_worker}) and "
        f"train.gpus_per_worker (={gpus_per_worker:g})",
        "workers",
        nodes=nodes,
    )
    return cpus_per_worker


def require_room(settings: TrainConfig) -> None:
    """Raise, before this process connects, where it could not, or where workers would not fit on an embedded Ray.

    ConnectionError where nothing listens at RAY_ADDRESS, or this machine is no node; else ValueError. What the nodes of
    a cluster have, only the cluster knows: `cpus_of_each` asks it later.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        cpus_of_each(settings, [own_machine()])
    else:
        require_joinable(address)
