"""Crops decoded from files: the pixels that decoding everything first would have given."""

from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from data.crops import decode_crops
from data.decode import DecodeError, decode_image, decode_part
from tests.pictures import encode, picture
from tests.test_data_decode import with_orientation

JPEG = encode(picture(3, 320, 240), "JPEG", quality=90)
PNG = encode(picture(3, 320, 240))


def boxes(*each: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(each, np.float32)


def test_simplejpeg_gives_pillows_pixels() -> None:
    for blob in (JPEG, encode(picture(4, 33, 21), "JPEG", subsampling=0, progressive=True)):
        assert (simplejpeg.decode_jpeg(blob, "RGB") == np.asarray(decode_image(blob, channels=3))).all()


@given(st.integers(0, 300), st.integers(0, 220), st.integers(1, 320), st.integers(1, 240), st.booleans())
@settings(max_examples=60)
def test_a_part_at_full_scale_is_cut_out_of_the_picture(
    left: int, top: int, width: int, height: int, jpeg: bool
) -> None:
    right, bottom = min(left + width, 320), min(top + height, 240)
    part = decode_part(JPEG if jpeg else PNG, (left, top, right, bottom), 500, 3)
    whole = np.asarray(decode_image(JPEG if jpeg else PNG, channels=3))
    assert (part == whole[top:bottom, left:right]).all()


KINDS = {
    "4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True}, "restarts": {"restart_marker_blocks": 3}, "quality 5": {"quality": 5},
}  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "grey"])
@pytest.mark.parametrize(("width", "height"), [(320, 240), (333, 251), (64, 700)])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_rows_below_a_part_change_none_of_its_pixels(kind: str, width: int, height: int, factor: int) -> None:
    """They are not decoded: whatever the sampling, the part is the same as that of the whole, at each scale."""
    grey = kind == "grey"
    blob = encode(picture(6, width, height, "L" if grey else "RGB"), "JPEG", **KINDS.get(kind, {}))
    channels: Any = 1 if grey else 3
    whole = simplejpeg.decode_jpeg(
        blob, "GRAY" if grey else "RGB", min_width=-(-width // factor), min_height=-(-height // factor)
    )
    for bottom in (8 * factor, 96, 100, 192, height // 2 + 1, height - 17, height - 1, height):
        part = decode_part(blob, (0, bottom - 8 * factor, 8 * factor, bottom), 8, channels)
        end = round(bottom * whole.shape[0] / height)
        assert (part == whole[end - part.shape[0] : end, : part.shape[1]]).all(), (bottom, part.shape)


def test_a_file_that_ends_too_early_is_noticed_though_its_part_is_there() -> None:
    with pytest.raises(DecodeError, match="image 0 of 1: damaged JPEG"):
        decode_crops([JPEG[:-400]], boxes((0, 0, 32, 16)), np.zeros(1, bool), 16, 3)


@pytest.mark.parametrize(("side_px", "factor"), [(120, 1), (60, 2), (30, 4), (15, 8), (1, 8)])
def test_a_jpeg_is_decoded_at_the_least_scale_that_its_part_needs(side_px: int, factor: int) -> None:
    part = decode_part(JPEG, (0, 0, 160, 120), side_px, 3)
    assert part.shape == (120 // factor, 160 // factor, 3)


@pytest.mark.parametrize("side_px", [16, 31, 100])
@pytest.mark.parametrize("blob", [JPEG, PNG])
def test_a_crop_is_what_resampling_the_whole_picture_gives(blob: bytes, side_px: int) -> None:
    box = (40, 20, 280, 200)
    got = decode_crops([blob], boxes(box), np.array([False]), side_px, 3)[0].float()
    part = torch.from_numpy(np.array(decode_image(blob, channels=3))[20:200, 40:280]).permute(2, 0, 1)
    expected = F.interpolate(part[None].float(), (side_px, side_px), mode="bilinear", antialias=True)[0]
    tolerance = 0.5 if blob is PNG else 4  # grey levels; the JPEG was scaled before, in its DCT domain
    assert (got - expected).abs().mean() < tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_of_the_upright_picture(orientation: int) -> None:
    """As the upright picture stands, its left half is dark: so is the crop of it, however the file lies."""
    upright = Image.new("RGB", (64, 48), (200, 200, 200))
    upright.paste((10, 10, 10), (0, 0, 32, 48))
    blob = with_orientation(upright, orientation, "JPEG")
    whole = decode_image(blob, channels=3)
    width, height = whole.size
    halves = [(0, 0, width // 2, height // 2), (width // 2, 0, width, height)]
    crops = decode_crops([blob, blob], boxes(*halves), np.zeros(2, bool), 8, 3)
    for crop, half in zip(crops, halves, strict=True):
        assert abs(crop.float().mean() - np.asarray(whole.crop(half)).mean()) < 4


def test_a_mirrored_crop_is_the_mirror_image_of_the_crop() -> None:
    box = boxes(*[(10, 20, 200, 150)] * 2)
    plain, mirrored = decode_crops([JPEG, JPEG], box, np.array([False, True]), 50, 3)
    assert torch.equal(mirrored, plain.flip(2)) and not torch.equal(mirrored, plain)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_cmyk_files_give_the_channels_that_were_asked_for(mode: str, channels: int) -> None:
    blob = encode(picture(5, 64, 48, mode), "JPEG")
    part = decode_part(blob, (0, 0, 64, 48), 48, channels)  # type: ignore[arg-type]
    expected = np.asarray(decode_image(blob, channels=channels)).reshape(48, 64, channels)  # type: ignore[arg-type]
    assert (part == expected).all()


def test_a_damaged_file_is_named() -> None:
    with pytest.raises(DecodeError, match="image 1 of 2: damaged JPEG"):
        decode_crops([JPEG, JPEG[: len(JPEG) // 2]], boxes(*[(0, 0, 320, 240)] * 2), np.zeros(2, bool), 64, 3)
