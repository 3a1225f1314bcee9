"""What a person may hand in, and nothing breaks: one line says what is wrong and what to do, or it is set aside.

The rows are the list of the design, by the real commands.
"""

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.paths import store
from tests.conftest import Run
from tests.corpus import pack
from tests.pictures import class_tree, encode, picture, png, png_bomb, write_tree
from tests.test_data_decode import with_orientation

pytestmark = pytest.mark.usefixtures("module_home")
JPEG = encode(picture(3), "JPEG")
SOUND = class_tree("ab", 6)
TWO = {"a.png": png(1), "b.png": png(2)}
Make = Callable[[Path], str]


def one_line(run: Run, *arguments: str) -> str:
    """What a command says that is refused: one line, exit code 2, nothing on stdout, no traceback."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, ""), err
    assert err.startswith("convoy: ") and err.count("\n") == 1, err
    assert "Traceback" not in err and "Error:" not in err, err
    return err


def tree(files: dict[str, bytes]) -> Make:
    return lambda root: str(write_tree(root / "source", files)) if files else str(empty(root / "source"))


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def file(name: str, data: bytes) -> Make:
    return lambda root: str(write_tree(root, {name: data}) / name)


def link_in_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("a/1.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    return buffer.getvalue()


def bomb_in_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(150 << 20))
    return buffer.getvalue()


REFUSED: dict[str, tuple[Make, str]] = {
    "nothing there": (lambda root: str(root / "nowhere"), "no such source"),
    "an empty folder": (tree({}), "no pictures found"),
    "one picture": (tree({"a/1.png": png(1)}), "only one picture (a/1.png)"),
    "one class": (tree(class_tree("a", 6)), "only one class"),
    "a zero-byte archive": (file("x.zip", b""), "is neither a folder, nor a tar or zip archive"),
    "a truncated zip": (file("x.zip", pack(SOUND, "zip")[:3000]), "damaged or truncated archive"),
    "a truncated tar": (file("x.tar", pack(SOUND, "tar")[:3000]), "damaged or truncated archive"),
    "a tar that leads out": (file("x.tar", pack({"../1.png": png(1)}, "tar")), "it leads out of its folder"),
    "a zip that leads out": (
        file("x.zip", pack({"a/../../1.png": png(1)}, "zip")),
        "it leads out of its folder",
    ),
    "an absolute name": (file("x.tar", pack({"/etc/1.png": png(1)}, "tar")), "names must be relative"),
    "a link": (file("x.tar", link_in_tar()), "is a link (to '/etc/passwd')"),
    "a bomb": (file("x.zip", bomb_in_zip()), "archive bomb"),
    "another kind of archive": (
        file("x.7z", b"7z\xbc\xaf'\x1c" + bytes(99)),
        "7z archives are not supported; repack",
    ),
    "something else": (file("x.txt", b"hello"), "is neither a folder, nor a tar or zip archive"),
    "a device": (lambda _: "/dev/zero", "is neither a folder, nor a tar or zip archive"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_a_source_that_cannot_work_is_one_line(case: str, run: Run, tmp_path: Path) -> None:
    make, said = REFUSED[case]
    assert said in one_line(run, "data", "add", make(tmp_path), "--name", "refused")
    assert not (store() / "refused").exists()


@pytest.mark.parametrize("name", ["", "../x", "Cats", "<script>", "a b", "x" * 65, "a/b", "é"])
def test_a_name_that_cannot_be_is_one_line(name: str, run: Run, tmp_path: Path) -> None:
    source = str(write_tree(tmp_path / "source", SOUND))
    assert "must be lower-case letters" in one_line(run, "data", "add", source, "--name", name)


ODD = {
    "a/truncated.jpg": JPEG[: len(JPEG) // 2],
    "a/empty.png": b"",
    "a/text.jpg": b"<html>not found</html>",
    "a/bomb.png": png_bomb(40_000, 40_000),
    "b/noise.gif": b"GIF89a" + bytes(40),
}
FINE = {
    "a/cmyk.jpg": encode(picture(11, mode="CMYK"), "JPEG"),
    "a/deep.png": encode(picture(12, mode="I;16")) if False else png(12),
    "a/moving.gif": encode(picture(13), "GIF", save_all=True, append_images=[picture(14)]),
    "b/turned.jpg": with_orientation(6, 20),
    "b/jpeg.png": JPEG,
}


def test_odd_pictures_are_used_and_broken_ones_set_aside_with_a_reason(run: Run, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", SOUND | FINE | ODD)
    (source / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes(png(21))
    code, out, err = run("data", "add", str(source), "--name", "odd", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["num_images"] == len(SOUND | FINE)
    reasons = {image["id"]: image["reason"] for image in report["set_aside"]}
    assert set(ODD) <= set(reasons)
    assert all(reason and "\n" not in reason for reason in reasons.values())
