"""How fast is an exported file, beside the model it was made from?

    PYTHONPATH=. .venv/bin/python benchmarks/exports.py [--batch 16] [--rounds 5]

Networks of random weights at 224 px, on the CPU, in this process and with as many threads for each: prediction's own
forward pass, the ONNX file under onnxruntime, and the torch.export file. They take turns; the median counts. Pictures
are decoded, of the card's size (no resizing), and, in the second half, photos of 500x375 (the file resizes them; for
the model Pillow has done so before the clock starts).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from data.squares import to_square
from models.classification import build
from tasks.card import CARD_VERSION, Member, ModelCard, Preprocessing
from tasks.export import FILES, Format, Program, free_axes, open_program, trace, write
from tasks.modelfile import SavedModel
from tasks.predict import Predictor

SIDE_PX, PHOTO = 224, (375, 500)
NETWORKS = ("resnet18", "efficientnet_lite0")


def model_of(name: str) -> SavedModel:
    """A network with random weights, and its card."""
    want = Preprocessing(stored_px=SIDE_PX, crop_px=SIDE_PX, pad_px=0, channels=3, resize="crop")
    member = Member(architecture=name, arguments={}, weights="member-0.safetensors", run="")
    card = ModelCard(
        card_version=CARD_VERSION, family="classification", classes=tuple(map(str, range(1000))),
        preprocessing=want, views="single", thresholds={}, members=(member,), dataset="", dataset_digest="",
    )  # fmt: skip
    return SavedModel(card, (build(name, 1000, 3, {}, (0.5,) * 3, (0.25,) * 3).eval(),))


def ways_of(name: str, photos: np.ndarray) -> dict[str, Callable[[], object]]:
    """Model and files, each as a function that predicts all photos."""
    squares = np.stack([to_square(Image.fromarray(photo), SIDE_PX, "crop") for photo in photos])
    predictor = Predictor(model_of(name), torch.device("cpu"))
    ways: dict[str, Callable[[], object]] = {
        "model": lambda: predictor.probabilities(torch.from_numpy(squares))
    }
    saved = model_of(name)
    traced = trace(Program(saved).eval())
    for form in get_args(Format):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / FILES[form]
            write(traced, file, form, free_axes(saved.card.preprocessing), {})
            run = open_program(file, form)
        ways[form] = lambda run=run: run(photos)  # type: ignore[misc]
    return ways


def rates(ways: dict[str, Callable[[], object]], num: int, rounds: int) -> dict[str, float]:
    """Pictures a second: the median of rounds that take turns, after two to warm up."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(2 + rounds):
        for way, work in ways.items():
            began = time.perf_counter()
            work()
            times[way].append(time.perf_counter() - began)
    return {way: num / float(np.median(spent[2:])) for way, spent in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    columns = ("network", "pictures", "model, images/s", "onnxruntime", "ratio", "torch.export", "ratio")
    table = Table(*columns, title=f"batch {arguments.batch}, {torch.get_num_threads()} threads")
    generator = np.random.default_rng(0)
    for name in NETWORKS:
        for size in ((SIDE_PX, SIDE_PX), PHOTO):
            photos = generator.integers(0, 256, (arguments.batch, *size, 3), dtype=np.uint8)
            found = rates(ways_of(name, photos), arguments.batch, arguments.rounds)
            shares = [f"{found[form] / found['model']:.2f}" for form in get_args(Format)]
            row = (
                f"{found['model']:.1f}",
                f"{found['onnx']:.1f}",
                shares[0],
                f"{found['torch']:.1f}",
                shares[1],
            )
            table.add_row(name, f"{size[0]}x{size[1]}", *row)
    Console().print(table)


if __name__ == "__main__":
    main()
