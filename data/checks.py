"""Checks of a stored dataset: whether it still is what ingest wrote."""

import hashlib
import time
from collections import Counter

import pyarrow.parquet as pq

from data.dataset import SCHEMA, Dataset, iterate_rows
from data.decode import DecodeError, decode_image
from data.parameters import Parameters


class CheckReport(Parameters):
    """What a look at every byte found; no problem means that the dataset is whole."""

    name: str
    num_images: int
    problems: tuple[str, ...]
    time_s: float


def check(dataset: Dataset) -> CheckReport:
    """Read every shard and decode every image."""
    began = time.perf_counter()
    info = dataset.info
    problems: list[str] = []
    ids: Counter[str] = Counter()
    labels: Counter[tuple[str, int]] = Counter()
    for shard in info.shards:
        path = dataset.path / shard.file
        if not path.is_file():
            problems.append(f"{shard.file} is missing; fetch it with: dvc pull")
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() != shard.sha256:
            problems.append(f"{shard.file} is not the file that ingest wrote (sha256 differs)")
        try:
            table = pq.read_table(path)
        except (OSError, ValueError) as error:
            problems.append(f"{shard.file} cannot be read: {str(error).splitlines()[0]}")
            continue
        if table.schema.names != SCHEMA.names or table.num_rows != shard.rows:
            problems.append(
                f"{shard.file} has {table.num_rows} rows, or other columns, than dataset.json says"
            )
            continue
        for row in iterate_rows(table):
            ids[row["id"]] += 1
            labels[shard.split, row["label"]] += 1
            try:
                decode_image(row["image"], channels=info.channels)
            except DecodeError as error:
                problems.append(f"{shard.file}: {row['id']}: {error}")
            if not 0 <= row["label"] < len(info.classes):
                problems.append(
                    f"{shard.file}: {row['id']}: label {row['label']} is none of {len(info.classes)} classes"
                )
    problems += [f"id {name} stands in the dataset {times} times" for name, times in ids.items() if times > 1]
    for split, by_class in info.counts.items():
        for k, name in enumerate(info.classes):
            if labels[split, k] != by_class.get(name, 0):
                problems.append(
                    f"{split} has {labels[split, k]} images of {name}, not {by_class.get(name, 0)}"
                )
    return CheckReport(
        name=info.name, num_images=ids.total(), problems=tuple(problems), time_s=time.perf_counter() - began
    )
