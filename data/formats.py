"""How datasets come: each reader turns a source's list of files into images with their targets.

A reader sees the whole list of names (`data.archive.FileTree`) and may read small files of it, such as tables and
annotations; it names the images without reading them, so listing a million costs no memory for pixels. `FORMATS` is
tried from the top. A new one is a function `FileTree -> Listing` and a line there; what it knows of an image
besides the split goes into `RawItem.targets`, by the dataset's column names.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.archive import FileTree, parents_of, read_regular_file, safe_name
from data.dataset import Split
from data.decode import EXTENSIONS

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
MAX_TABLE_BYTES = 1 << 30
_IMAGE_ENDINGS = tuple(ending for endings in EXTENSIONS.values() for ending in endings)


@dataclass(frozen=True, slots=True)
class RawItem:
    """One image of a source, not read yet."""

    id: str  # unique; the path inside the source
    path: str  # what FileTree.read takes
    targets: dict[str, Any]  # classification: {"label": class name}
    split: Split | None = None  # as the source has it
    group: str | None = None  # what must stay on one side of a split: a person, a patient, a video


@dataclass(frozen=True, slots=True)
class Listing:
    """What a reader found."""

    items: tuple[RawItem, ...]
    ignored: dict[str, int] = field(default_factory=dict)  # reason: number of files
    empty_classes: tuple[str, ...] = ()  # folders that stand for a class and hold no file


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way a dataset can be laid out."""

    families: tuple[str, ...]
    matches: Callable[[FileTree], bool]
    list_items: Callable[[FileTree], Listing]


def list_source(tree: FileTree, family: str) -> Listing:
    """List the images of a source by the first format that fits; raises a ValueError of one line."""
    known = sorted({name for form in FORMATS.values() for name in form.families})
    if family not in known:
        raise ValueError(f"family (={family!r}) has no reader; known: {', '.join(known)}")
    for form in FORMATS.values():
        if family in form.families and form.matches(tree):
            listing = form.list_items(tree)
            if not listing.items and not listing.empty_classes:
                ignored = "".join(f"; {count} {reason}" for reason, count in sorted(listing.ignored.items()))
                raise ValueError(f"{tree.name}: no images found: {_LAYOUT}{ignored}")
            return listing
    raise ValueError(f"{tree.name}: no known layout for {family}; {_LAYOUT}")


_LAYOUT = "put them in one folder per class, or in train/CLASS and test/CLASS folders, or name them in a .csv"


# ------------------------------------------------------------------------------------------ folders


def list_folders(tree: FileTree) -> Listing:
    """Folder per class, below split folders where there are some.

    `class/img`, `split/class/img`, and either of them below further single folders (which are left out of ids).
    Deeper folders belong to the class above them. Hidden files, READMEs, files beside the class folders and folders
    without images are ignored and counted.
    """
    reasons = {name: _ignore_reason(name) for name in tree.sizes}
    ignored = Counter(reason for reason in reasons.values() if reason)
    names = [name for name, reason in reasons.items() if not reason]
    names, folders = _leave_out_lists(names, [folder for folder in tree.folders if not _is_hidden(folder)])
    top = _common_top(names, folders)
    inside = [name.removeprefix(top) for name in names if name.startswith(top)]
    folders = [folder.removeprefix(top) for folder in folders if folder.startswith(top)]
    depth = 2 if _has_splits(tree.name, inside, folders) else 1

    items = []
    for name in inside:
        *parents, _file = name.split("/")
        if len(parents) >= depth:
            split = SPLIT_NAMES[parents[0].lower()] if depth == 2 else None
            items.append(RawItem(name, top + name, {"label": parents[depth - 1]}, split))
    ignored["not in a class folder"] = len(tree.sizes) - ignored.total() - len(items)
    classes = {folder.split("/")[depth - 1] for folder in folders if folder.count("/") >= depth - 1}
    empty = classes - {item.targets["label"] for item in items}
    counts = {reason: count for reason, count in sorted(ignored.items()) if count}
    return Listing(tuple(items), counts, tuple(sorted(empty)))


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX/")) or "/." in name or "/__MACOSX/" in name


def _ignore_reason(name: str) -> str:
    file = name.rpartition("/")[2].lower()
    if _is_hidden(name) or file in ("thumbs.db", "desktop.ini"):
        return "hidden"
    stem, _, suffix = file.partition(".")
    if stem in ("readme", "license", "licence") and suffix in ("", "txt", "md", "rst"):
        return "readme or licence"
    return ""


def _leave_out_lists(names: list[str], folders: list[str]) -> tuple[list[str], list[str]]:
    """Leave out folders whose files are all of other kinds than images, by their names: lists, annotations, code.

    Folders without any file stay (a class that somebody forgot to fill), and so does everything where no file at
    all is named like an image.
    """
    pictured = parents_of(name for name in names if name.lower().endswith(_IMAGE_ENDINGS))
    if not pictured:
        return names, folders
    filled = parents_of(names)
    kept = [name for name in names if "/" not in name or name.rpartition("/")[0] in pictured]
    return kept, [folder for folder in folders if folder in pictured or folder not in filled]


def _common_top(names: list[str], folders: list[str]) -> str:
    """The folders above everything, as a prefix ending in '/': wrapping that says nothing about the images."""
    top = ""
    while True:
        heads = {folder.removeprefix(top).split("/")[0] for folder in folders if folder.startswith(top)} - {
            ""
        }
        if len(heads) != 1:
            return top
        (head,) = heads
        inner = f"{top}{head}/"
        holds_folders = any(folder.startswith(inner) for folder in folders)
        holds_files = any(name.startswith(inner) and "/" not in name.removeprefix(inner) for name in names)
        is_split = head.lower() in SPLIT_NAMES
        if not holds_folders or is_split or (holds_files and not _looks_wrapped(names, inner)):
            return top
        top = inner


def _looks_wrapped(names: list[str], inner: str) -> bool:
    """Whether most files below a lone folder lie deeper: then what lies directly in it are notes and lists."""
    depths = [name.removeprefix(inner).count("/") for name in names if name.startswith(inner)]
    return sum(depth > 0 for depth in depths) > len(depths) / 2


def _has_splits(source: str, names: list[str], folders: list[str]) -> bool:
    """Whether the folders at the top are splits: named so, and holding folders of their own.

    A class may well be called "train": its images lie directly in it.
    """
    heads = {folder.split("/")[0] for folder in folders} | {
        name.split("/")[0] for name in names if "/" in name
    }
    nested = {folder.split("/")[0] for folder in folders if "/" in folder}
    splits = {head for head in heads if head.lower() in SPLIT_NAMES and head in nested}
    others = heads - splits
    if splits and others:
        raise ValueError(
            f"{source}: split folders ({', '.join(sorted(splits))}) stand beside others "
            f"({', '.join(sorted(others)[:5])}); move the others away, so that it is clear which folders are classes"
        )
    return bool(splits)


# -------------------------------------------------------------------------------------------- table


def list_table(tree: FileTree) -> Listing:
    """A CSV with columns `path` and `label`, and if wanted `split` and `group`; paths are relative to it."""
    (name,) = tree.sizes
    try:
        text = tree.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 text ({error}); save the table as UTF-8") from None
    items: dict[str, RawItem] = {}
    try:
        for where, row in _table_rows(name, text):
            item = _table_item(where, row)
            if item.id in items:
                raise ValueError(f"{where}: path {item.id!r} stands in the table twice")
            items[item.id] = item
    except csv.Error as error:
        raise ValueError(f"{name}: not a readable CSV ({error})") from None
    return Listing(tuple(items.values()))


def _table_rows(name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = [column.strip() for column in reader.fieldnames or ()]
    unknown = set(columns) - {"path", "label", "split", "group"}
    if not {"path", "label"} <= set(columns) or len(set(columns)) != len(columns):
        raise ValueError(
            f"{name}: columns ({', '.join(columns) or 'none'}) must have path and label, and may have split and "
            "group, separated by commas"
        )
    if unknown:
        raise ValueError(
            f"{name}: unknown columns {', '.join(sorted(unknown))}; known: path, label, split, group"
        )
    reader.fieldnames = columns
    for row in reader:
        where = f"{name} line {reader.line_num}"
        if None in row or None in row.values():
            raise ValueError(f"{where}: it must have {len(columns)} fields ({', '.join(columns)})")
        yield where, {column: value.strip() for column, value in row.items()}


def _table_item(where: str, row: dict[str, str]) -> RawItem:
    if not row["path"] or not row["label"]:
        missing = "path" if not row["path"] else "label"
        raise ValueError(f"{where}: {missing} is empty")
    if not row["label"].isprintable():
        raise ValueError(f"{where}: label {row['label']!a} holds control characters")
    split = row.get("split", "")
    if split and split.lower() not in SPLIT_NAMES:
        raise ValueError(f"{where}: split (={split!r}) must be one of {', '.join(SPLIT_NAMES)}, or empty")
    path = safe_name(row["path"], where)
    side = SPLIT_NAMES[split.lower()] if split else None
    return RawItem(path, path, {"label": row["label"]}, side, row.get("group") or None)


def table_tree(path: Path) -> FileTree:
    """The tree of a CSV file: itself, and by `read` whatever lies in its folder, links out of it excepted."""
    folder = path.parent.resolve()
    size = path.stat().st_size
    if size > MAX_TABLE_BYTES:
        raise ValueError(f"{path}: {size:,} bytes are too many for a table (limit {MAX_TABLE_BYTES:,})")

    def read(name: str) -> bytes:
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            raise ValueError("links to a file outside the table's folder")
        return read_regular_file(file)

    return FileTree(path.name, {path.name: size}, frozenset(), read)


FORMATS: dict[str, Format] = {
    "table": Format(
        families=("classification",),
        matches=lambda tree: len(tree.sizes) == 1 and next(iter(tree.sizes)).lower().endswith(".csv"),
        list_items=list_table,
    ),
    "folders": Format(families=("classification",), matches=lambda tree: True, list_items=list_folders),
}
