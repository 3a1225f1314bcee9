"""Landmarks: a `.pts` file beside each image, or CSV tables with a row for each image.

`.pts` (https://ibug.doc.ic.ac.uk/resources/300-W/): `version: 1`, `n_points: 68`, and x y of each point between braces;
pixels are counted from 1, as in Matlab, so 1 is taken off. A CSV's first column names the image; `x0,y0,x1,y1,...`,
`nose_x,nose_y,...` or plain `0,1,2,3,...` (x and y in turn) are its points, pixels counted from 0; optional are
`v0` or `nose_v` (0: hidden), `split` and `group`. An empty cell or NaN is a point that is not given.
In both, a whole number is the centre of a pixel.
"""

import csv
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.archive import FileTree, safe_name
from data.dataset import Split
from data.formats.listing import (
    MAX_COORDINATE,
    NO_IMAGE,
    SPLIT_NAMES,
    Annotated,
    ImageIndex,
    Listing,
    Points,
    RawItem,
    common_folder,
    count_ignored,
    is_image_name,
    read_annotations,
    read_text,
    split_of_folders,
    split_of_name,
    wanted_files,
)

MAX_PTS_BYTES = 1 << 20
MAX_POINTS = 100_000
NO_LANDMARKS = "images without landmarks"
_SIDES = {"left": "right", "right": "left"}
_PATH_COLUMNS = {"", "path", "file", "filename", "file_name", "image", "image_name", "image_path", "name"}


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the columns of a landmark table are."""

    names: tuple[str, ...]  # of the points
    x: tuple[int, ...]
    y: tuple[int, ...]
    visible: tuple[int | None, ...]
    split: int | None
    group: int | None
    num: int


# -------------------------------------------------------------------------------------------- .pts


def has_pts(tree: FileTree) -> bool:
    """Whether there is a .pts file."""
    return any(name.lower().endswith(".pts") for name in wanted_files(tree))


def list_pts(tree: FileTree) -> Listing:
    """List the images that have a .pts file; what cannot be parsed, or has another number of points, is set aside."""
    found = read_annotations(tree, ".pts", read_pts, MAX_PTS_BYTES)
    points, num, faults = _of_one_number(found)
    none = Points(points_xy=np.zeros((num, 2)), visible=np.zeros(num, bool))
    items = [
        RawItem(
            path.removeprefix(found.top), path, {"points": points.get(path, none)}, split_of_folders(path),
            fault=faults.get(path, ""),
        )
        for path in found.files
    ]  # fmt: skip
    files, issues = found.files, found.issues
    issues[NO_LANDMARKS] = [path for path in found.pictures if path not in files]
    ignored = count_ignored(tree, set(files) | set(files.values()), "without landmarks, or not needed")
    names = tuple(str(i) for i in range(num))
    return Listing(tuple(items), ignored, points=names, issues={k: v for k, v in issues.items() if v})


def _of_one_number(found: Annotated[Points]) -> tuple[dict[str, Points], int, dict[str, str]]:
    """The points of the images that have as many as most have; how many these are; why the others are left out."""
    sizes = Counter(len(points.visible) for points in found.parsed.values())
    num = min(sizes, key=lambda size: (-sizes[size], size)) if sizes else 0
    same = {path: points for path, points in found.parsed.items() if len(points.visible) == num}
    others = {
        path: f"{found.files[path]}: {len(points.visible)} points, where most have {num}"
        for path, points in found.parsed.items()
        if path not in same
    }
    return same, num, found.faults | others


def read_pts(text: str) -> Points:
    """Parse one .pts file, its pixels counted from 1; raises a ValueError of one line."""
    match = re.fullmatch(r"\s*(?:version:\s*\S+\s+)?n_points:\s*(\d{1,6})\s*\{([^{}]*)\}\s*", text)
    if match is None:
        raise ValueError("not as .pts files are: version: 1, n_points: N, { x y of each point }")
    rows = [line.split() for line in match[2].split("\n") if line.strip()]
    if not 0 < len(rows) == int(match[1]) <= MAX_POINTS:
        raise ValueError(f"{len(rows)} points between the braces, where n_points says {match[1]}")
    if any(len(row) != 2 for row in rows):
        raise ValueError("each line between the braces must have two numbers, x y")
    return _points([[_coordinate(value) for value in row] for row in rows], [True] * len(rows), 1.0)


def _coordinate(text: str) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise ValueError(f"{text[:50]!a} is no number") from None


def _points(rows: list[list[float]], visible: list[bool], first_pixel: float) -> Points:
    points = np.array(rows, np.float64).reshape(-1, 2) - first_pixel
    given = (np.abs(points) <= MAX_COORDINATE).all(1)  # NaN compares as false
    points[~given] = 0
    return Points(points_xy=points, visible=np.array(visible, bool) & given)


# ------------------------------------------------------------------------------------------- tables


def has_landmark_table(tree: FileTree) -> bool:
    """Whether a CSV file has columns for points."""
    return bool(_tables(tree))


def _tables(tree: FileTree) -> list[str]:
    found = []
    for name in wanted_files(tree):
        if name.lower().endswith(".csv"):
            try:
                head = tree.read(name)[: 1 << 20].decode("utf-8-sig", "ignore").partition("\n")[0]
                columns = read_columns(next(csv.reader([head]), []))
            except (OSError, ValueError, csv.Error):
                continue
            if columns is not None:
                found.append(name)
    return found


def list_landmark_tables(tree: FileTree) -> Listing:
    """List the images of all landmark tables; raises a ValueError of one line that names the row."""
    tables = _tables(tree)
    pictures = [name for name in wanted_files(tree) if is_image_name(name)]
    # of a lone table nothing else is listed: its images are read by their paths
    index = ImageIndex(pictures) if tree.sizes.keys() != set(tables) else None
    top = common_folder(pictures)
    issues: dict[str, list[str]] = defaultdict(list)
    items: dict[str, RawItem] = {}
    points: dict[str, tuple[str, ...]] = {}
    for table in tables:
        rows = _rows(table, read_text(tree, table))
        _, header = next(rows)
        columns = read_columns(header)
        assert columns is not None
        points[table] = columns.names
        side = split_of_name(table.rpartition("/")[2]) or split_of_folders(table)
        for where, row in rows:
            found, split, group = _read_row(where, row, columns)
            wanted = safe_name(row[0].strip(), where)
            path = index.find(wanted, table, split or side) if index else wanted
            if path is None:
                issues[NO_IMAGE].append(f"{where}: {wanted}")
                continue
            if path in items:
                raise ValueError(f"{where}: image {path!r} has landmarks already; give them once")
            split = split or side or split_of_folders(path)
            items[path] = RawItem(path.removeprefix(top), path, {"points": found}, split, group)
    if len(set(points.values())) > 1:
        raise ValueError(f"{', '.join(points)} have different points; they must be the same in all tables")
    issues[NO_LANDMARKS] = [path for path in pictures if path not in items]
    ignored = count_ignored(tree, set(items) | set(tables), "without landmarks, or not needed")
    names = next(iter(points.values()))
    return Listing(
        tuple(items.values()), ignored, points=names, issues={k: v for k, v in issues.items() if v}
    )


def _rows(name: str, text: str) -> Iterator[tuple[str, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if row:
                yield f"{name} line {reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{name}: not a readable CSV ({error})") from None


def _read_row(where: str, row: list[str], columns: Columns) -> tuple[Points, Split | None, str | None]:
    if len(row) != columns.num:
        raise ValueError(f"{where}: {len(row)} fields, where the first line has {columns.num}")
    if not row[0].strip():
        raise ValueError(f"{where}: the image's name is empty")
    try:
        values = [
            [_coordinate(row[x].strip()), _coordinate(row[y].strip())]
            for x, y in zip(columns.x, columns.y, strict=True)
        ]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    visible = [place is None or row[place].strip() not in ("", "0", "0.0") for place in columns.visible]
    split = row[columns.split].strip() if columns.split is not None else ""
    if split and split.lower() not in SPLIT_NAMES:
        raise ValueError(f"{where}: split (={split!r}) must be one of {', '.join(SPLIT_NAMES)}, or empty")
    group = row[columns.group].strip() if columns.group is not None else ""
    return _points(values, visible, 0.0), SPLIT_NAMES[split.lower()] if split else None, group or None


def read_columns(header: list[str]) -> Columns | None:
    """What the columns are; None where this is no table of landmarks."""
    names = [column.strip() for column in header]
    if len(names) < 3 or names[0].lower() not in _PATH_COLUMNS or len(set(names)) != len(names):
        return None
    if names[1:] == [str(i) for i in range(len(names) - 1)] and len(names) % 2:
        places = range(1, len(names), 2)
        num = len(places)
        return Columns(
            tuple(str(i) for i in range(num)), tuple(places), tuple(x + 1 for x in places), (None,) * num,
            None, None, len(names),
        )  # fmt: skip
    axes: dict[str, dict[str, int]] = {"x": {}, "y": {}, "v": {}}
    extra: dict[str, int] = {}
    for place, name in enumerate(names[1:], 1):
        match = re.fullmatch(r"([xyv])_?(\d+)|(.+)[_ .]([xyv])|([xyv])_(.+)", name, re.IGNORECASE)
        if match:
            axis = (match[1] or match[4] or match[5]).lower()
            if axes[axis].setdefault(match[2] or match[3] or match[6], place) != place:
                return None
        elif name.lower() in ("split", "group"):
            extra[name.lower()] = place
        else:
            return None
    points = tuple(axes["x"])
    if not points or set(points) != set(axes["y"]) or not set(axes["v"]) <= set(points):
        return None
    return Columns(
        points,
        tuple(axes["x"].values()),
        tuple(axes["y"][name] for name in points),
        tuple(axes["v"].get(name) for name in points),
        extra.get("split"),
        extra.get("group"),
        len(names),
    )


# -------------------------------------------------------------------------------------------- names


def mirrored_names(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Numbers of the points that change places in a mirror, where names say so: left_eye, lefteye, EyeLeft.

    () where none does, and where one of them has no partner: its place in a mirror has no name.
    """
    # words of mixed case are parted: `right` begins a word, and bright has none
    plain = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in names]
    number = {name: i for i, name in enumerate(plain)}
    if len(number) < len(plain):
        return ()
    pairs = set()
    for name, i in number.items():
        other = re.sub(r"(?<![a-z])(left|right)", lambda match: _SIDES[match[1]], name)
        if other not in number:
            return ()
        if other != name:
            pairs.add((min(i, number[other]), max(i, number[other])))
    return tuple(sorted(pairs))
