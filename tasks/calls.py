"""Many pieces of work at once on the cluster: features of frozen stages, and calls of any function."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import ray
import torch

from data.dataset import DatasetInfo
from tasks.cluster import cluster_info
from tasks.features import Hear, Part, compute_part
from tasks.nodes import WAIT_S, Head, gather, num_places, require_places
from tasks.transfer import Weights

CALLS_PER_CPU = 4  # that wait or run at a time


@ray.remote(num_cpus=0, max_retries=3, scheduling_strategy="SPREAD")
def _compute_part(
    part: Part, info: DatasetInfo, config: Any, weights: Weights, num_threads: int
) -> dict[str, np.ndarray]:
    torch.set_num_threads(num_threads)
    return compute_part(part, info, config, weights)


def compute_features(
    parts: list[Part], info: DatasetInfo, config: Any, weights: Weights, hear: Hear
) -> list[dict[str, np.ndarray]]:
    """Features of each part, on the cluster. One after the other on a GPU, as many at once as there are CPUs else.

    `hear` is told of each part that is done. Raises what a part raises, and ClusterLost.
    """
    threads = max(1, cluster_info().num_cpus // max(1, len(parts)))
    gpus = config.train.gpus_per_worker
    task: Any = _compute_part.options(num_gpus=gpus) if gpus else _compute_part
    shared = ray.put(weights)
    try:
        references = [task.remote(part, info, config, shared, threads) for part in parts]
        nums = {reference: end - first for reference, (_, first, end) in zip(references, parts, strict=True)}
        return gather(references, lambda reference: hear(nums[reference]))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def gpus_of_call() -> int:
    """GPUs to ask for with a call on one CPU that runs on a GPU where there is one: 1 where a node has both, else 0."""
    return 1 if cluster_info().num_gpus and num_places(1, 1) else 0


def share(value: Any) -> ray.ObjectRef:
    """Put a value where all calls of `call_each` read it without a copy: it takes the value's place among arguments."""
    return ray.put(value)


@ray.remote(max_retries=0)
def _call(function: Callable[..., Any], num_threads: int, *arguments: Any) -> Any:
    torch.set_num_threads(num_threads)
    return function(*arguments)


def call_each(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], num_threads: int, num_gpus: float,
    *, in_order: bool = False,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """Call a function with each of these arguments, on the cluster: (place in `calls`, result), as they end.

    As many run at once as have a CPU for each thread (0: one) and their GPUs; `calls` are taken only a few ahead of
    that. With `in_order` they are given in the order of `calls`: behind one that stalls no more than those few are
    taken, so that results do not pile up. What one raises ends them all, and is raised here; RuntimeError where a
    process was lost, ClusterLost where the head was. Nothing is called twice: whoever calls tries again. Raises
    ValueError where no node has that many CPUs or GPUs.
    """
    threads = max(1, num_threads)
    require_places(1, threads, num_gpus, f"calls on {threads} CPUs and {num_gpus:g} GPUs each", "calls")
    task: Any = _call
    task = task.options(num_cpus=threads, num_gpus=num_gpus)
    most = CALLS_PER_CPU * max(1, cluster_info().num_cpus)
    waiting = enumerate(calls)
    pending: dict[ray.ObjectRef, int] = {}
    head = Head()
    try:
        while True:
            for place, arguments in itertools.islice(waiting, most - len(pending)):
                pending[task.remote(function, threads, *arguments)] = place
            if not pending:
                return
            awaited = list(itertools.islice(pending, 1 if in_order else None))  # a dict has its oldest first
            ended, _ = ray.wait(awaited, num_returns=1, timeout=WAIT_S)
            if not ended:
                head.require()
            for done in ended:
                yield pending.pop(done), ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise RuntimeError(
            "a process of Ray was lost, perhaps for lack of memory: free some, or raise cpus_per_worker, so that fewer "
            f"run at once ({str(error).strip().splitlines()[0]})"
        ) from None
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
