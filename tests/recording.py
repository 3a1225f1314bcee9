"""What tests of the records share: a home, a dataset on paper, a small model, pictures for it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.dataset import Dataset, DatasetInfo
from models.classification import build
from tasks import registry
from tasks.card import CARD_VERSION, Member, ModelCard, Preprocessing
from tasks.modelfile import save_model

DIGEST = "0123456789abcdef0123456789abcdef.dir"
CLASSES = ("cat", "dog", "ship")


def paper_dataset(path: Path) -> Dataset:
    """A dataset that is described and has no files: records need no more."""
    info = DatasetInfo(
        schema_version=1, name="pets", family="classification", classes=CLASSES, channels=1,
        counts={"train": {"cat": 3, "dog": 4, "ship": 2}, "test": {"cat": 1}},
        width_px=(8, 8, 8), height_px=(8, 8, 8), channel_mean=(0.5,), channel_std=(0.25,),
        source="pets.tar", source_sha256="ab" * 32, licence="CC0", set_aside=0, shards=(),
    )  # fmt: skip
    return Dataset(path, info)


def make_model(folder: Path, seed: int = 0, views: str = "mirror") -> Path:
    """A LeNet-5 with weights drawn from `seed`, saved as training saves one."""
    torch.manual_seed(seed)
    net = build("lenet5", len(CLASSES), 1, {"input_px": 32}, (0.5,), (0.25,))
    member = Member(
        architecture="lenet5", arguments={"input_px": 32}, weights="member-0.safetensors", run="r"
    )
    preprocessing = Preprocessing(stored_px=32, crop_px=32, pad_px=2, channels=1, resize="squash")
    card = ModelCard(
        card_version=CARD_VERSION, family="classification", classes=CLASSES, preprocessing=preprocessing,
        views=views, thresholds={}, members=(member,), dataset="pets", dataset_digest=DIGEST,
    )  # fmt: skip
    save_model(folder, card, [net])
    return folder


def pictures(num: int) -> list[bytes]:
    """Encoded random PNGs of unequal sizes."""
    generator = np.random.default_rng(0)
    blobs = []
    for i in range(num):
        stream = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(stream, "PNG")
        blobs.append(stream.getvalue())
    return blobs


def start(key: str, dataset_path: Path, **changes: Any) -> str:
    """A run record with plain values, some of them changed."""
    values: dict[str, Any] = {
        "key": key,
        "experiment": "convoy/classification",
        "name": "pets-lenet5-01234567",
        "tags": {"git.commit": "c0ffee", "seed": "0"},
        "parameters": {"model.name": "lenet5", "optim.lr": 0.1},
        "dataset": paper_dataset(dataset_path),
        "digest": DIGEST,
    }
    return registry.start_run(**{**values, **changes})
