"""YOLO's text of boxes: https://docs.ultralytics.com/datasets/detect/.

A text file for each image, `class cx cy w h` in each line, as shares of the sides of the upright image; an image
without one is background. `images/a/1.jpg` has `labels/a/1.txt`, or `1.txt` lies beside it. A line with the corners
of a polygon (`class x1 y1 x2 y2 x3 y3 ...`) counts as the box around it. Class names come from data.yaml (`names`), or
from a file with one name a line. Splits come from data.yaml's paths where it has them, else from folders.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from posixpath import splitext
from typing import Any

import numpy as np
import yaml

from data.archive import FileTree
from data.dataset import SPLITS, Split
from data.formats.listing import (
    NO_ANNOTATION,
    NO_BOXES,
    Boxes,
    ImageIndex,
    Listing,
    RawItem,
    common_folder,
    count_ignored,
    fault_of,
    is_hidden,
    is_image_name,
    read_text,
    split_of_folders,
    wanted_files,
)

MAX_LABEL_BYTES = 16 << 20
MAX_SETTINGS_BYTES = 1 << 20  # of a data.yaml: a megabyte takes PyYAML some ten seconds
NO_LABELLED_IMAGE = "label files whose image is missing"
_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")
LARGEST_SHARE = 2.0  # a box may reach over the edge, and is cut there; more than this must be pixels


def is_yolo(tree: FileTree) -> bool:
    """Whether an image has a text file where YOLO has it."""
    names = _visible(tree)
    return any(label_file(name, names) for name in wanted_files(tree) if is_image_name(name))


def _visible(tree: FileTree) -> set[str]:
    """Where label files are looked for: readme.txt is one, if there is a readme.png."""
    return {name for name in tree.sizes if not is_hidden(name)}


def label_file(path: str, names: set[str]) -> str | None:
    """The text file that belongs to an image, if there is one."""
    stem = splitext(path)[0]
    parts = stem.split("/")
    candidates = [stem]
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            candidates.insert(0, "/".join([*parts[:i], "labels", *parts[i + 1 :]]))
            break
    return next((f"{name}.txt" for name in candidates if f"{name}.txt" in names), None)


def list_yolo(tree: FileTree) -> Listing:
    """List the images of a source in YOLO's layout; a file that cannot be parsed sets its image aside."""
    wanted = wanted_files(tree)
    names = _visible(tree)
    pictures = [name for name in wanted if is_image_name(name)]
    top = common_folder(pictures)
    settings = [name for name in wanted if name.lower().endswith((".yaml", ".yml"))]
    described = {name: document for name in settings if "names" in (document := read_settings(tree, name))}
    classes, class_file = _class_names(tree, wanted, described)
    splits = _listed_splits(tree, described, pictures)
    issues: dict[str, list[str]] = defaultdict(list)
    items = []
    used = {*described, class_file}
    for path in pictures:
        file = label_file(path, names)
        rows, fault = [], ""
        if file is None:
            issues[NO_ANNOTATION].append(path)
        elif file in used:
            raise ValueError(
                f"{file}: it would be for two images, {path} and another of that name; rename one"
            )
        else:
            used.add(file)
            try:
                rows = read_yolo(read_text(tree, file, MAX_LABEL_BYTES))
            except ValueError as error:
                fault = fault_of(file, error)
            if not rows and not fault:
                issues[NO_BOXES].append(path)
        split = splits.get(path) or split_of_folders(path)
        targets = {"boxes": _boxes(rows, len(classes))}
        items.append(RawItem(path.removeprefix(top), path, targets, split, fault=fault))
    lost = [name for name in wanted if f"/{name}".rpartition("/labels/")[1] and name.endswith(".txt")]
    issues[NO_LABELLED_IMAGE] = [name for name in lost if name not in used]
    used |= {item.path for item in items}
    ignored = count_ignored(tree, used, "no image or label file")
    return Listing(tuple(items), ignored, classes=classes, issues={k: v for k, v in issues.items() if v})


def read_yolo(text: str) -> list[tuple[int, float, float, float, float]]:
    """Parse one label file: (class, x0, y0, x1, y1) of each line, as shares; raises a ValueError of one line."""
    rows = []
    for i, line in enumerate(text.split("\n"), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            label, *values = (float(field) for field in fields)
        except ValueError:
            raise ValueError(f"line {i}: {line.strip()[:60]!a} holds something else than numbers") from None
        if not label.is_integer() or abs(label) > 1e6:
            raise ValueError(f"line {i}: the class must be a whole number")
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise ValueError(f"line {i}: {len(fields)} fields; a box has 5: class cx cy w h")
        if not all(map(math.isfinite, values)):
            rows.append((int(label), *(math.nan,) * 4))  # left out later, with all boxes that are not numbers
            continue
        if max(map(abs, values)) > LARGEST_SHARE:
            raise ValueError(f"line {i}: values must be shares of the image's sides (0 to 1), not pixels")
        if len(values) == 4:
            cx, cy, w, h = values
            rows.append((int(label), cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
        else:
            xs, ys = values[::2], values[1::2]
            rows.append((int(label), min(xs), min(ys), max(xs), max(ys)))
    return rows


def _boxes(rows: list[tuple[int, float, float, float, float]], num_classes: int) -> Boxes:
    labels = np.array([row[0] for row in rows], np.int64)
    labels[(labels < 0) | (labels >= num_classes)] = -1
    return Boxes(
        boxes_xyxy=np.array([row[1:] for row in rows], np.float64).reshape(-1, 4),
        labels=labels,
        flags=np.zeros(len(rows), np.uint8),
        relative=True,
        upright=True,
    )


def read_settings(tree: FileTree, name: str) -> dict[str, Any]:
    """A data.yaml, all its values as texts; {} where the file is something else; raises a ValueError of one line."""
    text = read_text(tree, name, MAX_SETTINGS_BYTES)
    try:
        document = yaml.load(text, yaml.BaseLoader)  # makes texts, lists and mappings only
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not readable as YAML ({' '.join(str(error).split())[:200]})") from None
    return document if isinstance(document, dict) else {}


def _class_names(
    tree: FileTree, names: list[str], described: dict[str, dict[str, Any]]
) -> tuple[tuple[str, ...], str]:
    """The class names, and the file that they come from."""
    found = {name: names_of_settings(name, document["names"]) for name, document in described.items()}
    if not found:
        files = [name for name in names if name.rpartition("/")[2].lower() in _NAME_FILES]
        files += [name for name in names if name.lower().endswith(".names") and name not in files]
        found = {name: _names_of_lines(name, read_text(tree, name, MAX_LABEL_BYTES)) for name in files}
    if not found:
        raise ValueError(
            f"{tree.name}: no class names; add a data.yaml with names, or a classes.txt with one name a line"
        )
    if len(set(found.values())) > 1:
        raise ValueError(f"{tree.name}: {', '.join(sorted(found))} have different class names; leave one")
    name = min(found)
    return found[name], name


def _names_of_lines(name: str, text: str) -> tuple[str, ...]:
    return _checked(name, [line.strip() for line in text.strip().split("\n") if line.strip()])


def names_of_settings(name: str, names: Any) -> tuple[str, ...]:
    """The class names of a data.yaml: a list, or a mapping from 0, 1, 2, ...; raises a ValueError of one line."""
    if isinstance(names, dict):
        keys = list(names)
        if sorted(keys) != sorted(str(i) for i in range(len(keys))):
            raise ValueError(f"{name}: the keys of names must be 0, 1, 2, ... without gaps")
        names = [names[str(i)] for i in range(len(keys))]
    if not isinstance(names, list) or not all(isinstance(label, str) for label in names):
        raise ValueError(f"{name}: names must be a list of class names, or a mapping from their numbers")
    return _checked(name, [" ".join(label.split()) for label in names])


def _checked(name: str, labels: list[str]) -> tuple[str, ...]:
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"{name}: class names must be there, and differ")
    if not all(label and label.isprintable() for label in labels):
        raise ValueError(f"{name}: class names must be printable characters")
    return tuple(labels)


def _listed_splits(
    tree: FileTree, described: dict[str, dict[str, Any]], pictures: list[str]
) -> dict[str, Split]:
    """The split of each image, as the paths in data.yaml have it: folders, or lists of images."""
    splits: dict[str, Split] = {}
    for name, document in described.items():
        for split in SPLITS:
            paths = document.get(split, document.get("valid", []) if split == "val" else [])
            paths = [paths] if isinstance(paths, str) else paths
            if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
                raise ValueError(f"{name}: {split} must be a folder, a list file, or a list of these")
            for path in paths:
                for picture in _under(tree, name, path, pictures):
                    # coco128.yaml has the same folder for both: who trains on an image does not test on it
                    splits.setdefault(picture, split)
    return splits


def _under(tree: FileTree, settings: str, path: str, pictures: list[str]) -> Iterable[str]:
    """The images below a folder, or in a list, that data.yaml names; paths may start anywhere."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if not parts:
        return []
    wanted = "/".join(parts)
    if wanted.endswith(".txt"):
        base = settings.rpartition("/")[0]
        file = f"{base}/{wanted}".removeprefix("/")
        if file not in tree.sizes:
            return []
        index = ImageIndex(pictures)
        lines = [line.strip() for line in read_text(tree, file).split("\n")]
        return [found for line in lines if line and (found := index.find(line, file))]
    return [name for name in pictures if f"/{name}".find(f"/{wanted}/") >= 0]
