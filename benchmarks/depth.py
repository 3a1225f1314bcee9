"""Is a deeper network harder to train, and do shortcuts mend it? The training error of plain networks and ResNets.

    PYTHONPATH=. .venv/bin/python benchmarks/depth.py [--source cifar10_mini.tar] [--epochs 12] [--png depth.png]

(with OMP_NUM_THREADS=1 beside other work: maps this small leave threads waiting for each other).

After figure 6 of He et al. 2015 (https://arxiv.org/abs/1512.03385): the CIFAR form at 20 and 56 layers, with shortcuts
and without, by the same rates on the same pictures. Nothing is augmented and no weight decays, so that the error says
one thing: how well the optimizer gets down. The error of an epoch is that of its training batches as they came. The
archive is not part of the checkout (CONVOY_DATASETS names its folder).
"""

import argparse
import math
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table

from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from pipelines.configuration import configuration
from pipelines.parameters import section
from tasks.classification import without_chance
from tasks.figures import BLUE, VERMILLION, save_figure, title
from tasks.loop import Progress
from tasks.train import train
from tests.datasets import DATASETS

NETS = {  # name → colour, dashes
    "plain20_cifar": (VERMILLION, "--"),
    "plain56_cifar": (VERMILLION, "-"),
    "resnet20_cifar": (BLUE, "--"),
    "resnet56_cifar": (BLUE, "-"),
}
BATCH_SIZE, LR = 32, 0.05


def config_of(net: str, px: int, epochs: int, seed: int) -> Any:
    """The recipe `default` as the question needs it."""
    base = configuration("classification", "pictures", "default", {})
    augment = without_chance(base.augment).model_dump(mode="json")  # type: ignore[attr-defined]
    changes = {
        "model": {"name": net},
        "input": {"stored_px": px, "crop_px": px, "pad_px": 0},
        "augment": augment,
        "optim": {"lr": LR, "bias_lr": LR, "head_lr": LR, "weight_decay": 0.0, "label_smoothing": 0.0},
        "train": {
            "epochs": epochs, "batch_size": BATCH_SIZE, "seed": seed, "validate_every_epochs": 0,
            "cpus_per_worker": torch.get_num_threads(),
        },
    }  # fmt: skip
    return configuration("classification", "pictures", "default", changes)


def errors_of(dataset: Dataset, config: Any, folder: Path) -> dict[int, float]:
    """The training error by epoch, from 1 on; of epochs that are over within half a second only some are told."""
    wrong: dict[int, float] = defaultdict(float)
    steps: dict[int, int] = defaultdict(int)
    before = 0

    def hear(progress: Progress) -> None:
        nonlocal before
        if progress.step > before:  # the message of a validation has no steps of its own
            epoch = math.ceil(progress.epoch)
            wrong[epoch] += (1 - progress.metrics["accuracy"]) * (progress.step - before)
            steps[epoch] += progress.step - before
            before = progress.step

    train(
        "classification", config, dataset, folder=folder, key=folder.name, digest="", executor="in_process",
        on_progress=hear,
    )  # fmt: skip
    return {epoch: wrong[epoch] / steps[epoch] for epoch in sorted(steps)}


def draw(curves: dict[str, dict[int, float]], what: str, file: Path) -> None:
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for name, errors in curves.items():
        colour, dashes = NETS[name]
        label = name.removesuffix("_cifar").replace("plain", "plain-").replace("resnet", "ResNet-")
        axes.plot(list(errors), list(errors.values()), dashes, color=colour, linewidth=1.8, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="epoch", ylabel="training error", ylim=(0, None))
    axes.grid(color="#E9E9E9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    title(figure, "Depth without and with shortcuts", what)
    save_figure(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, default=DATASETS / "cifar10_mini.tar")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--px", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--png", type=Path, default=Path("depth.png"))
    arguments = parser.parse_args()
    if not arguments.source.is_file():
        Console().print(f"skipped: no archive {arguments.source}")
        return
    curves: dict[str, dict[int, float]] = {}
    table = Table("network", "training error, first epoch", "half-way", "last", "seconds")
    with tempfile.TemporaryDirectory(prefix="convoy-depth-") as home:
        ingest(
            str(arguments.source), name="pictures", family="classification", store=Path(home) / "store",
            config=section("ingest", IngestConfig, {}),
        )  # fmt: skip
        dataset = Dataset.open(Path(home) / "store" / "pictures")
        for net in arguments.nets:
            began = time.perf_counter()
            config = config_of(net, arguments.px, arguments.epochs, arguments.seed)
            errors = curves[net] = errors_of(dataset, config, Path(home) / net)
            course = list(errors.values())
            shown = [f"{course[place]:.1%}" for place in (0, len(course) // 2, -1)]
            table.add_row(net, *shown, f"{time.perf_counter() - began:.0f}")
            print(net, *shown, flush=True)
        num = dataset.info.num_images("train")
    what = (
        f"{arguments.source.name}: {num:,} training pictures at {arguments.px} px; sgd, rate {LR}, "
        f"batch {BATCH_SIZE}, seed {arguments.seed}"
    )
    draw(curves, what, arguments.png)
    Console().print(table)


if __name__ == "__main__":
    main()
