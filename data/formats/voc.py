"""Pascal VOC's XML of boxes: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html (section 2.4).

An XML file for each image, found by the image's file name: in Annotations/ beside JPEGImages/, beside the image, or
below a split's folder. Corners are pixels counted from 1, both inside the box; here they become edges from 0:
x0 = xmin - 1, x1 = xmax. Tools that write edges instead (labelImg and others) differ from that by one pixel on the
left and top at most. xmin = 0 is taken as the edge, and xmin = xmax, which would be one pixel, as a box
without area, since that is what it is in practice.

The parser expands no entity and fetches nothing: a file with a document type is refused.
"""

import re
from collections.abc import Iterable
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from data.archive import FileTree
from data.dataset import DIFFICULT, TRUNCATED, Split
from data.formats.listing import (
    LISTED_ONLY,
    NO_ANNOTATION,
    NO_BOXES,
    Boxes,
    ImageIndex,
    Listing,
    RawItem,
    count_ignored,
    read_annotations,
    read_text,
    split_of_folders,
    wanted_files,
)

MAX_XML_BYTES = 16 << 20
MAX_DEPTH = 64
_LIST = re.compile(r"(?P<root>.*/)?ImageSets/Main/(?P<list>train|val|test|trainval)\.txt")


def is_voc(tree: FileTree) -> bool:
    """Whether there is an XML file."""
    return any(name.lower().endswith(".xml") for name in wanted_files(tree))


def list_voc(tree: FileTree) -> Listing:
    """List the images of a source with XML annotations; what cannot be parsed sets its image aside."""
    found = read_annotations(tree, ".xml", read_voc, MAX_XML_BYTES, _by_content)
    objects, issues = found.parsed, found.issues
    names = {row[1] for _, rows in objects.values() for row in rows}
    number = {label: i for i, label in enumerate(sorted(names))}
    lists, splits = _read_lists(tree, wanted_files(tree), found.index, issues)
    items = []
    for path in found.pictures:
        if lists and path not in splits:
            continue
        split = splits.get(path) or split_of_folders(path)
        fault = found.faults.get(path, "")
        size, rows = objects.get(path, (None, []))
        if not rows and not fault:
            issues[NO_BOXES if path in found.files else NO_ANNOTATION].append(path)
        targets = {"boxes": _boxes(size, rows, number)}
        items.append(RawItem(path.removeprefix(found.top), path, targets, split, fault=fault))
    used = {item.path for item in items} | set(found.files.values()) | lists
    why = "not named in ImageSets" if lists else "no image or annotation"
    ignored = count_ignored(tree, used, why)
    return Listing(tuple(items), ignored, classes=tuple(number), issues=dict(issues))


def _by_content(tree: FileTree, name: str, index: ImageIndex) -> str | None:
    """The image that the annotation itself names."""
    try:
        file = parse_xml(read_text(tree, name, MAX_XML_BYTES)).findtext("filename")
    except ValueError:
        return None
    return index.find(file.strip(), name) if file else None


def _read_lists(
    tree: FileTree, names: Iterable[str], index: ImageIndex, issues: dict[str, list[str]]
) -> tuple[set[str], dict[str, Split]]:
    """The lists in ImageSets/Main, and the split of each image that they name."""
    lists = {name: match for name in names if (match := _LIST.fullmatch(name))}
    splits: dict[str, Split] = {}
    for name, match in lists.items():
        root = match["root"] or ""
        if match["list"] == "trainval" and f"{root}ImageSets/Main/train.txt" in lists:
            continue  # train and val together, once more
        split: Split = "train" if match["list"] == "trainval" else match["list"]  # type: ignore[assignment]
        for stem in read_text(tree, name).split("\n"):
            if not stem.strip():
                continue
            path = index.find_stem(stem.split()[0], name)
            if path is None:
                issues[LISTED_ONLY].append(f"{name}: {stem.strip()[:100]}")
            elif splits.setdefault(path, split) != split:
                raise ValueError(f"{name}: {stem.strip()!r} is listed for {splits[path]} too; list it once")
    return set(lists), splits


def _boxes(size: tuple[int, int] | None, rows: list[Any], number: dict[str, int]) -> Boxes:
    corners = np.array([row[0] for row in rows], np.float64).reshape(-1, 4)
    has_area = corners[:, 2:] > corners[:, :2]
    corners[:, :2] -= has_area & (corners[:, :2] >= 1)
    return Boxes(
        boxes_xyxy=corners,
        labels=np.array([number[row[1]] for row in rows], np.int64),
        flags=np.array([row[2] for row in rows], np.uint8),
        size=size,
    )


def read_voc(text: str) -> tuple[tuple[int, int] | None, list[tuple[list[float], str, int]]]:
    """Parse one annotation: the image's width and height, and corners, class and flags of each object.

    Raises a ValueError of one line.
    """
    root = parse_xml(text)
    if root.tag != "annotation":
        raise ValueError(f"the root is <{root.tag[:50]}>; Pascal VOC has <annotation>")
    sides = [root.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    known = all(side.isascii() and side.isdecimal() and len(side) < 10 and int(side) > 0 for side in sides)
    rows = []
    for i, entry in enumerate(root.findall("object")):
        label = " ".join(entry.findtext("name", "").split())
        if not label or not label.isprintable():
            raise ValueError(f"object {i} must have a name of printable characters")
        corners = [_corner(entry, i, key) for key in ("xmin", "ymin", "xmax", "ymax")]
        flags = DIFFICULT * _is_set(entry, "difficult") | TRUNCATED * _is_set(entry, "truncated")
        rows.append((corners, label, flags))
    return ((int(sides[0]), int(sides[1])) if known else None), rows


def _corner(entry: Element, i: int, key: str) -> float:
    text = entry.findtext(f"bndbox/{key}", "").strip()
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"object {i}: {key} (={text[:50]!a}) must be a number of pixels") from None


def _is_set(entry: Element, key: str) -> bool:
    return entry.findtext(key, "").strip().lower() in ("1", "true")


def parse_xml(text: str) -> Element:
    """Parse XML without document type, hence without entities; raises a ValueError of one line."""
    builder = TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"elements lie more than {MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type (<!DOCTYPE>), which is not read; remove that line")

    parser = expat.ParserCreate("utf-8")  # the text is decoded already, whatever its header says
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        raise ValueError(f"not readable as XML ({error})") from None
    return builder.close()
