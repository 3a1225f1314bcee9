"""How many photos a second reach the training loop: decode, random resized crop 224, mirror; beside other loaders.

    PYTHONPATH=. .venv/bin/python benchmarks/stream.py ARCHIVE [--rounds 3] [--images 4000]

ARCHIVE is a tar of JPEGs of some 500 x 375 pixels. Ours reads a dataset's Parquet shards through Ray: one reader, two
processes that decode and augment, batches of uint8 through the object store. Peers, each with two worker processes,
read the same files from memory, which spares them the reading: a `torch.utils.data.DataLoader` with Pillow, with
simplejpeg, with albumentations, with torchvision's v2 transforms, and Ray Data's `map_batches` over the same shards.
Lines named "float32" normalise: the peers' workers, as their users write it; ours by the first operation of a network,
in the loop. Rounds are interleaved, and the best of each counts: the machine does other things too. Rates are of the
second half of a round: at first Ray's object store touches its memory, 8 GB of it at most. albumentations and
torchvision are no dependencies of ours; `benchmarks/peers.sh` makes an environment that has them, and without it their
lines are left out.
"""

import argparse
import io
import os
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __name__ == "__main__" and "MALLOC_ARENA_MAX" not in os.environ:  # what glibc reads once, at the start
    from tasks.memory import ALLOCATOR

    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})

import numpy as np
import pyarrow as pa
import ray
import simplejpeg
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from data.stream import layout_of
from models.classification import build
from pipelines.configuration import configuration
from tasks import cluster
from tasks.batches import BatchPlan, training_jobs
from tasks.families import FAMILIES
from tasks.feed import cache_bytes, stream_depth

BATCH, CROP, WORKERS = 128, 224, 2
AREA, LOG_ASPECT = (0.08, 1.0), float(np.log(4 / 3))
Finish = Callable[[torch.Tensor], torch.Tensor]  # what the loop does to a batch
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- ours ------------------------------------------------------------------------------------------------------


def ingest_photos(archive: Path, store: Path) -> Dataset:
    """The JPEGs of a tar as a dataset of two classes that mean nothing."""
    with tarfile.open(archive) as tar:
        blobs = [tar.extractfile(m).read() for m in tar if m.name.lower().endswith((".jpg", ".jpeg"))]  # type: ignore[union-attr]
    for i, blob in enumerate(blobs):
        file = store / "source" / "train" / "ab"[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(blob)
    config = IngestConfig(val_fraction=0, test_fraction=0, near_duplicate_distance=0, max_source_gb=10)
    ingest(store / "source", name="photos", family="classification", store=store, config=config)
    return Dataset.open(store / "photos")


def our_config(num_images: int, dataset: Dataset) -> Any:
    epochs = num_images / dataset.info.num_images("train")
    changes = {
        "train": {
            "batch_size": BATCH, "epochs": epochs, "data_mode": "streaming", "augment_workers": WORKERS, "growth": []
        },
        "input": {"stored_px": 256, "crop_px": CROP, "pad_px": 0},
        "augment": {"crop_from": "picture", "crop_area": list(AREA), "crop_aspect": 4 / 3, "mirror": True},
    }  # fmt: skip
    changes["augment"] |= dict.fromkeys(
        ("brightness", "contrast", "saturation", "colour_shift", "pca_colour", "cutout_px"), 0
    )
    return configuration("classification", dataset="photos", recipe="default", changes=changes)


def ours(dataset: Dataset, num_images: int) -> Callable[[], Iterator[torch.Tensor]]:
    config, name = our_config(num_images, dataset), "classification"
    layout = layout_of(dataset, "train")
    depth = stream_depth(FAMILIES[name], dataset, config, layout)
    reader = cluster.open_reader(name, dataset, "train", cache_bytes(config, "train"))
    crew = cluster.Crew(name, dataset.info, config, num_workers=WORKERS, depth=depth)
    plan = BatchPlan.of(config.train, layout, 0, 1)
    return lambda: (batch.images for batch in crew.batches(training_jobs(plan, 0), reader))


# --- peers -----------------------------------------------------------------------------------------------------


def draw_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """Inception's crop as torchvision draws it: left, top, width, height."""
    for _ in range(10):
        share = width * height * torch.empty(1).uniform_(*AREA).item()
        aspect = float(np.exp(torch.empty(1).uniform_(-LOG_ASPECT, LOG_ASPECT).item()))
        w, h = round((share * aspect) ** 0.5), round((share / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(width - w + 1, (1,)))
            return left, int(torch.randint(height - h + 1, (1,))), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def with_pillow(blob: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(blob))
    width, height = image.size
    left, top, w, h = draw_crop(width, height)
    image.draft("RGB", (width * CROP // w, height * CROP // h))
    x, y = image.size[0] / width, image.size[1] / height
    box = (left * x, top * y, (left + w) * x, (top + h) * y)
    pixels = np.array(image.convert("RGB").resize((CROP, CROP), Image.Resampling.BILINEAR, box=box))
    return flipped(torch.from_numpy(pixels).permute(2, 0, 1))


def with_simplejpeg(blob: bytes) -> torch.Tensor:
    height, width, _space, _sampling = simplejpeg.decode_jpeg_header(blob)
    left, top, w, h = draw_crop(width, height)
    least = {"min_width": min(width, width * CROP // w), "min_height": min(height, height * CROP // h)}
    pixels = simplejpeg.decode_jpeg(blob, fastdct=True, fastupsample=True, **least)
    x, y = pixels.shape[1] / width, pixels.shape[0] / height
    part = pixels[int(top * y) : int((top + h) * y) or 1, int(left * x) : int((left + w) * x) or 1]
    planes = torch.from_numpy(part).permute(2, 0, 1)[None]
    return flipped(F.interpolate(planes, (CROP, CROP), mode="bilinear", antialias=True)[0])


def flipped(image: torch.Tensor) -> torch.Tensor:
    return image.flip(2) if torch.rand(1).item() < 0.5 else image


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1) * 255, torch.tensor(STD).view(3, 1, 1) * 255
    return (images.float() - mean) / std


def with_simplejpeg_float(blob: bytes) -> torch.Tensor:
    return normalised(with_simplejpeg(blob))


class WithAlbumentations:
    """cv2 decodes, albumentations does the rest."""

    def __init__(self) -> None:
        import albumentations as A

        crop = A.RandomResizedCrop((CROP, CROP), scale=AREA, ratio=(3 / 4, 4 / 3))
        self.transform = A.Compose([crop, A.HorizontalFlip(0.5), A.Normalize(MEAN, STD), A.ToTensorV2()])

    def __call__(self, blob: bytes) -> torch.Tensor:
        import cv2

        cv2.setNumThreads(0)
        pixels = cv2.cvtColor(
            cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        )
        return self.transform(image=pixels)["image"]


class WithTorchvision:
    """torchvision's decoder and v2 transforms, as its documentation puts them together."""

    def __init__(self) -> None:
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop((CROP, CROP), scale=AREA, ratio=(3 / 4, 4 / 3), antialias=True)
        to_float = v2.ToDtype(torch.float32, scale=True)
        self.transform = v2.Compose([crop, v2.RandomHorizontalFlip(0.5), to_float, v2.Normalize(MEAN, STD)])

    def __call__(self, blob: bytes) -> torch.Tensor:
        from torchvision.io import ImageReadMode, decode_jpeg

        data = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
        return self.transform(decode_jpeg(data, mode=ImageReadMode.RGB))


class Files(TorchDataset):
    """Encoded pictures in memory, over and over."""

    def __init__(
        self, blobs: list[bytes], num_images: int, transform: Callable[[bytes], torch.Tensor]
    ) -> None:
        self.blobs, self.num_images, self.transform = blobs, num_images, transform

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.blobs[index % len(self.blobs)])


def loader(
    blobs: list[bytes], num_images: int, transform: Callable[[bytes], torch.Tensor]
) -> Callable[[], Iterator[torch.Tensor]]:
    files = Files(blobs, num_images, transform)
    loader = DataLoader(
        files,
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
        drop_last=True,
        prefetch_factor=3,
        persistent_workers=True,
    )
    return lambda: iter(loader)


def crops_of(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    return {"images": np.stack([with_simplejpeg(blob).numpy() for blob in rows["image"]])}


def ray_data(dataset: Dataset, num_images: int) -> Callable[[], Iterator[torch.Tensor]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    table = pa.concat_tables(
        [dataset.table("train", ["image"])] * (num_images // dataset.info.num_images("train") + 1)
    )
    blocks = [table.slice(start, BATCH) for start in range(0, num_images, BATCH)]

    def batches() -> Iterator[torch.Tensor]:
        rows = ray.data.from_arrow(blocks)
        made = rows.map_batches(crops_of, batch_size=BATCH, concurrency=WORKERS)
        for batch in made.iter_torch_batches(batch_size=BATCH, prefetch_batches=3, drop_last=True):
            yield batch["images"]

    return batches


# --- the race --------------------------------------------------------------------------------------------------


def unchanged(images: torch.Tensor) -> torch.Tensor:
    return images


def rate(batches: Iterator[torch.Tensor], finish: Finish, num_batches: int) -> tuple[float, float]:
    """Images a second of the second half of `num_batches`, and seconds until the first batch."""
    began = time.perf_counter()
    next(batches)
    first_s = time.perf_counter() - began
    num = 0
    for number, images in enumerate(batches, start=1):
        assert images.shape[1:] == (3, CROP, CROP)
        if number == num_batches // 2:
            began, num = time.perf_counter(), 0
        num += len(finish(images))
    return num / (time.perf_counter() - began), first_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4000)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = ingest_photos(options.archive, Path(folder))
        blobs = dataset.table("train", ["image"])["image"].to_pylist()
        cluster.connect()
        num = options.images
        own = ours(dataset, num)
        network = build("resnet18", 2, 3, {}, MEAN, STD)
        entries: dict[str, tuple[Callable[[], Iterator[torch.Tensor]], Finish]] = {
            "ours, uint8": (own, unchanged),
            "ours, float32": (own, network.normalise),
            "DataLoader, simplejpeg scaled, uint8": (loader(blobs, num, with_simplejpeg), unchanged),
            "DataLoader, simplejpeg scaled, float32": (loader(blobs, num, with_simplejpeg_float), unchanged),
            "DataLoader, Pillow draft, uint8": (loader(blobs, num, with_pillow), unchanged),
            "Ray Data, simplejpeg scaled, uint8": (ray_data(dataset, num), unchanged),
        }
        if find_spec("albumentations"):
            entries["DataLoader, albumentations, float32"] = (
                loader(blobs, num, WithAlbumentations()),
                unchanged,
            )
        if find_spec("torchvision"):
            entries["DataLoader, torchvision v2, float32"] = (
                loader(blobs, num, WithTorchvision()),
                unchanged,
            )
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in entries}
        for _ in range(options.rounds):
            for name, (batches, finish) in entries.items():
                seen[name].append(rate(batches(), finish, num // BATCH))
        show(seen, np.mean([len(blob) for blob in blobs]) / 1024)
        cluster.disconnect()


def show(seen: dict[str, list[tuple[float, float]]], mean_kb: float) -> None:
    table = Table(title=f"{WORKERS} processes, batches of {BATCH}, JPEGs of {mean_kb:.0f} KB on average")
    for column in ("", "images/s, best", "all rounds", "first batch, s", "ours / this"):
        table.add_column(column, justify="left" if not column else "right")
    best = {name: max(each for each, _first in rounds) for name, rounds in seen.items()}
    for name, rounds in seen.items():
        own = best["ours, float32" if "float32" in name else "ours, uint8"]
        every = " ".join(f"{each:,.0f}" for each, _first in rounds)
        first = min(first for _each, first in rounds)
        table.add_row(name, f"{best[name]:,.0f}", every, f"{first:.2f}", f"{own / best[name]:.2f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
