"""Detection in large pictures, tile by tile: objects that are small in the picture keep their pixels.

Tiles of one side cover the picture and overlap. What is found in a tile moves to its place in the picture; the part of
an object that an inner edge of its tile cuts goes where another tile shows more of it; of what two tiles found, the
better stays. What one tile found is left as its detector gives it. An object no longer than the overlap is whole in
some tile; a longer one may come out in pieces.

Overlap alone would keep the parts: they overlap the whole by too little. Others take the overlap over the smaller
box (Akyon et al. 2022, https://arxiv.org/abs/2202.06934); here that counts for boxes that their tile's edge explains,
so that a small object in front of a large one stays.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.boxes import area, iou, share_inside
from tasks.detectionjoin import joined, moved, taken
from tasks.detectionmatches import Detections

# how near a cut object's box ends to the edge: a detector is not exact, and its finest cells have 8 pixels
EDGE_PX = 4.0
COVERED = 0.8  # share of a part, at least, that lies in the box of another tile that shows more of it
SURE = 0.5  # of a part's score, that the other box has at least: a guess takes no sure box away


class Tile(NamedTuple):
    """Edges of a part of a picture, in pixels."""

    x0: int
    y0: int
    x1: int
    y1: int


Detect = Callable[[list[np.ndarray]], Detections]
"""Crops (h, w) or (h, w, C) uint8 → what is found in them, in the crops' pixels."""


def starts_of(size_px: int, side_px: int, overlap_px: int) -> list[int]:
    """Where the tiles along one axis begin: as few as cover it, evenly apart, overlapping by `overlap_px` or more."""
    if size_px <= side_px:
        return [0]
    gaps = -(-(size_px - side_px) // (side_px - overlap_px))
    return [(size_px - side_px) * i // gaps for i in range(gaps + 1)]


def tiles_of(height_px: int, width_px: int, side_px: int, overlap_px: int) -> list[Tile]:
    """Tiles that cover a picture, row by row; one along an axis that is no longer than a tile.

    Raises ValueError unless 0 ≤ overlap_px < side_px and the picture has pixels.
    """
    if not 0 <= overlap_px < side_px:
        raise ValueError(f"overlap_px (={overlap_px}) must be from 0 to less than side_px (={side_px})")
    if height_px < 1 or width_px < 1:
        raise ValueError(f"a picture of {width_px}x{height_px} px has nothing to look at")
    rows, columns = (starts_of(size, side_px, overlap_px) for size in (height_px, width_px))
    return [
        Tile(x, y, min(x + side_px, width_px), min(y + side_px, height_px)) for y, x in product(rows, columns)
    ]


def detect_in_tiles(
    picture: np.ndarray,
    detect: Detect,
    *,
    side_px: int,
    overlap_px: int,
    nms_iou: float,
    batch_size: int = 8,
) -> Detections:
    """Detections in a picture (H, W) or (H, W, C) uint8, by falling score; its tiles are looked at `batch_size` at a
    time.

    Boxes of a class from two tiles that overlap by more than `nms_iou` are of one object.
    """
    H, W = picture.shape[:2]
    tiles = tiles_of(H, W, side_px, overlap_px)
    crops = [picture[tile.y0 : tile.y1, tile.x0 : tile.x1] for tile in tiles]
    starts = range(0, len(crops), batch_size)
    found = joined([moved(detect(crops[first : first + batch_size]), first) for first in starts])
    found = replace(found, boxes_xyxy=found.boxes_xyxy + np.array(tiles)[found.image][:, [0, 1, 0, 1]])
    boxes, of_tile = torch.from_numpy(found.boxes_xyxy), torch.from_numpy(found.image)
    scores, labels = torch.from_numpy(found.scores), torch.from_numpy(found.labels)
    left = scores.argsort(descending=True, stable=True)
    left = left[~seen_elsewhere(boxes[left], scores[left], labels[left], of_tile[left], tiles, nms_iou)]
    left = left[~found_twice(boxes[left], labels[left], of_tile[left], tiles, nms_iou)]
    return replace(taken(found, left.numpy()), image=np.zeros(len(left), np.int64))


def seen_elsewhere(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    of_tile: Tensor,
    tiles: Sequence[Tile],
    least_iou: float,
) -> Tensor:
    """Which boxes (N, 4) are the part that their tile shows of an object of which another tile shows more: (N,) bool.

    The other tile's box is of the same class, larger, at least `SURE` as sure, reaches over an edge of the first one's
    tile, and holds `COVERED` of the first. That one is its part if it overlaps what the tile shows of the other by more
    than `least_iou`, or ends within `EDGE_PX` of each edge that the other reaches over: of a strip of a few pixels, a
    detector's box may miss the half.
    """
    gone = torch.zeros_like(labels, dtype=torch.bool)
    sizes = area(boxes_xyxy)
    for number, edges in enumerate(boxes_xyxy.new_tensor(tiles)):
        over = torch.cat([boxes_xyxy[:, :2] < edges[:2], boxes_xyxy[:, 2:] > edges[2:]], 1)  # (N, 4)
        shown = torch.cat([boxes_xyxy[:, :2].maximum(edges[:2]), boxes_xyxy[:, 2:].minimum(edges[2:])], 1)
        crossing = over.any(1) & (shown[:, 2:] > shown[:, :2]).all(1) & (of_tile != number)
        mine, others = (of_tile == number).nonzero()[:, 0], crossing.nonzero()[:, 0]
        parts = boxes_xyxy[mine, None]  # (n, 1, 4), against (m, 4)
        same = (labels[mine, None] == labels[others]) & (sizes[mine, None] < sizes[others])
        same &= SURE * scores[mine, None] <= scores[others]
        held = share_inside(parts, boxes_xyxy[others]) >= COVERED
        alike = iou(parts, shown[others]) > least_iou
        ends = (((parts - edges).abs() <= EDGE_PX) | ~over[others]).all(2)
        gone[mine] = (same & held & (alike | ends)).any(1)
    return gone


def found_twice(
    boxes_xyxy: Tensor, labels: Tensor, of_tile: Tensor, tiles: Sequence[Tile], least_iou: float
) -> Tensor:
    """Which boxes (N, 4) a better one of their class, of another tile, overlaps by more than `least_iou`: (N,) bool.

    They come by falling score: the earlier is the better. What it overlaps goes whether it stays itself or not.
    """
    gone = torch.zeros_like(labels, dtype=torch.bool)
    for number, edges in enumerate(boxes_xyxy.new_tensor(tiles)):
        near = (boxes_xyxy[:, 2:] > edges[:2]).all(1) & (boxes_xyxy[:, :2] < edges[2:]).all(1)
        mine, others = (of_tile == number).nonzero()[:, 0], (near & (of_tile != number)).nonzero()[:, 0]
        better = (labels[mine, None] == labels[others]) & (others < mine[:, None])
        gone[mine] = (better & (iou(boxes_xyxy[mine, None], boxes_xyxy[others]) > least_iou)).any(1)
    return gone
