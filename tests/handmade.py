"""Datasets and models made by hand, where a test wants to know every pixel and weight."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from data.dataset import SCHEMA, SCHEMA_VERSION, Dataset, DatasetInfo, Shard, Split, write_info
from models.classification import arguments_of, build
from tasks.card import CARD_VERSION, Member, ModelCard, Preprocessing
from tasks.modelfile import save_model


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: for networks this small, threads that wait for each other cost most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def png(pixels: np.ndarray) -> bytes:
    """Encode (H, W) or (H, W, 3) uint8."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_dataset(
    folder: Path,
    pictures: Sequence[np.ndarray],
    labels: Sequence[int],
    classes: Sequence[str],
    num_shards: int = 1,
    num_val: int = 0,
) -> Dataset:
    """A dataset of `pictures`, (H, W) or (H, W, 3) uint8, spread over shards in their order.

    The first `num_val` are its validation split, the others its test split.
    """
    folder.mkdir(parents=True)
    channels: Literal[1, 3] = 1 if pictures[0].ndim == 2 else 3
    shards = []
    places = np.arange(len(pictures))
    sides: dict[Split, np.ndarray] = {"val": places[:num_val], "test": places[num_val:]}
    counts: dict[Split, dict[str, int]] = {}
    for split, inside in sides.items():
        for number, part in enumerate(
            np.array_split(inside, min(num_shards, len(inside))) if len(inside) else []
        ):
            file = f"{split}-{number:05d}.parquet"
            rows = [row_of(int(place), pictures[place], labels[place]) for place in part]
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / file)
            shards.append(Shard(file=file, split=split, rows=len(part), sha256=""))
        found = [labels[place] for place in inside]
        counts[split] = {name: found.count(index) for index, name in enumerate(classes)}
    info = DatasetInfo(
        schema_version=SCHEMA_VERSION, name=folder.name, family="classification", classes=tuple(classes),
        channels=channels, counts=counts, width_px=(1, 1, 1), height_px=(1, 1, 1),
        channel_mean=(0.5,) * channels, channel_std=(0.25,) * channels, source="by hand", source_sha256="",
        licence="", set_aside=0, shards=tuple(shards),
    )  # fmt: skip
    write_info(folder, info)
    return Dataset.open(folder)


def row_of(place: int, picture: np.ndarray, label: int) -> dict[str, Any]:
    return {
        "id": f"{place:05d}.png",
        "image": png(picture),
        "format": "PNG",
        "width": picture.shape[1],
        "height": picture.shape[0],
        "sha256": "",
        "phash": 0,
        "group": str(place),
        "label": label,
    }


def write_model(
    folder: Path,
    classes: Sequence[str],
    *,
    seed: int = 0,
    architecture: str = "resnet8_cifar",
    channels: Literal[1, 3] = 1,
    stored_px: int = 8,
    crop_px: int = 8,
    pad_px: int = 1,
    view: str = "single",
    sharpness: float = 1.0,
) -> Path:
    """A model with random weights; `sharpness` multiplies its logits."""
    arguments = arguments_of(architecture, crop_px)
    torch.manual_seed(seed)
    model = build(architecture, len(classes), channels, arguments, (0.5,) * channels, (0.25,) * channels)
    head = [module for module in model.net.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(sharpness)
    card = ModelCard(
        card_version=CARD_VERSION,
        family="classification",
        classes=tuple(classes),
        preprocessing=Preprocessing(
            stored_px=stored_px, crop_px=crop_px, pad_px=pad_px, channels=channels, resize="crop"
        ),
        views=view,
        thresholds={},
        members=(
            Member(
                architecture=architecture,
                arguments=arguments,
                weights="member-0.safetensors",
                run=f"run-{seed}",
            ),
        ),
        dataset="handmade",
        dataset_digest="d" * 32,
    )
    save_model(folder, card, [model])
    return folder
