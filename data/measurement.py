"""Looking at every item of a source once: decoded fully and measured, in this process or in several."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from data import arrays
from data.dataset import NUM_AXES
from data.decode import DecodeError, Inspected, inspect_image, quiet_pillow
from data.duplicates import THUMB_PX, Pictures, describe, join_pictures, perceptual_hashes, take_pictures

# What may be odd about an image that is used all the same; `Measured.oddities` has one bit for each.
ODDITIES = ("rotated by EXIF", "animated, first frame used", "with alpha, laid on white", "CMYK", "16-bit")

CHUNK_IMAGES = 256
COLOUR_SIDE_PX = 64  # of the grid on which colours are looked at
COLOUR_PIXELS = COLOUR_SIDE_PX**2
CHUNK_BYTES = 16 << 20
IN_PROCESS_IMAGES = 2000  # below this, starting processes costs more than they save


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found out about N images. Where `reason` is set, the image cannot be used, and the rest is 0."""

    reason: list[str]
    sha256: list[str]
    format: list[str]
    grey: np.ndarray  # (N,) bool: stored without colour
    oddities: np.ndarray  # (N,) uint8: bit i stands for ODDITIES[i]
    width_px: np.ndarray  # (N,) int64, upright
    height_px: np.ndarray
    orientation: np.ndarray  # (N,) uint8: of EXIF, 1 to 8; 1 is upright as stored
    sums: np.ndarray  # (N, 3) int64: sum of the pixels of each channel, 0 to 255; a grey one three times
    squares: np.ndarray  # (N, 3) int64: and of their squares
    # (N, 10) int64: number, sums and products (rr, rg, rb, gg, gb, bb) of pixels here and there
    colour: np.ndarray
    phash: np.ndarray  # (N,) uint64, see data.duplicates
    pictures: Pictures  # of N thumbnails
    facts: list[arrays.Facts | None]  # of signals and volumes; None of pictures, and of what cannot be used

    def __len__(self) -> int:
        return len(self.reason)

    def take(self, places: np.ndarray) -> "Measured":
        """The images at `places`, in that order."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(Measured)}
        for name, value in values.items():
            if isinstance(value, Pictures):
                values[name] = take_pictures(value, places)
            else:
                values[name] = value[places] if isinstance(value, np.ndarray) else [value[i] for i in places]
        return Measured(**values)


def measure(blobs: Sequence[bytes]) -> Measured:
    """Decode each image fully and measure it; what cannot be decoded gets a reason."""
    num = len(blobs)
    reason, formats = [""] * num, [""] * num
    grey, oddities = np.zeros(num, bool), np.zeros(num, np.uint8)
    thumbs = np.zeros((num, THUMB_PX, THUMB_PX), np.uint8)
    counts = np.zeros((num, 3, 256), np.int64)
    sizes = np.zeros((num, 2), np.int64)
    orientation = np.ones(num, np.uint8)
    colour = np.zeros((num, 10), np.int64)
    with quiet_pillow():  # once for all
        for i, blob in enumerate(blobs):
            try:
                found = inspect_image(blob)
            except DecodeError as error:
                reason[i] = str(error)
                continue
            counts[i] = np.reshape(found.image.histogram(), (-1, 256))
            sizes[i], orientation[i] = found.image.size, found.orientation
            thumbs[i], colour[i] = _thumb(found), _colour_moments(found)
            formats[i], grey[i], oddities[i] = found.format, found.grey, _oddities(found)
    levels = np.arange(256, dtype=np.int64)
    return Measured(
        reason=reason,
        sha256=[hashlib.sha256(blob).hexdigest() for blob in blobs],
        format=formats,
        grey=grey,
        oddities=oddities,
        width_px=sizes[:, 0],
        height_px=sizes[:, 1],
        orientation=orientation,
        sums=counts @ levels,
        squares=counts @ levels**2,
        colour=colour,
        phash=perceptual_hashes(thumbs),
        pictures=describe(thumbs),
        facts=[None] * num,
    )


def measure_arrays(blobs: Sequence[bytes], num_axes: int) -> Measured:
    """Decode each signal (`num_axes` 1) or volume (3) and measure it; what pictures alone have is 0."""
    num = len(blobs)
    reason, formats = [""] * num, [""] * num
    oddities, sizes = np.zeros(num, np.uint8), np.zeros((num, 2), np.int64)
    facts: list[arrays.Facts | None] = [None] * num
    for i, blob in enumerate(blobs):
        try:
            item = arrays.decode_item(blob, num_axes)
        except DecodeError as error:
            reason[i] = str(error)
            continue
        facts[i], oddities[i], formats[i] = arrays.measure_item(item), arrays.oddities_of(item), item.format
        sizes[i] = (1, *item.values.shape[1:])[:-3:-1]
    return Measured(
        reason=reason,
        sha256=[hashlib.sha256(blob).hexdigest() for blob in blobs],
        format=formats,
        grey=np.ones(num, bool),
        oddities=oddities,
        width_px=sizes[:, 0],
        height_px=sizes[:, 1],
        orientation=np.ones(num, np.uint8),
        sums=np.zeros((num, 3), np.int64),
        squares=np.zeros((num, 3), np.int64),
        colour=np.zeros((num, 10), np.int64),
        phash=np.zeros(num, np.uint64),
        pictures=describe(np.zeros((num, THUMB_PX, THUMB_PX), np.uint8)),
        facts=facts,
    )


def measure_of(family: str) -> Callable[[Sequence[bytes]], Measured]:
    """What measures the items of a family."""
    return partial(measure_arrays, num_axes=NUM_AXES[family]) if family in NUM_AXES else measure


def _oddities(found: Inspected) -> int:
    flags = (found.rotated, found.animated, found.alpha, found.cmyk, found.deep)
    assert len(flags) == len(ODDITIES)
    return sum(flag << bit for bit, flag in enumerate(flags))


def _thumb(found: Inspected) -> np.ndarray:
    thumb = found.image
    if thumb.size != (THUMB_PX, THUMB_PX):
        thumb = thumb.resize((THUMB_PX, THUMB_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(thumb if found.grey else thumb.convert("L"))


def _colour_moments(found: Inspected) -> np.ndarray:
    """Number, sums and products of up to COLOUR_PIXELS of a colour image's pixels, on a grid: (10,); of grey ones 0."""
    if found.grey:
        return np.zeros(10, np.int64)
    sparse = found.image
    if sparse.width * sparse.height > COLOUR_PIXELS:
        sides = (min(sparse.width, COLOUR_SIDE_PX), min(sparse.height, COLOUR_SIDE_PX))
        sparse = sparse.resize(sides, Image.Resampling.NEAREST)
    # whole numbers, so sums are exact in any order
    pixels = np.asarray(sparse).reshape(-1, 3).astype(np.float64)
    products = (pixels.T @ pixels)[np.triu_indices(3)]
    return np.concatenate([[len(pixels)], pixels.sum(0), products]).astype(np.int64)


def join_measured(parts: Sequence[Measured]) -> Measured:
    """One after the other."""
    columns: dict[str, Any] = {}
    for field in fields(Measured):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], Pictures):
            columns[field.name] = join_pictures(values)
        elif isinstance(values[0], np.ndarray):
            columns[field.name] = np.concatenate(values)
        else:
            columns[field.name] = [x for value in values for x in value]
    return Measured(**columns)


def measure_all(
    blobs: Iterable[bytes],
    num_images: int,
    workers: int | None,
    on_done: Callable[[int], None],
    family: str = "classification",
) -> Measured:
    """Measure `num_images` images in their order; at least one. `on_done` hears how many are done.

    With `workers` > 1 (default: one for each core) and enough images, in that many processes, which end with this
    one however it ends. A script that calls this needs `if __name__ == "__main__":`, since they are spawned.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"workers (={workers}) must be at least 1")
    chunks = _chunks(blobs)
    if workers == 1 or num_images < IN_PROCESS_IMAGES:
        results: Iterator[Measured] = map(measure_of(family), chunks)
    else:
        results = _measure_in_processes(chunks, workers, family)
    parts = []
    done = 0
    for part in results:
        parts.append(part)
        done += len(part)
        on_done(done)
    assert done == num_images
    return join_measured(parts)


def _chunks(blobs: Iterable[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    num_bytes = 0
    for blob in blobs:
        chunk.append(blob)
        num_bytes += len(blob)
        if len(chunk) == CHUNK_IMAGES or num_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _measure_in_processes(chunks: Iterator[list[bytes]], workers: int, family: str) -> Iterator[Measured]:
    # spawn: the caller may hold threads and locks (Ray, Prefect), which a fork would copy in any state
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    waiting: list[Future[Measured]] = []
    try:
        for chunk in chunks:
            waiting.append(pool.submit(measure_of(family), chunk))
            if len(waiting) > 2 * workers:  # bounds what is in memory
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that decoded images died: out of memory or killed (free memory, or lower workers), or the "
            'calling script has no `if __name__ == "__main__":`'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
