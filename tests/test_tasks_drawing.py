"""Boxes on pictures: where they are, readable at the borders, the picture itself untouched."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.detectionpredict import drawer
from tasks.drawing import (
    COLOURS,
    MOST_DRAWN_PX,
    Mark,
    colour_of,
    distinct,
    draw_boxes,
    enlargement,
    write_drawn,
)

RED = (0xFF, 0x3B, 0x30)


def drawn(*marks: Mark, size: tuple[int, int] = (80, 120)) -> np.ndarray:
    return draw_boxes(np.zeros((*size, 3), np.uint8), marks)


def is_red(picture: np.ndarray) -> np.ndarray:
    return np.asarray((picture == RED).all(-1))


def test_a_box_is_drawn_on_its_edges_and_the_picture_is_not_changed() -> None:
    picture = np.full((80, 120, 3), 7, np.uint8)
    red = is_red(draw_boxes(picture, [Mark((20, 30, 60, 70), "", COLOURS[0])]))
    assert (picture == 7).all()
    rows, columns = np.nonzero(red)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (20, 30, 59, 69)
    assert not red[34:66, 24:56].any()
    whole = is_red(drawn(Mark((0, 0, 120, 80), "", COLOURS[0])))
    assert all(side.all() for side in (whole[:2], whole[-2:], whole[:, :2], whole[:, -2:]))


def test_a_small_picture_is_enlarged_with_its_boxes_so_that_texts_do_not_hide_it(tmp_path: Path) -> None:
    names = {"small": (96, 128), "large": (400, 500)}
    files = [tmp_path / f"{name}.png" for name in names]
    for file, (height, width) in zip(files, names.values(), strict=True):
        Image.new("L", (width, height)).save(file)
    row = {"error": None, "boxes_xyxy": [[20.0, 60.0, 40.0, 90.0]], "labels": ["cat"], "scores": [0.5]}
    written = write_drawn(files, [row, row], tmp_path / "drawn", drawer(["cat"]))
    for file, zoom, (height, width) in zip(written, (4, 1), names.values(), strict=True):
        with Image.open(file) as picture:
            red = is_red(np.asarray(picture))
        assert red.shape == (height * zoom, width * zoom)
        assert red[90 * zoom - 1, 20 * zoom : 40 * zoom].all() and not red[90 * zoom].any()


@pytest.mark.parametrize(
    ("size", "zoom"), [((96, 128), 4), ((400, 500), 1), ((1, 1), 320), ((1, 100), 40), ((2, 9000), 1)]
)
def test_a_strip_is_not_enlarged_without_end(size: tuple[int, int], zoom: int) -> None:
    assert enlargement(*size) == enlargement(*size[::-1]) == zoom
    assert zoom == 1 or zoom * max(size) <= MOST_DRAWN_PX


def test_pictures_of_one_name_get_numbers() -> None:
    assert distinct(["a", "b", "a", "a-2", "a"]) == ["a", "b", "a-2", "a-2-2", "a-3"]


def test_a_dashed_box_is_drawn_in_parts() -> None:
    red = is_red(drawn(Mark((20, 30, 60, 70), "", COLOURS[0], dashed=True)))
    assert 0.3 < red[29:32, 20:61].any(0).mean() < 0.8


@pytest.mark.parametrize("box", [(0, 0, 119, 79), (100, 40, 119, 60), (-30, -20, 40, 40), (110, 2, 140, 30)])
def test_a_text_stays_in_the_picture(box: tuple[float, float, float, float]) -> None:
    """Its plate is as large as where there is room on all sides."""
    plain, named = (is_red(drawn(Mark(box, text, COLOURS[0]), size=(80, 120))) for text in ("", "cat 0.93"))
    free = Mark((20, 40, 25, 45), "cat 0.93", COLOURS[0])
    plate = is_red(drawn(free)) & ~is_red(drawn(free._replace(text="")))
    assert (named & ~plain).sum() > 0.7 * plate.sum()


def test_colours_repeat_and_what_is_no_picture_is_told() -> None:
    assert colour_of(len(COLOURS) + 1) == COLOURS[1]
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8"):
        draw_boxes(np.zeros((5, 5), np.uint8), [])
    assert drawn(Mark((5, 5, 5, 5), "", COLOURS[0], dashed=True)).shape == (80, 120, 3)  # without area
