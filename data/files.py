"""Files: checksums, names, JSON, and writing them, or a folder of them, so that they appear whole or not at all.

It imports nothing of ours, so that models and versions can have it cheaply.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_plain(name: str, what: str = "") -> str:
    """Return a name that a manifest gives for a file beside it; a ValueError where it would lead to another folder.

    `what` is the name's place in the manifest, where nobody else says it.
    """
    if not name or name in (".", "..") or "\0" in name or Path(name).name != name:
        given = f"{what} (={name!r}) " if what else ""
        raise ValueError(f"{given}must be a file name in that folder, without a path")
    return name


def read_object(file: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file; a ValueError of one line that ends in `remedy` where there is none."""
    return _object(file.read_bytes(), str(file), remedy)


def read_objects(file: Path, remedy: str) -> list[dict[str, Any]]:
    """The JSON objects in a file that has one on each line; [] where there is no file.

    Raises the ValueError of `read_object`, which names the line. What follows the last newline is none; `cut_tail`.
    """
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    return [_object(line, f"{file}, line {number},", remedy) for number, line in enumerate(lines, 1)]


def _object(text: bytes, what: str, remedy: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{what} is damaged, it is no JSON ({said}); {remedy}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{what} is damaged: it must hold an object, got {type(values).__name__}; {remedy}")
    return values


def cut_tail(file: Path) -> None:
    """Cut off what follows the last newline of a file to which lines are appended: a full disk may have cut that line.

    To be called before the first line that a process appends, which would be glued to it. The file need not be there.
    """
    lines, end, cut = file.read_bytes().rpartition(b"\n") if file.is_file() else (b"", b"", b"")
    if cut:
        with whole(file) as stream:
            stream.write(lines + end)


def write_whole(file: Path, text: str) -> None:
    """Write `text` as UTF-8; see `whole`."""
    with whole(file) as stream:
        stream.write(text.encode())


@contextmanager
def whole(file: Path) -> Iterator[BinaryIO]:
    """Gives a stream to a name of its own beside `file`, which gets its name when it lies on the disk.

    Of two writers at once, the later one stays. The folder must be there.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)  # after a failure


@contextmanager
def holding(lock: Path | None) -> Iterator[bool]:
    """Whether a lock file was free, and is ours meanwhile; None, and one that is not there, is free."""
    if lock is None or not lock.is_file():
        yield True
        return
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield _is_at(lock, file)


@contextmanager
def locked(lock: Path, waits: Callable[[str], None] = lambda _who: None) -> Iterator[None]:
    """Hold a lock file, which is made, and says whose it is. It ends with its process.

    `waits` hears who has it, and raises where that one is not to be waited for.
    """
    while True:
        with lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                waits(f"process {file.read().strip() or '?'}")
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(lock, file):
                continue
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield
            return


def _is_at(path: Path, file: IO[Any]) -> bool:
    """Whether an open file is still what lies at a path: maintenance removes locks of datasets that are no more."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


@contextmanager
def scratch(what: str, beside: Path | None = None) -> Iterator[Path]:
    """A folder for a while, in `beside` or where the system keeps such; its name says whose it is."""
    with tempfile.TemporaryDirectory(prefix=f"convoy-{what}-{os.getpid()}-", dir=beside) as folder:
        yield Path(folder)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Gives a folder beside `out`, which gets its name when all is written.

    Raises ValueError where there is something already, but for an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there and not empty; give a new folder, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-{os.getpid()}-", dir=out.parent))
    try:
        yield partial
        partial.chmod(0o755)
        os.replace(partial, out)  # noqa: PTH105 (over an empty folder, too)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
