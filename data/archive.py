"""A source of files as one flat set of names and their bytes: a folder, a tar, a zip, or files in memory.

Nothing is extracted. A zip and a plain tar are read where they lie; a compressed tar is decompressed once, into one
nameless temporary file. Archives come from anywhere, so they are refused as a whole, naming the member, for: names
that are absolute, hold `..` or control characters, or stand there twice; links, devices and sparse files; encrypted
members; more than `max_total_bytes`, `MAX_MEMBERS`, or `MAX_RATIO` after unpacking (a "bomb"); a missing end.
"""

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

MAX_MEMBERS = 20_000_000
MAX_NAME_CHARS = 4096
MAX_RATIO = 200  # unpacked bytes to packed ones; image files pack by 1 to 10, flat bitmaps by 100
RATIO_FLOOR_BYTES = 100 << 20  # below this total a high ratio does no harm
MAX_HEADER_BYTES = 1 << 20  # of an extended header of a tar, which is read into memory; of all that are kept

Kind = Literal["zip", "tar", "gz", "bz2", "xz"]
_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"\x1f\x8b", "gz"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\0", "xz"),
)
_MAGIC_UNSUPPORTED = ((b"7z\xbc\xaf", "7z"), (b"Rar!", "RAR"), (b"\x28\xb5\x2f\xfd", "zstd"))
_DECOMPRESS: dict[str, Callable[..., Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
_FAILURES = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, UnicodeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FileTree:
    """Files by name. Names are '/'-separated, relative, without `.` and `..`."""

    name: str  # of the source, for messages
    sizes: dict[str, int]  # bytes of each file, in order of name
    folders: frozenset[str]  # every folder, empty ones too
    # raises OSError, or ValueError with the reason, for a file that cannot be read
    read: Callable[[str], bytes]


def archive_kind(path: Path) -> Kind | None:
    """Tell an archive by its first bytes; None if it is none; raises ValueError for a kind we do not read."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    for magic, name in _MAGIC_UNSUPPORTED:
        if head.startswith(magic):
            raise ValueError(
                f"{path}: {name} archives are not supported; repack it as tar, tar.gz, tar.xz or zip"
            )
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")  # checks the header's checksum
    except tarfile.HeaderError:
        return None
    return "tar"


@contextmanager
def open_tree(path: Path, *, spool: Path, max_total_bytes: int) -> Iterator[FileTree]:
    """Open a folder or an archive; a compressed tar is unpacked into a nameless file in the folder `spool`.

    Raises FileNotFoundError or a ValueError of one line. An archive's whole list is checked before anything is
    given out.
    """
    with ExitStack() as stack:
        if path.is_dir():
            yield _folder_tree(path)
            return
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is a pipe or a device; give a folder or a file")
        kind = archive_kind(path)
        if kind is None:
            raise ValueError(
                f"{path} is neither a folder, nor a tar or zip archive, nor a .csv, .npz or .ts file"
            )
        try:
            if kind == "zip":
                tree = _zip_tree(path, stack, max_total_bytes)
            else:
                tree = _tar_tree(path, kind, stack, spool, max_total_bytes)
        except _FAILURES as error:
            raise ValueError(f"{path}: damaged or truncated archive ({error})") from None
        except OSError as error:
            if error.errno is not None:  # the disk's, not the decompressor's
                raise
            raise ValueError(f"{path}: damaged or truncated archive ({error})") from None
        yield tree


def memory_tree(name: str, files: dict[str, bytes]) -> FileTree:
    """A tree of files that are in memory."""
    ordered = {key: len(files[key]) for key in sorted(files)}
    return FileTree(name, ordered, parents_of(ordered), files.__getitem__)


def narrow_tree(tree: FileTree, folder: str) -> FileTree:
    """What lies below one folder of a tree, or one of its files; raises a ValueError naming the folders."""
    top = safe_name(folder, tree.name)
    sizes = {name: size for name, size in tree.sizes.items() if name == top or name.startswith(f"{top}/")}
    if not sizes:
        known = ", ".join(sorted(name for name in tree.folders if "/" not in name)[:20]) or "none"
        raise ValueError(f"{tree.name}: no folder or file {folder!r} in it; folders at its top: {known}")
    prefix = f"{top.rpartition('/')[0]}/" if top in sizes else f"{top}/"
    prefix = prefix.removeprefix("/")
    names = {name.removeprefix(prefix): size for name, size in sizes.items()}
    folders = frozenset(
        name.removeprefix(prefix) for name in tree.folders if name.startswith(prefix) and prefix
    )
    return FileTree(f"{tree.name}/{top}", names, folders, lambda name: tree.read(prefix + name))


def safe_name(name: str, where: str) -> str:
    """Return `name` without '.' parts and doubled slashes; a ValueError if it is unsafe or cannot be stored."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    fault = ""
    plain = name.isascii() and name.isprintable()  # the fast way for most
    if not plain and any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        fault = "holds control or undecodable characters; rename it"
    elif name.startswith("/") or "\\" in name or name[1:2] == ":":
        fault = "is absolute or has a backslash; names must be relative, with '/'"
    elif ".." in parts:
        fault = "leads out of its folder"
    elif len(name) > MAX_NAME_CHARS:
        fault = f"has {len(name)} characters, more than {MAX_NAME_CHARS}; rename it"
    if fault:
        raise ValueError(f"{where}: unsafe file name {name[:200]!a}: it {fault}")
    return "/".join(parts)


class _Index:
    """Names seen so far in one archive, with its limits."""

    def __init__(self, where: str, max_total_bytes: int) -> None:
        self.where = where
        self.max_total_bytes = max_total_bytes
        self.places: dict[str, tuple[int, int]] = {}  # name: offset, size
        self.folders: set[str] = set()
        self.total_bytes = 0
        self.num_members = 0

    def check(self, name: str, is_folder: bool, fault: str) -> str:
        self.num_members += 1
        if self.num_members > MAX_MEMBERS:
            raise ValueError(f"{self.where}: archive bomb: more than {MAX_MEMBERS:,} members")
        safe = safe_name(name, self.where)
        if fault:
            raise ValueError(f"{self.where}: member {safe!r} is {fault}; only files and folders are read")
        if is_folder:
            self.folders.add(safe)
        elif not safe:
            raise ValueError(f"{self.where}: a member has no name")
        elif safe in self.places:
            raise ValueError(f"{self.where}: member {safe!r} stands in the archive twice")
        return safe

    def add(self, name: str, offset: int, size: int) -> None:
        self.places[name] = (offset, size)
        self.total_bytes += size
        check_total(self.where, self.total_bytes, self.max_total_bytes)

    def tree(self, read: Callable[[str], bytes]) -> FileTree:
        sizes = {name: self.places[name][1] for name in sorted(self.places)}
        return FileTree(Path(self.where).name, sizes, parents_of(sizes) | (self.folders - {""}), read)


def check_total(where: str, total_bytes: int, max_total_bytes: int) -> None:
    """Raise a ValueError if a source is larger than it may be."""
    if total_bytes > max_total_bytes:
        raise ValueError(
            f"{where}: more than {max_total_bytes / 1e9:g} GB after unpacking; raise ingest.max_source_gb if it "
            "is meant to be so large"
        )


def check_ratio(where: str, unpacked_bytes: int, packed_bytes: int) -> None:
    """Raise a ValueError if so few bytes unpack to so many that the archive must be a bomb."""
    if unpacked_bytes > max(RATIO_FLOOR_BYTES, MAX_RATIO * packed_bytes):
        raise ValueError(
            f"{where}: archive bomb: {packed_bytes:,} bytes unpack to {unpacked_bytes:,} or more, "
            f"above {MAX_RATIO} times as many"
        )


class _Tar(tarfile.TarFile):
    saw_end = False
    kept_bytes = 0  # of headers that hold for all members that follow


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            assert isinstance(tar, _Tar)
            tar.saw_end = True  # `tarfile` ends quietly at a damaged header too
            raise
        except (ValueError, OverflowError, RecursionError) as error:  # of numbers and texts that no tar has
            raise tarfile.ReadError(" ".join(str(error).split())[:200]) from None

    # documented in tarfile.py as overridable
    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        assert isinstance(tar, _Tar)
        if self.type == tarfile.GNUTYPE_SPARSE:
            self.sparse = b""
            return self._proc_builtin(tar)  # type: ignore[attr-defined]
        if self.type == tarfile.XGLTYPE:
            tar.kept_bytes += self.size
        extended = not (self.isreg() or self.isdir())
        if extended and (self.size < 0 or max(self.size, tar.kept_bytes) > MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"member {self.name!r} has an extended header of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _mark_sparse(self, member: tarfile.TarInfo, *_: Any) -> None:
        """In place of reading the map of a sparse file, which may be as long as the archive; it is refused anyway."""
        member.sparse = b""

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _mark_sparse


def _tar_tree(path: Path, kind: Kind, stack: ExitStack, spool: Path, max_total_bytes: int) -> FileTree:
    plain: IO[bytes] = stack.enter_context(path.open("rb"))
    if kind != "tar":
        unpacked = stack.enter_context(tempfile.TemporaryFile(dir=spool))  # noqa: SIM115 (the stack closes it)
        _unpack(plain, kind, unpacked, str(path), max_total_bytes)
        plain = unpacked
    index = _Index(str(path), max_total_bytes)
    tar = stack.enter_context(_Tar.open(fileobj=plain, mode="r:", tarinfo=_Member))
    while (member := tar.next()) is not None:
        name = index.check(member.name, member.isdir(), _tar_fault(member))
        if not member.isdir():
            index.add(name, member.offset_data, member.size)
        tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every header
    if not tar.saw_end:
        raise tarfile.ReadError("its end is missing")

    def read(name: str) -> bytes:
        offset, size = index.places[name]
        return os.pread(plain.fileno(), size, offset)

    return index.tree(read)


def _unpack(packed: IO[bytes], kind: Kind, target: IO[bytes], where: str, max_total_bytes: int) -> None:
    total_bytes = 0
    with _DECOMPRESS[kind](packed, "rb") as stream:
        while data := stream.read(1 << 20):
            total_bytes += len(data)
            check_total(where, total_bytes, max_total_bytes)
            check_ratio(where, total_bytes, packed.tell())
            target.write(data)
    target.flush()
    target.seek(0)


def _tar_fault(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"a link (to {member.linkname!r})"
    if member.issparse():
        return "a sparse file"
    if member.size < 0:
        return "a file of negative size"
    return "" if member.isreg() or member.isdir() else "a device or pipe"


def _zip_tree(path: Path, stack: ExitStack, max_total_bytes: int) -> FileTree:
    archive = stack.enter_context(zipfile.ZipFile(path))
    index = _Index(str(path), max_total_bytes)
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        # archives made on Windows by old tools have backslashes; NULs and what follows are only in orig_filename
        slashed = info.orig_filename.replace("\\", "/")
        name = index.check(slashed, slashed.endswith("/"), _zip_fault(info))
        if not slashed.endswith("/"):
            infos[name] = info
            index.add(name, info.header_offset, info.file_size)
    check_ratio(str(path), index.total_bytes, path.stat().st_size)

    def read(name: str) -> bytes:
        info = infos[name]
        try:
            with archive.open(info) as file:
                data = file.read(info.file_size)  # a bare read() inflates past the declared size
        except (*_FAILURES, ValueError) as error:  # the latter for an offset beyond all
            raise ValueError(f"damaged in the archive: {error}") from None
        if len(data) != info.file_size:
            raise ValueError(f"damaged in the archive: {len(data)} of {info.file_size} bytes")
        return data

    return index.tree(read)


def _zip_fault(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "encrypted"
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode == stat.S_IFLNK:
        return "a link"
    return "" if mode in (0, stat.S_IFREG, stat.S_IFDIR) else "a device or pipe"


def _folder_tree(root: Path) -> FileTree:
    sizes: dict[str, int] = {}
    folders: set[str] = set()
    unsafe: list[ValueError] = []
    above = ""  # the last of such names as a prefix: what lies below it may be fine itself
    for name, is_folder, size in _walk(root, "", ()):
        if above and name.startswith(above):
            continue
        try:
            safe = safe_name(name, str(root))
        except ValueError as error:
            unsafe.append(error)
            above = f"{name}/"
            continue
        assert safe == name
        if is_folder:
            folders.add(name)
        else:
            sizes[name] = size
    if unsafe:
        more = f", and {len(unsafe) - 1:,} more such names in that folder" if len(unsafe) > 1 else ""
        raise ValueError(f"{unsafe[0]}{more}")

    def read(name: str) -> bytes:
        return read_regular_file(root / name)

    return FileTree(root.resolve().name, dict(sorted(sizes.items())), frozenset(folders), read)


def read_regular_file(path: Path) -> bytes:
    """Read a file; a ValueError if it is a pipe or device, which could block for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")
    return path.read_bytes()


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, bool, int]]:
    """Yield (name, is a folder, size in bytes) below `folder`, following links; loops are an error."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise ValueError(f"{folder}: this link leads back to a folder above it; remove it")
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                yield prefix + entry.name, True, 0
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, here))
            else:  # a link that leads nowhere has no size, and fails when it is read
                yield prefix + entry.name, False, entry.stat().st_size if Path(entry.path).exists() else 0


def parents_of(names: Iterable[str]) -> frozenset[str]:
    """Every folder above any of the names."""
    folders: set[str] = set()
    for name in names:
        while (name := name.rpartition("/")[0]) and name not in folders:
            folders.add(name)
    return frozenset(folders)
