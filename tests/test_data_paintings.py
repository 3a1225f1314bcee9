"""The drawn pictures: what their names give, and how a wrong name is answered."""

import io

import numpy as np
import pytest
from PIL import Image

from data.paintings import JOINT_PX, PAINTINGS, TILE_PX, mosaic, patches
from data.samples import read_photo


@pytest.mark.parametrize("name", PAINTINGS)
def test_a_painting_is_drawn_the_same_each_time_with_many_colours(name: str) -> None:
    once, again = read_photo(name), read_photo(name)
    assert once == again
    with Image.open(io.BytesIO(once)) as image:
        assert image.size == (512, 512) and image.mode == "RGB"
        levels = np.asarray(image).reshape(-1, 3)
    assert len(np.unique(levels // 16, axis=0)) > 100 and levels.std(0).min() > 40


def test_a_name_that_is_no_picture_gets_a_list() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no such picture: convoy:monet; .*skimage:rocket.*convoy:whirls"
    ):
        read_photo("convoy:monet")


def test_a_mosaic_has_tiles_of_one_colour_between_dark_joints() -> None:
    pixels = np.asarray(mosaic(240)).astype(int)
    across = np.abs(np.diff(pixels, axis=1)).sum(2)
    down = np.abs(np.diff(pixels, axis=0)).sum(2)
    flat = (across[:-1] == 0) & (down[:, :-1] == 0)
    # of a tile of side T, a border of J / 2 a side is joint: some (1 - J / T)² is flat, less for slanted sides
    assert 0.5 < flat.mean() < (1 - JOINT_PX / TILE_PX) ** 2 + 0.05
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert 60 < (counts > 60).sum() < 2 * (240 / TILE_PX) ** 2  # as many as there are tiles
    assert colours.min() < 30


def test_patches_fill_zero_to_one_smoothly() -> None:
    field = patches(64, 4, np.random.default_rng(0))
    assert (field.min(), field.max()) == (0, 1)
    assert np.abs(np.diff(field, axis=0)).max() < 0.15
