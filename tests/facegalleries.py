"""Galleries for tests: people whose pictures and vectors follow from their names."""

import hashlib

import numpy as np

from tasks.gallery import Picture
from tasks.gallerystore import Embedder

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
