"""Looking at every image once: in this process, or in several. And checking that a stored dataset is still whole."""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from data import arrays
from data.dataset import (
    NUM_AXES,
    PAIR_SCHEMA,
    PAIRS_FILE,
    SPLITS,
    Dataset,
    DatasetInfo,
    Shard,
    count_boxes,
    count_images,
    schema_of,
)
from data.decode import DecodeError, Inspected, inspect_image, quiet_pillow
from data.duplicates import THUMB_PX, Pictures, describe, join_pictures, perceptual_hashes, take_pictures
from data.parameters import Parameters

# What may be odd about an image that is used all the same; `Measured.oddities` has one bit for each.
ODDITIES = ("rotated by EXIF", "animated, first frame used", "with alpha, laid on white", "CMYK", "16-bit")

CHUNK_IMAGES = 256
COLOUR_SIDE_PX = 64  # of the grid on which colours are looked at
COLOUR_PIXELS = COLOUR_SIDE_PX**2
CHUNK_BYTES = 16 << 20
IN_PROCESS_IMAGES = 2000  # below this, starting processes costs more than they save
MAX_PROBLEMS = 50


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
    colour: (
        np.ndarray
    )  # (N, 10) int64: number, sums and products (rr, rg, rb, gg, gb, bb) of pixels here and there
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
    pixels = (
        np.asarray(sparse).reshape(-1, 3).astype(np.float64)
    )  # whole numbers, so sums are exact in any order
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


class CheckReport(Parameters):
    """What `check` found; no `problems` means that the dataset is as it was written."""

    name: str
    num_images: int
    problems: tuple[str, ...]
    time_s: float


def check(
    dataset: Dataset, *, workers: int | None = None, progress: Callable[[int, int | None], None] | None = None
) -> CheckReport:
    """Read all of a stored dataset again: hashes, columns, counts, ids, labels, groups, and every image."""
    started = time.perf_counter()
    shards, problems = [], []
    for shard in dataset.info.shards:
        fault = shard_fault(dataset.path / shard.file, shard, dataset.info.family)
        if fault:
            problems.append(f"{shard.file}: {fault}")
        else:
            shards.append(shard)
    columns = [name for name in schema_of(dataset.info.family).names if name != "image"]
    rows = [
        {**row, "split": shard.split, "file": shard.file}
        for shard in shards
        for row in pq.read_table(dataset.path / shard.file, columns=columns).to_pylist()
    ]
    if rows:
        report = progress or (lambda done, total: None)
        images = (image for shard in shards for image in _images_of(dataset.path / shard.file))
        family = dataset.info.family
        measured = measure_all(images, len(rows), workers, lambda done: report(done, len(rows)), family)
        problems += _check_images(rows, measured)
    problems += _check_ids(rows) + _check_targets(rows, dataset.info) + _check_groups(rows, dataset.path)
    problems += _check_files(rows, dataset)
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS:] = [f"and {len(problems) - MAX_PROBLEMS} more"]
    return CheckReport(
        name=dataset.info.name,
        num_images=len(rows),
        problems=tuple(problems),
        time_s=round(time.perf_counter() - started, 3),
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_fault(file: Path, shard: Shard, family: str) -> str:
    """What is wrong with a shard's file, "" if it is what ingest wrote; reads all of its bytes."""
    if not file.is_file():
        return "is missing"
    if file_sha256(file) != shard.sha256:
        return "its bytes have changed (SHA-256 differs from dataset.json)"
    footer = pq.read_metadata(file)
    if footer.num_rows != shard.rows:
        return f"has {footer.num_rows} rows, not {shard.rows}"
    missing = set(schema_of(family).names) - set(pq.read_schema(file).names)
    return f"columns are missing: {', '.join(sorted(missing))}" if missing else ""


def _images_of(file: Path) -> Iterator[bytes]:
    for batch in pq.ParquetFile(file).iter_batches(CHUNK_IMAGES, columns=["image"]):
        yield from batch.column(0).to_pylist()


def _check_images(rows: list[dict[str, Any]], measured: Measured) -> list[str]:
    problems = []
    for i, row in enumerate(rows):
        where = f"{row['file']}: {row['id']!r}"
        seen = (
            measured.sha256[i],
            int(measured.phash[i]),
            int(measured.width_px[i]),
            int(measured.height_px[i]),
        )
        if measured.reason[i]:
            problems.append(f"{where} does not decode: {measured.reason[i]}")
        elif seen != (row["sha256"], row["phash"], row["width"], row["height"]):
            problems.append(f"{where} is not the image that its columns describe")
    return problems


def _check_ids(rows: list[dict[str, Any]]) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for row in rows:
        if row["id"] in first:
            problems.append(f"{row['file']}: id {row['id']!r} stands in {first[row['id']]} too")
        first.setdefault(row["id"], row["file"])
    return problems


def _check_targets(rows: list[dict[str, Any]], info: DatasetInfo) -> list[str]:
    faults = [_target_fault(row, info) for row in rows]
    problems = [
        f"{row['file']}: {row['id']!r} has {fault}" for row, fault in zip(rows, faults, strict=True) if fault
    ]
    sound = [row for row, fault in zip(rows, faults, strict=True) if not fault]
    splits = [row["split"] for row in sound]
    tallies = [("images", count_images(info.family, splits, sound, info.classes), info.counts)]
    if info.family == "detection":
        tallies.append(("boxes", count_boxes(splits, sound, info.classes), info.num_boxes))
    for what, found, expected in tallies:
        for split in SPLITS:
            for name, number in found[split].items():
                wanted = expected.get(split, {}).get(name, 0)
                if number != wanted:
                    problems.append(f"{split}: {number} {what} of {name!r}, not {wanted}")
    return problems


def _target_fault(row: dict[str, Any], info: DatasetInfo) -> str:
    """What is wrong with the target columns of a row, "" if nothing is."""
    top = len(info.classes) - 1
    if info.family == "landmarks":
        num = len(info.points)
        fits = len(row["points_xy"]) == 2 * num and len(row["visible"]) == num
        return "" if fits and np.isfinite(row["points_xy"]).all() else f"not {num} points"
    if info.family != "detection":
        return "" if 0 <= row["label"] <= top else f"label {row['label']}, not one of 0 to {top}"
    num = len(row["box_labels"])
    if len(row["boxes_xyxy"]) != 4 * num or len(row["box_flags"]) != num:
        return "boxes, labels and flags of different number"
    boxes = np.array(row["boxes_xyxy"]).reshape(-1, 4)
    inside = (boxes >= 0) & (boxes <= [row["width"], row["height"]] * 2)
    if not (inside.all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        return "a box that is not inside the image, or has no area"
    wrong = [label for label in row["box_labels"] if not 0 <= label <= top]
    return f"a box of label {wrong[0]}, not one of 0 to {top}" if wrong else ""


def _check_files(rows: list[dict[str, Any]], dataset: Dataset) -> list[str]:
    """What lies beside the shards: as it was written, and pairs of images that are there."""
    problems = []
    for name, sha256 in dataset.info.files_sha256.items():
        file = dataset.path / name
        if not file.is_file():
            problems.append(f"{name}: is missing")
        elif file_sha256(file) != sha256:
            problems.append(f"{name}: its bytes have changed (SHA-256 differs from dataset.json)")
        elif name == PAIRS_FILE:
            label = {row["id"]: row["label"] for row in rows}
            for pair in pq.read_table(file, schema=PAIR_SCHEMA).to_pylist():
                a, b = (label.get(pair[key]) for key in ("id_a", "id_b"))
                if a is None or b is None or pair["same"] != (a == b):
                    problems.append(f"{name}: {pair['id_a']!r} and {pair['id_b']!r} are not the pair it says")
    return problems


def _check_groups(rows: list[dict[str, Any]], path: Path) -> list[str]:
    """Groups must not stand in two splits, unless the source itself put them there (`report.json` tells)."""
    report = path / "report.json"
    if not report.is_file():
        return ["report.json is missing"]
    from_source = set(json.loads(report.read_text())["source_splits"])
    sides: dict[str, dict[str, str]] = {}
    for row in rows:
        sides.setdefault(row["group"], {}).setdefault(row["split"], row["id"])
    return [
        f"group {group} stands in {' and '.join(sorted(ids))}: {', '.join(repr(ids[split]) for split in sorted(ids))}"
        for group, ids in sorted(sides.items())
        if len(ids) > 1
        and (not from_source or any({"train", side} <= set(ids) for side in {"val", "test"} - from_source))
    ]
