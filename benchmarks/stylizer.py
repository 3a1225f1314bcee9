"""Stylizers: seconds of one pass, and of a step of training.

    PYTHONPATH=. .venv/bin/python benchmarks/stylizer.py [--px 512] [--widths 16 24 32] [--rounds 5]

The pass is Johnson's network with five blocks and one style, in float32 and in the precision that prediction takes here
by itself; the bar is 0.5 s at 512 px on two cores. A step is forward, backward and the optimizer's, of a batch as the
recipes `lite0` and `adain` have it, in crops of 128 and 256 px; the judge is EfficientNet-Lite0 with filters of chance,
which cost what trained ones do. Weights are those of a fresh network; the median counts.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import milliseconds
from data.records import Batch
from models.transformnet import TransformNet
from pipelines.parameters import merge, recipes
from tasks.optim import build_optimizers
from tasks.precision import autocast, mend_gradients, predicting, resolve_precision
from tasks.style import StylizerConfig, build_model, loss
from tasks.styleconfig import RANDOM
from tasks.stylesources import read_sources

BLOCKS, CROPS_PX = 5, (128, 256)
CPU = torch.device("cpu")


def passes(width: int, px: int, rounds: int) -> list[str]:
    """A row: the width, its parameters, seconds in float32 and in the precision that fits this processor."""
    torch.manual_seed(0)
    net = TransformNet(1, width, BLOCKS).eval()
    picture, shares = torch.rand(1, 3, px, px), torch.ones(1, 1)

    def way(dtype: torch.dtype) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode(), predicting(CPU, dtype):
                return net(picture, shares)

        return run

    taken = milliseconds(rounds, way(torch.float32), way(resolve_precision("auto", CPU)))
    num = sum(parameter.numel() for parameter in net.parameters())
    return [f"{width}", f"{num:,}", *(f"{each / 1000:.3f}" for each in taken)]


def step_of(recipe: str, crop_px: int) -> Callable[[], object]:
    """One step of a recipe's training, of pictures of noise."""
    changes = {
        "dataset": "none",
        "net": {"weights": RANDOM},
        "input": {"stored_px": crop_px, "crop_px": crop_px},
    }
    config = StylizerConfig.parse(merge(recipes("style")[recipe], changes), recipe)
    num = config.train.batch_size
    images = torch.randint(0, 256, (num, 3, crop_px, crop_px), dtype=torch.uint8)
    batch = Batch(images, torch.zeros(num, dtype=torch.long), np.arange(num))
    weights = read_sources(config, None, no_model)
    model = build_model(config, None, lambda: [batch], weights).train()  # type: ignore[arg-type]
    dtype = resolve_precision("auto", CPU)
    mend_gradients(model, CPU, dtype)
    optimizers = build_optimizers(model, config.optim)

    def run() -> None:
        with autocast(CPU, dtype):
            value, _parts = loss(model, batch, config)
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return run


def no_model(name: str) -> Path:
    raise AssertionError(f"filters of chance need no model, and {name} was asked for")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--px", type=int, default=512)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 24, 32])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    precision = str(resolve_precision("auto", CPU)).removeprefix("torch.")
    once = Table("width", "parameters", "float32, s", f"{precision}, s")
    for width in options.widths:
        once.add_row(*passes(width, options.px, options.rounds))
    steps = Table("recipe", "crop, px", "batch", "s a step")
    for recipe in ("lite0", "adain"):
        num = recipes("style")[recipe]["train"]["batch_size"]
        for crop_px in CROPS_PX:
            [taken] = milliseconds(options.rounds, step_of(recipe, crop_px))
            steps.add_row(recipe, f"{crop_px}", f"{num}", f"{taken / 1000:.3f}")
    console = Console()
    console.print(f"one pass at {options.px} px, {torch.get_num_threads()} threads")
    console.print(once)
    console.print(f"training, in {precision}")
    console.print(steps)


if __name__ == "__main__":
    main()
