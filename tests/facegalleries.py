"""Galleries for tests: people whose pictures and vectors follow from their names, and networks that embed."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from data.aligned import FaceAlignment
from models.faces import FaceModel, build
from tasks.card import CARD_VERSION, Member, ModelCard, Preprocessing
from tasks.gallery import Picture
from tasks.gallerystore import Embedder
from tasks.modelfile import save_model

D = 32
FIRST = Embedder(name="faces", version="1", sha256="ab" * 32, preprocessing="five points, 112 px", num_dims=D)
SECOND = Embedder(
    name="faces", version="2", sha256="cd" * 32, preprocessing="five points, 112 px", num_dims=24
)


def crop(name: str, number: int = 0) -> bytes:
    """Bytes that stand for the encoded crop of a person: unlike those of any other."""
    return b"".join(hashlib.sha256(f"{name}/{number}/{i}".encode()).digest() for i in range(100))


def embed(encoded: bytes, num_dims: int = D) -> np.ndarray:
    """A unit vector that follows from the bytes."""
    row = np.random.default_rng(list(hashlib.sha256(encoded).digest())).normal(size=num_dims)
    return (row / np.linalg.norm(row)).astype(np.float32)


def picture(name: str, number: int = 0) -> Picture:
    return Picture(crop(name, number), embed(crop(name, number)))


def write_embedder(
    folder: Path,
    *,
    seed: int = 0,
    dim: int = 16,
    alignment: FaceAlignment | None = None,
    thresholds: dict[str, float] | None = None,
    told_by_few: tuple[str, ...] = (),
) -> Path:
    """A model of faces with random weights, of pictures of 32 pixels: what is alike to it looks alike."""
    arguments = FaceModel(name="face_tiny", dim=dim, centre=True).arguments(32)
    torch.manual_seed(seed)
    model = build("face_tiny", 3, arguments, (0.5,) * 3, (0.25,) * 3)
    card = ModelCard(
        card_version=CARD_VERSION,
        family="faces",
        classes=(),
        preprocessing=Preprocessing(stored_px=32, crop_px=32, pad_px=0, channels=3, resize="crop"),
        views="mirror",
        thresholds={"accuracy": 0.5, "far_1e-1": 0.4, "far_1e-2": 0.1, "far_1e-3": -1.0}
        if thresholds is None
        else thresholds,
        told_by_few=told_by_few,
        members=(
            Member(
                architecture="face_tiny",
                arguments=arguments,
                weights="member-0.safetensors",
                run=f"run-{seed}",
            ),
        ),
        dataset="drawn",
        dataset_digest="d" * 32,
        alignment=alignment,
    )
    save_model(folder, card, [model])
    return folder
