"""Annotated sources made by hand, and what ingest makes of them."""

import json
from pathlib import Path
from typing import Any

from data.archive import memory_tree
from data.dataset import SPLITS, Dataset
from data.formats import Listing, list_source
from data.ingest import IngestConfig, ingest
from data.report import IngestReport
from tests.pictures import write_tree

CONFIG = IngestConfig(val_fraction=0.2, test_fraction=0.2, near_duplicate_distance=0, max_source_gb=1)


def ingest_source(
    tmp_path: Path, family: str, files: dict[str, bytes] | Path, name: str = "set"
) -> tuple[IngestReport, Dataset]:
    """Ingest files by name, or a folder or archive."""
    source = files if isinstance(files, Path) else write_tree(tmp_path / f"source-{name}", files)
    report = ingest(source, name=name, family=family, store=tmp_path / "store", config=CONFIG, workers=1)
    return report, Dataset.open(tmp_path / "store" / name)


def listing_of(family: str, files: dict[str, bytes]) -> Listing:
    """What the readers make of files in memory."""
    return list_source(memory_tree("source", files), family)


def rows_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """The rows of all splits by id, each with its split."""
    return {
        row["id"]: {**row, "split": split} for split in SPLITS for row in dataset.table(split).to_pylist()
    }


def issues_of(report: IngestReport) -> dict[str, int]:
    """How often each fault was counted."""
    return {issue.what: issue.count for issue in report.issues}


def coco_json(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: tuple[str, ...] = ("cat", "dog"),
) -> bytes:
    """A COCO file; ids are given where they are missing."""
    return json.dumps(
        {
            "images": [{"id": i, **image} for i, image in enumerate(images)],
            "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(categories, 1)],
        }
    ).encode()


def voc_xml(*objects: tuple[str, float, float, float, float], size: tuple[int, int] = (48, 40)) -> bytes:
    """A Pascal VOC annotation of (class, xmin, ymin, xmax, ymax)."""
    entries = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>"
        for name, a, b, c, d in objects
    )
    head = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>{head}{entries}</annotation>".encode()


def pts(*points: tuple[float, float]) -> bytes:
    """A .pts file."""
    lines = "\n".join(f"{x} {y}" for x, y in points)
    return f"version: 1\nn_points:  {len(points)}\n{{\n{lines}\n}}\n".encode()
