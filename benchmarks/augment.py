"""How fast is batched augmentation of small pictures, beside kornia's?

    PYTHONPATH=. .venv/bin/python benchmarks/augment.py [--batch 512] [--side 32]

kornia is no dependency of ours. Where it is importable it is measured in the same run, else its column is empty:

    .venv/bin/pip install --no-deps --target .bench-peers kornia kornia_rs
    PYTHONPATH=.:.bench-peers .venv/bin/python benchmarks/augment.py

Both get one uint8 batch and give one back; kornia's is converted to float32 and back, since it takes nothing else.
Each line draws new random numbers for every batch. Two lists: crop, mirror and colour; and all geometry and colour.
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from data.augment import AugmentConfig, augment
from data.colour import Colours
from data.random import SampleGenerator

WARM_UP, ROUNDS = 3, 15
PAD_PX = 4
OFF: dict[str, Any] = {
    "mirror": False, "random_crop": False, "crop_area": [1, 1], "crop_aspect": 1, "crop_from": "square",
    "rotation_deg": 0, "shear_deg": 0,
    "elastic_px": 0, "brightness": 0, "contrast": 0, "saturation": 0, "colour_shift": 0, "pca_colour": 0,
    "cutout_px": 0,
    "mixup_alpha": 0, "cutmix_alpha": 0, "mixing_until": 1,
}  # fmt: skip
LIGHT = {"mirror": True, "random_crop": True, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
HEAVY = {**LIGHT, "rotation_deg": 15, "shear_deg": 10, "pca_colour": 0.1}
# of 200 photographs of streets
PHOTO_COMPONENTS = ((-4.6, 20.5, 68.4), (9.7, -0.6, 70.2), (-5.2, -19.3, 70.8))


def ours(changes: dict[str, Any], images: Tensor) -> Callable[[int], Tensor]:
    """Our augmentation of the batch, as a function of the epoch."""
    config, indices, side = (
        AugmentConfig.parse({**OFF, **changes}, "benchmark"),
        np.arange(len(images)),
        images.shape[3],
    )
    colours = Colours((0,) * images.shape[1], PHOTO_COMPONENTS)
    return lambda epoch: augment(images, indices, side, PAD_PX, colours, config, SampleGenerator(0, epoch))


def kornias(heavy: bool, images: Tensor) -> Callable[[int], Tensor] | None:
    """The same list of operations by kornia, or None where it is not installed."""
    if find_spec("kornia") is None:
        return None
    import kornia.augmentation as K

    side = images.shape[3]
    steps: list[Any] = [
        K.RandomCrop((side, side), padding=PAD_PX, padding_mode="reflect"),
        K.RandomHorizontalFlip(),
    ]
    if heavy:
        steps.append(K.RandomAffine(degrees=15, shear=(-10, 10, -10, 10), padding_mode="reflection", p=1))
    steps.append(K.ColorJitter(0.4, 0.4, 0.4, 0.0, p=1))
    if heavy:
        steps.append(K.RandomPlanckianJitter(p=1))  # a shift of each channel, the nearest that it has
    pipeline = torch.nn.Sequential(*steps)
    return lambda epoch: (pipeline(images.float() / 255) * 255).round().clamp(0, 255).to(torch.uint8)


def rates(ways: dict[str, Callable[[int], Tensor] | None], num: int) -> dict[str, float]:
    """Images a second of each way: the median of rounds that take turns, so that all meet the same noise."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(WARM_UP + ROUNDS):
        for name, way in ways.items():
            if way is not None:
                began = time.perf_counter()
                way(epoch)
                times[name].append(time.perf_counter() - began)
    return {name: num / float(np.median(spent[WARM_UP:])) for name, spent in times.items() if spent}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--side", type=int, default=32)
    arguments = parser.parse_args()
    shape = (arguments.batch, 3, arguments.side, arguments.side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    table = Table(
        "operations", "ours, images/s", "kornia", "ratio", title=f"{shape}, {torch.get_num_threads()} threads"
    )
    lists = {
        "crop, mirror": ({"mirror": True, "random_crop": True}, None),
        "crop, mirror, colour": (LIGHT, kornias(heavy=False, images=images)),
        "crop, mirror, rotation, shear, colour, PCA": (HEAVY, kornias(heavy=True, images=images)),
    }
    for name, (changes, peer) in lists.items():
        found = rates({"ours": ours(changes, images), "kornia": peer}, arguments.batch)
        theirs = found.get("kornia")
        ratio = f"{found['ours'] / theirs:.2f}" if theirs else ""
        table.add_row(name, f"{found['ours']:,.0f}", f"{theirs:,.0f}" if theirs else "", ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
