"""A model behind Ray Serve: replicas that follow its alias, each joining the requests that wait for it.

Serve's proxy takes the requests and shares them among the replicas. A replica is a process with the model in its memory
(tasks.following), the interface (tasks.service) and one thread that predicts. Loading, recording and the interface have
threads of their own, so that none of them holds up an answer for long.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.applications import Starlette

from data.hosts import ALLOWED
from tasks.cluster import connect
from tasks.following import Answered, Follower, answer_together, open_served
from tasks.mailbox import open_mailbox, read_mailbox
from tasks.nodes import require_places
from tasks.paths import home
from tasks.recordings import RecordConfig, RecordingThread
from tasks.recordstore import tracking_uri
from tasks.serveconfig import ServeConfig
from tasks.service import Service

NAME = "convoy"
DRIVER = "convoy-serving"  # a named process that ends with the driver, unlike what Serve starts
CONTROLLER = "SERVE_CONTROLLER_ACTOR"
# of the driver's environment, to replicas
HANDED_ON = (
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", ALLOWED,
)  # fmt: skip
SPARE_REQUESTS = 32  # that a replica takes beyond its limit, to tell them so itself
SPARE_S = 5.0  # that Serve waits beyond our own time limit
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


@serve.deployment
@serve.ingress()
class Replica:
    """A process that answers."""

    def __init__(
        self, uri: str, config: ServeConfig, record: RecordConfig | None, mailbox: Any, places: dict[str, str]
    ) -> None:
        os.environ.update(places)  # where models are; a cluster's processes do not inherit it
        torch.set_num_threads(config.threads)
        # Ray hides no GPU from a process that has asked for none
        device = torch.device("cuda" if config.gpus else "cpu")
        self.follower = Follower(
            uri,
            lambda text: mailbox.put.remote(("note", text)),
            open_model=partial(open_served, device=device),
        )
        self.predictions = ThreadPoolExecutor(1, "predict")
        self.recording = RecordingThread(record) if record is not None else None
        self.service = Service(self.follower, config, self.predict, self.recording)
        self.predict_together.set_max_batch_size(config.batch_requests)
        self.predict_together.set_batch_wait_timeout_s(config.batch_wait_ms / 1000)
        self.over = threading.Event()
        threading.Thread(
            target=self.follower.follow, args=(config.poll_s, self.over), name="follow", daemon=True
        ).start()

    def __serve_build_asgi_app__(self) -> Starlette:
        return self.service.application()

    async def predict(self, blobs: list[bytes]) -> Answered:
        """Rows for the items of one request."""
        return await self.predict_together(blobs)

    @serve.batch
    async def predict_together(self, requests: list[list[bytes]]) -> list[Answered]:
        """Rows for the items of the requests that waited, by the model that answers now."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.predictions, answer_together, self.follower.current, requests)

    def __del__(self) -> None:
        """Serve calls it when the replica has answered what it had taken."""
        self.over.set()
        if self.recording is not None:
            self.recording.close()


@dataclass(frozen=True)
class Server:
    """A model that is served."""

    address: str  # http://HOST:PORT
    mailbox: Any

    def notes(self) -> list[str]:
        """What the replicas have said since the last call."""
        return [text for _kind, text in read_mailbox(self.mailbox)]


@contextmanager
def serving(
    uri: str, config: ServeConfig, record: RecordConfig | None, host: str, port: int
) -> Iterator[Server]:
    """Serve a model from when it answers to the end of the block; what was taken by then is answered.

    Raises ValueError for a port that is taken, before anything is started.
    """
    require_free(host, port)
    connect()
    asked = f"serve.replicas (={config.replicas}) with serve.threads (={config.threads})"
    asked += f" and serve.gpus (={config.gpus:g})" if config.gpus else ""
    require_places(config.replicas, config.threads, config.gpus, asked, "replicas", "serve.gpus")
    if CONTROLLER in named():
        left = " (its driver has ended: ./convoy maintain --apply ends it)" if left_behind() else ""
        raise ValueError(
            f"Ray Serve runs on this cluster already{left}: stop it, or unset RAY_ADDRESS to serve embedded"
        )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    mailbox = open_mailbox(DRIVER)
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=host, port=port, request_timeout_s=config.timeout_s + SPARE_S),
        logging_config=QUIET,
    )
    try:
        serve.run(deployment_of(config).bind(uri, config, record, mailbox, places()), name=NAME)
        yield Server(f"http://{host}:{port}", mailbox)
    finally:
        serve.delete(NAME)
        if "RAY_ADDRESS" in os.environ:  # an embedded Ray takes the rest of Serve with it
            serve.shutdown()
        ray.kill(mailbox)


def named() -> set[str]:
    """Names of the processes of the cluster that have one."""
    return {str(actor["name"]) for actor in ray.util.list_named_actors(all_namespaces=True)}


def left_behind() -> bool:
    """Whether a model is served on the connected cluster whose driver has ended: nobody would ever stop that."""
    there = named()
    return CONTROLLER in there and DRIVER not in there and NAME in serve.status().applications


def end_left_behind() -> None:
    """End Serve, if it was left behind; it was ours, for we start none beside another."""
    if left_behind():
        serve.shutdown()


def deployment_of(config: ServeConfig) -> Any:
    """The replicas, still without a model."""
    deployment: Any = Replica  # mypy does not see what the decorator makes of it
    return deployment.options(
        num_replicas=config.replicas,
        max_ongoing_requests=config.max_requests + SPARE_REQUESTS,
        graceful_shutdown_timeout_s=config.timeout_s + SPARE_S,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": config.threads, "num_gpus": config.gpus},
        logging_config=QUIET,
    )


def places() -> dict[str, str]:
    """Where the models are, and what MLflow's server asks for, which its address does not hold."""
    here = {"CONVOY_HOME": str(home()), "MLFLOW_TRACKING_URI": tracking_uri()}
    return here | {name: os.environ[name] for name in HANDED_ON if name in os.environ}


def require_free(host: str, port: int) -> None:
    """Raise ValueError where nothing can listen at host:port."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ValueError(
            f"cannot listen at {host}:{port}: {error.strerror or error}; give another --port, or --host"
        ) from None
