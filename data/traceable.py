"""What becomes of decoded items before a network sees them, as tensor programs that torch.export can trace.

For any size, which is known only when the program runs: so weights are made of lengths that are tensors, and nothing
branches. data.squares and data.fitting do the same to one item at a time.
"""

from typing import Literal

import torch
from torch import Tensor

from data.fitting import ArrayPreprocessing

PRECISION = 2.0**22  # Pillow's weights are whole multiples of 1 / this


def to_squares(images: Tensor, side_px: int, resize: Literal["crop", "squash"]) -> Tensor:
    """Fit pictures to squares: (B, H, W, C) uint8 → (B, C, side_px, side_px) uint8, bit for bit data.squares.to_square.

    Scaling is that of Pillow 13 (https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c): along
    rows and columns, one after the other, rounded to uint8 each time, with weights of 22 bits. Dense matrices hold the
    weights, in float64, in which its sums of integers are exact.
    """
    B, H, W, C = images.shape
    height, width = length_of(H), length_of(W)
    nothing = torch.zeros_like(height)
    if resize == "squash":
        across, down = weights(W, nothing, width, side_px), weights(H, nothing, height, side_px)
    else:
        side = torch.minimum(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        fits = side == side_px  # pixels are copied, so they start at whole ones
        across = weights(W, torch.where(fits, left.floor(), left), side, side_px)
        down = weights(H, torch.where(fits, top.floor(), top), side, side_px)
    planes = images.permute(0, 3, 1, 2).to(torch.float64)
    rows_first = to_levels(down @ to_levels(planes @ across.T))
    columns_first = to_levels(to_levels(down @ planes) @ across.T)
    # Pillow goes along columns first where the height shrinks by more than twice what the width does; a trace has both
    tall = (height > side_px) & (height - side_px > 2 * (width - side_px))
    return torch.where(tall, columns_first, rows_first).to(torch.uint8)


def length_of(size: int) -> Tensor:
    """A side as a scalar tensor of float64: in a trace, `size` is a symbol."""
    return torch.full((), size, dtype=torch.float64)


def weights(have: int, start: Tensor, side: Tensor, num: int) -> Tensor:
    """How much each of `have` pixels counts in each of `num` that stand for `side` of them from `start` on.

    (num, have) float64, in units of 1 / PRECISION. Bilinear: a triangle as wide as the step between two outputs, one
    pixel at least.
    """
    step = side / num
    centres = start + (torch.arange(num, dtype=torch.float64) + 0.5) * step
    places = torch.arange(have, dtype=torch.float64) + 0.5
    triangle = (1 - ((places - centres[:, None]) / step.clamp(min=1.0)).abs()).clamp(min=0)
    return (triangle / triangle.sum(1, keepdim=True) * PRECISION + 0.5).floor()


def to_levels(sums: Tensor) -> Tensor:
    """Sums of levels by `weights` to whole levels, halves up, as Pillow's shift does."""
    return (sums / PRECISION + 0.5).floor().clamp(0, 255)


def to_stored(arrays: Tensor, want: ArrayPreprocessing) -> Tensor:
    """Normalise and fit signals or volumes of one length: (B, C, *axes) → (B, C, *stored) float32.

    As data.fitting.decode_fitted does to what has the wanted rate or spacing already.
    """
    axes = tuple(range(2, arrays.ndim))
    if want.normalise == "item":
        values = arrays.to(torch.float64)
        mean = values.mean(axes, keepdim=True)
        std = (values - mean).square().mean(axes, keepdim=True).sqrt()
        std = torch.where(std > 1e-6 * mean.abs(), std, 1.0)
        arrays = ((values - mean) / std).to(torch.float32)
    level = torch.tensor(want.fill, dtype=torch.float32).view(1, -1, *(1,) * len(axes))
    for axis, side in zip(axes, want.stored, strict=True):
        have = torch.full((), arrays.shape[axis], dtype=torch.int64)
        places = torch.arange(side) + torch.div(have - side, 2, rounding_mode="trunc")
        inside = (places >= 0) & (places < have)
        nearest = torch.minimum(places.clamp(min=0), have - 1)
        shape = [side if a == axis else 1 for a in range(arrays.ndim)]
        arrays = torch.where(inside.view(shape), arrays.index_select(axis, nearest), level)
    return arrays
