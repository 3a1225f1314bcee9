"""COCO's JSON of boxes: https://cocodataset.org/#format-data (object detection).

One JSON file for each split, told by its name (`instances_train2017.json`) or its folder; `bbox` is x, y, width,
height in pixels, edges from 0, and `area`, where it is there, that of the mask. Beside `iscrowd` a box may have our own
keys `difficult` and `truncated`. An image that is listed without annotations is background; one that no JSON lists is
left out, since nobody looked at it; one with a `bbox` that is not four numbers, or with annotations of which none has a
`bbox`, is set aside.
"""

import json
import math
from collections import defaultdict
from typing import Any

import numpy as np

from data.archive import FileTree, safe_name
from data.dataset import CROWD, DIFFICULT, TRUNCATED, Split
from data.formats.listing import (
    NO_BOXES,
    NO_IMAGE,
    Boxes,
    ImageIndex,
    Listing,
    RawItem,
    common_folder,
    count_ignored,
    is_image_name,
    read_text,
    split_of_folders,
    split_of_name,
    wanted_files,
)

UNKNOWN_IMAGE = "boxes of an image that is not listed"
FLAG_KEYS = {"iscrowd": CROWD, "difficult": DIFFICULT, "truncated": TRUNCATED}
NO_BBOX = "annotations without a box, left out"


def is_coco(tree: FileTree) -> bool:
    """Whether a JSON file speaks of images and categories."""
    return bool(_files(tree))


def _files(tree: FileTree) -> list[str]:
    found = []
    for name in wanted_files(tree):
        if name.lower().endswith(".json"):
            try:
                data = tree.read(name)
            except (OSError, ValueError):
                continue
            if b'"images"' in data and b'"categories"' in data:
                found.append(name)
    # beside the boxes, COCO's own archives have the same images with captions and body points
    instances = [name for name in found if name.rpartition("/")[2].startswith("instances")]
    return instances or found


def why_not_coco(tree: FileTree) -> str:
    """What is wrong with the first JSON file that speaks of images and cannot be read as COCO's; or nothing."""
    for name in wanted_files(tree):
        if name.lower().endswith(".json"):
            try:
                text = read_text(tree, name)
                if '"images"' in text:
                    read_coco(name, text)
            except ValueError as error:
                return str(error)
    return ""


def list_coco(tree: FileTree) -> Listing:
    """List the images of all JSON files of a source; raises a ValueError of one line for a file that is none."""
    files = _files(tree)
    documents = {name: read_coco(name, read_text(tree, name)) for name in files}
    classes = merge_categories(documents)
    number = {label: index for index, label in enumerate(classes)}
    pictures = [name for name in wanted_files(tree) if is_image_name(name)]
    index, top = ImageIndex(pictures), common_folder(pictures)
    items: dict[str, RawItem] = {}
    listed_in: dict[str, str] = {}
    issues: dict[str, list[str]] = defaultdict(list)
    for name, document in documents.items():
        split = split_of_name(name.rpartition("/")[2]) or split_of_folders(name)
        boxes, faults = _boxes_by_image(name, document, number, issues)
        for image in document["images"]:
            path = index.find(image["file_name"], name, split)
            if path is None:
                issues[NO_IMAGE].append(f"{name}: {image['file_name']}")
                continue
            if path in listed_in:
                raise ValueError(
                    f"{name}: image {path!r} is listed in {listed_in[path]} too; list it once, in one file"
                )
            listed_in[path] = name
            found, fault = boxes[image["id"]], faults.get(image["id"], "")
            if not found and not fault:
                issues[NO_BOXES].append(path)
            items[path] = _item(path, top, split, image, found, fault)
    ignored = count_ignored(tree, set(items) | set(files), "not listed in the COCO JSON")
    notes = _same_names(documents)
    return Listing(tuple(items.values()), ignored, classes=classes, issues=dict(issues), notes=notes)


def _same_names(documents: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Categories of one file that are called alike, and are so one class."""
    notes = []
    for name, document in documents.items():
        keys: dict[str, list[str]] = defaultdict(list)
        for key, label in document["categories"].items():
            keys[label].append(str(key))
        notes += [
            f"{name}: categories {', '.join(alike)} are all called {label!r}, and taken as one class"
            for label, alike in keys.items()
            if len(alike) > 1
        ]
    return tuple(notes)


def _item(
    path: str, top: str, split: Split | None, image: dict[str, Any], rows: list[Any], fault: str
) -> RawItem:
    corners = np.array([row[0] for row in rows], np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # such boxes are left out later
        corners[:, 2:] += corners[:, :2]
    boxes = Boxes(
        boxes_xyxy=corners,
        labels=np.array([row[1] for row in rows], np.int64),
        flags=np.array([row[2] for row in rows], np.uint8),
        areas=np.array([row[3] for row in rows], np.float64),
        size=image["size"],
    )
    return RawItem(path.removeprefix(top), path, {"boxes": boxes}, split, fault=fault)


def _boxes_by_image(
    name: str, document: dict[str, Any], number: dict[str, int], issues: dict[str, list[str]]
) -> tuple[dict[Any, list[Any]], dict[Any, str]]:
    """(x, y, w, h), label, flags and area of each box, and why boxes cannot be read, by the image's id."""
    labels = {key: number[label] for key, label in document["categories"].items()}
    known = {image["id"] for image in document["images"]}
    boxes: dict[Any, list[Any]] = defaultdict(list)
    faults: dict[Any, str] = {}
    without: dict[Any, str] = {}
    for annotation in document["annotations"]:
        image, where = annotation["image_id"], f"{name}: annotation {ascii(annotation['id'])[:50]}"
        if image not in known:
            issues[UNKNOWN_IMAGE].append(where)
        elif annotation["fault"]:
            faults.setdefault(image, f"{where}: {annotation['fault']}")
        elif annotation["bbox"] is None:
            issues[NO_BBOX].append(where)
            without.setdefault(image, f"{where} has no bbox, and no other of this image has one")
        else:
            label = labels.get(annotation["category_id"], -1)
            row = (annotation["bbox"], label, annotation["flags"], annotation["area"])
            boxes[image].append(row)
    return boxes, {image: fault for image, fault in without.items() if image not in boxes} | faults


def read_coco(name: str, text: str) -> dict[str, Any]:
    """Parse and check one file: `images`, `annotations` (lists) and `categories` (id: name).

    Raises a ValueError of one line that names the entry, for anything that is not as COCO has it, but for a `bbox`:
    that is a `fault` of its annotation.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not readable as JSON ({str(error)[:200]})") from None
    if not isinstance(document, dict):
        raise ValueError(f"{name}: a COCO file must be an object with images, annotations and categories")
    images = [_read_image(name, i, entry) for i, entry in _entries(name, document, "images")]
    if len({image["id"] for image in images}) != len(images):
        raise ValueError(f"{name}: two images have the same id; ids must be unique")
    categories: dict[Any, str] = {}
    for i, entry in _entries(name, document, "categories"):
        key = _identity(f"{name}: categories[{i}]", entry, "id")
        label = " ".join(str(entry.get("name", "")).split())
        if not label or not label.isprintable():
            raise ValueError(f"{name}: categories[{i}] must have a name of printable characters")
        if categories.setdefault(key, label) != label:
            raise ValueError(f"{name}: category id {key!r} is given to {categories[key]!r} and to {label!r}")
    annotations = []
    if "annotations" in document:  # test sets have none
        annotations = [_read_box(name, i, entry) for i, entry in _entries(name, document, "annotations")]
    return {"images": images, "annotations": annotations, "categories": categories}


def _entries(name: str, document: dict[str, Any], key: str) -> list[tuple[int, dict[str, Any]]]:
    values = document.get(key)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError(f"{name}: {key} must be a list of objects, as in COCO's instances_*.json")
    return list(enumerate(values))


def _identity(where: str, entry: dict[str, Any], key: str) -> int | str:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{where}: {key} (={str(value)[:50]!a}) must be a number or a text")
    return value


def _read_image(name: str, i: int, entry: dict[str, Any]) -> dict[str, Any]:
    where = f"{name}: images[{i}]"
    file = entry.get("file_name")
    if not isinstance(file, str) or not file.strip():
        raise ValueError(f"{where}: file_name is missing; it must be the image's name or path")
    file = safe_name(file.replace("\\", "/"), where)
    size = (entry.get("width"), entry.get("height"))
    known = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size)
    return {"id": _identity(where, entry, "id"), "file_name": file, "size": size if known else None}


def _read_box(name: str, i: int, entry: dict[str, Any]) -> dict[str, Any]:
    where = f"{name}: annotations[{i}]"
    box, fault = entry.get("bbox"), ""
    if box is not None and box != []:
        try:
            box = _sides(box)
        except ValueError as error:
            box, fault = None, str(error)
    return {
        "id": entry.get("id", i),
        "image_id": _identity(where, entry, "image_id"),
        "category_id": _identity(where, entry, "category_id"),
        "bbox": box or None,
        "fault": fault,
        "flags": sum(bit for key, bit in FLAG_KEYS.items() if entry.get(key) in (1, True)),
        "area": _area(entry.get("area")),
    }


def _area(value: Any) -> float:
    """An annotation's area, NaN where it gives none; what is no number is -1, which data.targets counts as unusable."""
    if value is None:
        return math.nan
    try:
        number = _number(value)
    except ValueError:
        return -1.0
    return -1.0 if math.isnan(number) else number


def _sides(box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError("bbox must be four numbers: x, y, width, height in pixels")
    return [_number(value) for value in box]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"bbox holds {str(value)[:50]!a}; it must be four numbers")
    try:
        return float(value)
    except OverflowError:
        return math.inf  # left out later, with all boxes that are not finite


def merge_categories(documents: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """The classes of all files, by name; in order of their ids."""
    first: dict[str, tuple[bool, Any, int]] = {}
    for document in documents.values():
        for key, label in document["categories"].items():
            place = (isinstance(key, str), key, len(first))
            first[label] = min(first.get(label, place), place)
    return tuple(sorted(first, key=lambda label: first[label]))
