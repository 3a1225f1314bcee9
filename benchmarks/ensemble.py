"""What more crops and more networks cost a picture, from disk to class: read, decode, cut, networks, average.

    PYTHONPATH=. .venv/bin/python benchmarks/ensemble.py [--rounds 5]

All ways take turns in one run, so all meet the same noise; ratios are to the single view of one network. The bars: ten
crops at most 9 single views, five networks at most 5.2. `separate` is what both are measured against: the single view
run ten times over, each with its own reading and decoding. Weights are random: they cost what trained ones do.

Datasets: scikit-learn's 1,797 digits, and crops of 500x375 of its two photographs as JPEGs.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines import environment

if "GOMP_SPINCOUNT" not in os.environ:  # OpenMP reads it when torch is imported
    environment.prepare()

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from models.classification import arguments_of, build
from tasks.card import CARD_VERSION, Member, ModelCard, Preprocessing
from tasks.modelfile import SavedModel
from tasks.outputs import decode_piece, piece_size, pieces_of
from tasks.predict import Predictor
from tasks.settings import ViewName

BARS = {"ten_crop": 9.0, "five members": 5.2}
PHOTO_PX = (500, 375)


@dataclass(frozen=True)
class Case:
    """A network and the pictures it sees."""

    dataset: str
    architecture: str
    stored_px: int
    crop_px: int
    num_images: int  # of the split, at most
    batch_size: int = 256


CASES = (
    Case("digits", "lenet5", 32, 32, 1797),
    Case("digits", "resnet8_cifar", 32, 32, 256),
    Case("photos", "efficientnet_lite0", 256, 224, 16),
    Case("photos", "resnet18", 256, 224, 16),
)


def write_photos(folder: Path, num: int) -> Path:
    """Random crops of two photographs, half of them in each of two classes."""
    generator = np.random.default_rng(0)
    width, height = PHOTO_PX
    for name, picture in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(num // 2):
            top = generator.integers(0, picture.shape[0] - height + 1)
            left = generator.integers(0, picture.shape[1] - width + 1)
            stream = io.BytesIO()
            Image.fromarray(picture[top : top + height, left : left + width]).save(stream, "JPEG", quality=90)
            (folder / name / f"{i}.jpg").write_bytes(stream.getvalue())
    return folder


def make_datasets(store: Path, num_photos: int) -> dict[str, Dataset]:
    """Both datasets, nearly all of their pictures in the test split."""
    values = {"val_fraction": 0.01, "test_fraction": 0.9, "near_duplicate_distance": 0, "max_source_gb": 1}
    config = IngestConfig.parse(values, "benchmark")
    sources = {"digits": "sklearn:digits", "photos": write_photos(store / "source", num_photos)}
    for name, source in sources.items():
        ingest(source, name=name, family="classification", store=store, config=config)
    return {name: Dataset.open(store / name) for name in sources}


def predictor_of(case: Case, dataset: Dataset, num_members: int) -> Predictor:
    """Networks with random weights as one model."""
    arguments = arguments_of(case.architecture, case.crop_px)
    channels = dataset.info.picture_channels
    layout = Preprocessing(
        stored_px=case.stored_px, crop_px=case.crop_px, pad_px=2, channels=channels, resize="crop"
    )
    member = Member(architecture=case.architecture, arguments=arguments, weights="", run="")
    card = ModelCard(
        card_version=CARD_VERSION, family="classification", classes=dataset.info.classes, preprocessing=layout,
        views="single", thresholds={}, members=(member,) * num_members, dataset="", dataset_digest="",
    )  # fmt: skip
    unset = (0.5,) * channels
    networks = tuple(
        build(case.architecture, len(card.classes), channels, arguments, unset, unset)
        for _ in range(num_members)
    )
    return Predictor(SavedModel(card, networks), torch.device("cpu"), "fp32", case.batch_size)


def passed(predictor: Predictor, dataset: Dataset, view: ViewName, most: int) -> int:
    """Classify the split from its files on, `most` pictures and what shares their piece; how many they were."""
    num = 0
    for piece in pieces_of(dataset, "test", min(most, piece_size([predictor]))):
        [decoded] = decode_piece(piece, [predictor]).values()
        num += len(predictor.uncalibrated(decoded, view))
        if num >= most:
            break
    return num


def ways_of(case: Case, dataset: Dataset) -> dict[str, Callable[[], int]]:
    one, five, most = predictor_of(case, dataset, 1), predictor_of(case, dataset, 5), case.num_images
    return {
        "single": lambda: passed(one, dataset, "single", most),
        "mirror": lambda: passed(one, dataset, "mirror", most),
        "ten_crop": lambda: passed(one, dataset, "ten_crop", most),
        "five members": lambda: passed(five, dataset, "single", most),
        "separate": lambda: sum(passed(one, dataset, "single", most) for _ in range(10)) // 10,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="a network, to measure that alone")
    options = parser.parse_args()
    table = Table("pictures", "network", "way", "ms a picture", "ratio", "bar")
    with tempfile.TemporaryDirectory() as folder:
        datasets = make_datasets(Path(folder), max(case.num_images for case in CASES[2:]))
        for case in CASES:
            if options.only not in ("", case.architecture):
                continue
            ways = ways_of(case, datasets[case.dataset])
            spent: dict[str, list[float]] = {name: [] for name in ways}
            for round_number in range(options.rounds + 1):
                for name, way in ways.items():
                    began = time.perf_counter()
                    num = way()
                    if round_number:  # the first is a warm-up
                        spent[name].append((time.perf_counter() - began) / num)
            for name, times in spent.items():
                ratio = float(np.median(np.divide(times, spent["single"])))
                bar = f"{BARS[name]:g}" if name in BARS else ""
                table.add_row(
                    case.dataset,
                    case.architecture,
                    name,
                    f"{np.median(times) * 1000:.3f}",
                    f"{ratio:.2f}",
                    bar,
                )
            table.add_section()
    Console().print(f"{torch.get_num_threads()} threads, float32")
    Console().print(table)


if __name__ == "__main__":
    main()
