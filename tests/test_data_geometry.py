"""Where pixels, points and boxes go: they go together, and where arithmetic says."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import colour, geometry

ANGLES = st.floats(-3.0, 3.0)


def picture(height: int = 6, width: int = 8, channels: int = 3) -> torch.Tensor:
    """(1, C, H, W) uint8, every pixel different from its neighbours."""
    levels = np.random.default_rng(0).permutation(height * width * channels) % 256
    return torch.from_numpy(levels.astype(np.uint8)).view(1, channels, height, width)


def warped_levels(*arguments: Any, **options: Any) -> torch.Tensor:
    return colour.to_levels(geometry.warp_images(*arguments, **options))


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float32)


def centre(height: int, width: int) -> torch.Tensor:
    return torch.tensor([[width / 2, height / 2]])


def test_the_identity_changes_no_pixel() -> None:
    images = picture()
    assert torch.equal(warped_levels(images, geometry.identity(1), (6, 8)), images)


def test_a_quarter_turn_is_exactly_rot90_clockwise() -> None:
    images = picture(6, 6)
    maps = geometry.rotation(one(math.pi / 2), centre(6, 6))
    assert torch.equal(warped_levels(images, maps, (6, 6)), images.rot90(-1, (2, 3)))


def test_mirroring_is_exactly_flip_and_only_where_asked() -> None:
    images = torch.cat([picture(), picture() // 2])
    maps = geometry.mirroring(torch.tensor([True, False]), 8)
    warped = warped_levels(images, maps, (6, 8))
    assert torch.equal(warped[0], images[0].flip(2))
    assert torch.equal(warped[1], images[1])


def test_a_crop_of_whole_pixels_is_a_slice() -> None:
    images = picture()
    maps = geometry.crop_resize(torch.tensor([[2.0, 1.0, 6.0, 4.0]]), 4, 3)
    assert torch.equal(warped_levels(images, maps, (3, 4)), images[:, :, 1:4, 2:6])


def test_beyond_the_edge_lies_the_reflection_or_the_fill() -> None:
    images = picture()
    maps = geometry.crop_resize(torch.tensor([[-2.0, 0.0, 6.0, 6.0]]), 8, 6)  # two columns to the left
    reflected = warped_levels(images, maps, (6, 8))
    assert torch.equal(reflected[:, :, :, :2], images[:, :, :, 1:3].flip(3))
    filled = warped_levels(images, maps, (6, 8), fill=torch.tensor([7, 8, 9]))
    assert filled[0, :, 0, 0].tolist() == [7, 8, 9]
    assert torch.equal(filled[:, :, :, 2:], images[:, :, :, :6])


def test_shear_slides_rows_by_the_tangent() -> None:
    maps = geometry.shear(one(math.atan(0.5)), one(0.0), torch.zeros(1, 2))
    moved = geometry.warp_points(torch.tensor([[[1.0, 4.0]]]), maps)
    torch.testing.assert_close(moved, torch.tensor([[[3.0, 4.0]]]))  # 4 rows down, half a pixel each


@given(ANGLES, ANGLES, st.floats(-0.8, 0.8), st.floats(1, 9), st.floats(1, 9))
def test_points_go_back_by_the_inverse(a: float, b: float, slant: float, x: float, y: float) -> None:
    slanted = geometry.shear(one(slant), one(0.0), torch.tensor([[y, x]]))
    turned = geometry.compose(slanted, geometry.rotation(one(b), centre(5, 7)))
    maps = geometry.compose(geometry.rotation(one(a), torch.tensor([[x, y]])), turned)
    points = torch.tensor([[[x, y], [0.0, 0.0], [5.0, 5.0]]])
    there = geometry.warp_points(points, maps)
    torch.testing.assert_close(
        geometry.warp_points(there, geometry.invert(maps)), points, rtol=1e-4, atol=1e-3
    )


@given(ANGLES, st.integers(8, 23), st.integers(8, 23))
@settings(max_examples=30, deadline=None)
def test_a_bright_pixel_and_its_point_arrive_together(angle: float, x: int, y: int) -> None:
    images = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    images[0, 0, y, x] = 255
    maps = geometry.rotation(one(angle), centre(32, 32))
    moved = geometry.warp_points(torch.tensor([[[x + 0.5, y + 0.5]]]), maps)[0, 0]
    warped = warped_levels(images, maps, (32, 32), fill=torch.tensor([0]))[0, 0].double()
    rows, cols = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    mass = warped.sum()
    assert mass > 0
    seen = torch.tensor([(warped * cols).sum() / mass, (warped * rows).sum() / mass])
    assert (seen - moved).abs().max() < 0.35


def test_pixels_are_read_where_an_elastic_field_points() -> None:
    """Pictures whose levels are the column and the row."""
    draws = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    field = geometry.elastic_field(draws, 3.0, 64, 64)
    maps = geometry.rotation(one(0.3), centre(64, 64))
    rows, columns = [30, 12], [20, 40]
    new = torch.tensor([columns, rows]).T + 0.5
    old = new @ maps[0, :, :2].T + maps[0, :, 2] + field[0, :, rows, columns].T
    images = torch.stack(torch.meshgrid(torch.arange(64), torch.arange(64), indexing="xy"))[None].byte()
    warped = geometry.warp_images(images, maps, (64, 64), field)
    torch.testing.assert_close(warped[0, :, rows, columns].T + 0.5, old, atol=1e-3, rtol=0)


def test_boxes_are_hulls_clipped_to_the_picture() -> None:
    boxes = torch.tensor([[[1.0, 1.0, 3.0, 2.0], [6.0, 0.0, 8.0, 6.0]]])
    moved, seen = geometry.warp_boxes(
        boxes, geometry.crop_resize(torch.tensor([[0.0, 0.0, 7.0, 6.0]]), 14, 6), (6, 14)
    )
    assert moved.tolist() == [[[2.0, 1.0, 6.0, 2.0], [12.0, 0.0, 14.0, 6.0]]]
    assert seen.tolist() == [[1.0, 0.5]]


@given(ANGLES, st.floats(0, 20), st.floats(0, 20), st.floats(1, 10), st.floats(1, 10))
@settings(max_examples=50)
def test_a_moved_box_holds_every_point_of_the_old(
    angle: float, x: float, y: float, w: float, h: float
) -> None:
    maps = geometry.rotation(one(angle), centre(32, 32))
    inside = torch.rand(20, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [w, h]
    ) + torch.tensor([x, y])
    moved, _seen = geometry.warp_boxes(torch.tensor([[[x, y, x + w, y + h]]]), maps, (1000, 1000))
    points = geometry.warp_points(inside[None], maps)[0].clamp(min=0)
    x0, y0, x1, y1 = moved[0, 0].tolist()
    assert (points[:, 0] >= x0 - 1e-3).all() and (points[:, 0] <= x1 + 1e-3).all()
    assert (points[:, 1] >= y0 - 1e-3).all() and (points[:, 1] <= y1 + 1e-3).all()


@given(st.lists(st.floats(0, 0.999), min_size=4, max_size=4), st.integers(1, 300), st.integers(1, 300))
def test_random_crops_stay_inside(draws: list[float], width: int, height: int) -> None:
    boxes = geometry.random_resized_boxes(
        torch.tensor([draws]), one(width), one(height), (0.08, 1.0), math.log(4 / 3)
    )
    x0, y0, x1, y1 = boxes[0].tolist()
    assert -1e-3 <= x0 < x1 <= width + 1e-3
    assert -1e-3 <= y0 < y1 <= height + 1e-3


def test_random_crops_have_the_area_and_aspect_that_were_asked_for() -> None:
    draws = torch.rand(4000, 4, generator=torch.Generator().manual_seed(0))
    boxes = geometry.random_resized_boxes(draws, one(400), one(400), (0.1, 0.5), math.log(4 / 3))
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share, aspect = width * height / 400**2, width / height
    assert share.min() >= 0.0999 and share.max() <= 0.5001 and abs(share.mean() - 0.3) < 0.01
    assert aspect.min() >= 0.7499 and aspect.max() <= 1.3334
    assert abs(aspect.log().mean()) < 0.01


def test_a_flat_map_cannot_be_inverted() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        geometry.invert(torch.zeros(1, 2, 3))
