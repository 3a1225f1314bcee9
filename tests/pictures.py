"""Pictures for tests, made on the spot: textured enough to be told apart, and the ways in which files go wrong."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 48, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A picture with structure at all scales, like no other seed's."""
    generator = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3))
    for size in (3, 6, 12, 24):
        noise = generator.uniform(0, 255, (size, size, 3)).astype(np.uint8)
        layers += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((layers / 4).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int, width: int = 48, height: int = 40) -> bytes:
    """A PNG of `picture(seed)`."""
    return encode(picture(seed, width, height))


def png_bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be width × height."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    """Write files by name below `root`."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def class_tree(classes: str = "ab", images: int = 6, top: str = "") -> dict[str, bytes]:
    """`images` different PNGs of each one-letter class, by name."""
    return {
        f"{top}{name}/{i}.png": png(1000 * number + i)
        for number, name in enumerate(classes)
        for i in range(images)
    }
