"""Whether a stored dataset is still whole: what ingest wrote, byte for byte, and what its columns say."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data.dataset import (
    PAIR_SCHEMA,
    PAIRS_FILE,
    SPLITS,
    Dataset,
    DatasetInfo,
    Shard,
    count_boxes,
    count_images,
    way_back,
)
from data.files import file_sha256, read_object
from data.measurement import CHUNK_IMAGES, Measured, measure_all
from data.parameters import Parameters

MAX_PROBLEMS = 50


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
        fault = shard_fault(dataset.files / shard.file, shard, dataset.info)
        if fault:
            problems.append(f"{shard.file}: {fault}")
        else:
            shards.append(shard)
    columns = [name for name in dataset.info.columns.names if name != "image"]
    rows = [
        {**row, "split": shard.split, "file": shard.file}
        for shard in shards
        for row in pq.read_table(dataset.files / shard.file, columns=columns).to_pylist()
    ]
    if rows:
        report = progress or (lambda done, total: None)
        images = (image for shard in shards for image in _images_of(dataset.files / shard.file))
        family = dataset.info.family
        measured = measure_all(images, len(rows), workers, lambda done: report(done, len(rows)), family)
        problems += _check_images(rows, measured)
    problems += _check_ids(rows) + _check_targets(rows, dataset.info) + _check_groups(rows, dataset.files)
    problems += _check_files(rows, dataset)
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS:] = [f"and {len(problems) - MAX_PROBLEMS} more"]
    return CheckReport(
        name=dataset.info.name,
        num_images=len(rows),
        problems=tuple(problems),
        time_s=round(time.perf_counter() - started, 3),
    )


def shard_fault(file: Path, shard: Shard, info: DatasetInfo) -> str:
    """What is wrong with a shard's file, "" if it is what ingest wrote; reads all of its bytes."""
    if fault := file_fault(file, shard.sha256):
        return fault
    footer = pq.read_metadata(file)
    if footer.num_rows != shard.rows:
        return f"has {footer.num_rows} rows, not {shard.rows}"
    missing = set(info.columns.names) - set(pq.read_schema(file).names)
    return f"columns are missing: {', '.join(sorted(missing))}" if missing else ""


def first_damage(folder: Path) -> str:
    """The first file that shows the dataset in `folder` to be damaged, "" if none does; decodes nothing."""
    try:
        dataset = Dataset.open(folder)
    except (FileNotFoundError, ValueError) as error:
        return f"dataset.json is {'missing' if isinstance(error, FileNotFoundError) else 'unreadable'}"
    if not (folder / "report.json").is_file():
        return "report.json is missing"
    for shard in dataset.info.shards:
        if fault := shard_fault(folder / shard.file, shard, dataset.info):
            return f"{shard.file}: {fault}"
    beside = (
        f"{name}: {fault}"
        for name, sha256 in dataset.info.files_sha256.items()
        if (fault := file_fault(folder / name, sha256))
    )
    return next(beside, "")


def file_fault(file: Path, sha256: str) -> str:
    """What is wrong with a file, "" if its bytes are those of the hash that dataset.json has."""
    if not file.is_file():
        return "is missing"
    if file_sha256(file) != sha256:
        return "its bytes have changed (SHA-256 differs from dataset.json)"
    return ""


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
    areas = np.array(row["box_areas"] if info.box_areas else [0.0] * num)
    if len(areas) != num or not (np.isfinite(areas) & (areas >= 0)).all():
        return "areas that are not one a box, or not finite, or below 0"
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
        file = dataset.files / name
        if fault := file_fault(file, sha256):
            problems.append(f"{name}: {fault}")
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
    from_source = set(read_object(report, way_back(path)).get("source_splits", ()))
    sides: dict[str, dict[str, str]] = {}
    for row in rows:
        sides.setdefault(row["group"], {}).setdefault(row["split"], row["id"])
    return [
        f"group {group} stands in {' and '.join(sorted(ids))}: {', '.join(repr(ids[split]) for split in sorted(ids))}"
        for group, ids in sorted(sides.items())
        if len(ids) > 1
        and (not from_source or any({"train", side} <= set(ids) for side in {"val", "test"} - from_source))
    ]
