"""What one GPU trains, validates and writes, and how many processes must feed it: constants of docs/scale.md.

    PYTHONPATH=. .venv/bin/python benchmarks/gpu.py [--model resnet50] [--batch 256] [--workers 2 4 8]

Photographs of 500 x 375 are drawn, of the size that real ones have, and trained on at 224 px from random weights, in
the precision that the device is best at. Of each: images a second of the steps alone. Resident, by a bare loop and by
the loop of tasks.loop; with a checkpoint every five steps, which tells what one of them holds up; validation, which the
other ranks wait for; and, where Ray is installed, streamed from shards by so many processes that decode and augment.
Two minutes on a GPU. Without one it says what a CPU does: give it a small --model, --batch and --photos.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.environment import SETTINGS
from tasks.memory import ALLOCATOR

if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # glibc reads them at the start
    os.execve(sys.executable, [sys.executable, *sys.argv], {**SETTINGS, **os.environ, **ALLOCATOR})

import numpy as np
import torch
from PIL import Image

from benchmarks.overhead import bare, piped, wait
from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from pipelines.configuration import configuration
from pipelines.parameters import section
from tasks.batches import plain_jobs
from tasks.families import FAMILIES
from tasks.feed import resident
from tasks.precision import autocast, resolve_precision
from tasks.train import decode_here

FAMILY = "classification"
SIZE, QUALITY = (500, 375), 85  # some 40 KB
STORED_PX, CROP_PX = 256, 224
CHECKPOINT_STEPS = 5


def draw_photos(folder: Path, number: int) -> float:
    """Pictures of two classes, alike in nothing; bytes of one, as JPEG."""
    draw = np.random.default_rng(0)
    for name in "ab":
        (folder / name).mkdir(parents=True)
    size = 0
    for i in range(number):
        pixels = np.zeros((SIZE[1], SIZE[0], 3))
        for side, strength in ((4, 90), (24, 50), (180, 22)):
            coarse = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
            pixels += (np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC)) / 255.0 - 0.5) * strength * 2
        packed = io.BytesIO()
        Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(packed, "JPEG", quality=QUALITY)
        (folder / "ab"[i % 2] / f"{i}.jpg").write_bytes(packed.getvalue())
        size += packed.tell()
    return size / number


def photos(folder: Path, number: int) -> Dataset:
    size = draw_photos(folder / "source", number)
    (folder / "store").mkdir()
    config = section(
        "ingest", IngestConfig, {"val_fraction": 0.25, "test_fraction": 0.0, "near_duplicate_distance": 0}
    )
    ingest(folder / "source", name="photos", family=FAMILY, store=folder / "store", config=config)
    print(f"{number} photographs of {SIZE[0]} x {SIZE[1]}, {size / 1e3:.0f} KB each", flush=True)
    return Dataset.open(folder / "store" / "photos")


def config_of(options: argparse.Namespace, dataset: Dataset, **train: Any) -> Any:
    own = {
        "batch_size": options.batch, "epochs": options.steps * options.batch / dataset.info.num_images("train"),
        "validate_every_epochs": 0, "time_budget_s": 0.0, "gpus_per_worker": float(torch.cuda.is_available()),
        "data_mode": "resident", "growth": [], "checkpoint_every_steps": 10**6, "data_gb": 8.0, **train,
    }  # fmt: skip
    changes = {
        "model": {"name": options.model}, "train": own,
        "input": {"stored_px": STORED_PX, "crop_px": CROP_PX, "pad_px": 0},
        "augment": {"crop_from": "picture", "crop_area": [0.08, 1.0], "crop_aspect": 4 / 3, "mirror": True},
    }  # fmt: skip
    if own["data_mode"] == "resident":
        changes["augment"]["crop_from"] = "square"
    return configuration(FAMILY, "photos", "default", changes)


def validation_rate(config: Any, dataset: Dataset) -> float:
    """Images a second of a validation as rank 0 does it, from decoded pictures on the device."""
    family, device = FAMILIES[FAMILY], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samples = decode_here(family, dataset, "val", config).to(device)
    model = family.model(config, dataset.info, lambda: [samples.take(np.arange(32))]).to(device).eval()
    feed = resident(family, samples, dataset.info, config)
    dtype = resolve_precision(config.train.precision, device)
    num = dataset.info.num_images("val")
    rates = []
    for _ in range(4):
        wait(device)
        began = time.perf_counter()
        jobs = plain_jobs(np.arange(num), min(config.evaluate.batch_size, config.train.batch_size))
        with torch.inference_mode(), autocast(device, dtype):
            family.validate(model, (batch.to(device) for batch in feed(jobs)), config)
        wait(device)
        rates.append(num / (time.perf_counter() - began))
    return max(rates)


def say(what: str, value: str) -> None:
    print(f"{what:58} {value}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=44)
    parser.add_argument("--photos", type=int, default=4096)
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[2, 4, 8], help="augmentation processes, for streaming"
    )
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        f"{name}, {os.cpu_count()} cores, torch {torch.__version__}; {options.model}, {options.batch} a step"
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset = photos(Path(folder), options.photos)
        config = config_of(options, dataset)
        in_process = piped("in_process")
        plain = [bare(config, dataset) for _ in range(2)]
        say("resident, bare loop, images/s", " ".join(f"{rate:,.0f}" for rate in plain))
        ours = [in_process(config, dataset) for _ in range(2)]
        say("resident, tasks.loop, images/s", " ".join(f"{rate:,.0f}" for rate in ours))
        if torch.cuda.is_available():
            say("memory of the GPU, at most, GB", f"{torch.cuda.max_memory_allocated() / 1e9:.1f}")
        often = in_process(config_of(options, dataset, checkpoint_every_steps=CHECKPOINT_STEPS), dataset)
        held_s = (1 / often - 1 / max(ours)) * options.batch * CHECKPOINT_STEPS
        say("a checkpoint holds training up for, s", f"{held_s:.2f}")
        say("validation, images/s", f"{validation_rate(config, dataset):,.0f}")
        if not find_spec("ray"):
            say("streaming", "not measured: Ray is not installed")
            return
        by_ray = piped("ray")
        say("resident, under Ray Train, images/s", f"{by_ray(config, dataset):,.0f}")
        for workers in options.workers:
            streamed = config_of(options, dataset, data_mode="streaming", augment_workers=workers)
            say(f"streaming, {workers} processes decode, images/s", f"{by_ray(streamed, dataset):,.0f}")


if __name__ == "__main__":
    main()
