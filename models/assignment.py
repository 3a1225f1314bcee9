"""Which place of a detector's maps is to find which object: by midpoint, and task-aligned.

By midpoint (YOLO, Redmon et al. 2016, https://arxiv.org/abs/1506.02640; anchors of YOLOv2, https://arxiv.org/abs/1612.08242):
the cell that an object's middle lies in, and of its anchors the one of the most similar shape.

Task-aligned (TOOD, Feng et al. 2021, https://arxiv.org/abs/2108.07755): the places inside an object whose predictions
are best for it already, by score^α · IoU^β; how good they are, relative to the best, is the score to learn.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from data.detection import Padded
from models.anchors import iou_of_sizes
from models.boxes import iou


class Assigned(NamedTuple):
    """For each of the P places of B pictures, what it is to find."""

    owner: Tensor  # (B, P) int64: place of the object among its picture's N; 0 where there is none
    positive: Tensor  # (B, P) bool: finds an object
    negative: Tensor  # (B, P) bool: is background; a place may be neither
    score: Tensor  # (B, P) float32: the score to learn, 0 where not positive


@torch.no_grad()
def task_aligned(
    scores: Tensor,
    boxes_xyxy: Tensor,
    centres_xy: Tensor,
    truths: Padded,
    top: int,
    alpha: float,
    beta: float,
) -> Assigned:
    """Assign by predictions: `scores` (B, P, K) in [0, 1], `boxes_xyxy` (B, P, 4), `centres_xy` (P, 2) of the places.

    Each object takes the `top` best of the places whose centre lies in it, or the one nearest to its middle if none
    does; a place that several want goes to the one that it overlaps most. Places whose boxes do not touch the object
    learn a score of 0. Objects that are ignored take none, and the places that they could have are no background.
    """
    B, P, _ = scores.shape
    N = truths.labels.shape[1]
    if N == 0:
        none = torch.zeros(B, P, dtype=torch.bool, device=scores.device)
        return Assigned(none.long(), none, ~none, none.float())
    wanted = truths.taken & ~truths.ignored
    inside = _inside(truths.boxes_xyxy, centres_xy)  # (B, N, P)
    missed = truths.taken & ~inside.any(2)
    if missed.any():  # an object between the places: the nearest one may have it
        picture, place = missed.nonzero().unbind(1)
        middles = (truths.boxes_xyxy[picture, place, :2] + truths.boxes_xyxy[picture, place, 2:]) / 2
        nearest = (centres_xy[None] - middles[:, None]).square().sum(2).argmin(1)
        inside[picture, place, nearest] = True
    excluded = (inside & (truths.taken & truths.ignored)[:, :, None]).any(1)
    inside &= wanted[:, :, None]
    overlap = iou(truths.boxes_xyxy[:, :, None], boxes_xyxy[:, None]).clamp(min=0) * inside  # (B, N, P)
    own = scores.transpose(1, 2).gather(1, truths.labels[:, :, None].expand(B, N, P))
    metric = (own.clamp(min=1e-9) ** alpha * overlap.clamp(min=1e-9) ** beta) * inside
    # a place whose box does not touch its object has a metric of 0 in float32 too, but comes before those outside
    ranked = torch.where(inside, metric, -1.0).topk(min(top, P), 2).indices
    chosen = torch.zeros_like(inside).scatter_(2, ranked, True) & inside
    # of several objects that want a place, the one that it overlaps most
    contested = chosen.sum(1) > 1
    best = torch.where(chosen, overlap, -1.0).argmax(1)  # (B, P)
    mine = torch.zeros_like(chosen).scatter_(1, best[:, None], True)
    chosen = torch.where(contested[:, None], chosen & mine, chosen)
    positive, owner = chosen.any(1), chosen.float().argmax(1)
    metric, overlap = metric * chosen, overlap * chosen
    relative = metric / metric.amax(2, keepdim=True).clamp(min=1e-12) * overlap.amax(2, keepdim=True)
    return Assigned(owner, positive, ~positive & ~excluded, relative.amax(1))


def _inside(boxes_xyxy: Tensor, centres_xy: Tensor) -> Tensor:
    """Which centres (P, 2) lie in which boxes (B, N, 4): (B, N, P) bool."""
    x, y = centres_xy.unbind(1)
    x0, y0, x1, y1 = boxes_xyxy[..., None].unbind(2)
    return (x > x0) & (x < x1) & (y > y0) & (y < y1)


class Cells(NamedTuple):
    """Where objects are to be found by midpoint: one row an object that is not ignored."""

    image: Tensor  # (M,) int64
    owner: Tensor  # (M,) int64: place of the object among its picture's N
    anchor: Tensor  # (M,) int64, among all anchors of all levels
    column: Tensor  # (M,) int64: of the cell, on that anchor's level
    row: Tensor  # (M,) int64


@torch.no_grad()
def by_midpoint(truths: Padded, anchors_wh: Tensor, strides: Tensor, sides: Tensor) -> Cells:
    """Assign by place and shape: `anchors_wh` (A, 2) in pixels, `strides` and `sides` (A,) of the level of each anchor.

    Of two objects with the same cell and anchor, the earlier keeps it and the later is left out, as in YOLO.
    """
    image, owner = (truths.taken & ~truths.ignored).nonzero().unbind(1)
    boxes = truths.boxes_xyxy[image, owner]
    anchor = iou_of_sizes(boxes[:, 2:] - boxes[:, :2], anchors_wh).argmax(1)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    cell = (middle / strides[anchor, None]).floor().long()
    cell = torch.minimum(cell.clamp(min=0), sides[anchor, None] - 1)
    key = torch.stack([image, anchor, cell[:, 0], cell[:, 1]], 1)
    _, inverse = torch.unique(key, dim=0, return_inverse=True)
    order = torch.arange(len(key), device=key.device)
    first = torch.full((len(key),), len(key), device=key.device).scatter_reduce_(0, inverse, order, "amin")
    kept = order[first[inverse] == order]
    return Cells(image[kept], owner[kept], anchor[kept], cell[kept, 0], cell[kept, 1])
