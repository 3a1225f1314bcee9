"""What the pipeline costs over a bare loop: the same net, batches, precision and steps, in one run.

    PYTHONPATH=. .venv/bin/python benchmarks/overhead.py [--recipe cifar10] [--model airnet94] [--steps 40]

Three ways, in turn, twice: (a) a bare loop (no checkpoint, no progress, no validation, no Ray), (b) the loop of
tasks.loop in this process, (c) the same under Ray Train, where Ray is installed; on a GPU where there is one. Images a
second of the steps themselves, from random weights; start-up is no part of it. Needs an ingested dataset.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.environment import SETTINGS
from tasks.memory import ALLOCATOR

if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # glibc reads them at the start
    os.execve(sys.executable, [sys.executable, *sys.argv], {**SETTINGS, **os.environ, **ALLOCATOR})

import numpy as np
import torch

from data.dataset import Dataset
from data.stream import layout_of
from pipelines.configuration import configuration
from tasks.batches import BatchPlan
from tasks.families import FAMILIES
from tasks.optim import build_optimizers, schedule_factor, set_rates
from tasks.paths import store
from tasks.precision import autocast, resolve_precision
from tasks.train import decode_here, train

WARM_UP_STEPS = 4


def bare(config: Any, dataset: Dataset) -> float:
    """A loop as one would write it in a notebook: images a second after a warm-up."""
    family, device = FAMILIES["classification"], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    records = decode_here(family, dataset, "train", config).to(device)
    torch.manual_seed(config.train.seed)
    model = family.model(config, dataset.info, lambda: [records.take(np.arange(5000))]).to(device).train()
    optimizers = build_optimizers(model, config.optim)
    plan = BatchPlan.of(config.train, layout_of(dataset, "train"), 0, 1)
    order, generator = plan.order(0), plan.generator(0)
    dtype = resolve_precision(config.train.precision, device)
    began = 0.0
    for step in range(plan.num_steps):
        if step == WARM_UP_STEPS:
            wait(device)
            began = time.perf_counter()
        indices = plan.indices(step, order)
        batch = family.batch(
            records, indices, dataset.info, config, generator, plan.shrink_px(step / plan.num_steps)
        )
        set_rates(optimizers, schedule_factor(config.optim, step, plan.num_steps))
        with autocast(device, dtype):
            loss, _values = family.loss(model, batch, config)
        loss.backward()
        if config.optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    wait(device)
    return (plan.num_steps - WARM_UP_STEPS) * plan.batch_size / (time.perf_counter() - began)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def piped(executor: Any) -> Callable[[Any, Dataset], float]:
    """The whole of tasks.train: images a second after a warm-up, by the loop's own clock."""

    def run(config: Any, dataset: Dataset) -> float:
        folder = Path(tempfile.mkdtemp())
        seen: list[tuple[int, float]] = []
        train(
            "classification", config, dataset, folder=folder, key="benchmark", digest="", executor=executor,
            on_progress=lambda progress: seen.append((progress.step, progress.time_s)),
        )  # fmt: skip
        shutil.rmtree(folder)
        *steps, _last = seen  # the last step is told with its validation, which is no part of the pace
        first = min(step for step, _time_s in steps if step >= WARM_UP_STEPS)
        last = max(step for step, _time_s in steps)
        batch_size = min(config.train.batch_size, dataset.info.num_images("train"))
        return (last - first) * batch_size / (dict(steps)[last] - dict(steps)[first])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--model", default="", help="in place of the recipe's")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    dataset = Dataset.open(store() / arguments.dataset)
    own = {"model": {"name": arguments.model}} if arguments.model else {}
    config = configuration(
        "classification",
        arguments.dataset,
        arguments.recipe,
        {**own, "transfer": {"weights": "", "mode": "all", "num_stages": 0}},
    )
    changes = {
        "epochs": arguments.steps / (dataset.info.num_images("train") // config.train.batch_size),
        "validate_every_epochs": 0,
        "time_budget_s": 0.0,
        "gpus_per_worker": float(torch.cuda.is_available()),
    }
    config = config.model_copy(update={"train": config.train.model_copy(update=changes)})
    ways = {"bare loop": bare, "in process": piped("in_process")}
    if find_spec("ray"):
        ways["under Ray Train"] = piped("ray")
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            rates[name].append(way(config, dataset))
    best = max(rates["bare loop"])
    print(
        f"{config.model.name}, batch {config.train.batch_size}, {torch.get_num_threads()} threads, images/s"
    )
    for name, values in rates.items():
        shown = " ".join(f"{value:8.0f}" for value in values)
        print(f"{name:16} {shown}   best / bare loop's best {max(values) / best:.3f}")


if __name__ == "__main__":
    main()
