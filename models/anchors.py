"""Anchors: grids of them over a feature pyramid, the code of a box relative to one, and anchors learnt from boxes.

Grids and code are Faster R-CNN's (Ren et al. 2015, https://arxiv.org/abs/1506.01497), as torchvision has them, its
rounding of anchors to whole pixels included. `kmeans_anchors` is YOLOv2's (Redmon and Farhadi 2016,
https://arxiv.org/abs/1612.08242, section 2), `best_possible_recall` is by what YOLOv5 judges anchors.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

# of a decoded box's side over its anchor's: exp() of raw outputs overflows
MAX_LOG_SCALE = math.log(1000 / 16)
MAX_ITERATIONS = 300


def anchors_of_cell(sides_px: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """(R·S, 4) edges around the origin in whole pixels: squares of each side, stretched to each ratio height / width.

    The area stays. Ratios come first: all sides of the first ratio, then all of the second.
    """
    sides = torch.tensor(sides_px, dtype=torch.float32)
    stretch = torch.tensor(aspect_ratios, dtype=torch.float32).sqrt()
    widths, heights = ((1 / stretch)[:, None] * sides).flatten(), (stretch[:, None] * sides).flatten()
    return (torch.stack([-widths, -heights, widths, heights], 1) / 2).round()


def anchor_grid(cell: Tensor, height: int, width: int, stride_px: int) -> Tensor:
    """The anchors `cell` (A, 4) at every place of a map: (height · width · A, 4), row by row, place by place."""
    x = torch.arange(width, device=cell.device, dtype=cell.dtype) * stride_px
    y = torch.arange(height, device=cell.device, dtype=cell.dtype) * stride_px
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4)


def encode(boxes_xyxy: Tensor, anchors_xyxy: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Offsets (dx, dy, dw, dh) of boxes from anchors, both with area: (…, 4) and (…, 4) → (…, 4).

    Of the centres in sides of the anchor, of the sides as logarithms; each multiplied by its weight, which brings it to
    a deviation of about 1.
    """
    box, anchor = xyxy_to_cxcywh(boxes_xyxy), xyxy_to_cxcywh(anchors_xyxy)
    centre = (box[..., :2] - anchor[..., :2]) / anchor[..., 2:]
    side = (box[..., 2:] / anchor[..., 2:]).log()
    return torch.cat([centre, side], -1) * box.new_tensor(weights)


def decode(offsets: Tensor, anchors_xyxy: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Edges (…, 4) of the boxes that `encode` gave offsets of; sides are at most 62.5 times the anchor's."""
    anchor = xyxy_to_cxcywh(anchors_xyxy)
    offsets = offsets / offsets.new_tensor(weights)
    centre = offsets[..., :2] * anchor[..., 2:] + anchor[..., :2]
    side = offsets[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * anchor[..., 2:]
    return cxcywh_to_xyxy(torch.cat([centre, side], -1))


def iou_of_sizes(a_wh: Tensor, b_wh: Tensor) -> Tensor:
    """Overlap of boxes with one centre: widths and heights (N, 2) and (M, 2) → (N, M) in (0, 1]."""
    intersection = torch.minimum(a_wh[:, None], b_wh).prod(-1)
    return intersection / (a_wh.prod(-1)[:, None] + b_wh.prod(-1) - intersection)


def kmeans_anchors(sizes_wh: Tensor, num_anchors: int, seed: int) -> Tensor:
    """Widths and heights (A, 2) float32 by rising area: centres of a k-means of boxes' sizes (N, 2) under 1 - IoU.

    It starts as k-means++ does, each centre drawn with the squared distance to those before it. A centre is the mean
    of its sizes, which does not always bring it nearer to them under this distance: the best round is what counts.
    Raises ValueError for sizes that are not positive, and for fewer different ones than anchors.
    """
    _check_sizes(sizes_wh)
    sizes = sizes_wh.double().cpu()
    num_different = len(sizes.unique(dim=0))
    if not 1 <= num_anchors <= num_different:
        raise ValueError(
            f"num_anchors (={num_anchors}) must lie in 1…{num_different}, the number of different sizes of boxes"
        )
    centres, best, best_iou, before = _spread(sizes, num_anchors, seed), None, -math.inf, None
    for _ in range(MAX_ITERATIONS):
        overlap, nearest = iou_of_sizes(sizes, centres).max(1)
        if (mean := float(overlap.mean())) > best_iou:
            best, best_iou = centres, mean
        if before is not None and torch.equal(nearest, before):
            break
        before = nearest
        num = nearest.bincount(minlength=num_anchors).double()[:, None]
        means = torch.zeros_like(centres).index_add_(0, nearest, sizes) / num.clamp(min=1)
        farthest = sizes[overlap.argmin()]  # where a centre without sizes goes
        centres = torch.where(num > 0, means, farthest)
    assert best is not None
    return best[best.prod(1).argsort(stable=True)].float()


def _spread(sizes: Tensor, num: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = sizes[torch.randint(len(sizes), (1,), generator=generator)]
    while len(centres) < num:
        distance = (1 - iou_of_sizes(sizes, centres).amax(1)).clamp(min=0) ** 2
        centres = torch.cat([centres, sizes[torch.multinomial(distance, 1, generator=generator)]])
    return centres


def best_possible_recall(sizes_wh: Tensor, anchors: Tensor, ratio: float = 4.0) -> float:
    """Share of boxes' sizes (N, 2) that some anchor of `anchors` (A, 2) can be trained on: neither side differs by a
    factor of `ratio` or more. YOLOv5 makes new anchors where this is below 0.98."""
    _check_sizes(sizes_wh)
    factors = sizes_wh[:, None] / anchors
    worst_side = torch.minimum(factors, 1 / factors).amin(2)
    return float((worst_side.amax(1) > 1 / ratio).double().mean())


def _check_sizes(sizes_wh: Tensor) -> None:
    if sizes_wh.ndim != 2 or sizes_wh.shape[1] != 2 or not len(sizes_wh):
        raise ValueError(f"sizes {tuple(sizes_wh.shape)} must be (N, 2) widths and heights, N at least 1")
    if not (sizes_wh.isfinite() & (sizes_wh > 0)).all():
        raise ValueError("sizes must be finite and above 0: leave out boxes without area")
