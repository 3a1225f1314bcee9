"""A recipe's accuracy over seeds, all trained at once in processes of their own, and that of their average.

    PYTHONPATH=. .venv/bin/python benchmarks/seeds.py --dataset cifar10 --recipe cifar10_finetune [--seeds 0 1 2]
        [--set train.time_budget_s=300 ...] [--out FOLDER]

Side by side, since one process leaves a GPU idle between the starts of its kernels; each has an even share of the
processors. By `--executor in_process`'s path: no engine is needed. What is found goes to FOLDER/seeds.json, too.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.environment import SETTINGS
from tasks.memory import ALLOCATOR

if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # glibc reads them at the start
    os.execve(sys.executable, [sys.executable, *sys.argv], {**SETTINGS, **os.environ, **ALLOCATOR})

import torch

from data.dataset import Dataset
from pipelines.configuration import configuration
from pipelines.parameters import parse_changes
from tasks.evaluate import evaluate
from tasks.loop import Progress
from tasks.paths import store
from tasks.result import read_result
from tasks.train import train
from tasks.weights import of_transfer

TELL_EVERY_S = 20.0


def resolve_model(source: str) -> Path:
    raise ValueError(f"{source}: weights of a registered model need a registry; give a file or a package")


def train_one(config: Any, dataset: Dataset, folder: Path) -> None:
    """Train and evaluate in `folder`, and say now and then how far it is."""
    told_s = -math.inf

    def hear(progress: Progress) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > TELL_EVERY_S:
            told_s = time.monotonic()
            print(
                f"seed {config.train.seed}: {progress.time_s:.0f} s, epoch {progress.epoch:.2f}, "
                f"{progress.images_per_s:.0f} images/s, {progress.metrics}",
                flush=True,
            )

    result = train(
        "classification", config, dataset, folder=folder, key=folder.name, digest="", executor="in_process",
        on_progress=hear, weights=of_transfer(config, dataset.info, resolve_model),
    )  # fmt: skip
    found = accuracies_of([folder], dataset, config)
    print(
        f"seed {config.train.seed}: {result.num_steps} steps, {result.train_time_s:.0f} s of training, {found}",
        flush=True,
    )
    (folder / "accuracies.json").write_text(json.dumps(found))


def accuracies_of(folders: list[Path], dataset: Dataset, config: Any) -> dict[str, float]:
    """By view, of the average of the models in `folders`."""
    models = [read_result(folder).model_folder for folder in folders]
    report = evaluate(models, dataset, config=config.evaluate)
    return {view: report.metrics[f"{view}.accuracy"] for view in report.view_names}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("out/seeds"))
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)  # the seed that this process trains
    given = parser.parse_args()
    dataset = Dataset.open(store() / given.dataset)
    changes = parse_changes(given.changes)
    base: dict[str, Any] = {
        "gpus_per_worker": float(torch.cuda.is_available()),
        "cpus_per_worker": max(1, len(os.sched_getaffinity(0)) // len(given.seeds)),
        "validate_every_epochs": 0,
        **changes.pop("train", {}),
    }

    def config_of(seed: int) -> Any:
        return configuration(
            "classification", given.dataset, given.recipe, {**changes, "train": {**base, "seed": seed}}
        )

    folders = {seed: given.out / f"seed{seed}" for seed in given.seeds}
    if given.only is not None:
        train_one(config_of(given.only), dataset, folders[given.only])
        return
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    running = [
        subprocess.Popen([sys.executable, *sys.argv, "--only", str(seed)])
        for seed in given.seeds
        if config_of(seed)  # faults are told before anything starts
    ]
    failed = [process.wait() for process in running]
    if any(failed):
        sys.exit("a training failed: see above")
    print(f"{len(running)} at once: {time.perf_counter() - began:.0f} s, decoding and evaluation included")
    alone = {seed: json.loads((folder / "accuracies.json").read_text()) for seed, folder in folders.items()}
    for view in alone[given.seeds[0]]:
        values = [accuracies[view] for accuracies in alone.values()]
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        print(
            f"{view}: {values}, mean {statistics.mean(values):.4f}, standard deviation {spread:.4f}",
            flush=True,
        )
    together = accuracies_of(list(folders.values()), dataset, config_of(given.seeds[0]))
    print(f"their average: {together}")
    (given.out / "seeds.json").write_text(json.dumps({"alone": alone, "together": together}, indent=1))


if __name__ == "__main__":
    main()
