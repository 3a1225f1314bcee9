"""What ingest learns of one image, by decoding it once: in a worker process for large sources."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from data.decode import DecodeError, inspect_image
from data.duplicates import THUMB_PX, independent_pixels

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "GIF": (".gif",), "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",), "TIFF": (".tif", ".tiff"), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}  # fmt: skip
_LEVELS = np.arange(256, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Inspection:
    """An image that decodes. Sums are over its pixels, of grey levels and of their squares, exact."""

    sha256: str
    format: str
    width: int
    height: int
    grey: bool
    oddities: tuple[str, ...]  # see ODDITIES
    thumb: np.ndarray  # (32, 32) uint8
    independent_pixels: float  # of the thumbnail, see data.duplicates
    sums: tuple[tuple[int, int], ...]  # (levels, squares) of each channel: one if grey, else three


@dataclass(frozen=True, slots=True)
class Rejection:
    """An image that does not decode, and why."""

    sha256: str
    reason: str


ODDITIES = ("wrong extension", "EXIF-rotated", "animated", "alpha", "CMYK", "16-bit")


def inspect(path: str, blob: bytes) -> Inspection | Rejection:
    """Decode the whole image; `path` is only looked at for its extension."""
    digest = sha256(blob).hexdigest()
    try:
        found = inspect_image(blob)
    except DecodeError as error:
        return Rejection(digest, str(error))
    marks = (
        PurePosixPath(path).suffix.lower() not in EXTENSIONS[found.format],
        found.rotated, found.animated, found.alpha, found.cmyk, found.deep,
    )  # fmt: skip
    image = found.image
    thumb = image.convert("L").resize((THUMB_PX, THUMB_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    histogram = np.array(image.histogram(), np.int64).reshape(-1, 256)
    return Inspection(
        sha256=digest,
        format=found.format,
        width=image.width,
        height=image.height,
        grey=found.grey,
        oddities=tuple(name for name, mark in zip(ODDITIES, marks, strict=True) if mark),
        thumb=np.asarray(thumb),
        independent_pixels=float(independent_pixels(np.asarray(thumb)[None])[0]),
        sums=tuple((int(counts @ _LEVELS), int(counts @ _LEVELS**2)) for counts in histogram),
    )


def inspect_many(paths: Sequence[str], blobs: Sequence[bytes]) -> list[Inspection | Rejection]:
    """Inspect a piece of a source: what one task of a worker process does."""
    return [inspect(path, blob) for path, blob in zip(paths, blobs, strict=True)]
