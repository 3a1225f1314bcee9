"""Files that hold many signals or volumes each: `.npz` archives of arrays, and CSV tables of values.

Each item is stored as the bytes of an `.npy` of its own: integers as they are, floats as float32.
"""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.archive import FileTree, parents_of
from data.dataset import Split
from data.decode import DecodeError
from data.formats.listing import (
    SPLIT_NAMES,
    Listing,
    RawItem,
    count_ignored,
    read_file,
    read_text,
    split_of_name,
    stem_of,
    wanted_files,
)
from data.npy import read_npz, write_npy

VALUES = ("x", "data", "signals", "volumes", "images")  # names of the array of items, in small letters
LABELS = ("y", "label", "labels", "target", "targets")
GROUPS = ("group", "groups")
CLASS_NAMES = ("classes", "class_names", "label_names")
HEADER_BYTES = 80  # of an .npy, where its size is told before it is written


@dataclass(frozen=True, slots=True)
class Part:
    """Some items of one file: N values with their labels."""

    file: str
    values: Sequence[np.ndarray]  # one array an item
    labels: Sequence[str]
    splits: Sequence[Split | None]
    groups: Sequence[str | None]
    names: Sequence[str] = ()  # of the items; otherwise they are numbered


def stored(values: np.ndarray) -> np.ndarray:
    """The type in which an item is kept: integers as they are, floats as float32, too large ones as infinite."""
    if values.dtype.kind in "biu":
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def list_parts(tree: FileTree, parts: Sequence[Part], used: set[str]) -> Listing:
    """The items of all parts, and a tree in which each is a file."""
    items: list[RawItem] = []
    read: dict[str, Callable[[], bytes]] = {}
    sizes: dict[str, int] = {}
    for part in parts:
        stem = part.file.rpartition(".")[0]
        for i, (values, label) in enumerate(zip(part.values, part.labels, strict=True)):
            name = part.names[i] if part.names else f"{i:06d}"
            path = f"{stem}/{name}.npy"
            number = 1
            while path in read:  # x_train and x_test of one file
                number += 1
                path = f"{stem}-{number}/{name}.npy"
            items.append(RawItem(path, path, {"label": label}, part.splits[i], part.groups[i]))
            read[path] = lambda values=values: write_npy(stored(values))  # type: ignore[misc]
            sizes[path] = HEADER_BYTES + values.size * values.dtype.itemsize
    inner = FileTree(tree.name, sizes, parents_of(sizes), lambda path: read[path]())
    return Listing(tuple(items), count_ignored(tree, used, "not a file of arrays"), tree=inner)


def _in_one_folder(tree: FileTree, ending: str) -> list[str]:
    """All wanted files, where they have this ending and lie in one folder; else none."""
    names = wanted_files(tree)
    together = len({name.rpartition("/")[0] for name in names}) == 1
    return names if together and all(name.lower().endswith(ending) for name in names) else []


# ---------------------------------------------------------------------------------------------- npz


def is_npz(tree: FileTree) -> bool:
    """Whether the source is `.npz` files side by side: a folder for each class would be several folders."""
    return bool(_in_one_folder(tree, ".npz"))


def list_npz(tree: FileTree, num_axes: int) -> Listing:
    """Arrays x (N, …) and y (N,) in each file; if wanted split or is_test, group, and classes (names, by y)."""
    names = _in_one_folder(tree, ".npz")
    parts = [part for name in names for part in read_parts(name, read_file(tree, name), num_axes)]
    return list_parts(tree, parts, set(names))


def read_parts(file: str, data: bytes, num_axes: int) -> list[Part]:
    """The items of one `.npz`; raises a ValueError of one line."""
    try:
        arrays = {name.lower(): array for name, array in read_npz(data).items()}
    except DecodeError as error:
        raise ValueError(f"{file}: {error}") from None
    for name in [name for name in arrays if name.endswith("_packed")]:
        arrays[name.removesuffix("_packed")] = _unpack_bits(file, arrays, name, num_axes)
    names = _first(arrays, CLASS_NAMES)
    parts = []
    for end in ("", *(f"_{split}" for split in SPLIT_NAMES)):
        values, labels = (_first(arrays, [key + end for key in keys]) for keys in (VALUES, LABELS))
        if values is None:
            continue
        if labels is None or labels.shape != values.shape[:1]:
            shape = "missing" if labels is None else f"of shape {labels.shape}"
            raise ValueError(
                f"{file}: labels are {shape}; beside x{end} of {len(values):,} items there must be y{end} of as many"
            )
        splits = [SPLIT_NAMES[end[1:]]] * len(values) if end else _splits(file, arrays, len(values))
        given = _first(arrays, GROUPS) if not end else None
        groups = [None] * len(values) if given is None else [str(group) for group in given]
        texts = [_label_text(file, label, names) for label in labels.tolist()]
        parts.append(Part(file, values, texts, splits, groups))
    if not parts:
        raise ValueError(
            f"{file}: it must hold x (N, …) with y (N,), or x_train, y_train, x_test, y_test (it has: "
            f"{', '.join(arrays) or 'nothing'})"
        )
    return parts


def _first(arrays: dict[str, np.ndarray], names: Sequence[str]) -> Any:
    return next((arrays[name] for name in names if name in arrays), None)


def _unpack_bits(file: str, arrays: dict[str, np.ndarray], name: str, num_axes: int) -> np.ndarray:
    """Items (N, …) of bits, which `numpy.packbits` made bytes (N, M) of: of the shape in `shape`, else cubes."""
    packed = arrays[name]
    if packed.dtype != np.uint8 or packed.ndim != 2:
        raise ValueError(f"{file}: {name} must be (N, bytes) uint8, as numpy.packbits(…, axis=1) gives it")
    bits = np.unpackbits(packed, axis=1)
    side = round(bits.shape[1] ** (1 / num_axes))
    shape = tuple(arrays["shape"].tolist()) if "shape" in arrays else (side,) * num_axes
    if int(np.prod(shape)) != bits.shape[1]:
        raise ValueError(
            f"{file}: {name} has {bits.shape[1]} bits an item, which is not {shape}; give `shape`"
        )
    return bits.reshape(-1, *shape)


def _label_text(file: str, label: Any, names: Any) -> str:
    if names is None or isinstance(label, str):
        return str(label)
    if not isinstance(label, int) or not 0 <= label < len(names):
        raise ValueError(f"{file}: label {label} is no place in its classes (0 to {len(names) - 1})")
    return str(names[label])


def _splits(file: str, arrays: dict[str, np.ndarray], num: int) -> list[Split | None]:
    """From `split` (names) or `is_test`, else by the file's name."""
    given, is_test = _first(arrays, ("split", "splits")), arrays.get("is_test")
    for column in (given, is_test):
        if column is not None and column.shape != (num,):
            raise ValueError(f"{file}: split or is_test must be ({num},), one an item, got {column.shape}")
    if given is not None:
        unknown = {str(name) for name in given} - set(SPLIT_NAMES)
        if unknown:
            raise ValueError(
                f"{file}: split (={sorted(unknown)[0]!r}) must be one of {', '.join(SPLIT_NAMES)}"
            )
        return [SPLIT_NAMES[str(name)] for name in given]
    if is_test is not None:
        return ["test" if flag else "train" for flag in is_test.astype(bool).tolist()]
    return [split_of_name(stem_of(file))] * num


# ------------------------------------------------------------------------------------- tables of values


def is_value_table(tree: FileTree) -> bool:
    """Whether the source is CSV files side by side, without the column `path` that names files."""
    names = _in_one_folder(tree, ".csv")
    return bool(names) and "path" not in _columns(tree, names[0])


def _columns(tree: FileTree, name: str) -> list[str]:
    first = read_text(tree, name).lstrip().partition("\n")[0]
    try:
        return [cell.strip() for cell in next(csv.reader(io.StringIO(first)), [])]
    except csv.Error:  # whoever reads the file says what is wrong with it
        return []


def list_value_tables(tree: FileTree) -> Listing:
    """A signal a row: `label`, if wanted `id`, `split`, `group`; all other columns are its values, in their order."""
    names = _in_one_folder(tree, ".csv")
    return list_parts(tree, [_read_values(tree, name) for name in names], set(names))


def _read_values(tree: FileTree, name: str) -> Part:
    reader = csv.reader(io.StringIO(read_text(tree, name), newline=""), strict=True)
    try:
        columns, *rows = [row for row in reader if row]
    except ValueError:
        raise ValueError(f"{name}: it has no line") from None
    except csv.Error as error:
        raise ValueError(f"{name}: not a readable CSV ({error})") from None
    columns = [column.strip() for column in columns]
    odd = next((column for column in columns if not column.isprintable()), None)
    if odd is not None:
        raise ValueError(f"{name}: a column's name (={odd!r}) has control characters")
    lower = [column.lower() for column in columns]
    if lower.count("label") != 1:
        raise ValueError(
            f"{name}: its first line must name the columns, one of them `label` (it has: {', '.join(columns[:8])}); "
            "all but label, id, split and group are values"
        )
    about = {key: lower.index(key) for key in ("label", "id", "split", "group") if key in lower}
    values = [i for i in range(len(columns)) if i not in about.values()]
    items, texts = [], []
    for number, row in enumerate(rows, 2):
        where = f"{name} line {number}"
        if len(row) > len(columns):
            raise ValueError(f"{where}: {len(row)} fields, more than its {len(columns)} columns")
        row += [""] * (len(columns) - len(row))
        texts.append({key: row[place].strip() for key, place in about.items()})
        if not texts[-1]["label"]:
            raise ValueError(f"{where}: label is empty")
        items.append(parse_values([row[i] for i in values], where))
    splits = [
        _split_cell(name, text["split"]) if "split" in text else split_of_name(stem_of(name))
        for text in texts
    ]
    groups = [text.get("group") or None for text in texts]
    named = [re.sub(r"[^\w.-]", "_", text["id"]) for text in texts] if "id" in about else []
    if len(set(named)) < len(named):
        raise ValueError(f"{name}: an id stands there twice")
    return Part(name, items, [text["label"] for text in texts], splits, groups, named)


def _split_cell(name: str, text: str) -> Split | None:
    if text and text.lower() not in SPLIT_NAMES:
        raise ValueError(f"{name}: split (={text!r}) must be one of {', '.join(SPLIT_NAMES)}, or empty")
    return SPLIT_NAMES[text.lower()] if text else None


def parse_values(cells: Sequence[str], where: str) -> np.ndarray:
    """Numbers (L,) float32; `?`, NaN and empty cells are missing, and those at the end are the signal's end."""
    texts = [cell.strip() for cell in cells]
    while texts and not texts[-1]:
        texts.pop()
    try:
        return stored(np.array(["nan" if text in ("", "?") else text for text in texts]).astype(np.float64))
    except ValueError as error:
        raise ValueError(f"{where}: a value is no number ({str(error)[-60:]})") from None
