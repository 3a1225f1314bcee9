"""The style pictures that are drawn: the same each time, of the colours and the shapes that they say."""

import io

import numpy as np
import pytest
from PIL import Image

from data.drawnstyles import DRAWN, JOINT_PX, SIDE_PX, TILE_PX, mosaic, patches
from data.samples import read_photo


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_style_is_the_same_each_time_and_read_by_its_name(name: str) -> None:
    drawn = DRAWN[name]()
    assert drawn == DRAWN[name]() == read_photo(name)
    image = Image.open(io.BytesIO(drawn))
    assert (image.size, image.mode) == ((SIDE_PX, SIDE_PX), "RGB")
    assert np.asarray(image).std((0, 1)).min() > 40  # many colours, in each channel


def test_a_mosaic_has_tiles_of_one_colour_between_dark_joints() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(mosaic(240)))).astype(int)
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
