"""Detection in large pictures, tile by tile: objects that are small in the picture keep their pixels.

Tiles of one side cover the picture and overlap. What is found in a tile moves to its place in the picture; a box that
an inner edge of its tile cuts goes where another tile sees the object whole; what overlapping tiles found twice goes
by suppression. An object no longer than the overlap is whole in some tile; a longer one may come out in pieces.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.boxes import nms, share_inside

EDGE_PX = 1.0  # a box that ends this near an inner edge of its tile may be cut by it
COVERED = 0.8  # share of a cut box that lies in a whole one of its class: they are the same object


class Tile(NamedTuple):
    """Edges of a part of a picture, in pixels."""

    x0: int
    y0: int
    x1: int
    y1: int


class InPicture(NamedTuple):
    """The D detections of one picture, by falling score."""

    boxes_xyxy: Tensor  # (D, 4) edges, pixels of the picture
    scores: Tensor  # (D,)
    labels: Tensor  # (D,) int64


Detect = Callable[[list[np.ndarray]], Sequence[tuple[Tensor, Tensor, Tensor]]]
"""Crops (h, w) or (h, w, C) uint8 → of each its boxes (D, 4) in the crop's pixels, scores (D,) and labels (D,)."""


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
) -> InPicture:
    """Detections in a picture (H, W) or (H, W, C) uint8, its tiles looked at `batch_size` at a time."""
    H, W = picture.shape[:2]
    tiles = tiles_of(H, W, side_px, overlap_px)
    crops = [picture[tile.y0 : tile.y1, tile.x0 : tile.x1] for tile in tiles]
    found = [
        each
        for first in range(0, len(crops), batch_size)
        for each in detect(crops[first : first + batch_size])
    ]
    boxes = torch.cat(
        [part[0] + part[0].new_tensor(tile[:2] * 2) for part, tile in zip(found, tiles, strict=True)]
    )
    scores, labels = (torch.cat([part[i] for part in found]) for i in (1, 2))
    of_tile = torch.repeat_interleave(torch.tensor([len(part[0]) for part in found])).to(boxes.device)
    whole = ~seen_elsewhere(boxes, labels, of_tile, tiles, (H, W))
    boxes, scores, labels = boxes[whole], scores[whole], labels[whole]
    kept = nms(boxes, scores, nms_iou, labels=labels)
    return InPicture(boxes[kept], scores[kept], labels[kept])


def seen_elsewhere(
    boxes_xyxy: Tensor, labels: Tensor, of_tile: Tensor, tiles: Sequence[Tile], size_hw: tuple[int, int]
) -> Tensor:
    """Which boxes (N, 4) an inner edge of their tile cuts, while another tile sees them whole: (N,) bool.

    Whole is a box of the same class, of another tile, that no inner edge cuts and that holds `COVERED` of the cut one.
    """
    edges = boxes_xyxy.new_tensor(tiles)
    outer = boxes_xyxy.new_tensor([0, 0, size_hw[1], size_hw[0]])
    near = (boxes_xyxy - edges[of_tile]).abs() < EDGE_PX
    cut = (near & (edges != outer)[of_tile]).any(1)
    parts, wholes = cut.nonzero()[:, 0], (~cut).nonzero()[:, 0]
    holds = share_inside(boxes_xyxy[parts, None], boxes_xyxy[wholes]) >= COVERED
    same = (labels[parts, None] == labels[wholes]) & (of_tile[parts, None] != of_tile[wholes])
    gone = torch.zeros_like(cut)
    gone[parts] = (holds & same).any(1)
    return gone
