"""How many requests a second does a served model answer, and how soon: `./convoy serve` beside `mlflow models serve`?

    PYTHONPATH=. .venv/bin/python benchmarks/serve.py [--seconds 5] [--network resnet8_cifar]

A small network with random weights, at 32 px, registered in a home of its own. The servers run one after the other:
ours with and without joining the requests that wait, and MLflow's with one worker. Clients are threads of this process
that keep their connection and send the same PNG again and again, as bytes to us and as base64 in JSON to MLflow; they
take their share of the same processors. Each server computes on one thread.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from models.classification import build
from tasks import registry
from tasks.card import CARD_VERSION, Member, ModelCard, Preprocessing
from tasks.modelfile import save_model
from tasks.paths import ROOT

NUM_CLIENTS = (1, 8, 32)
START_S = 300.0
NAME = "bench"


@dataclass(frozen=True)
class Server:
    """How to start a server, and what it is asked."""

    name: str
    command: list[str]
    path: str
    body: bytes
    kind: str  # content type
    health: str


def picture() -> bytes:
    """A PNG of 32 pixels a side."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def register(network: str, folder: Path) -> None:
    """Put a network of random weights into the registry as the champion."""
    want = Preprocessing(stored_px=32, crop_px=32, pad_px=0, channels=3, resize="crop")
    member = Member(architecture=network, arguments={}, weights="member-0.safetensors", run="")
    card = ModelCard(
        card_version=CARD_VERSION, family="classification", classes=tuple(map(str, range(10))), preprocessing=want,
        views="single", thresholds={}, members=(member,), dataset="", dataset_digest="",
    )  # fmt: skip
    torch.manual_seed(0)
    save_model(folder / "model", card, [build(network, 10, 3, {}, (0.5,) * 3, (0.25,) * 3).eval()])
    run_id = registry.start_run(key="bench", experiment="convoy/bench", name="bench", tags={}, parameters={})
    version = registry.register(run_id, folder / "model", name=NAME, example=[picture()], tags={})
    registry.promote_first(NAME, version)


def servers(ports: list[int]) -> list[Server]:
    """Ours, ours without joining requests, MLflow's."""
    image, model = picture(), f"models:/{NAME}@champion"
    ours = [sys.executable, "-m", "pipelines", "serve", model, "--set", "max_requests=64"]
    encoded = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(image).decode()]]}}
    theirs = [
        sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--model-uri", model,
        "--workers", "1", "--port", str(ports[2]),
    ]  # fmt: skip
    plain = ("/predict", image, "image/png", "/healthz")
    return [
        Server("convoy serve", [*ours, "--port", str(ports[0])], *plain),
        Server("without joining", [*ours, "--set", "batch_requests=1", "--port", str(ports[1])], *plain),
        Server(
            "mlflow models serve",
            theirs,
            "/invocations",
            json.dumps(encoded).encode(),
            "application/json",
            "/ping",
        ),
    ]


def free_ports(num: int) -> list[int]:
    """Ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(num)]
        return [listener.getsockname()[1] for listener in found]


@contextlib.contextmanager
def running(server: Server, port: int, log: Path) -> Iterator[float]:
    """Start a server, give the seconds until it answered, and stop it with all its processes."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["MLFLOW_TRACKING_URI"] = registry.tracking_uri()
    began = time.monotonic()
    with log.open("w") as sink:
        process = subprocess.Popen(
            server.command, cwd=ROOT, env=environment, stdout=sink, stderr=sink, start_new_session=True
        )
    try:
        while not answers(port, server.health):
            assert process.poll() is None and time.monotonic() - began < START_S, log.read_text()
            time.sleep(0.2)
        yield time.monotonic() - began
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def answers(port: int, path: str) -> bool:
    """Whether the server is there."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        client.request("GET", path)
        return client.getresponse().status == 200
    except OSError:
        return False
    finally:
        client.close()


def load(server: Server, port: int, num_clients: int, seconds: float) -> tuple[float, float, float]:
    """Requests a second, and the median and 99th percentile of the milliseconds of one."""
    times: list[float] = []
    over = time.perf_counter() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.perf_counter() < over:
            began = time.perf_counter()
            connection.request("POST", server.path, server.body, {"Content-Type": server.kind})
            reply = connection.getresponse()
            answer = reply.read()
            assert reply.status == 200, answer[:300]
            times.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    clients = [threading.Thread(target=client) for _ in range(num_clients)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    taken = time.perf_counter() - began
    return len(times) / taken, statistics.median(times), float(np.percentile(times, 99))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--network", default="resnet8_cifar")
    options = parser.parse_args()
    view = Table(title=f"{options.network}, one PNG of 32 px a request")
    for column in ("server", "up after, s", "clients", "requests/s", "median, ms", "99%, ms"):
        view.add_column(column, justify="left" if column == "server" else "right")
    with tempfile.TemporaryDirectory(prefix="convoy-bench-") as home:
        os.environ["CONVOY_HOME"] = home
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
        )
        register(options.network, Path(home))
        ports = free_ports(3)
        for server, port in zip(servers(ports), ports, strict=True):
            with running(server, port, Path(home) / "log.txt") as up_s:
                load(server, port, 2, 1.0)  # warms up
                for num in NUM_CLIENTS:
                    rate, median, worst = load(server, port, num, options.seconds)
                    row = (f"{up_s:.1f}", str(num), f"{rate:,.0f}", f"{median:.1f}", f"{worst:.1f}")
                    view.add_row(server.name, *row)
    Console().print(view)


if __name__ == "__main__":
    main()
