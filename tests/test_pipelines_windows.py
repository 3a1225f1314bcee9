"""`./convoy detect-windows`, as a person types it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Run
from tests.handmade import write_model

CLASSES = ("background", "square")


@pytest.fixture
def model(tmp_path: Path) -> str:
    made = write_model(
        tmp_path / "model", CLASSES, architecture="overfeat_course", stored_px=14, crop_px=14, pad_px=0
    )
    return str(made)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(file)
    return file


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def test_what_is_found_is_printed_drawn_and_cut_out(
    run: Run, model: str, photo: Path, tmp_path: Path
) -> None:
    words = ("detect-windows", str(photo), "--model", model, "--class", *CLASSES, "--windows", "14", "28")
    code, out, err = run(
        *words, "--score", "0.5", "--most", "7", "--out", str(tmp_path / "a.png"),
        "--crops", str(tmp_path / "crops"), "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    (scan,) = document["pictures"]
    assert (scan["size"], scan["windows_px"], scan["stride_px"]) == ([64, 48], [14, 28], 2)
    assert scan["num_windows"] == 18 * 26 + 6 * 10
    assert len(scan["found"]) == 7
    assert [found["score"] for found in scan["found"]] == sorted(
        (f["score"] for f in scan["found"]), reverse=True
    )
    assert size_of(tmp_path / "a.png") == (64, 48)
    crops = sorted((tmp_path / "crops").iterdir())
    assert {size_of(file) for file in crops} == {(14, 14)}
    assert {str(tmp_path / "a.png"), *map(str, crops)} == set(document["files"])


def test_both_ways_print_the_same(run: Run, model: str, photo: Path) -> None:
    words = (
        "detect-windows",
        str(photo),
        "--model",
        model,
        "--class",
        "square",
        "--score",
        "0.3",
        "--stride",
        "4",
    )
    convolved, cut = (
        json.loads(run(*words, "--way", way, "--json")[1]) for way in ("convolutional", "crops")
    )
    (one,), (other,) = convolved["pictures"], cut["pictures"]
    assert len(one["found"]) == len(other["found"]) > 0
    for ours, theirs in zip(one["found"], other["found"], strict=True):
        assert ours["box_xyxy"] == theirs["box_xyxy"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)


def test_several_pictures_are_drawn_into_a_folder_and_scikit_images_have_names(
    run: Run, model: str, photo: Path, tmp_path: Path
) -> None:
    code, out, err = run(
        "detect-windows", "skimage:astronaut", str(photo), "--model", model, "--class", "square",
        "--windows", "48", "--out", str(tmp_path / "drawn"),
    )  # fmt: skip
    assert code == 0, err
    assert "of 2 pictures" in out and "wrote 2 pictures" in out
    assert size_of(tmp_path / "drawn" / "skimage-astronaut.png") == (512, 512)
    assert (tmp_path / "drawn" / "noise.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "cat"), "class cat is not known; the model knows background, square"),
        (("--class", "square", "--windows", "49"), "windows (=49) must be from 1 to 48 px"),
        (("--class", "square", "--stride", "-2"), "stride (=-2) must be at least 1"),
        (("--class", "square", "--score", "2"), "score (=2.0) must lie in 0…1"),
        (("--class", "square", "--most", "-3"), "most (=-3) must be at least 1"),
        (("--class", "square", "--iou", "3"), "iou (=3.0) must lie in 0…1"),
        (("--class", "square", "--agreeing", "0"), "agreeing (=0) must be at least 1"),
        (("--class", "square", "--stride", "3"), "stride (=3) must be a multiple of the network's own, 2"),
    ],
)
def test_what_does_not_fit_is_one_line(
    run: Run, model: str, photo: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = run("detect-windows", str(photo), "--model", model, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_pictures_of_one_name_do_not_replace_each_other(
    run: Run, model: str, photo: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / photo.name
    other.parent.mkdir()
    Image.new("RGB", (60, 50)).save(other)
    words = (
        "detect-windows",
        str(photo),
        str(other),
        "--model",
        model,
        "--class",
        "square",
        "--windows",
        "40",
    )
    code, out, err = run(*words, "--out", str(tmp_path / "drawn"))
    assert code == 0, err
    assert size_of(tmp_path / "drawn" / "noise.png") == size_of(photo)
    assert size_of(tmp_path / "drawn" / "noise-2.png") == (60, 50)
    other.write_bytes(b"hello")
    code, _, err = run(*words)
    assert code == 2 and err.startswith(f"convoy: {other}: not an image") and err.count("\n") == 1


def test_what_is_drawn_goes_into_a_file_or_a_folder_that_need_not_be_there(
    run: Run, model: str, photo: Path, tmp_path: Path
) -> None:
    words = ("detect-windows", str(photo), "--model", model, "--class", "square", "--windows", "40")
    for out, file in (("new/deep/a.jpg", "new/deep/a.jpg"), ("drawn", "drawn/noise.png")):
        code, _out, err = run(*words, "--out", str(tmp_path / out))
        assert code == 0, err
        assert size_of(tmp_path / file) == size_of(photo)
    (tmp_path / "notes.txt").write_text("mine")
    code, _out, err = run(*words, "--out", str(tmp_path / "notes.txt"))
    assert code == 2 and "is a file: it must end in .png, .jpg, .jpeg, or be a folder" in err
    words = (*words[:1], "skimage:astronaut", *words[1:])
    code, _out, err = run(*words, "--out", str(tmp_path / "b.png"))
    assert code == 2 and "is one file, and there are 2 pictures" in err
    code, _out, err = run(*words, "--windows", "100")
    assert code == 2 and err.startswith(f"convoy: {photo}: windows (=100) must be from 1 to 48 px")


def test_a_picture_that_is_not_there_lists_those_that_are_shipped(run: Run, model: str) -> None:
    code, _, err = run("detect-windows", "none.jpg", "--model", model, "--class", "square")
    assert code == 2
    assert "no such picture: none.jpg; give a file, or skimage:astronaut, skimage:brick" in err
