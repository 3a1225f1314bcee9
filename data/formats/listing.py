"""What every reader gives: the images of a source with their raw targets, not read yet."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from posixpath import splitext
from typing import Any, Generic, TypeVar

import numpy as np

from data.archive import FileTree
from data.dataset import SPLIT_NAMES, Split
from data.decode import EXTENSIONS

MAX_TABLE_BYTES = 1 << 30
Parsed = TypeVar("Parsed")  # what an annotation file says
IMAGE_ENDINGS = tuple(ending for endings in EXTENSIONS.values() for ending in endings)
LISTED_ONLY = "names in lists of splits without an image"
NO_IMAGE = "annotations whose image is missing"
NO_ANNOTATION = "images without annotation, kept as background"
NO_BOXES = "images without boxes, kept as background"
MAX_COORDINATE = 1e9  # pixels or shares; beyond it sums lose the pixel, or overflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """The boxes of one image as its annotation has them, unchecked: edges, x to the right, y down."""

    boxes_xyxy: np.ndarray  # (n, 4) float64; pixels, or shares of the image's sides if `relative`
    labels: np.ndarray  # (n,) int64 into Listing.classes; -1: not one of them
    flags: np.ndarray  # (n,) uint8
    areas: np.ndarray | None = None  # (n,) float64, square pixels, NaN where none is given; None: of no box
    relative: bool = False
    size: tuple[int, int] | None = None  # width and height of the image, where the annotation says so
    upright: bool = False  # coordinates are of the image turned by EXIF, not of the pixels as stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """The landmarks of one image as its annotation has them; (0, 0) is the centre of the first pixel."""

    points_xy: np.ndarray  # (n, 2) float64, pixels
    visible: np.ndarray  # (n,) bool; False: not given, or marked as hidden


@dataclass(frozen=True, slots=True)
class RawItem:
    """One image of a source, not read yet."""

    id: str  # unique; the path inside the source
    path: str  # what FileTree.read takes
    targets: dict[str, Any]  # {"label": class name}, {"boxes": Boxes} or {"points": Points}
    split: Split | None = None  # as the source has it
    group: str | None = None  # what must stay on one side of a split: a person, a patient, a video
    fault: str = ""  # why its targets cannot be read; such an image is set aside


@dataclass(frozen=True, slots=True)
class Pair:
    """Two face images to compare, by their ids."""

    id_a: str
    id_b: str
    same: bool
    fold: int


@dataclass(frozen=True, slots=True)
class Listing:
    """What a reader found."""

    items: tuple[RawItem, ...]
    ignored: dict[str, int] = field(default_factory=dict)  # reason: number of files
    empty_classes: tuple[str, ...] = ()  # folders that stand for a class and hold no file
    classes: tuple[str, ...] = ()  # in the source's own order, where it has one
    points: tuple[str, ...] = ()  # names of the landmarks, in order
    pairs: tuple[Pair, ...] = ()
    issues: dict[str, list[str]] = field(default_factory=dict)  # what is wrong with targets: where
    notes: tuple[str, ...] = ()
    tree: FileTree | None = None  # the items as files, where those of the source hold many each


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way a dataset can be laid out."""

    families: tuple[str, ...]
    matches: Callable[[FileTree], bool]
    list_items: Callable[[FileTree], Listing]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of a person's making."""
    return name.startswith((".", "__MACOSX/")) or "/." in name or "/__MACOSX/" in name


def ignore_reason(name: str) -> str:
    """Why a file is no part of any dataset; "" if it may be one."""
    file = name.rpartition("/")[2].lower()
    if is_hidden(name) or file in ("thumbs.db", "desktop.ini"):
        return "hidden"
    stem, _, suffix = file.partition(".")
    if stem in ("readme", "license", "licence") and suffix in ("", "txt", "md", "rst"):
        return "readme or licence"
    return ""


def is_image_name(name: str) -> bool:
    """Whether a file is called like an image."""
    return name.lower().endswith(IMAGE_ENDINGS)


def wanted_files(tree: FileTree) -> list[str]:
    """Names of the files that may belong to a dataset."""
    return [name for name in tree.sizes if not ignore_reason(name)]


def count_ignored(tree: FileTree, used: set[str], why: str) -> dict[str, int]:
    """How many files of the tree are not among `used`, by reason; `why` for those without a better one."""
    counts = Counter(ignore_reason(name) or why for name in tree.sizes if name not in used)
    return dict(sorted(counts.items()))


def read_file(tree: FileTree, name: str) -> bytes:
    """A file of the source; raises a ValueError of one line that names it if it cannot be read."""
    try:
        return tree.read(name)
    except OSError as error:
        raise ValueError(f"{name}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def read_text(tree: FileTree, name: str, max_bytes: int = MAX_TABLE_BYTES) -> str:
    """A text file of the source; raises a ValueError of one line if it is too large, unreadable or not UTF-8."""
    if tree.sizes.get(name, 0) > max_bytes:
        raise ValueError(
            f"{name}: {tree.sizes[name]:,} bytes are too many for an annotation (limit {max_bytes:,})"
        )
    try:
        return read_file(tree, name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 text ({error}); save it as UTF-8") from None


def fault_of(name: str, error: ValueError) -> str:
    """Why the annotation `name` cannot be read, with its name once, whether or not the error has it already."""
    return f"{name}: {str(error).removeprefix(f'{name}: ')}"


def stem_of(name: str) -> str:
    """A file's name without folders and extension."""
    return splitext(name.rpartition("/")[2])[0]


def split_of_name(name: str) -> Split | None:
    """The split that a file's name tells: `instances_train2017.json` is of train."""
    letters = "".join(char if char.isalpha() else " " for char in name.lower()).split()
    found = {SPLIT_NAMES[word] for word in letters if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def split_of_folders(name: str) -> Split | None:
    """The split that the folders above a file tell, the topmost that does: `train`, `val2017`."""
    heads = (part.lower().rstrip("0123456789").rstrip("-_") for part in name.split("/")[:-1])
    return next((SPLIT_NAMES[head] for head in heads if head in SPLIT_NAMES), None)


def common_folder(names: Iterable[str]) -> str:
    """The folders above all names that say nothing of a split, ending in '/', or ""."""
    folders = [name.split("/")[:-1] for name in names]
    top = ""
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1 or split_of_folders(f"{parts[0]}/"):
            break
        top += f"{parts[0]}/"
    return top


class ImageIndex:
    """Finds the image that an annotation means: by the end of its path, then by how near it lies."""

    def __init__(self, names: Iterable[str]) -> None:
        self.by_file: dict[str, list[str]] = defaultdict(list)
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        for name in names:
            file = name.rpartition("/")[2]
            self.by_file[file].append(name)
            self.by_stem[stem_of(name)].append(name)

    def find(self, wanted: str, near: str, split: Split | None = None) -> str | None:
        """The image whose path ends in `wanted`, or None; of several the nearest to the file `near`.

        `split` tells which of those that are equally near is meant. Raises a ValueError where it stays unclear.
        """
        parts = [part for part in wanted.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        found = self.by_file.get(parts[-1], [])
        deepest = max((name.count("/") + 1 for name in found), default=0)
        for depth in range(min(len(parts), deepest), 0, -1):
            end = "/".join(parts[-depth:])
            matching = [name for name in found if name == end or name.endswith("/" + end)]
            if matching:
                return _nearest(matching, near, split)
        return None

    def find_stem(self, stem: str, near: str, split: Split | None = None) -> str | None:
        """The image with this file name, whatever its extension."""
        found = self.by_stem.get(stem, [])
        return _nearest(found, near, split) if found else None


def _nearest(names: list[str], near: str, split: Split | None) -> str:
    if len(names) == 1:
        return names[0]
    here = near.split("/")[:-1]

    def distance(name: str) -> tuple[int, bool]:
        there = name.split("/")[:-1]
        shared = 0
        while shared < min(len(here), len(there)) and here[shared] == there[shared]:
            shared += 1
        return len(here) + len(there) - 2 * shared, split is None or split_of_folders(name) != split

    ordered = sorted((distance(name)[1], distance(name)[0], name) for name in names)
    if ordered[0][:2] == ordered[1][:2]:
        raise ValueError(
            f"{near}: it is not clear which image is meant: {ordered[0][2]} or {ordered[1][2]}; rename one of them"
        )
    return ordered[0][2]


@dataclass(frozen=True, slots=True)
class Annotated(Generic[Parsed]):
    """The images of a source whose annotations lie in a file for each image; all by the image's path."""

    pictures: list[str]  # all, with an annotation or without
    top: str  # folders above all of them
    index: ImageIndex
    files: dict[str, str]  # the annotation of each image that has one
    parsed: dict[str, Parsed]
    faults: dict[str, str]  # why an annotation cannot be read
    issues: dict[str, list[str]]


def read_annotations(
    tree: FileTree,
    ending: str,
    parse: Callable[[str], Parsed],
    max_bytes: int,
    named_inside: Callable[[FileTree, str, ImageIndex], str | None] = lambda tree, name, index: None,
) -> Annotated[Parsed]:
    """Read the annotations of this ending: each is of the image of its own stem, else of the one it names inside.

    Raises a ValueError for an image that has two; one that cannot be read is a fault of its image.
    """
    wanted = wanted_files(tree)
    pictures = [name for name in wanted if is_image_name(name)]
    index = ImageIndex(pictures)
    issues: dict[str, list[str]] = defaultdict(list)
    files = _match_annotations(
        [name for name in wanted if name.lower().endswith(ending)],
        lambda name: index.find_stem(stem_of(name), name) or named_inside(tree, name, index),
        issues,
    )
    parsed: dict[str, Parsed] = {}
    faults: dict[str, str] = {}
    for path, name in files.items():
        try:
            parsed[path] = parse(read_text(tree, name, max_bytes))
        except ValueError as error:
            faults[path] = fault_of(name, error)
    return Annotated(pictures, common_folder(pictures), index, files, parsed, faults, issues)


def _match_annotations(
    names: Iterable[str], find: Callable[[str], str | None], issues: dict[str, list[str]]
) -> dict[str, str]:
    """The annotation file of each image, by the image's path; `find` gives the image of an annotation.

    Raises a ValueError for an image that has two.
    """
    found: dict[str, str] = {}
    for name in names:
        path = find(name)
        if path is None:
            issues[NO_IMAGE].append(name)
        elif path in found:
            raise ValueError(
                f"image {path!r} has two annotations: {found[path]} and {name}; remove one of them"
            )
        else:
            found[path] = name
    return found
