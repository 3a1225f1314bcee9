"""A dataset in the formats of other tools: pictures byte for byte, and annotations that our readers read back.

    coco      detection: annotations/instances_SPLIT.json and SPLIT/
    yolo      detection: images/SPLIT/, labels/SPLIT/ and data.yaml; without crowds, which it cannot tell
    folders   SPLIT/CLASS/ of classification, faces (with pairs.csv, alignment.json), style, signals and volumes;
              SPLIT/ and landmarks.csv of landmarks

Coordinates are of the pixels as stored in COCO and landmarks.csv, and of the upright image in YOLO: docs/datasets.md.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from posixpath import splitext
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from data import aligned, arrays
from data.dataset import CROWD, NUM_AXES, PAIRS_FILE, SPLITS, Dataset, Split
from data.decode import EXTENSIONS, read_orientation
from data.files import whole_folder
from data.formats.coco import FLAG_KEYS
from data.orientation import INVERSE, stored_size, turn_boxes, turn_xy
from data.parameters import Parameters

READ_ROWS = 256
ENDINGS = EXTENSIONS | arrays.EXTENSIONS


class ExportReport(Parameters):
    """What was written."""

    name: str
    format: str
    path: str
    images: dict[Split, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """One image that has been written: its row without the bytes, and its orientation."""

    row: dict[str, Any]
    split: Split
    file: str  # below the export's folder
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright."""
        return self.row["width"], self.row["height"]


@dataclass(frozen=True, kw_only=True)
class Export:
    """One format: where it wants an image, and what it writes when all images are there."""

    families: tuple[str, ...]
    folder: Callable[[Dataset, Split, dict[str, Any]], str]
    annotate: Callable[[Dataset, list[Picture], Path], list[str]]  # -> notes


def export(dataset: Dataset, format: str, out: Path) -> ExportReport:
    """Write `dataset` to the new folder `out`; raises a ValueError of one line if that cannot be.

    The folder appears under its name when it is whole.
    """
    family = dataset.info.family
    fitting = [name for name, form in EXPORTS.items() if family in form.families]
    if format not in fitting:
        raise ValueError(
            f"format (={format!r}) cannot hold a dataset of {family}; {family} goes into {', '.join(fitting)}"
        )
    with whole_folder(out) as partial:
        pictures = list(_write_images(dataset, EXPORTS[format], partial))
        notes = EXPORTS[format].annotate(dataset, pictures, partial)
    images = {split: sum(picture.split == split for picture in pictures) for split in SPLITS}
    return ExportReport(
        name=dataset.info.name, format=format, path=str(out), images=images, notes=tuple(notes)
    )


def _write_images(dataset: Dataset, form: Export, root: Path) -> Iterator[Picture]:
    taken: set[tuple[str, str]] = set()
    for split in SPLITS:
        for shard in dataset.shards(split):
            for batch in pq.ParquetFile(shard).iter_batches(READ_ROWS):
                for row in batch.to_pylist():
                    data = row.pop("image")
                    folder = form.folder(dataset, split, row)
                    file = f"{folder}/{_free_name(row, folder, taken)}"
                    path = root / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                    turned = 1 if dataset.info.family in NUM_AXES else read_orientation(data)
                    yield Picture(row, split, file, turned)


def _free_name(row: dict[str, Any], folder: str, taken: set[tuple[str, str]]) -> str:
    """A file name that nothing in the folder has but for its extension, however capitals are treated."""
    name = row["id"].rpartition("/")[2]
    whole = row["id"].replace("/", "__")
    candidates = [name, whole]
    if not _has_ending(name):
        candidates = [candidate + ENDINGS[row["format"]][0] for candidate in candidates]
    number = 1
    while (folder, splitext(candidates[0])[0].lower()) in taken:
        if len(candidates) > 1:
            candidates.pop(0)
        else:
            number += 1
            stem, ending = splitext(whole if _has_ending(whole) else candidates[0])
            candidates = [f"{stem}-{number}{ending}"]
    taken.add((folder, splitext(candidates[0])[0].lower()))
    return candidates[0]


def _has_ending(name: str) -> bool:
    return name.lower().endswith(tuple(ending for endings in ENDINGS.values() for ending in endings))


# --------------------------------------------------------------------------------------------- boxes


def _annotate_coco(dataset: Dataset, pictures: list[Picture], root: Path) -> list[str]:
    categories = [{"id": i, "name": label} for i, label in enumerate(dataset.info.classes, 1)]
    (root / "annotations").mkdir()
    for split in SPLITS:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for picture in pictures:
            if picture.split != split:
                continue
            width, height = stored_size(picture.size, picture.orientation)
            name = picture.file.removeprefix(f"{split}/")
            images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
            boxes = stored_boxes(picture).tolist()
            # of a box as it is stored, so that it is no area of its own when it comes back
            low, high = np.split(np.array(picture.row["boxes_xyxy"], np.float64).reshape(-1, 4), 2, axis=1)
            areas = picture.row.get("box_areas") or (high - low).prod(1).tolist()
            for box, label, flags, area in zip(
                boxes, picture.row["box_labels"], picture.row["box_flags"], areas, strict=True
            ):
                w, h = box[2] - box[0], box[3] - box[1]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(images),
                        "category_id": label + 1,
                        "bbox": [box[0], box[1], w, h],
                        "area": area,
                        "iscrowd": int(bool(flags & CROWD)),
                        **{key: 1 for key, bit in FLAG_KEYS.items() if flags & bit and bit != CROWD},
                    }
                )
        if images:
            document = {"images": images, "annotations": annotations, "categories": categories}
            (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return []


def stored_boxes(picture: Picture) -> np.ndarray:
    """The boxes (n, 4) in the pixels as stored, float64."""
    boxes = np.array(picture.row["boxes_xyxy"], np.float64).reshape(-1, 4)
    width, height = (np.array(side, np.float64) for side in picture.size)
    return turn_boxes(boxes, INVERSE[picture.orientation], width, height)


def _annotate_yolo(dataset: Dataset, pictures: list[Picture], root: Path) -> list[str]:
    num_crowds = num_flags = 0
    for picture in pictures:
        width, height = picture.size
        lines = []
        boxes = np.array(picture.row["boxes_xyxy"], np.float64).reshape(-1, 4).tolist()
        for (x0, y0, x1, y1), label, flags in zip(
            boxes, picture.row["box_labels"], picture.row["box_flags"], strict=True
        ):
            num_flags += bool(flags & ~CROWD)
            if flags & CROWD:
                num_crowds += 1
                continue
            values = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            lines.append(" ".join([str(label), *map(repr, values)]) + "\n")
        file = root / f"labels/{splitext(picture.file.removeprefix('images/'))[0]}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines))
    splits: dict[str, str] = {split: f"images/{split}" for split in SPLITS if dataset.info.num_images(split)}
    settings: dict[str, Any] = {"path": ".", **splits, "names": dict(enumerate(dataset.info.classes))}
    (root / "data.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    notes = [f"{num_crowds:,} boxes of crowds were left out"] if num_crowds else []
    notes += [f"{num_flags:,} boxes lost their flags: YOLO has none"] if num_flags else []
    return notes + (["boxes lost their own areas: YOLO has none"] if dataset.info.box_areas else [])


# ------------------------------------------------------------------------------------------- folders


def _class_folder(dataset: Dataset, split: Split, row: dict[str, Any]) -> str:
    if "label" not in row:
        return split
    label = dataset.info.classes[row["label"]]
    if "/" in label or "\\" in label or label.startswith(".") or label == "__MACOSX":
        raise ValueError(f"class {label!r} cannot be the name of a folder; rename it in the source")
    return f"{split}/{label}"


def _annotate_folders(dataset: Dataset, pictures: list[Picture], root: Path) -> list[str]:
    if dataset.info.family == "landmarks":
        _write_landmarks(dataset, pictures, root / "landmarks.csv")
    if PAIRS_FILE in dataset.info.files_sha256:
        file = {picture.row["id"]: picture.file for picture in pictures}
        with (root / "pairs.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path_a", "path_b", "same", "fold"])
            for pair in pq.read_table(dataset.files / PAIRS_FILE).to_pylist():
                writer.writerow([file[pair["id_a"]], file[pair["id_b"]], int(pair["same"]), pair["fold"]])
    if dataset.info.alignment is not None:
        (root / aligned.FILE).write_text(dataset.info.alignment.model_dump_json(indent=2) + "\n")
    return []


def _write_landmarks(dataset: Dataset, pictures: list[Picture], path: Path) -> None:
    names = dataset.info.points
    columns = [
        f"{axis}{name}" if name.isdecimal() else f"{name}_{axis}"
        for name in names
        for axis in ("x", "y", "v")
    ]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "split", "group", *columns])
        for picture in pictures:
            points = np.array(picture.row["points_xy"], np.float64).reshape(-1, 2)
            visible = picture.row["visible"]
            width, height = (np.array(side - 1.0) for side in picture.size)
            stored = turn_xy(points, INVERSE[picture.orientation], width, height).tolist()
            cells = []
            for (x, y), upright, seen in zip(stored, points.tolist(), visible, strict=True):
                given = seen or any(upright)
                cells += [repr(x) if given else "", repr(y) if given else "", int(seen)]
            writer.writerow([picture.file, picture.split, picture.row["group"], *cells])


EXPORTS: dict[str, Export] = {
    "coco": Export(families=("detection",), folder=lambda d, split, row: split, annotate=_annotate_coco),
    "yolo": Export(
        families=("detection",), folder=lambda d, split, row: f"images/{split}", annotate=_annotate_yolo
    ),
    "folders": Export(
        families=("classification", "faces", "style", "landmarks", "signals", "volumes"),
        folder=_class_folder,
        annotate=_annotate_folders,
    ),
}
