"""The drawn pictures: what their names give, and how a wrong name is answered."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.paintings import PAINTINGS, read_art
from data.samples import read_photo


@pytest.mark.parametrize("name", PAINTINGS)
def test_a_painting_is_drawn_the_same_each_time_with_many_colours(name: str) -> None:
    once, again = read_art(name), read_art(name)
    assert once == again
    with Image.open(io.BytesIO(once)) as image:
        assert image.size == (512, 512) and image.mode == "RGB"
        levels = np.asarray(image).reshape(-1, 3)
    assert len(np.unique(levels // 16, axis=0)) > 100 and levels.std(0).min() > 40


def test_files_and_photographs_are_read_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"whatever")
    assert read_art(file) == b"whatever"
    assert read_art("skimage:chelsea") == read_photo("skimage:chelsea")


def test_a_name_that_is_no_picture_gets_a_list() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no such picture: convoy:monet; .*skimage:rocket.*convoy:whirls"
    ):
        read_art("convoy:monet")
