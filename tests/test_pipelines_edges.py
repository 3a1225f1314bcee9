"""`./convoy edges`, as a person types it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.filters import FILTERS
from tasks.edges import LABEL_PX, TALLEST_PX, TILE_PX
from tests.conftest import Run
from tests.pictures import encode


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A white square on black, 40x40 in 64x64."""
    levels = np.zeros((64, 64), np.uint8)
    levels[12:52, 12:52] = 255
    file = tmp_path / "square.png"
    file.write_bytes(encode(Image.fromarray(levels)))
    return file


def test_each_filter_has_its_picture_and_edges_show_where_they_are(
    run: Run, photo: Path, tmp_path: Path
) -> None:
    code, out, err = run("edges", str(photo), "--padding", "same", "--out", str(tmp_path / "maps"), "--json")
    assert code == 0, err
    files = json.loads(out)["files"]
    assert set(files) == {*FILTERS, "sobel_magnitude", "scharr_magnitude", "edges"}
    vertical = np.asarray(Image.open(files["sobel_vertical"]))
    assert vertical.shape == (64, 64)
    assert vertical[32, 32] in (127, 128)
    assert vertical[32, 11:13].tolist() == [0, 0]  # dark to bright
    assert vertical[32, 51:53].tolist() == [255, 255]
    assert set(vertical[11:13, 32].tolist()) <= {127, 128}  # along a horizontal edge, nothing
    magnitude = np.asarray(Image.open(files["sobel_magnitude"]))
    assert magnitude[32, 11] == magnitude[11, 32] == 255
    assert magnitude[32, 32] == 0


@pytest.mark.parametrize("size", [(3, 3000), (3000, 3)], ids=str)
def test_a_strip_makes_a_sheet_of_bounded_size(run: Run, tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "strip.png").write_bytes(encode(Image.new("L", size, 90)))
    code, out, err = run("edges", str(tmp_path / "strip.png"), "--out", str(tmp_path / "maps"), "--json")
    assert code == 0, err
    with Image.open(json.loads(out)["files"]["edges"]) as sheet:
        assert sheet.width == 3 * (TILE_PX + 8) + 8
        assert sheet.height <= 3 * (TALLEST_PX + LABEL_PX + 8) + 8


def test_true_convolution_changes_the_sign_and_stride_the_size(run: Run, photo: Path, tmp_path: Path) -> None:
    options = ("--filters", "vertical", "--stride", "2", "--out", str(tmp_path / "a"), "--json")
    files = json.loads(run("edges", str(photo), *options)[1])["files"]
    assert set(files) == {"vertical", "edges"}
    plain = np.asarray(Image.open(files["vertical"])).astype(int)
    assert plain.shape == (31, 31)
    files = json.loads(run("edges", str(photo), *options, "--true-convolution")[1])["files"]
    assert np.abs(plain + np.asarray(Image.open(files["vertical"])) - 255).max() <= 1


@pytest.mark.parametrize(
    ("named", "written"),
    [
        (("sobel_magnitude",), ("sobel_magnitude",)),
        (("vertical", "scharr_magnitude"), ("vertical", "scharr_magnitude")),
        (("sobel_horizontal", "sobel_vertical"), ("sobel_horizontal", "sobel_vertical", "sobel_magnitude")),
        (("sobel_horizontal", "sobel_magnitude"), ("sobel_horizontal", "sobel_magnitude")),
        (("sobel_horizontal", "scharr_vertical"), ("sobel_horizontal", "scharr_vertical")),
    ],
    ids=str,
)
def test_a_magnitude_is_written_where_it_or_both_of_its_filters_are_named(
    run: Run, photo: Path, tmp_path: Path, named: tuple[str, ...], written: tuple[str, ...]
) -> None:
    whole = json.loads(run("edges", str(photo), "--out", str(tmp_path / "all"), "--json")[1])["files"]
    code, out, err = run("edges", str(photo), "--filters", *named, "--out", str(tmp_path / "some"), "--json")
    assert code == 0, err
    files = json.loads(out)["files"]
    assert set(files) == {*written, "edges"}
    assert all(Path(files[name]).read_bytes() == Path(whole[name]).read_bytes() for name in written)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--filters", "sobel"), "did you mean sobel_vertical or sobel_horizontal or sobel_magnitude?"),
        (("--filters", "sobel_magnitud"), "did you mean sobel_magnitude?"),
        (("--filters", "canny"), "no filter canny; known: vertical, horizontal, sobel_vertical"),
        (("--stride", "0"), "stride (=0) must be at least 1"),
        (("--stride", "-3"), "stride (=-3) must be at least 1"),
        (
            ("--stride", "9"),
            "stride (=9) makes maps of 7x7 px of a picture of 64x64, which show nothing: give at most 8",
        ),
        (("--stride", "5000", "--padding", "same"), "makes maps of 1x1 px of a picture of 64x64"),
    ],
)
def test_what_does_not_fit_is_one_line(
    run: Run, photo: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = run("edges", str(photo), *arguments, "--out", str(tmp_path / "maps"))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "maps").exists()


def test_what_is_no_picture_or_missing_or_too_small_is_refused_by_its_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"text")
    (tmp_path / "small.png").write_bytes(encode(Image.new("L", (2, 2))))
    for name, message in (
        ("x.jpg", f"{tmp_path / 'x.jpg'}: not an image"),
        ("none.jpg", f"no such picture: {tmp_path / 'none.jpg'}; give a file, or skimage:astronaut"),
        ("small.png", "a filter of 3 px does not fit into 2 px"),
    ):
        code, _, err = run("edges", str(tmp_path / name), "--out", str(tmp_path / "maps"))
        assert code == 2
        assert message in err
