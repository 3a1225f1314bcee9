"""Does streaming a set of ten times the budget stay inside the budget?

    PYTHONPATH=. .venv/bin/python benchmarks/memory.py [--budget-gb 0.1] [--times 10]

Photos of 500 x 375 are drawn, and stored as a dataset whose files are `times` the budget (`train.data_gb`). One epoch
is streamed through Ray, a reader and two processes that decode, to a loop that takes its time, so that everything
that may lie in memory does. What is measured, ten times a second, is the proportional set size of all processes of the
run, Ray's object store included, beyond that of the same processes fed a set of one batch as many times. Pages of files
do not count: they are programs, and how much of them is this run's depends on who else runs them. Exits with 1 if the
budget was exceeded.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__" and "MALLOC_ARENA_MAX" not in os.environ:  # what glibc reads once, at the start
    from tasks.memory import ALLOCATOR

    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})

import numpy as np
import psutil
import simplejpeg
import torch
from rich.console import Console
from rich.table import Table

from data.dataset import SCHEMA_VERSION, Dataset, DatasetInfo, schema_of, write_info
from data.storage import stored_order, write_shards
from data.stream import layout_of
from pipelines.configuration import configuration
from tasks import cluster
from tasks.batches import BatchPlan, training_jobs
from tasks.families import FAMILIES
from tasks.feed import cache_bytes, stream_depth

BATCH, WORKERS, NUM_DRAWN, EVERY_S = 32, 2, 64, 0.1
COUNTED = ("Pss_Anon:", "Pss_Shmem:")


def draw_photos() -> list[bytes]:
    """JPEGs of some 60 KB: smooth shapes under noise."""
    generator = np.random.default_rng(0)
    blobs = []
    for _ in range(NUM_DRAWN):
        coarse = torch.from_numpy(generator.uniform(0, 255, (1, 3, 12, 16)))
        smooth = (
            torch.nn.functional.interpolate(coarse, (375, 500), mode="bicubic")[0].permute(1, 2, 0).numpy()
        )
        pixels = np.clip(smooth + generator.normal(0, 9, smooth.shape), 0, 255).astype(np.uint8)
        blobs.append(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90))
    return blobs


def write_photos(folder: Path, blobs: list[bytes], num_bytes: float) -> Dataset:
    """As many rows as `num_bytes` hold, without the checks of ingest."""
    folder.mkdir()
    num = max(BATCH, int(num_bytes / np.mean([len(blob) for blob in blobs])))
    order = stored_order([f"{i}.jpg" for i in range(num)])
    rows: list[dict[str, Any]] = [
        {
            "id": f"{i}.jpg", "format": "JPEG", "width": 500, "height": 375, "phash": 0, "group": str(i),
            "sha256": hashlib.sha256(blobs[i % NUM_DRAWN]).hexdigest(), "label": i % 2,
        }
        for i in order
    ]  # fmt: skip
    sizes = [len(blobs[i % NUM_DRAWN]) for i in order]
    schema = schema_of("classification")
    shards = write_shards(folder, "train", schema, rows, sizes, lambda row: blobs[order[row] % NUM_DRAWN])
    info = DatasetInfo(
        schema_version=SCHEMA_VERSION, name=folder.name, family="classification", classes=("a", "b"), channels=3,
        counts={"train": {"a": num - num // 2, "b": num // 2}}, width_px=(500, 500, 500), height_px=(375, 375, 375),
        channel_mean=(0.5,) * 3, channel_std=(0.25,) * 3, source="drawn", source_sha256="", licence="", set_aside=0,
        shards=tuple(shards),
    )  # fmt: skip
    write_info(folder, info)
    return Dataset.open(folder)


class Watch(threading.Thread):
    """The greatest proportional set size of this process and all below it, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.greatest, self.done = 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.done.wait(EVERY_S):
            self.greatest = max(self.greatest, tree_bytes())

    def stop(self) -> int:
        self.done.set()
        self.join()
        return self.greatest


def tree_bytes() -> int:
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:  # ended meanwhile
            continue
        total += sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(COUNTED))
    return total


def names_below() -> list[str]:
    """Names of the processes below this one."""
    names = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            names.append(process.name())
    return names


def stream(dataset: Dataset, budget_gb: float, epochs: float) -> tuple[int, int, int]:
    """Stream so many epochs: greatest bytes meanwhile, pictures seen, batches that may be under way."""
    changes = {
        "train": {
            "batch_size": BATCH, "epochs": epochs, "data_mode": "streaming", "augment_workers": WORKERS,
            "data_gb": budget_gb, "growth": [],
        },
        "input": {"stored_px": 256, "crop_px": 224, "pad_px": 0},
        "augment": {"crop_from": "picture", "crop_area": [0.35, 1.0]},
    }  # fmt: skip
    config: Any = configuration(
        "classification", dataset=dataset.info.name, recipe="default", changes=changes
    )
    family = "classification"
    layout = layout_of(dataset, "train")
    depth = stream_depth(FAMILIES[family], dataset, config, layout)
    reader = cluster.open_reader(family, dataset, "train", cache_bytes(config, "train"))
    crew = cluster.Crew(family, dataset.info, config, num_workers=min(WORKERS, depth), depth=depth)
    plan = BatchPlan.of(config.train, layout, 0, 1)
    watch, num = Watch(), 0
    for batch in crew.batches(training_jobs(plan, 0), reader):
        num += len(batch.labels)
        if num % (16 * BATCH) == 0:
            time.sleep(0.2)
    greatest = watch.stop()
    # else they would be there, and counted, for a while of the next stream
    for actor in (reader, *crew.workers):
        cluster.ray.kill(actor)
    while any("Reader" in name or "Augm" in name for name in names_below()):
        time.sleep(EVERY_S)
    return greatest, num, depth


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget-gb", type=float, default=0.1)
    parser.add_argument("--times", type=float, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        blobs = draw_photos()
        small = write_photos(Path(folder) / "small", blobs, 0)
        large = write_photos(Path(folder) / "large", blobs, options.budget_gb * 1e9 * options.times)
        cluster.connect()
        num_batches = large.info.num_images("train") // BATCH
        base, _num, _depth = stream(small, options.budget_gb, num_batches)
        greatest, num, depth = stream(large, options.budget_gb, 1)
        cluster.disconnect()
    layout_gb = options.budget_gb * options.times
    table = Table(
        "", "GB", title=f"{num:,} pictures of {layout_gb:g} GB streamed, {depth} batches of {BATCH} under way"
    )
    table.add_row("budget, train.data_gb", f"{options.budget_gb:.3f}")
    table.add_row("all processes and the object store, one batch of data", f"{base / 1e9:.3f}")
    table.add_row("the same, ten times the budget of data", f"{greatest / 1e9:.3f}")
    table.add_row("grown by", f"{(greatest - base) / 1e9:.3f}")
    Console().print(table)
    sys.exit(greatest - base > options.budget_gb * 1e9)


if __name__ == "__main__":
    main()
