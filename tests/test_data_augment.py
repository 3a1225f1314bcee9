"""Augmentation: each operation against a naive version, and independence of who makes the batch."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data import colour
from data.augment import (
    AugmentConfig,
    Draws,
    augment,
    centre_crop,
    colour_maps,
    crop,
    cutout,
    mirror,
    mirror_flags,
    reflect_pad,
    shift_and_mirror,
    shrink,
    warp,
)
from data.classification import InputConfig, make_batch
from data.colour import Colours
from data.random import SampleGenerator
from data.records import Records
from tests.handmade import write_dataset
from tests.tiny import PLAIN


def changed(**changes: Any) -> AugmentConfig:
    return AugmentConfig.parse({**PLAIN, **changes}, "plain")


ALL_OFF = AugmentConfig.parse(PLAIN, "plain")
COPIES = changed(mirror=True, random_crop=True, cutout_px=3, colour_shift=0.1)
ALL_ON = changed(
    mirror=True, crop_area=(0.3, 0.9), crop_aspect=1.5, rotation_deg=30, shear_deg=10, elastic_px=1.0, brightness=0.3,
    contrast=0.4, saturation=0.5, colour_shift=0.1, cutout_px=3,
    pca_colour=0.2,
)  # fmt: skip
ONE_EACH = {
    "mirror": True, "random_crop": True, "crop_area": (0.3, 0.9), "rotation_deg": 30.0, "shear_deg": 10.0,
    "elastic_px": 1.0, "brightness": 0.3, "contrast": 0.4, "saturation": 0.5, "colour_shift": 0.1, "cutout_px": 3,
    "pca_colour": 0.3,
}  # fmt: skip


AXES = ((5.0, 0.0, 40.0), (-5.0, 1.0, 40.0), (0.0, -1.0, 40.0))
NINES = Colours((9, 9, 9), AXES)


def pictures(num: int, side: int = 8, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, channels, side, side), generator=generator, dtype=torch.uint8)


def test_crop_equals_slicing_each_picture() -> None:
    images = pictures(5)
    top, left = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([4, 3, 2, 1, 0])
    got = crop(images, top, left, 4)
    for i in range(5):
        assert torch.equal(got[i], images[i, :, top[i] : top[i] + 4, left[i] : left[i] + 4])


def test_mirror_is_its_own_inverse_and_leaves_the_others() -> None:
    images = pictures(4)
    flip = torch.tensor([True, False, True, False])
    once = mirror(images, flip)
    assert torch.equal(once[0, 0, 0], images[0, 0, 0].flip(0))
    assert torch.equal(once[1], images[1])
    assert torch.equal(mirror(once, flip), images)


def test_cutout_blanks_exactly_the_square_that_lies_inside() -> None:
    images = torch.full((2, 3, 6, 6), 200, dtype=torch.uint8)
    fill = torch.tensor([1, 2, 3], dtype=torch.uint8)
    got = cutout(images, torch.tensor([-1, 4]), torch.tensor([2, 4]), 3, fill)
    assert (got[0, 0] == 1).sum() == 2 * 3  # rows 0-1, columns 2-4
    assert (got[0, 1, 0:2, 2:5] == 2).all()
    assert (got[1, 2, 4:, 4:] == 3).all() and (got[1, 2] == 3).sum() == 4


@pytest.mark.parametrize("name", ONE_EACH)
def test_each_switch_does_something_and_nothing_to_the_shape(name: str) -> None:
    images, indices = pictures(8), np.arange(8)
    got = augment(images, indices, 8, 2, NINES, changed(**{name: ONE_EACH[name]}), SampleGenerator(1, 0))
    assert got.shape == (8, 3, 8, 8) and got.dtype == torch.uint8 and got.is_contiguous()
    assert not torch.equal(got, images)


def test_resampling_by_whole_pixels_is_copying_them() -> None:
    """The two roads of geometry agree where they meet: same draws, same pictures."""
    images = pictures(16)
    config, draws = COPIES, Draws(np.arange(16), SampleGenerator(5, 1), torch.device("cpu"))
    warped = colour.to_levels(warp(images, 8, 2, config, draws))
    assert torch.equal(warped, shift_and_mirror(images, 8, 2, config, draws))


def test_pca_colour_shifts_all_pixels_of_a_picture_alike_and_along_the_axes() -> None:
    images = torch.full((4000, 3, 2, 2), 128, dtype=torch.uint8)
    config = changed(pca_colour=0.5)
    got = augment(images, np.arange(4000), 2, 0, NINES, config, SampleGenerator(0, 0)).float() - 128
    assert (got == got[:, :, :1, :1]).all()
    axes = torch.tensor(AXES) * 0.5
    found, expected = torch.cov(got[:, :, 0, 0].T), axes @ axes.T
    assert (found - expected).abs().max() < 0.07 * expected.max()
    assert got[:, :, 0, 0].mean(0).abs().max() < 1


def test_contrast_after_brightness_keeps_the_brightened_mean() -> None:
    images = pictures(4) // 4 + 60  # far from saturation
    config, draws = (
        changed(brightness=0.3, contrast=0.5),
        Draws(np.arange(4), SampleGenerator(2, 0), torch.device("cpu")),
    )
    brightened = colour.apply(images, colour_maps(images, NINES, changed(brightness=0.3), draws)).float()
    both = colour.apply(images, colour_maps(images, NINES, config, draws)).float()
    luma = colour.luma_weights(3).view(1, 3, 1, 1)
    torch.testing.assert_close(
        (both * luma).sum(1).mean((1, 2)), (brightened * luma).sum(1).mean((1, 2)), atol=0.5, rtol=0
    )


def test_a_draw_that_rounds_to_one_stays_below_it() -> None:
    """A normal number made of one would be infinite."""
    nearly: Any = SimpleNamespace(
        uniform=lambda indices, _name, num: np.full((len(indices), num), 1 - 2.0**-53)
    )
    draws = Draws(np.arange(3), nearly, torch.device("cpu"))
    assert (draws.uniform("any", 2) < 1).all() and draws.normal("any", 3).isfinite().all()


@pytest.mark.parametrize("area", [[0.0, 1.0], [0.5, 0.4], [0.5, 1.5]])
def test_an_area_that_is_no_range_is_refused(area: list[float]) -> None:
    with pytest.raises(ValueError, match=r"crop_area .* must be \[least, greatest\]"):
        changed(crop_area=area)


def test_an_end_of_mixing_without_mixing_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"mixing_until \(=0.5\) ends mixing, but neither mixup_alpha nor cutmix_alpha is set: set",
    ):
        changed(mixing_until=0.5)
    assert changed(mixing_until=0.5, mixup_alpha=0.2).mixing_until == 0.5
    assert changed(mixing_until=0.5, cutmix_alpha=0.2).mixing_until == 0.5
    assert changed(mixing_until=1).mixing_until == 1


def test_every_picture_is_mirrored_in_every_second_epoch() -> None:
    indices = np.arange(1000)
    flags = [mirror_flags(indices, SampleGenerator(7, epoch)) for epoch in range(4)]
    assert 400 < flags[0].sum() < 600
    assert np.array_equal(flags[0], ~flags[1]) and np.array_equal(flags[0], flags[2])


@given(st.permutations(range(12)), st.integers(1, 11), st.integers(0, 2**31), st.integers(0, 100))
def test_a_sample_looks_the_same_in_any_batch(order: list[int], cut: int, seed: int, epoch: int) -> None:
    images, generator = pictures(12), SampleGenerator(seed, epoch)
    for config in (COPIES, ALL_ON):
        whole = augment(images, np.arange(12), 8, 2, NINES, config, generator)
        for part in (np.array(order[:cut]), np.array(order[cut:])):
            assert torch.equal(augment(images[part], part, 8, 2, NINES, config, generator), whole[part])


def test_everything_off_is_the_centre_crop() -> None:
    images = pictures(3, side=9)
    got = augment(images, np.arange(3), 6, 0, NINES, ALL_OFF, SampleGenerator(0, 0))
    assert torch.equal(got, centre_crop(images, 6))


def test_random_crops_reach_every_place_and_only_those() -> None:
    # each pixel's value is its column: the left edge of the crop tells where it was cut
    images = torch.arange(8, dtype=torch.uint8).view(1, 1, 1, 8).expand(500, 1, 8, 8)
    config = ALL_OFF.model_copy(update={"random_crop": True})
    got = augment(images, np.arange(500), 6, 0, Colours((0,), ()), config, SampleGenerator(0, 0))
    assert set(got[:, 0, 0, 0].tolist()) == {0, 1, 2}


def test_reflected_border_repeats_no_edge_pixel() -> None:
    row = torch.tensor([1, 2, 3, 4], dtype=torch.uint8).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert reflect_pad(row, 2)[0, 0, 0].tolist() == [3, 2, 1, 2, 3, 4, 3, 2]


def test_shrink_keeps_a_flat_picture_flat_and_averages_a_checkerboard() -> None:
    flat = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    assert (shrink(flat, 4) == 77).all()
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 255).to(torch.uint8).expand(1, 1, 16, 16)
    assert (shrink(board, 4).float() - 127.5).abs().max() < 40  # antialiased: no corner of the board survives


def test_evaluation_reaches_into_the_border_when_the_crop_is_larger_than_the_picture(tmp_path: Path) -> None:
    info = write_dataset(tmp_path / "x", [np.zeros((6, 6, 3), np.uint8)], [0], ["a", "b"]).info
    config = InputConfig(stored_px=6, crop_px=8, pad_px=2, resize="crop")
    images = pictures(2, side=6)
    records = Records(images, torch.tensor([0, 1]))
    batch = make_batch(records, np.arange(2), info, config, ALL_OFF, None)
    assert torch.equal(batch.images, reflect_pad(images, 1))


@pytest.mark.gpu
def test_gpu_and_cpu_augment_alike() -> None:
    images, indices = pictures(16), np.arange(16)
    for config, levels in ((COPIES, 0), (ALL_ON, 2)):
        cpu = augment(images, indices, 8, 2, NINES, config, SampleGenerator(3, 1))
        gpu = augment(images.cuda(), indices, 8, 2, NINES, config, SampleGenerator(3, 1))
        assert (cpu.int() - gpu.cpu().int()).abs().max() <= levels
