"""Unit vectors on disk, one a slot, in memory-mapped files: the arrays of a Matrix, see tasks/nearest.py.

The files `templates-NNNNNN.exact`, `.coarse` and `.bounds` of a folder hold raw little-endian rows and nothing else;
which slots mean somebody, and how many there are, is for tasks/gallerystore.py to say. Rows are written once, past the
end, and later only made zero.
"""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tasks.matrix import Matrix, matrix_of

KINDS: dict[str, np.dtype] = {"exact": np.dtype("<f4"), "coarse": np.dtype("i1"), "bounds": np.dtype("<f4")}
BOUNDS_PER_ROW = 2
PATTERN = "templates-*.*"


def row_length(kind: str, num_dims: int) -> int:
    """Numbers a row."""
    return BOUNDS_PER_ROW if kind == "bounds" else num_dims


def row_size(kind: str, num_dims: int) -> int:
    """Bytes a row."""
    return row_length(kind, num_dims) * KINDS[kind].itemsize


def plane_file(folder: Path, generation: int, kind: str) -> Path:
    return folder / f"templates-{generation:06d}.{kind}"


def map_planes(folder: Path, generation: int, num_slots: int, num_dims: int) -> Matrix:
    """The matrix (num_slots, num_dims) of a generation; raises FileNotFoundError if it is gone."""
    arrays = {}
    for kind, dtype in KINDS.items():
        shape = (num_slots, row_length(kind, num_dims))
        # copy on write: torch takes no read-only memory, and nothing is written
        arrays[kind] = (
            np.memmap(plane_file(folder, generation, kind), dtype, "c", shape=shape)
            if num_slots
            else np.empty(shape, dtype)
        )
    return Matrix(**arrays)


def write_rows(folder: Path, generation: int, first_slot: int, vectors: np.ndarray) -> None:
    """Write float32 vectors (N, D) to the slots from `first_slot` on, cut off what is behind, wait for the disk."""
    matrix = matrix_of(vectors)
    for kind, dtype in KINDS.items():
        offset = first_slot * row_size(kind, vectors.shape[1])
        with _opened(folder, generation, kind) as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(getattr(matrix, kind).astype(dtype, copy=False).tobytes())
            _to_disk(file)


def zero_rows(folder: Path, generation: int, slots: np.ndarray, num_dims: int) -> None:
    """Overwrite slots with zeros and wait for the disk."""
    for kind in KINDS:
        size = row_size(kind, num_dims)
        with _opened(folder, generation, kind) as file:
            for slot in slots.tolist():
                file.seek(slot * size)
                file.write(bytes(size))
            _to_disk(file)


def is_whole(folder: Path, generation: int, num_slots: int, num_dims: int) -> bool:
    """Whether all files of a generation are there and hold so many rows, or more."""
    files = {plane_file(folder, generation, kind): row_size(kind, num_dims) for kind in KINDS}
    return all(file.exists() and file.stat().st_size >= num_slots * size for file, size in files.items())


def cut(folder: Path, generation: int, num_slots: int, num_dims: int) -> None:
    """Drop what lies behind the last slot: rows of a writer that was stopped before it committed them."""
    for kind in KINDS:
        with _opened(folder, generation, kind) as file:
            file.truncate(num_slots * row_size(kind, num_dims))
            _to_disk(file)


def is_tidy(folder: Path, generation: int, num_slots: int, num_dims: int) -> bool:
    """Whether the folder holds the files of this generation, of this length, and of no other."""
    sizes = {file: file.stat().st_size for file in _planes(folder)}
    return sizes == {
        plane_file(folder, generation, kind): num_slots * row_size(kind, num_dims) for kind in KINDS
    }


def make_planes(folder: Path, generation: int) -> None:
    """Empty files; whatever was there under their names is lost."""
    for kind in KINDS:
        plane_file(folder, generation, kind).write_bytes(b"")
    sync_folder(folder)


def remove_other_planes(folder: Path, generation: int) -> None:
    """Remove the files of all generations but one; who has them mapped keeps reading them."""
    for file in _planes(folder):
        if file not in [plane_file(folder, generation, kind) for kind in KINDS]:
            file.unlink(missing_ok=True)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _opened(folder: Path, generation: int, kind: str) -> BinaryIO:
    return plane_file(folder, generation, kind).open("r+b")


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _planes(folder: Path) -> list[Path]:
    return sorted(folder.glob(PATTERN))
