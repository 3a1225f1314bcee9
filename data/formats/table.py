"""A CSV table with a path and a label in each row."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from data.archive import FileTree, read_regular_file, safe_name
from data.formats.listing import MAX_TABLE_BYTES, SPLIT_NAMES, Listing, RawItem


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
    if not items:
        raise ValueError(f"{name}: no row below the columns; name a file and its label in each")
    return Listing(tuple(items.values()))


def _table_rows(name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = [column.strip() for column in reader.fieldnames or ()]
    odd = next((column for column in columns if not column.isprintable()), None)
    if odd is not None:
        raise ValueError(f"{name}: column {odd!a} holds control characters")
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
