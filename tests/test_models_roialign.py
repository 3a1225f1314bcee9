"""RoIAlign and RoI max pooling: equal to their definitions, sample by sample and cell by cell."""

import math

import pytest
import torch
from torch import Tensor

from models.roialign import levels_of, roi_align, roi_max_pool


def regions(num: int, side_px: int, num_images: int) -> tuple[Tensor, Tensor]:
    """Boxes anywhere in the picture, among them the whole of it, its last pixel, and a sliver."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(2, num, 2, generator=generator) * side_px
    boxes = torch.cat([ends.amin(0), ends.amax(0)], 1)
    whole = float(side_px)
    boxes[:3] = torch.tensor([[0, 0, whole, whole], [whole - 1, whole - 1, whole, whole], [3, 3, 3.2, 50]])
    return boxes, torch.randint(0, num_images, (num,), generator=generator)


def sample(values: list[list[float]], y: float, x: float) -> float:
    """Bilinear, of pixels whose middles have whole numbers; the border's values go on for a pixel, then comes 0."""
    H, W = len(values), len(values[0])
    if not (-1 <= y <= H and -1 <= x <= W):
        return 0.0
    y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
    total = 0.0
    for row in {math.floor(y), min(math.floor(y) + 1, H - 1)}:
        for column in {math.floor(x), min(math.floor(x) + 1, W - 1)}:
            total += (1 - abs(y - row)) * (1 - abs(x - column)) * values[row][column]
    return total


def naive_align(values: list[list[float]], box: list[float], stride: int, size: int) -> list[float]:
    x0, y0, x1, y1 = (edge / stride for edge in box)
    width, height = max(x1 - x0, 1), max(y1 - y0, 1)
    cells = []
    for row in range(size):
        for column in range(size):
            samples = [
                sample(values, y0 + (row + i) * height / size, x0 + (column + j) * width / size)
                for i in (0.25, 0.75)
                for j in (0.25, 0.75)
            ]
            cells.append(sum(samples) / len(samples))
    return cells


def test_roi_align_is_the_mean_of_its_samples() -> None:
    maps = [torch.rand(2, 1, 15, 12), torch.rand(2, 1, 8, 6)]  # levels need not be squares
    boxes, image = regions(20, 60, 2)
    level = torch.arange(20) % 2
    pooled = roi_align(maps, boxes, image, level, (4, 8), 3)
    for r in range(20):
        values = maps[level[r]][image[r], 0].tolist()
        wanted = naive_align(values, boxes[r].tolist(), (4, 8)[level[r]], 3)
        assert pooled[r, 0].flatten().tolist() == pytest.approx(wanted, abs=1e-5), r


def test_a_constant_map_gives_its_value_and_a_ramp_its_middles() -> None:
    ramp = torch.arange(16.0).expand(1, 2, 16, 16)
    boxes, none = torch.tensor([[8.0, 8, 40, 40]]), torch.zeros(1, dtype=torch.int64)
    pooled = roi_align([ramp], boxes, none, none, [4], 2)
    # from 2 to 10 of the map, of which the middles of the halves are 4 and 8
    assert pooled[0, 0].tolist() == [[4, 8], [4, 8]]
    assert torch.equal(roi_align([torch.ones(1, 1, 9, 9)], boxes, none, none, [4], 2), torch.ones(1, 1, 2, 2))


def test_gradients_of_roi_align_are_those_of_differences() -> None:
    """It is linear in the maps, so one step of any length gives the derivative."""
    maps = [torch.rand(2, 3, 6, 6, requires_grad=True), torch.rand(2, 3, 3, 3, requires_grad=True)]
    boxes, image = regions(9, 24, 2)
    level, step = torch.arange(9) % 2, [torch.rand(2, 3, 6, 6), torch.rand(2, 3, 3, 3)]

    def value(features: list[Tensor]) -> Tensor:
        pooled = roi_align(features, boxes, image, level, (4, 8), 3)
        return (pooled * torch.linspace(-1, 1, 3)).sum()

    gradients = torch.autograd.grad(value(maps), maps)
    along = sum((g * s).sum() for g, s in zip(gradients, step, strict=True))
    moved = value([m + s for m, s in zip(maps, step, strict=True)]) - value(maps)
    torch.testing.assert_close(along, moved, rtol=1e-4, atol=1e-4)


def test_half_precision_maps_are_summed_in_single() -> None:
    maps = [torch.rand(1, 4, 12, 12).bfloat16()]
    boxes, image = regions(8, 48, 1)
    pooled = roi_align(maps, boxes, image, image, [4], 5)
    single = roi_align([maps[0].float()], boxes, image, image, [4], 5)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, single.bfloat16())


def test_no_boxes_give_no_features_and_no_gradient() -> None:
    features = torch.rand(1, 4, 8, 8, requires_grad=True)
    boxes, image = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    for pooled in (
        roi_align([features], boxes, image, image, [4], 7),
        roi_max_pool(features, boxes, image, 4, 7),
    ):
        assert pooled.shape == (0, 4, 7, 7)
        gradient = torch.autograd.grad(pooled.sum(), features, allow_unused=True)[0]
        assert gradient is None or not gradient.any()


def rounded(value: float) -> int:
    return math.floor(value + 0.5)


@pytest.mark.parametrize(("stride", "size"), [(4, 3), (8, 7), (16, 2)])
def test_roi_max_pool_is_the_largest_of_each_cell(stride: int, size: int) -> None:
    H, W = 64 // stride, 64 // stride + 2
    features = torch.randn(2, 3, H, W, requires_grad=True)
    boxes, image = regions(20, 64, 2)
    pooled = roi_max_pool(features, boxes, image, stride, size)
    wanted = torch.zeros_like(pooled)
    for r, box in enumerate(boxes.tolist()):
        x0, y0, x1, y1 = (rounded(edge / stride) for edge in box)
        for row in range(size):
            for column in range(size):
                h, w = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
                # ⌈⌉ and ⌊⌋ of fractions, in whole numbers
                top, bottom = y0 + row * h // size, min(y0 - (-(row + 1) * h // size), H)
                left, right = x0 + column * w // size, min(x0 - (-(column + 1) * w // size), W)
                if top < bottom and left < right:
                    cell = features[image[r], :, top:bottom, left:right]
                    wanted[r, :, row, column] = cell.flatten(1).amax(1)
    assert torch.equal(pooled, wanted)
    weights = torch.randn_like(pooled)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), features)[0] for out in (pooled, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_levels_are_those_of_the_paper() -> None:
    """224 px belong to stride 16, half of it to stride 8; the least and the greatest level take the rest."""
    sides = torch.tensor([1.0, 111, 112, 223, 224, 447, 448, 4000])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], 1)
    assert levels_of(boxes, (4, 8, 16, 32)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert levels_of(boxes, (8, 16, 32)).tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert levels_of(boxes, (8, 16), canonical_px=56).tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
