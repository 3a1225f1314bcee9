"""The nodes of a cluster: what fits on them, which of them is the driver's, and whether the head still answers.

Processes that do little import this module: torch must not come with it.
"""

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import ray
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Nodes = Sequence[dict[str, float]]  # the resources of each

SHARES = 10_000  # Ray counts resources in ten-thousandths
WAIT_S = 1.0  # for what runs on the cluster, until the head is looked after
ASK_EVERY_S, ANSWER_S = 2.0, 2.0
UNASKED_S = 10.0  # between two questions: after that nothing is known of the time between them
LOST_AFTER_S = 40.0  # Ray itself ends the driver, without a word, after a minute without its head
EMBEDDED_LOST_AFTER_S = 10.0  # nobody starts that one again
AGAIN = (
    "what was done is kept: type the same command again, with --resume KEY where it told a key, and it goes on from "
    "its last checkpoint"
)


class ClusterLost(ConnectionError):
    """The Ray that this process is connected to is gone; another attempt needs another process."""


def is_embedded() -> bool:
    """Whether Ray is this process's own, on this machine alone."""
    return "RAY_ADDRESS" not in os.environ


def beside_driver() -> NodeAffinitySchedulingStrategy:
    """Where an actor must be whose loss would be the run's: on the driver's node, lost with the driver alone."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def resources() -> list[dict[str, float]]:
    """What each living node has, busy or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def own_machine() -> dict[str, float]:
    """What the only node of an embedded Ray has, told as Ray itself finds it out when it starts."""
    logging.getLogger("ray").setLevel(logging.ERROR)  # as it starts here: it has a word for containers
    spec = ResourceAndLabelSpec(memory=0, object_store_memory=0)
    found = spec.resolve(is_head=True, node_ip_address="127.0.0.1")
    return {"CPU": float(found.num_cpus), "GPU": float(found.num_gpus)}


def shares(amount: float) -> int:
    return round(amount * SHARES)


def places_on(node: dict[str, float], cpus: float, gpus: float) -> int:
    """How many processes of so many CPUs and GPUs a node holds. One that takes part of a GPU has it on one GPU."""
    fitting = [shares(node.get("CPU", 0)) // shares(cpus)] if cpus else []
    if gpus >= 1:
        fitting.append(shares(node.get("GPU", 0)) // shares(gpus))
    elif gpus:
        fitting.append(int(node.get("GPU", 0)) * (SHARES // shares(gpus)))
    return min(fitting)


def num_places(cpus: float, gpus: float, nodes: Nodes | None = None) -> int:
    """How many processes of so many CPUs and GPUs the cluster, or `nodes`, hold: each on one node, whatever the sum."""
    return sum(places_on(node, cpus, gpus) for node in (resources() if nodes is None else nodes))


def inventory(nodes: Nodes) -> str:
    """`8 CPUs and 1 GPUs, 2 × 4 CPUs and 0 GPUs`: the nodes, the largest first, those that are alike together."""
    sizes = sorted(((node.get("CPU", 0), node.get("GPU", 0)) for node in nodes), reverse=True)
    texts = Counter(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in sizes)
    return ", ".join(text if number == 1 else f"{number} × {text}" for text, number in texts.items())


def without_gpu(parameter: str) -> str:
    """`the cluster (embedded) has no GPU: …`, and what to do about `parameter`, which asks for some."""
    address = os.environ.get("RAY_ADDRESS", "embedded")
    return f"the cluster ({address}) has no GPU: set {parameter}=0, or connect to one that has (RAY_ADDRESS)"


def require_places(
    number: int, cpus: float, gpus: float, asked: str, kind: str, gpus_by: str = "train.gpus_per_worker",
    nodes: Nodes | None = None,
) -> int:  # fmt: skip
    """How many such processes the nodes hold; ValueError if fewer than `number`: Ray would wait for ever.

    `asked` names the parameters, `kind` what the processes are, `gpus_by` the parameter that asks for GPUs. The nodes
    are those of the cluster where none are given.
    """
    nodes = resources() if nodes is None else nodes
    found = num_places(cpus, gpus, nodes)
    if found < number:
        if gpus and not any(node.get("GPU", 0) for node in nodes):
            raise ValueError(f"{asked} do not fit: {without_gpu(gpus_by)}")
        address = os.environ.get("RAY_ADDRESS", "embedded")
        raise ValueError(
            f"{asked} do not fit: {found} such {kind} do; nodes of the cluster ({address}): {inventory(nodes)}"
        )
    return found


def use_own_interface() -> None:
    """Have Gloo and NCCL listen on the interface that has this node's address in the cluster; what is set stays.

    Gloo would take the one that the host's name leads to, which may be one that no other node reaches.
    """
    own = ray.get_runtime_context().get_node_id()
    [address] = [node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == own]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                os.environ.setdefault(variable, name)


class Head:
    """Looks after the head of the cluster while this process waits for what only the head can tell it."""

    def __init__(self) -> None:
        self.address = ray.get_runtime_context().gcs_address
        self.asked_s = time.monotonic()
        self.silent_since_s: float | None = None  # the first question of those that were not answered

    def fault(self) -> OSError | None:
        """Why the head does not answer, None where it does."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
        except OSError as error:
            return error
        return None

    def require(self) -> None:
        """Raise ClusterLost once the head has not answered for LOST_AFTER_S, an embedded one for EMBEDDED_LOST_AFTER_S.

        Cheap enough to be called all the time, and may be called seldom: while nobody asks, no silence is counted.
        """
        began_s, before_s = time.monotonic(), self.asked_s
        if began_s - before_s < ASK_EVERY_S:
            return
        fault = self.fault()
        self.asked_s = time.monotonic()
        if fault is None:
            self.silent_since_s = None
            return
        if self.silent_since_s is None or began_s - before_s > UNASKED_S:
            self.silent_since_s = began_s
        silent_s = self.asked_s - self.silent_since_s
        told = f"({self.address}) has not answered for {silent_s:.0f} s: {fault}"
        if is_embedded() and silent_s > EMBEDDED_LOST_AFTER_S:
            raise ClusterLost(f"the head of the embedded Ray {told}; {AGAIN}")
        if silent_s > LOST_AFTER_S:
            raise ClusterLost(f"the head of the Ray cluster {told}; start the cluster again; {AGAIN}")

    def wait(self) -> None:
        """Return once the head answers, which it mostly does at once; raises ClusterLost as `require` does."""
        while self.fault() is not None:
            self.require()
            time.sleep(WAIT_S)


def gather(
    references: Sequence[ray.ObjectRef], on_done: Callable[[ray.ObjectRef], None] = lambda _reference: None
) -> list[Any]:
    """The values of references, as `ray.get` has them; raises ClusterLost where the head is lost while it waits.

    `on_done` hears of each that is there, or has failed.
    """
    head, waiting = Head(), list(references)
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=WAIT_S)
        for reference in done:
            on_done(reference)
        if waiting:
            head.require()
    return list(ray.get(list(references)))
