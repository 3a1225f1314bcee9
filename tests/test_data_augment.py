"""Augmentation: each operation against a naive version, and independence of who makes the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.augment import (
    AugmentConfig,
    augment,
    centre_crop,
    colour_shift,
    crop,
    cutout,
    mirror,
    mirror_flags,
    reflect_pad,
    shrink,
)
from data.classification import InputConfig, Records, make_batch
from data.random import SampleGenerator
from tests.handmade import write_dataset

ALL_ON = AugmentConfig(mirror=True, random_crop=True, cutout_px=3, colour_shift=0.1)
ALL_OFF = AugmentConfig(mirror=False, random_crop=False, cutout_px=0, colour_shift=0.0)


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


def test_colour_shift_saturates() -> None:
    images = torch.tensor([[[[10]], [[250]], [[100]]]], dtype=torch.uint8)
    shift = torch.tensor([[-20, 20, 5]], dtype=torch.int16)
    assert colour_shift(images, shift).flatten().tolist() == [0, 255, 105]


def test_every_picture_is_mirrored_in_every_second_epoch() -> None:
    indices = np.arange(1000)
    flags = [mirror_flags(indices, SampleGenerator(7, epoch)) for epoch in range(4)]
    assert 400 < flags[0].sum() < 600
    assert np.array_equal(flags[0], ~flags[1]) and np.array_equal(flags[0], flags[2])


@given(st.permutations(range(12)), st.integers(1, 11), st.integers(0, 2**31), st.integers(0, 100))
def test_a_sample_looks_the_same_in_any_batch(order: list[int], cut: int, seed: int, epoch: int) -> None:
    images, generator = pictures(12), SampleGenerator(seed, epoch)
    whole = augment(images, np.arange(12), 8, 2, (9, 9, 9), ALL_ON, generator)
    for part in (np.array(order[:cut]), np.array(order[cut:])):
        assert torch.equal(augment(images[part], part, 8, 2, (9, 9, 9), ALL_ON, generator), whole[part])


def test_everything_off_is_the_centre_crop() -> None:
    images = pictures(3, side=9)
    got = augment(images, np.arange(3), 6, 0, (0, 0, 0), ALL_OFF, SampleGenerator(0, 0))
    assert torch.equal(got, centre_crop(images, 6))


def test_random_crops_reach_every_place_and_only_those() -> None:
    # each pixel's value is its column: the left edge of the crop tells where it was cut
    images = torch.arange(8, dtype=torch.uint8).view(1, 1, 1, 8).expand(500, 1, 8, 8)
    config = ALL_OFF.model_copy(update={"random_crop": True})
    got = augment(images, np.arange(500), 6, 0, (0,), config, SampleGenerator(0, 0))
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
    cpu = augment(images, indices, 8, 2, (9, 9, 9), ALL_ON, SampleGenerator(3, 1))
    gpu = augment(images.cuda(), indices, 8, 2, (9, 9, 9), ALL_ON, SampleGenerator(3, 1))
    assert torch.equal(cpu, gpu.cpu())
