"""Views: which pixels each looks at, and how much each crop counts."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from data.augment import centre_crop, shrink
from tasks.card import Preprocessing
from tasks.settings import ViewName
from tasks.views import NUM_CROPS, SCALES, VIEWS, enlarged, scaled, view_named


def layout(stored_px: int, crop_px: int, pad_px: int) -> Preprocessing:
    return Preprocessing(stored_px=stored_px, crop_px=crop_px, pad_px=pad_px, channels=3, resize="crop")


def pictures(num: int, side_px: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num, 3, side_px, side_px), dtype=torch.uint8, generator=generator)


@st.composite
def layouts(draw: st.DrawFn) -> Preprocessing:
    stored_px = draw(st.integers(3, 12))
    pad_px = draw(st.integers(0, stored_px - 1))
    return layout(stored_px, draw(st.integers(1, stored_px + 2 * pad_px - 2 * (pad_px > 0))), pad_px)


@pytest.mark.parametrize("name", get_args(ViewName))
@settings(deadline=None)
@given(preprocessing=layouts())
def test_every_view_gives_crops_of_the_networks_size_whose_weights_sum_to_one(
    name: ViewName, preprocessing: Preprocessing
) -> None:
    images = pictures(2, preprocessing.stored_px)
    crops, weights = VIEWS[name](images, preprocessing)
    side = preprocessing.crop_px
    assert crops.shape == (NUM_CROPS[name], 2, 3, side, side)
    assert crops.dtype == torch.uint8
    assert weights.shape == (NUM_CROPS[name],)
    assert float(weights.double().sum()) == pytest.approx(1, abs=1e-7)
    assert (weights > 0).all()


@pytest.mark.parametrize("name", ["mirror", "mirror_shift", "ten_crop", "multi_scale"])
@settings(deadline=None)
@given(preprocessing=layouts())
def test_the_second_half_of_the_crops_mirrors_the_first_and_counts_as_much(
    name: ViewName, preprocessing: Preprocessing
) -> None:
    images = pictures(1, preprocessing.stored_px)
    crops, weights = VIEWS[name](images, preprocessing)
    half = len(crops) // 2
    assert torch.equal(crops[half:], crops[:half].flip(4))
    assert torch.equal(weights[half:], weights[:half])


@settings(deadline=None)
@given(preprocessing=layouts())
def test_single_view_is_the_centre_that_training_validates_on(preprocessing: Preprocessing) -> None:
    images = pictures(2, preprocessing.stored_px)
    if preprocessing.crop_px <= preprocessing.stored_px:
        crops, _ = VIEWS["single"](images, preprocessing)
        assert torch.equal(crops[0], centre_crop(images, preprocessing.crop_px))


def test_a_crop_larger_than_the_picture_shows_it_whole_with_a_reflected_border() -> None:
    images = pictures(2, 28)
    crops, _ = VIEWS["single"](images, layout(28, 32, 2))
    assert torch.equal(crops[0], F.pad(images, (2, 2, 2, 2), mode="reflect"))


def test_mirror_shift_is_airbenchs_six_views() -> None:
    images = pictures(3, 32)
    crops, weights = VIEWS["mirror_shift"](images, layout(32, 32, 2))
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    assert torch.equal(crops[0], images)
    assert torch.equal(crops[1], padded[:, :, 0:32, 0:32])
    assert torch.equal(crops[2], padded[:, :, 2:34, 2:34])
    assert torch.equal(crops[3], images.flip(3))
    assert weights.tolist() == [0.25, 0.125, 0.125, 0.25, 0.125, 0.125]


def test_five_crop_is_ten_crop_without_its_mirror_images() -> None:
    images, preprocessing = pictures(2, 9), layout(9, 6, 2)
    crops, weights = VIEWS["five_crop"](images, preprocessing)
    mirrored, _ = VIEWS["ten_crop"](images, preprocessing)
    assert torch.equal(crops, mirrored[:5])
    assert torch.allclose(weights, torch.full((5,), 0.2))


def test_ten_crop_takes_the_corners_of_the_picture_with_its_border() -> None:
    images = pictures(2, 8)
    crops, weights = VIEWS["ten_crop"](images, layout(8, 6, 1))
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")  # 10 x 10
    expected = [
        padded[:, :, row : row + 6, col : col + 6] for row, col in [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    ]
    assert torch.equal(crops[:5], torch.stack(expected))
    assert weights.tolist() == pytest.approx([0.1] * 10)


@settings(deadline=None)
@given(preprocessing=layouts())
def test_multi_scale_at_scale_one_is_the_single_view(preprocessing: Preprocessing) -> None:
    assert SCALES[0] == 1
    images = pictures(2, preprocessing.stored_px)
    assert torch.equal(
        VIEWS["multi_scale"](images, preprocessing)[0][0], VIEWS["single"](images, preprocessing)[0][0]
    )


def test_multi_scale_shows_the_middle_larger() -> None:
    images = pictures(2, 32)
    crops, weights = VIEWS["multi_scale"](images, layout(32, 32, 0))
    for crop, side in zip(crops[1:3], (36, 40), strict=True):  # 32 · 1.125 and 32 · 1.25
        large = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
        edge = (side - 32) // 2
        expected = large[:, :, edge : edge + 32, edge : edge + 32]
        assert (crop.float() - expected).abs().max() < 1.01  # half of it by rounding, half by fixed point
    assert weights.tolist() == pytest.approx([1 / 6] * 6)


@settings(deadline=None)
@given(
    side=st.integers(1, 70), scale=st.floats(1, 2), channels=st.sampled_from([1, 3]), seed=st.integers(0, 99)
)
def test_gpus_and_exports_enlarge_bit_for_bit_as_a_cpu_does(
    side: int, scale: float, channels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, channels, side, side), dtype=torch.uint8, generator=generator)
    assert torch.equal(enlarged(images, round(side * scale)), shrink(images, round(side * scale)))


@pytest.mark.parametrize("scale", SCALES[1:])
@pytest.mark.parametrize("side", [96, 224, 256, 299])
def test_so_they_do_at_the_sides_of_photos(side: int, scale: float) -> None:
    images = pictures(1, side)
    assert torch.equal(enlarged(images, round(side * scale)), shrink(images, round(side * scale)))


@given(level=st.integers(0, 255), side=st.integers(3, 40), scale=st.floats(1, 2))
def test_a_constant_picture_stays_constant_at_any_scale(level: int, side: int, scale: float) -> None:
    images = torch.full((1, 3, side, side), level, dtype=torch.uint8)
    larger = scaled(images, scale)
    assert larger.shape[2:] == (round(side * scale),) * 2
    assert (larger == level).all()


@pytest.mark.parametrize("name", get_args(ViewName))
def test_every_crop_of_a_constant_picture_is_that_picture(name: ViewName) -> None:
    images = torch.full((1, 3, 12, 12), 77, dtype=torch.uint8)
    crops, _ = VIEWS[name](images, layout(12, 8, 2))
    assert (crops == 77).all()


def test_a_shift_of_a_picture_too_small_to_reflect_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"1×1 px cannot be reflected by 1 px.*choose the view 'single'"):
        VIEWS["mirror_shift"](pictures(1, 1), layout(1, 1, 0))


def test_an_unknown_view_lists_the_known_ones() -> None:
    assert view_named("ten_crop", VIEWS) == "ten_crop"
    with pytest.raises(
        ValueError,
        match="'six_crop' is not known; known: single, mirror, mirror_shift, five_crop, ten_crop, multi_scale",
    ):
        view_named("six_crop", VIEWS)
