"""What the parts that grow with a cluster cost here, and what they come to with 8, 64 and 512 GPUs.

    PYTHONPATH=. .venv/bin/python benchmarks/scale.py [--photos street] [--gpu-rate 4200] [--link-gb-s 12.5]

Needs the digits and a dataset of photographs, ingested: ./convoy data add street_voc5.tar --name street --family
detection. Some three minutes.

Measured on this machine: training with one and two workers of one CPU each (Ray Train, Gloo over loopback, the same
batch over all workers together: strong scaling), the reader of streaming with and without Ray, the sum of gradients
between two processes, a checkpoint's writing, DVC's hash, and ingest with its memory at two sizes. The model multiplies
these; what cannot be measured here is an argument: what a GPU trains and validates, and what a process beside it
decodes (benchmarks/gpu.py, on an H200 and its host); and the link between nodes, which is assumed.
"""

import argparse
import hashlib
import io
import multiprocessing
import os
import queue
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import distributed

from benchmarks.overhead import piped
from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from data.stream import RowReader
from pipelines.configuration import configuration
from pipelines.parameters import section
from tasks.cluster import connect, disconnect, open_reader
from tasks.paths import store

GPUS, PICTURES = (8, 64, 512), (10**6, 10**9)
BATCH, REDUCTIONS, MB = 256, 20, 1e6
COLUMNS = ("image",)
PARAMETERS = 25.6e6  # of ResNet-50
VALIDATED = 50_000  # pictures, by rank 0 alone
GPUS_PER_NODE = 8


def best(way: Callable[[], float], rounds: int = 2) -> float:
    return max(way() for _ in range(rounds))


def heard(answers: Any, child: Any) -> Any:
    """What a child process answers; raises RuntimeError where it ends without a word."""
    while True:
        try:
            return answers.get(timeout=1)
        except queue.Empty:
            if not child.is_alive() and answers.empty():
                raise RuntimeError(f"{child.name} ended with {child.exitcode}, and said nothing") from None


def training_rates(data: Dataset, steps: int) -> dict[int, float]:
    """Images a second of ResNet-8 on the digits, by the number of workers; one CPU each."""
    rates = {}
    for workers in (1, 2):
        own: dict[str, Any] = {
            "num_workers": workers, "cpus_per_worker": 1, "batch_size": BATCH, "validate_every_epochs": 0,
            "epochs": steps * BATCH / data.info.num_images("train"),
        }  # fmt: skip
        config = configuration("classification", "digits", "digits_resnet", {"train": own})
        rates[workers] = best(lambda config=config: piped("ray")(config, data))  # type: ignore[misc]
    return rates


def reader_rates(data: Dataset) -> tuple[float, float, float]:
    """Bytes a second of rows in random order, by the class alone and through Ray; and bytes of a picture."""
    draw = np.random.default_rng(0)
    jobs = [draw.integers(0, data.info.num_images("train"), BATCH) for _ in range(20)]
    own = RowReader(data, "train", COLUMNS, 2**31)
    own.take(jobs[0])

    def alone() -> float:
        began = time.perf_counter()
        read = sum(own.take(job).nbytes for job in jobs)
        return read / (time.perf_counter() - began)

    through = open_reader(data.info.family, data, "train", 2**31)

    def by_ray() -> float:
        began = time.perf_counter()
        read = sum(table.nbytes for table in ray.get([through.take.remote(job) for job in jobs]))
        return read / (time.perf_counter() - began)

    by_ray()  # opens the shards
    per_picture = own.take(jobs[0]).nbytes / BATCH
    return best(alone), best(by_ray), per_picture


def reduce_here(rank: int, folder: str, answers: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    torch.set_num_threads(1)
    gradients = torch.ones(int(PARAMETERS))
    distributed.all_reduce(gradients)
    began = time.perf_counter()
    for _ in range(REDUCTIONS):
        distributed.all_reduce(gradients)
    if rank == 0:
        answers.put((time.perf_counter() - began) / REDUCTIONS)
    distributed.destroy_process_group()


def reduction_s() -> float:
    """Seconds in which two processes sum the gradients of ResNet-50, float32, by Gloo over loopback."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=reduce_here, args=(rank, folder, answers)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        try:
            taken = heard(answers, ranks[0])
        finally:
            for rank in ranks:
                rank.join(10)
                rank.kill()
    return float(taken)


def checkpoint_rate() -> float:
    """Bytes a second of torch.save to the disk, flushed."""
    state = {"weights": torch.randn(int(PARAMETERS))}
    with tempfile.NamedTemporaryFile() as file:
        began = time.perf_counter()
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
        return PARAMETERS * 4 / (time.perf_counter() - began)


def hash_rate() -> float:
    """Bytes a second of MD5 on one core."""
    block = os.urandom(64 << 20)
    began = time.perf_counter()
    hashlib.md5(block, usedforsecurity=False)
    return len(block) / (time.perf_counter() - began)


def ingest_here(count: int, answers: Any) -> None:
    draw = np.random.default_rng(count)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "pictures", Path(folder) / "store"
        target.mkdir()
        for name in "ab":
            (source / name).mkdir(parents=True)
        for number in range(count):
            coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            packed = io.BytesIO()
            coarse.resize((32, 32)).save(packed, "JPEG")
            (source / "ab"[number % 2] / f"{number}.jpg").write_bytes(packed.getvalue())
        before = psutil.Process().memory_info().rss
        began = time.perf_counter()
        ingest(
            source,
            name="many",
            family="classification",
            store=target,
            config=section("ingest", IngestConfig, {}),
        )
        taken = time.perf_counter() - began
        answers.put((taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before))


def ingest_costs(counts: tuple[int, int]) -> tuple[float, float]:
    """Seconds and bytes of the parent process for one more picture, by what two sizes differ in."""
    context = multiprocessing.get_context("spawn")
    seen = []
    for count in counts:
        answers = context.Queue()
        child = context.Process(target=ingest_here, args=(count, answers))
        child.start()
        seen.append(heard(answers, child))
        child.join()
    more = counts[1] - counts[0]
    return (seen[1][0] - seen[0][0]) / more, (seen[1][1] - seen[0][1]) / more


def ring_s(gpus: int, link_bytes_s: float) -> float:
    """Seconds of a ring's sum of ResNet-50's gradients in float32, each node's link carrying 2 (n - 1) / n of them."""
    nodes = max(1, gpus // GPUS_PER_NODE)
    return 2 * (nodes - 1) / nodes * PARAMETERS * 4 / link_bytes_s


def training_table(picture: float, read_by_ray: float, options: argparse.Namespace) -> Table:
    """What training on many GPUs asks of the rest; `picture` in bytes, `read_by_ray` in bytes a second."""
    table = Table(
        "GPUs", "images/s", "reader GB/s", "readers", "processes that decode, a GPU", "gradients, s a step",
        "share of a step", "validation / epoch of 10^6", title="Training of ResNet-50's size on photographs",
    )  # fmt: skip
    step = options.gpu_batch / options.gpu_rate
    for gpus in GPUS:
        rate, ring = gpus * options.gpu_rate, ring_s(gpus, options.link_gb_s * 1e9)
        table.add_row(
            f"{gpus}", f"{rate:,.0f}", f"{rate * picture / 1e9:.2f}", f"{rate * picture / read_by_ray:.1f}",
            f"{options.gpu_rate / options.decoded_rate:.1f}", f"{ring:.4f}", f"{ring / step:.0%}",
            f"{VALIDATED / options.validated_rate / (1e6 / rate):.2f}",
        )  # fmt: skip
    return table


def ingest_table(picture: float, ingest_s: float, ingest_bytes: float, hashed: float) -> Table:
    """What ingest of many pictures takes, by what one more takes; `hashed` in bytes a second."""
    table = Table(
        "pictures", "TB", "ingest, h", "its memory, GB", "MD5, h", "shards", title="Ingest, one process"
    )
    for count in PICTURES:
        size = count * picture
        table.add_row(
            f"{count:,}", f"{size / 1e12:.2f}", f"{count * ingest_s / 3600:.1f}", f"{count * ingest_bytes / 1e9:.1f}",
            f"{size / hashed / 3600:.1f}", f"{size / (64 << 20):,.0f}",
        )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", default="street", help="an ingested dataset of photographs, for the reader"
    )
    parser.add_argument("--gpu-rate", type=float, default=4200, help="images/s that one GPU trains")
    parser.add_argument("--gpu-batch", type=int, default=256, help="pictures of one GPU's step")
    parser.add_argument("--validated-rate", type=float, default=13_900, help="images/s that it validates")
    parser.add_argument(
        "--decoded-rate", type=float, default=349, help="images/s that one process decodes and augments"
    )
    parser.add_argument(
        "--link-gb-s", type=float, default=12.5, help="10^9 bytes/s of each node's link; assumed"
    )
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    photos, digits = (Dataset.open(store() / name) for name in (options.photos, "digits"))
    connect()
    read, read_by_ray, picture = reader_rates(photos)
    rates = training_rates(digits, options.steps)
    disconnect()
    hashed = best(hash_rate)
    ingest_s, ingest_bytes = ingest_costs((5_000, 20_000))
    measured = {
        "training, 1 worker, images/s": f"{rates[1]:,.0f}",
        "training, 2 workers, images/s": f"{rates[2]:,.0f}",
        "efficiency of 2 workers": f"{rates[2] / rates[1] / 2:.2f}",
        "reader, MB/s": f"{read / MB:,.0f}",
        "reader through Ray, MB/s": f"{read_by_ray / MB:,.0f}",
        "a photograph, KB": f"{picture / 1e3:.1f}",
        "sum of 102 MB between 2 processes, Gloo, s": f"{reduction_s():.3f}",
        "checkpoint, MB/s": f"{best(checkpoint_rate) / MB:,.0f}",
        "MD5, MB/s": f"{hashed / MB:,.0f}",
        "ingest, ms for one more picture of 32 px": f"{ingest_s * 1e3:.3f}",
        "ingest, bytes for one more picture": f"{ingest_bytes:,.0f}",
    }
    constants = Table("measured here", "value", title="Constants")
    for row in measured.items():
        constants.add_row(*row)
    console = Console()
    console.print(constants)
    console.print(training_table(picture, read_by_ray, options))
    console.print(ingest_table(picture, ingest_s, ingest_bytes, hashed))


if __name__ == "__main__":
    main()
