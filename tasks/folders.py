"""Files to predict: of a folder, or of a bucket below a prefix (`s3://BUCKET/PREFIX`); listed once, read one by one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from data import arrays
from data.address import is_url
from data.dataset import NUM_AXES
from data.decode import EXTENSIONS
from data.s3 import list_s3, read_s3

IMAGE_SUFFIXES = frozenset(suffix for suffixes in EXTENSIONS.values() for suffix in suffixes)
MAX_BYTES = 256 << 20  # of one file: a larger one is set aside


@dataclass(frozen=True)
class Place:
    """A file that was listed."""

    name: str  # relative to the folder or prefix
    size: int  # bytes


@dataclass(frozen=True)
class Source:
    """Where files lie, and how they are listed and read."""

    shown: str  # as it is told and compared
    listed: Callable[[], Iterator[tuple[str, int]]]  # names and sizes of all files
    read: Callable[[str], bytes]  # by name; raises OSError or ValueError


def open_source(source: str) -> Source:
    """A folder or s3://BUCKET/PREFIX; raises ValueError or FileNotFoundError for what is neither."""
    if is_url(source):
        if not source.startswith("s3://"):
            raise ValueError(f"{source}: only folders and s3://BUCKET/PREFIX are predicted into a file")
        base = source if source.endswith("/") else f"{source}/"
        return Source(base, lambda: list_s3(base), lambda name: read_s3(base + quote(name)))
    folder = Path(source).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {source}: --out takes one folder, or s3://BUCKET/PREFIX")
    return Source(str(folder), lambda: files_below(folder), lambda name: (folder / name).read_bytes())


def places_of(source: Source, suffixes: frozenset[str]) -> list[Place]:
    """What is called like something to predict, sorted by name; raises ValueError where there is nothing."""
    found = [Place(name, size) for name, size in source.listed() if Path(name).suffix.lower() in suffixes]
    if not found:
        raise ValueError(f"nothing to predict in {source.shown}; looked for {' '.join(sorted(suffixes))}")
    return sorted(found, key=lambda place: place.name)


def files_below(folder: Path) -> Iterator[tuple[str, int]]:
    """Names relative to the folder, and sizes, of the files below it."""
    for file in folder.rglob("*"):
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file.stat().st_size


def read_items(source: Source, places: list[Place]) -> tuple[list[bytes], list[str | None]]:
    """The bytes of files, and of each None, or why they are empty; raises ConnectionError where a store is away."""
    blobs: list[bytes] = []
    faults: list[str | None] = []
    for place in places:
        try:
            blob, fault = read_one(source, place), None
        except ConnectionError:
            raise  # it may pass: what was predicted stays, and the command goes on another time
        except OSError as error:
            blob, fault = b"", f"cannot be read: {error.strerror or error}"
        except ValueError as error:
            blob, fault = b"", f"cannot be read: {error}"
        blobs.append(blob)
        faults.append(fault)
    return blobs, faults


def read_one(source: Source, place: Place) -> bytes:
    """The bytes of a file; raises ValueError for one that is too large."""
    if place.size > MAX_BYTES:
        raise ValueError(f"{place.size:,} bytes are more than {MAX_BYTES:,}")
    return source.read(place.name)


def suffixes_of(family: str) -> frozenset[str]:
    """How files are called that a model of this family takes; the last part alone of `.nii.gz`."""
    if family not in NUM_AXES:
        return IMAGE_SUFFIXES
    endings = (end for form in arrays.FORMATS[NUM_AXES[family]] for end in arrays.EXTENSIONS[form])
    return frozenset(Path(f"x{end}").suffix for end in endings)
