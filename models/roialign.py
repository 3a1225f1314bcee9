"""Features of boxes: RoIAlign (He et al. 2017, https://arxiv.org/abs/1703.06870) and the max pooling of Fast R-CNN
(Girshick 2015, https://arxiv.org/abs/1504.08083), in torch alone; both give what torchvision's kernels give.

Bilinear sampling is a weighted sum of pixels, which `weighted_rows` takes in one pass, and so is its gradient; all
levels of a pyramid go through it at once. Speed: benchmarks/roialign.py. Boxes get no gradient.

R boxes, each of an image and a level; maps (B, C, H, W), one a level, of which a pixel covers `stride` pixels of the
picture. Boxes are edges in the picture's pixels, inside it.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SAMPLES = 2  # of RoIAlign in a cell, along each side


class WeightedRows(torch.autograd.Function):
    """See `weighted_rows`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index, weight)
        ctx.num_rows = len(rows)
        return F.embedding_bag(index, rows, per_sample_weights=weight, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """A weighted sum again: for each row, of the outputs that it is part of. Unlike adding in place, it is
        deterministic on a GPU too."""
        index, weight = ctx.saved_tensors
        order = index.flatten().argsort(stable=True)
        counts = torch.bincount(index.flatten(), minlength=ctx.num_rows)
        outputs = torch.div(order, index.shape[1], rounding_mode="floor")
        starts = counts.cumsum(0) - counts
        rows = F.embedding_bag(
            outputs, grad.contiguous(), starts, per_sample_weights=weight.flatten()[order], mode="sum"
        )
        return rows, None, None


def weighted_rows(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Sums of rows: (N, C) float32, places (M, T) int64 and weights (M, T) → (M, C); the rows get a gradient."""
    summed: Tensor = WeightedRows.apply(rows, index, weight)
    return summed


def roi_align(
    maps: Sequence[Tensor],
    boxes_xyxy: Tensor,
    image: Tensor,
    level: Tensor,
    strides: Sequence[int],
    size: int,
) -> Tensor:
    """(R, C, size, size): the mean of `SAMPLES`² bilinear samples in each cell of each box.

    The middle of the first pixel is taken for 0 and boxes have a side of a pixel or more, as published Faster R-CNNs
    were trained. Sums are in float32, the result is of the maps' type.
    """
    C = maps[0].shape[1]
    rows = torch.cat([each.permute(0, 2, 3, 1).reshape(-1, C) for each in maps]).float()
    sizes = torch.tensor([each.shape[2:] for each in maps], device=rows.device)
    num_rows = torch.tensor([each.shape[0] * each.shape[2] * each.shape[3] for each in maps])
    first = (num_rows.cumsum(0) - num_rows).to(rows.device)
    H, W = sizes[level].unbind(1)
    first = first[level] + image * H * W
    scale = 1 / torch.tensor(strides, dtype=torch.float32, device=rows.device)[level]
    edges = boxes_xyxy.detach().float() * scale[:, None]
    start, sides = edges[:, :2], (edges[:, 2:] - edges[:, :2]).clamp(min=1)
    out = weighted_rows(rows, *_taps(start, sides, first, H, W, size))
    return out.view(-1, size, size, C).permute(0, 3, 1, 2).to(maps[0].dtype)


def _taps(
    start_xy: Tensor, sides_xy: Tensor, first: Tensor, H: Tensor, W: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Pixels of each cell of each box, as rows, and their weights: (R · size², 4 · SAMPLES²) each."""
    y, weight_y = _taps_of_axis(start_xy[:, 1], sides_xy[:, 1], H, size)
    x, weight_x = _taps_of_axis(start_xy[:, 0], sides_xy[:, 0], W, size)
    row = first[:, None, None] + y * W[:, None, None]
    index = row[:, :, None, :, None] + x[:, None, :, None, :]  # (R, size, size, 2 SAMPLES, 2 SAMPLES)
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    return index.reshape(-1, 4 * SAMPLES**2), weight.reshape(-1, 4 * SAMPLES**2)


def _taps_of_axis(start: Tensor, side: Tensor, extent: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pixels of each cell along an axis, and their weights: (R, size, 2 · SAMPLES) each. Samples a pixel or more
    outside the map are 0."""
    cell = (side / size)[:, None, None]
    places = torch.arange(size, device=start.device, dtype=start.dtype)[:, None]
    between = (torch.arange(SAMPLES, device=start.device, dtype=start.dtype) + 0.5) / SAMPLES
    at = start[:, None, None] + places * cell + between * cell  # (R, size, SAMPLES)
    extent = extent[:, None, None]
    outside = (at < -1) | (at > extent)
    at = torch.minimum(at.clamp(min=0), (extent - 1).to(at.dtype))
    low = at.long()
    high = torch.minimum(low + 1, extent - 1)
    share = at - low
    weights = torch.stack([1 - share, share], 3).masked_fill(outside[..., None], 0) / SAMPLES
    return torch.stack([low, high], 3).flatten(2), weights.flatten(2)


def roi_max_pool(features: Tensor, boxes_xyxy: Tensor, image: Tensor, stride: int, size: int) -> Tensor:
    """(R, C, size, size): the largest value of each cell of each box on one map (B, C, H, W); 0 of cells outside it.

    Edges are rounded to pixels of the map and both pixels belong to the box, so that cells overlap by up to a pixel.
    A cell is at most four overlapping rectangles of sides that are powers of two, whose maxima are tabled.
    """
    B, C, H, W = features.shape
    edges = (boxes_xyxy.detach().float() / stride + 0.5).floor()
    low_x, high_x = _cells(edges[:, 0], edges[:, 2], W, size)
    low_y, high_y = _cells(edges[:, 1], edges[:, 3], H, size)
    cells = torch.stack(
        torch.broadcast_tensors(
            low_y[:, :, None], high_y[:, :, None], low_x[:, None], high_x[:, None], image[:, None, None]
        ),
        -1,
    ).flatten(0, 2)
    there = ((cells[:, 1] > cells[:, 0]) & (cells[:, 3] > cells[:, 2])).nonzero()[:, 0]
    y0, y1, x0, x1, which = cells[there].unbind(1)
    powers = torch.stack([y1 - y0, x1 - x0], 1).float().log2().floor().long()
    alike, group = torch.unique(powers, dim=0, return_inverse=True)
    tables = {(0, 0): features.permute(0, 2, 3, 1)}
    parts = [features.permute(0, 2, 3, 1).reshape(-1, C)[:0]]  # without cells, still a function of the map
    order = [there[:0]]
    for number, (a, b) in enumerate(alike.tolist()):
        own = (group == number).nonzero()[:, 0]
        table = _table(tables, a, b)
        above = which[own] * table.shape[1]
        rows, columns = (above + y0[own], above + y1[own] - 2**a), (x0[own], x1[own] - 2**b)
        flat = table.reshape(-1, C)
        corners = [
            flat.index_select(0, row * table.shape[2] + column)
            for row in (rows if a else rows[:1])
            for column in (columns if b else columns[:1])
        ]
        order.append(there[own])
        parts.append(functools.reduce(torch.maximum, corners))
    pooled = features.new_zeros(len(cells), C).index_copy(0, torch.cat(order), torch.cat(parts))
    return pooled.view(-1, size, size, C).permute(0, 3, 1, 2)


def _cells(first: Tensor, last: Tensor, extent: int, size: int) -> tuple[Tensor, Tensor]:
    """First pixels of cells along an axis, and those after their last, (R, size) int64 inside the map."""
    side = (last - first + 1).clamp(min=1)[:, None] / size
    places = torch.arange(size, device=first.device, dtype=first.dtype)
    ends = [(places * side).floor(), ((places + 1) * side).ceil()]
    low, high = ((end + first[:, None]).clamp(0, extent).long() for end in ends)
    return low, high


def _table(tables: dict[tuple[int, int], Tensor], a: int, b: int) -> Tensor:
    """(B, H - 2^a + 1, W - 2^b + 1, C): maxima of the rectangles of 2^a · 2^b pixels from each on; kept in `tables`."""
    if (a, b) not in tables:
        axis, half = (1, 2 ** (a - 1)) if a else (2, 2 ** (b - 1))
        smaller = _table(tables, a - 1, b) if a else _table(tables, a, b - 1)
        num = smaller.shape[axis] - half
        tables[a, b] = torch.maximum(smaller.narrow(axis, 0, num), smaller.narrow(axis, half, num))
    return tables[a, b]


def levels_of(boxes_xyxy: Tensor, strides: Sequence[int], canonical_px: float = 224) -> Tensor:
    """The level (R,) int64 on which boxes are looked at: a box of `canonical_px` · `canonical_px` at stride 16, of
    half the side one level finer (Lin et al. 2016, https://arxiv.org/abs/1612.03144, equation 1)."""
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1).clamp(min=1e-12).sqrt()
    stride = 4 + (sides / canonical_px).log2() + 1e-6
    return (stride.floor() - math.log2(strides[0])).clamp(0, len(strides) - 1).long()
