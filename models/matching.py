"""Which boxes are of which object by their overlap, and which of them a loss is taken of (Ren et al. 2015,
https://arxiv.org/abs/1506.01497, section 3.1.2): matching and sampling of the R-CNN line, as torchvision does them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from models.boxes import iou, share_inside

MOST_IGNORED = 0.5  # share of a box inside an ignored object from which on it is no background


class Matched(NamedTuple):
    """What N boxes of a picture are to find."""

    owner: Tensor  # (N,) int64: place of the object among the picture's; of boxes that are not positive, any
    positive: Tensor  # (N,) bool: finds an object
    negative: Tensor  # (N,) bool: is background; a box may be neither


@torch.no_grad()
def match(
    boxes_xyxy: Tensor,
    objects_xyxy: Tensor,
    ignored: Tensor,
    positive_iou: float,
    negative_iou: float,
    best_too: bool = False,
) -> Matched:
    """Match boxes (N, 4) to a picture's objects (M, 4), of which some are `ignored` (M,): found by none.

    A box overlaps its object by `positive_iou` or more; background overlaps each by less than `negative_iou`, ignored
    ones too, and less than half of it lies in an ignored object. With `best_too`, those that overlap an object most
    find it too, and are no background where it is ignored: small ones overlap nothing by more.
    """
    wanted = (~ignored).nonzero()[:, 0]
    best = boxes_xyxy.new_zeros(len(boxes_xyxy))
    owner = torch.zeros(len(boxes_xyxy), dtype=torch.int64, device=boxes_xyxy.device)
    positive = torch.zeros_like(owner, dtype=torch.bool)
    if len(wanted) and len(boxes_xyxy):
        overlap = iou(boxes_xyxy[:, None], objects_xyxy[wanted])
        best, place = overlap.max(1)
        owner, positive = wanted[place], best >= positive_iou
        if best_too:
            positive |= _best(overlap)
    negative = ~positive & (best < negative_iou)
    if ignored.any() and len(boxes_xyxy):
        out = objects_xyxy[ignored]
        overlap = iou(boxes_xyxy[:, None], out)
        negative &= (overlap < negative_iou).all(1)
        negative &= (share_inside(boxes_xyxy[:, None], out) < MOST_IGNORED).all(1)
        if best_too:
            negative &= ~_best(overlap)
    return Matched(owner, positive, negative)


def _best(overlap: Tensor) -> Tensor:
    """Which of N boxes overlap one of M objects most, (N,) bool, by their IoU (N, M)."""
    highest = overlap.amax(0)
    return ((overlap == highest) & (highest > 0)).any(1)


def sample(matched: Matched, num: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Places of at most `num` boxes, positive and negative ones, drawn by torch's generator.

    No more than `positive_share` are positive; negatives fill up what is left.
    """
    positive, negative = matched.positive.nonzero()[:, 0], matched.negative.nonzero()[:, 0]
    num_positive = min(len(positive), int(num * positive_share))
    return _drawn(positive, num_positive), _drawn(negative, num - num_positive)


def _drawn(places: Tensor, num: int) -> Tensor:
    return places[torch.randperm(len(places), device=places.device)[:num]]
