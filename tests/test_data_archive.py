"""An archive is read as it lies, or refused as a whole with one line that names the member."""

import io
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data import archive
from data.archive import FileTree, archive_kind, memory_tree, open_tree, safe_name
from tests.corruption import mend_checksums
from tests.pictures import write_tree

FILES = {"a/1.png": b"one", "a/deep/2.png": b"two" * 1000, "b/empty": b""}


def pack_tar(path: Path, files: dict[str, bytes], mode: str = "w", tweak: Callable | None = None) -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if tweak:
                tweak(member)
            tar.addfile(member, io.BytesIO(data[: member.size]))
    return path


def pack_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, data in files.items():
            packed.writestr(zipfile.ZipInfo(name), data, method)
    return path


def contents(path: Path, spool: Path, max_total_bytes: int = 1 << 30) -> dict[str, bytes]:
    with open_tree(path, spool=spool, max_total_bytes=max_total_bytes) as tree:
        found = {name: tree.read(name) for name in tree.sizes}
        assert {name: len(data) for name, data in found.items()} == tree.sizes
        assert list(found) == sorted(found)
        return found


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_hold_what_was_packed_and_leave_nothing_behind(tmp_path: Path, spool: Path, mode: str) -> None:
    path = pack_tar(tmp_path / "x", FILES, mode)
    assert contents(path, spool) == FILES
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_tar_layouts_are_read_with_long_and_foreign_names(
    tmp_path: Path, spool: Path, layout: int
) -> None:
    files = {"a/" + "long" * 20 + "/1.png": b"1", "b/2.png": b"2"}
    if layout != tarfile.USTAR_FORMAT:
        files |= {"猫/" + "é" * 90 + ".png": b"3", "a/" + "x" * 300: b"4"}
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=layout) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert contents(path, spool) == files


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_zips_hold_what_was_packed(tmp_path: Path, spool: Path, method: int) -> None:
    assert contents(pack_zip(tmp_path / "x.zip", FILES, method), spool) == FILES


def test_a_folder_is_a_tree_too_with_its_empty_folders(tmp_path: Path, spool: Path) -> None:
    root = write_tree(tmp_path / "root", FILES)
    (root / "c" / "nothing").mkdir(parents=True)
    with open_tree(root, spool=spool, max_total_bytes=1) as tree:
        assert {name: tree.read(name) for name in tree.sizes} == FILES
        assert tree.folders == {"a", "a/deep", "b", "c", "c/nothing"}


def test_memory_is_a_tree_too() -> None:
    tree = memory_tree("sample", FILES)
    assert list(tree.sizes) == sorted(FILES)
    assert tree.folders == {"a", "a/deep", "b"}
    assert tree.read("a/1.png") == b"one"


BAD_NAMES = [
    "../x.png",
    "a/../../x.png",
    "/etc/passwd",
    "a/\x01.png",
    "a/\nb.png",
    "..",
    "C:/x.png",
    "a/\x9b.png",
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_unsafe_names_refuse_the_archive(tmp_path: Path, spool: Path, name: str, kind: str) -> None:
    files = {"a/1.png": b"1", name: b"2"}
    path = tmp_path / f"x.{kind}"
    pack_zip(path, files) if kind == "zip" else pack_tar(path, files, "w:gz" if kind == "tar.gz" else "w")
    with pytest.raises(ValueError, match="unsafe file name") as error:
        contents(path, spool)
    assert ascii(name)[1:-1] in str(error.value)
    assert "\n" not in str(error.value)
    assert list(spool.iterdir()) == []


def test_an_unsafe_name_in_a_folder_is_told_with_what_to_do_and_how_many_others_there_are(
    tmp_path: Path, spool: Path
) -> None:
    write_tree(tmp_path / "one", {"a/fine.png": b"1", "a/\x1b[2J.png": b"2"})
    with pytest.raises(ValueError, match=r"'a/\\x1b\[2J\.png': it holds .* characters; rename it$"):
        contents(tmp_path / "one", spool)
    # a folder is one name, whatever lies below it
    write_tree(
        tmp_path / "three", {"a/\x07.png": b"1", "b\x07/1.png": b"2", "b\x07/2.png": b"3", "c\x07.png": b"4"}
    )
    with pytest.raises(
        ValueError, match=r"'a/\\x07\.png'.* rename it, and 2 more such names in that folder$"
    ):
        contents(tmp_path / "three", spool)


def test_backslashes_of_old_windows_zips_are_slashes_but_do_not_escape(tmp_path: Path, spool: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as packed:
        info = zipfile.ZipInfo("x")
        info.filename = "a\\1.png"
        packed.writestr(info, b"1")
    assert contents(path, spool) == {"a/1.png": b"1"}
    with zipfile.ZipFile(path, "w") as packed:
        info = zipfile.ZipInfo("x")
        info.filename = "..\\1.png"
        packed.writestr(info, b"1")
    with pytest.raises(ValueError, match="leads out"):
        contents(path, spool)


@given(st.text(max_size=40))
@example("a//b/./c")
@example("./a")
@settings(max_examples=300)
def test_a_safe_name_never_leaves_its_folder(name: str) -> None:
    try:
        safe = safe_name(name, "here")
    except ValueError:
        return
    path = PurePosixPath("/root") / safe
    assert Path(os.path.normpath(path)).is_relative_to("/root")
    assert safe == safe_name(safe, "here")
    assert "\\" not in safe
    assert not safe.startswith("/")


@given(
    names=st.lists(
        st.text(alphabet="ab./\\:é\x01", min_size=1, max_size=8), min_size=1, max_size=4, unique=True
    ),
    zipped=st.booleans(),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_archive_gives_a_name_that_escapes(tmp_path: Path, names: list[str], zipped: bool) -> None:
    files = dict.fromkeys(names, b"x")
    path = (pack_zip if zipped else pack_tar)(tmp_path / "x", files)
    try:
        found = contents(path, tmp_path)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is fine)
        return
    for name in found:
        assert Path(os.path.normpath(tmp_path / name)).is_relative_to(tmp_path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, spool: Path, kind: bytes) -> None:
    def tweak(member: tarfile.TarInfo) -> None:
        if member.name == "a/bad":
            member.type, member.linkname, member.size = kind, "/etc/passwd", 0

    path = pack_tar(tmp_path / "x.tar", {"a/1.png": b"1", "a/bad": b""}, tweak=tweak)
    with pytest.raises(ValueError, match=r"'a/bad' is a (link|device)"):
        contents(path, spool)


def test_links_and_encrypted_members_in_a_zip_are_refused(tmp_path: Path, spool: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as packed:
        info = zipfile.ZipInfo("a/link")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="'a/link' is a link"):
        contents(path, spool)
    pack_zip(path, {"a/secret": b"1"})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(data)
    with pytest.raises(ValueError, match="'a/secret' is encrypted"):
        contents(path, spool)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path, spool: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a/1.png", "./a//1.png"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(ValueError, match=r"'a/1\.png' stands in the archive twice"):
        contents(path, spool)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_truncated_tar_is_an_error_and_never_a_part(tmp_path: Path, spool: Path, mode: str) -> None:
    noise = {f"a/{i}.png": os.urandom(700) for i in range(40)}
    whole = pack_tar(tmp_path / "whole", noise, mode).read_bytes()
    content = len(noise) * 1536 if mode == "w" else len(whole)  # a plain tar ends in zeros
    for part in (0.05, 0.3, 0.5, 0.9, 0.999):
        path = tmp_path / "cut"
        path.write_bytes(whole[: int(content * part)])
        with pytest.raises(ValueError, match="damaged or truncated"):
            contents(path, spool)


def test_a_tar_with_a_damaged_header_is_an_error(tmp_path: Path, spool: Path) -> None:
    path = pack_tar(tmp_path / "x.tar", {f"a/{i}": b"x" * 100 for i in range(10)})
    data = bytearray(path.read_bytes())
    data[5 * 1024 + 3] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged or truncated"):
        contents(path, spool)


def test_a_truncated_zip_is_an_error_and_a_damaged_member_its_own(tmp_path: Path, spool: Path) -> None:
    path = pack_zip(tmp_path / "x.zip", {"a/1": os.urandom(5000), "a/2": b"fine"})
    data = path.read_bytes()
    path.write_bytes(data[:3000])
    with pytest.raises(ValueError, match="damaged or truncated"):
        contents(path, spool)
    path.write_bytes(data[:500] + bytes(300) + data[800:])
    with open_tree(path, spool=spool, max_total_bytes=1 << 30) as tree:
        with pytest.raises(ValueError, match="damaged in the archive"):
            tree.read("a/1")
        assert tree.read("a/2") == b"fine"


def bomb(path: Path, size: int) -> Path:
    return (
        pack_tar(path, {"a/zeros": bytes(size)}, "w:gz")
        if path.suffix == ".gz"
        else pack_zip(path, {"z": bytes(size)})
    )


@pytest.mark.parametrize("name", ["x.tar.gz", "x.zip"])
def test_bombs_are_refused_by_ratio_and_by_total(
    tmp_path: Path, spool: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bomb(tmp_path / name, 4_000_000)
    assert len(contents(path, spool)) == 1  # small enough to do no harm
    with pytest.raises(ValueError, match="max_source_gb"):
        contents(path, spool, max_total_bytes=1_000_000)
    monkeypatch.setattr(archive, "RATIO_FLOOR_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="archive bomb"):
        contents(path, spool)


def test_too_many_members_and_endless_headers_are_refused(
    tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack_tar(tmp_path / "x.tar", {f"a/{i}": b"" for i in range(20)})
    monkeypatch.setattr(archive, "MAX_MEMBERS", 10)
    with pytest.raises(ValueError, match="more than 10 members"):
        contents(path, spool)
    member = tarfile.TarInfo("header")
    member.type, member.size = tarfile.XHDTYPE, 4 << 20
    path.write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + bytes(5 << 20))
    with pytest.raises(ValueError, match="extended header"):
        contents(path, spool)


def header(kind: bytes, size: int = 0, name: str = "a/1.png", goes_on: bool = False) -> bytes:
    """One of a tar; whether a sparse file's map goes on in the next block."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[482] = goes_on
    return mend_checksums(bytes(block))


def extended(text: bytes) -> bytes:
    return header(tarfile.XHDTYPE, len(text)) + text.ljust(512, b"\0")


END = bytes(1024)
ODD = {
    "a sparse file, cut off": (header(tarfile.GNUTYPE_SPARSE, goes_on=True), "member 'a/1.png' is a sparse file"),
    "a negative size": (header(tarfile.REGTYPE, -512) + END, "member 'a/1.png' is a file of negative size"),
    "a header of negative size": (
        header(tarfile.XHDTYPE, -512) + END, "archive (member 'a/1.png' has an extended header of -512 bytes)",
    ),
    "a header of less than that": (header(tarfile.GNUTYPE_LONGNAME, -(1 << 80)) + END, "archive (member 'a/1.png' has"),
    "text in no encoding": (
        extended(b"20 hdrcharset=\xff\xfe\n") + header(tarfile.REGTYPE) + END, "archive ('utf-8' codec can't decode",
    ),
    "a number beyond all": (
        extended(b"99999999999999999999 comment=x\n") + header(tarfile.REGTYPE) + END, "damaged or truncated archive (",
    ),
    "headers of headers": (
        header(tarfile.XHDTYPE) * 1000 + header(tarfile.REGTYPE) + END, "archive (maximum recursion",
    ),
    "headers that are kept": (
        (header(tarfile.XGLTYPE, 1 << 19) + bytes(1 << 19)) * 3 + header(tarfile.REGTYPE) + END,
        "archive (member 'a/1.png' has an extended header of 524,288 bytes)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(ODD))
def test_what_no_tar_has_is_refused_by_the_archives_name(tmp_path: Path, spool: Path, kind: str) -> None:
    data, fault = ODD[kind]
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(fault)) as error:
        contents(tmp_path / "x.tar", spool)
    assert type(error.value) is ValueError and str(error.value).startswith(f"{tmp_path / 'x.tar'}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("marks", [
    {"GNU.sparse.size": "5", "GNU.sparse.numblocks": "1"},
    {"GNU.sparse.map": "odd"},
    {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "5"},
])  # fmt: skip
def test_a_sparse_file_is_refused_before_its_map_is_read(
    tmp_path: Path, spool: Path, marks: dict[str, str]
) -> None:
    def tweak(member: tarfile.TarInfo) -> None:
        member.pax_headers = marks

    path = pack_tar(tmp_path / "x.tar", {"a/1.png": b"1000000000\n" + b"0" * 600}, tweak=tweak)
    with pytest.raises(ValueError, match=r"x\.tar: member 'a/1\.png' is a sparse file"):
        contents(path, spool)


def test_a_zip_of_odd_names_and_places_is_refused_by_its_name_or_a_member_is(
    tmp_path: Path, spool: Path
) -> None:
    path = pack_zip(tmp_path / "x.zip", {"é": b"1"})
    data, name, odd = path.read_bytes(), "é".encode(), b"\xff\xfe"
    path.write_bytes(data.replace(name, odd))
    with pytest.raises(ValueError, match=r"x\.zip: damaged or truncated archive \('utf-8' codec"):
        contents(path, spool)
    path.write_bytes(data.replace(name, odd, 1))  # in the member's own header
    with pytest.raises(ValueError, match=r"damaged in the archive: 'utf-8' codec"):
        contents(path, spool)
    with zipfile.ZipFile(path, "w") as packed:
        info = zipfile.ZipInfo("a/1")
        packed.writestr(info, b"1")
        info.header_offset = 1 << 63
    with pytest.raises(ValueError, match="damaged in the archive"):
        contents(path, spool)


def test_what_is_no_archive_is_told_apart_by_content(tmp_path: Path, spool: Path) -> None:
    for name, start, expected in (
        ("x.7z", b"7z\xbc\xaf\x27\x1c", "7z archives are not supported"),
        ("x.rar", b"Rar!\x1a\x07", "RAR archives are not supported"),
        ("x.tar.zst", b"\x28\xb5\x2f\xfd", "zstd archives are not supported"),
        ("x.tar", b"hello", "neither a folder, nor a tar"),
        ("empty", b"", "neither a folder, nor a tar"),
        ("text.gz", b"\x1f\x8b hello", "damaged or truncated"),
    ):
        (tmp_path / name).write_bytes(start)
        with pytest.raises(ValueError, match=expected):
            contents(tmp_path / name, spool)
    misnamed = pack_zip(tmp_path / "photos.tar.gz", FILES)
    assert archive_kind(misnamed) == "zip"
    assert contents(misnamed, spool) == FILES


def test_links_in_a_folder_are_followed_but_not_in_circles(tmp_path: Path, spool: Path) -> None:
    root = write_tree(tmp_path / "root", {"a/1": b"1"})
    write_tree(tmp_path / "elsewhere", {"2": b"2"})
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "gone").symlink_to(tmp_path / "nowhere")
    with open_tree(root, spool=spool, max_total_bytes=1) as tree:
        assert tree.read("b/2") == b"2"
        with pytest.raises(OSError, match="No such file"):
            tree.read("a/gone")
    (root / "a" / "up").symlink_to(root)
    with pytest.raises(ValueError, match="leads back"):
        contents(root, spool)


def test_pipes_in_a_folder_do_not_block(tmp_path: Path, spool: Path) -> None:
    root = write_tree(tmp_path / "root", {"a/1": b"1"})
    os.mkfifo(root / "a" / "pipe")
    with open_tree(root, spool=spool, max_total_bytes=1) as tree, pytest.raises(ValueError, match="regular"):
        tree.read("a/pipe")


def test_trees_of_one_set_of_files_are_alike_however_they_come(tmp_path: Path, spool: Path) -> None:
    def shape(tree: FileTree) -> tuple[dict[str, int], list[bytes]]:
        return tree.sizes, [tree.read(name) for name in tree.sizes]

    shapes = []
    for path in (
        write_tree(tmp_path / "root", FILES),
        pack_tar(tmp_path / "x.tar", dict(reversed(FILES.items()))),
        pack_zip(tmp_path / "x.zip", FILES),
    ):
        with open_tree(path, spool=spool, max_total_bytes=1 << 20) as tree:
            shapes.append(shape(tree))
    assert shapes[0] == shapes[1] == shapes[2] == shape(memory_tree("x", FILES))
