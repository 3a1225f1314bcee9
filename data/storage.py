"""How a dataset gets onto the disk: shards of rows, in a folder that appears whole or not at all."""

import ctypes
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.dataset import PAIR_SCHEMA, PAIRS_FILE, Shard, Split
from data.files import file_sha256, locked, read_object
from data.formats.listing import Pair

SHARD_BYTES = 64 << 20
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # of a dataset
SHARD_ROWS = 16384
MIN_SHARDS = 4  # of a split with more than MIN_SHARDS_FROM images, for workers to share
MIN_SHARDS_FROM = 8192
ROW_GROUP_ROWS = 1024
ROW_GROUP_BYTES = 4 << 20  # what is read at once, where a split does not fit into memory


def stored_order(ids: Sequence[str]) -> list[int]:
    """The order in which a split's rows are stored: by a hash of the id, so that any run of rows is a random sample.

    Sources stand in order of class, place or time. Who reads a large split from its start to its end could otherwise
    mix only what stands nearby.
    """
    return sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())


def plan_shards(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Cut rows with images of these bytes into shards: (start, stop) of each, in order, all covered."""
    max_rows = SHARD_ROWS if len(sizes) <= MIN_SHARDS_FROM else min(SHARD_ROWS, ceil(len(sizes) / MIN_SHARDS))
    return cut_rows(sizes, max_rows, SHARD_BYTES)


def cut_rows(sizes: Sequence[int], max_rows: int, max_bytes: int) -> list[tuple[int, int]]:
    """Cut rows into runs of at most so many rows and bytes, one row at least: (start, stop) of each."""
    pieces = []
    start = num_bytes = 0
    for row, size in enumerate(sizes):
        if row > start and (row - start == max_rows or num_bytes + size > max_bytes):
            pieces.append((start, row))
            start, num_bytes = row, 0
        num_bytes += size
    if sizes:
        pieces.append((start, len(sizes)))
    return pieces


def write_shards(
    folder: Path,
    split: Split,
    schema: pa.Schema,
    rows: Sequence[dict[str, Any]],
    sizes: Sequence[int],
    read: Callable[[int], bytes],
) -> Iterator[Shard]:
    """Write one split; `rows` hold every column of `schema` but the image, whose bytes `read(row)` gives."""
    columns = [name for name in schema.names if name != "image"]
    single = [name for name in columns if not pa.types.is_list(schema.field(name).type)]
    for number, (start, stop) in enumerate(plan_shards(sizes)):
        piece = rows[start:stop]
        values: dict[str, Any] = {name: [row[name] for row in piece] for name in columns}
        values["image"] = [read(row) for row in range(start, stop)]
        file = folder / f"{split}-{number:05d}.parquet"
        compression = {name: "none" if name == "image" else "zstd" for name in schema.names}
        with pq.ParquetWriter(
            file, schema, compression=compression, use_dictionary=["format"], write_statistics=single
        ) as writer:
            table = pa.table(values, schema)
            for first, end in cut_rows(sizes[start:stop], ROW_GROUP_ROWS, ROW_GROUP_BYTES):
                writer.write_table(table.slice(first, end - first))
        _sync(file)
        yield Shard(file=file.name, split=split, rows=stop - start, sha256=file_sha256(file))


def write_pairs(folder: Path, pairs: Sequence[Pair]) -> dict[str, str]:
    """Write the pairs to compare, in their order; the SHA-256 of the file, by its name."""
    file = folder / PAIRS_FILE
    columns = {name: [getattr(pair, name) for pair in pairs] for name in PAIR_SCHEMA.names}
    pq.write_table(pa.table(columns, PAIR_SCHEMA), file, compression="zstd")
    return {file.name: file_sha256(file)}


def check_name(name: str, family: str, store: Path) -> None:
    """Raise a ValueError unless a dataset of this name and family may be written."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"name (={name!r}) must be lower-case letters, digits, '-' and '_', at most 64, "
            "and start with a letter or digit"
        )
    target = store / name
    if not target.exists():
        return
    if not (target / "dataset.json").is_file():
        raise ValueError(f"{target} is there but is no dataset; move it away, or take another name")
    there = read_object(target / "dataset.json", "move the folder away, or take another name").get("family")
    if there != family:
        raise ValueError(f"name (={name!r}) is taken by a dataset of family {there}; take another name")


@contextmanager
def partial_folder(store: Path, name: str) -> Iterator[Path]:
    """A fresh folder beside `store`/`name` to write to, removed at the end unless it was moved into place.

    What dead processes left of earlier attempts at this name is removed first.
    """
    store.mkdir(parents=True, exist_ok=True)
    with _lock(store, name):
        _recover(store, name)
    partial = Path(tempfile.mkdtemp(prefix=f".{name}.partial-{os.getpid()}-", dir=store))
    partial.chmod(0o755)
    try:
        yield partial
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, f"no space left in {store}; nothing was changed there") from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_into_place(store: Path, name: str, family: str, partial: Path) -> None:
    """Give the finished folder its name; what had it is in `partial` then. Of two writers, the later one stays."""
    for file in partial.iterdir():
        _sync(file)
    with _lock(store, name):
        _recover(store, name)
        check_name(name, family, store)  # again: somebody else may have finished meanwhile
        target, old = store / name, store / f".{name}.old"
        if not target.exists():
            partial.rename(target)
            return
        try:
            _exchange(partial, target)
        except (OSError, AttributeError):  # not every disk and C library can: between these _recover mends
            target.rename(old)
            partial.rename(target)
            old.rename(partial)


def _exchange(one: Path, other: Path) -> None:
    """Give two folders each other's name in one step, where the system and the disk can."""
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)
    library = ctypes.CDLL(None, use_errno=True)
    if library.renameat2(here, os.fsencode(one), here, os.fsencode(other), swap):
        raise OSError(ctypes.get_errno(), f"cannot exchange {one} and {other}")


def take_away(store: Path, name: str) -> None:
    """Remove a dataset's folder; its name is gone at once, its files after."""
    gone = store / f".{name}.partial-{os.getpid()}-removed"
    with _lock(store, name):
        _recover(store, name)
        (store / name).rename(gone)
    shutil.rmtree(gone)


def link_files(store: Path, name: str, folder: Path) -> None:
    """Give the files of a dataset a second place, the new `folder`: hard links, which cost no bytes.

    They stay whole when another version takes the dataset's place. Raises OSError where there are no links: between two
    disks, on some network disks, of another user's files.
    """
    with _lock(store, name):
        for file in sorted((store / name).rglob("*")):
            if file.is_file():
                place = folder / file.relative_to(store / name)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.hardlink_to(file)
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(store / name))


@contextmanager
def _lock(store: Path, name: str) -> Iterator[None]:
    """Held only while names change."""
    with locked(store / f".{name}.lock"):
        yield


def _recover(store: Path, name: str) -> None:
    """Clean up after processes that died: a half-written folder goes, a dataset moved aside comes back."""
    for left in sorted(store.glob(f".{name}.old*")):  # a living process has one only while it holds the lock
        if (store / name).exists():
            shutil.rmtree(left)
        else:
            left.rename(store / name)
    for left in store.glob(f".{name}.partial-*"):
        if not _is_alive(left.name.split("partial-")[1].split("-")[0]):
            shutil.rmtree(left)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
