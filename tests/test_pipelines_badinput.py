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

import numpy as np
import pytest
from PIL import Image

from data.dataset import Dataset
from tasks.paths import store
from tests.conftest import Run
from tests.corpus import pack
from tests.pictures import class_tree, encode, picture, png, png_bomb, write_tree
from tests.recording import make_model
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
    "a device": (lambda _: "/dev/zero", "is a pipe or a device; give a folder or a file"),
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
    "a/cmyk.jpg": encode(picture(11).convert("CMYK"), "JPEG"),
    "a/deep.png": encode(Image.fromarray(np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30)),
    "a/moving.gif": encode(
        picture(13).convert("P"), "GIF", save_all=True, append_images=[picture(14).convert("P")]
    ),
    "b/turned.jpg": with_orientation(picture(15), 6, "JPEG"),
    "b/jpeg.png": JPEG,
}


def test_odd_pictures_are_used_and_broken_ones_set_aside_with_a_reason(run: Run, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", SOUND | FINE | ODD)
    code, out, err = run("data", "add", str(source), "--name", "odd", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["num_images"] == len(SOUND | FINE)
    reasons = {image["id"]: image["reason"] for image in report["set_aside"]}
    assert set(reasons) == set(ODD)
    assert all(reason and "\n" not in reason for reason in reasons.values())
    assert "decompression bomb: 40000×40000" in reasons["a/bomb.png"]
    assert reasons["a/empty.png"] == "empty file"


def test_boxes_and_labels_that_cannot_be_are_left_out_and_counted(run: Run, tmp_path: Path) -> None:
    lines = {
        0: "0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n-1 0.5 0.5 0.2 0.2",  # of two classes
        1: "1 1.6 0.5 0.2 0.2\n1 0.9 0.9 0.6 0.6",  # one outside the picture, one over its edge
        2: "0 0.5 0.5 0 0.2\n0 0.3 0.3 0.1 0.1\n0 0.3 0.3 0.1 0.1",
    }
    files = {f"images/{i}.png": png(i) for i in range(8)}
    files |= {f"labels/{i}.txt": lines.get(i, "0 0.5 0.5 0.4 0.4").encode() for i in range(7)}
    files |= {"labels/7.txt": b"0 120 80 30 30", "data.yaml": b"names: [cat, dog]"}
    source = str(write_tree(tmp_path / "source", files))
    code, out, err = run("data", "add", source, "--name", "boxes", "--family", "detection", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert {issue["what"]: issue["count"] for issue in report["issues"]} == {
        "boxes of no listed class, left out": 2,
        "boxes outside the image, left out": 1,
        "boxes over the edge, cut there": 1,
        "boxes without area, left out": 1,
        "boxes given twice, one left out": 1,
    }
    [aside] = report["set_aside"]
    assert aside["id"] == "7.png" and "not pixels" in aside["reason"]
    assert report["num_images"] == 7


def test_a_class_for_each_of_many_pictures_is_told_as_what_it_is(run: Run, tmp_path: Path) -> None:
    source = str(write_tree(tmp_path / "source", {f"{i:03d}/1.png": png(i) for i in range(300)}))
    code, out, err = run("data", "add", source, "--name", "many", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["num_images"] == 300 and report["findings"]
    assert "Traceback" not in err


def test_a_pipe_is_refused_and_not_waited_for(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe or a device" in one_line(
        run, "data", "add", str(tmp_path / "pipe"), "--name", "refused"
    )


def test_a_damaged_dataset_is_one_line_that_says_what_to_do(run: Run, digits: Dataset) -> None:
    file = digits.path / "dataset.json"
    whole = file.read_bytes()
    for content, said in (
        (b"", "dataset.json is damaged, it is no JSON"),
        (b"[]", "it must hold an object, got list"),
        (b"{}", "schema_version (=None) is not 1; ingest the source again"),
        (whole[:500], "move"),
        (whole.replace(b'"channels": 1', b'"channels": "many"'), "dataset.json.channels (='many')"),
        (whole.replace(b'"train-00000.parquet"', b'"../x"'), "must be a file name in that folder"),
    ):
        file.write_bytes(content)
        for command in (("data", "show", "digits"), ("train", "classification", "--dataset", "digits")):
            assert said in one_line(run, *command)


@pytest.mark.parametrize("name", ["../digits", "/etc", "digits/", "", ".", "DIGITS"])
@pytest.mark.parametrize("command", [("data", "show"), ("data", "check"), ("data", "versions")])
def test_a_path_is_no_datasets_name(command: tuple[str, ...], name: str, run: Run) -> None:
    assert "must be a name, as ./convoy data list shows them" in one_line(run, *command, name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optim.lr=.inf", "Input should be a finite number"),
        ("optim.lr=.nan", "optim.lr (=nan)"),
        ("train.seed=1.5", "Input should be a valid integer"),
        ("model=5", "model (=5) is a section: change one of its parameters, name"),
        ("train.batch_size=1e30", "train.batch_size (=1e+30)"),
        ("optim.lr=!!python/object/apply:os.getcwd []", "the value is not valid YAML"),
        ("optim.lr=" + "9" * 5000, "the value is not valid YAML"),
        ("optim.lr=2020-99-99", "the value is not valid YAML"),
        ("optim.lr=" + "[" * 3000, "the value is not valid YAML"),
        ("=1", "must be KEY.PATH=VALUE"),
        (
            "transfer.weights=https://me:hush@example.org/w.pth#sha256=" + "0" * 64,
            "transfer.weights (='https://example.org/w.pth'): parameters are recorded with the run",
        ),
    ],
)
def test_a_parameter_that_cannot_be_is_one_line(change: str, said: str, run: Run) -> None:
    err = one_line(run, "train", "classification", "--dataset", "digits", "--set", change)
    assert said in err and "hush" not in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[", "is not valid YAML"),
        (b"\xff\xfe\xfa", "is not valid YAML"),
        (b"just text", "must hold sections"),
        (b"classification: 5", "has no recipes for 'classification'"),
        (b"classification: {default: 5}", "classification.default (=5) must be a section of parameters"),
    ],
)
def test_params_yaml_that_cannot_be_is_one_line(
    content: bytes, said: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    monkeypatch.setattr("pipelines.parameters.PARAMS", tmp_path / "params.yaml")
    assert said in one_line(run, "parameters", "classification")


def test_predict_says_of_each_picture_what_is_wrong_and_a_name_does_not_steer_the_terminal(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # short names, which a table does not break
    model = str(make_model(Path("model")))
    folder = write_tree(
        Path("pictures"), {"fine.png": png(1), **{name[2:]: data for name, data in ODD.items()}}
    )
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(png(2))
    (folder / "esc\x1b[31m.png").write_bytes(png(3))
    code, out, err = run("predict", model, str(folder))
    assert (code, err) == (1, "")
    assert "\x1b" not in out
    assert "esc\\x1b[31m.png" in out
    assert "caf\\udce9.png" in out
    for said in ("decompression bomb", "empty file", "not an image", "damaged JPEG", "damaged GIF"):
        assert said in out.replace("\n", " "), said
    rows = json.loads(run("predict", model, str(folder), "--json")[1])["predictions"]
    assert sum(row["error"] is None for row in rows) == 3
    assert "is a pipe or a device" in one_line(run, "predict", model, "/dev/zero")
    for damage, said in ((b"", "is damaged, it is no JSON"), (b"{}", "card_version (=None) is not")):
        (tmp_path / "model" / "model.json").write_bytes(damage)
        assert said in one_line(run, "predict", model, str(folder))
