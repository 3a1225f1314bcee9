"""Soft-NMS: boxes that overlap a better one lose score instead of going (Bodla et al. 2017,
https://arxiv.org/abs/1704.04503).

The best box is taken, the scores of the others of its class are lowered by how much they overlap it, and so on with
the best that is left. All classes (and images) go step by step at once.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.boxes import check_scored_boxes, iou
from models.groups import first_best

Decay = Literal["linear", "gaussian"]


def soft_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    decay: Decay,
    *,
    labels: Tensor | None = None,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Places (K,) int64 of the boxes kept and their lowered scores (K,), by falling score, of equals the first first.

    `linear`: a score is multiplied by 1 - IoU where the IoU is *more* than `iou_threshold`, as `nms` takes it;
    `gaussian`: by exp(-IoU² / `sigma`). Boxes whose score falls below `min_score` are left out. Labels are as in `nms`;
    scores must not be negative. Computed in float64 on the CPU. Raises ValueError as `nms` does.
    """
    if decay not in ("linear", "gaussian"):
        raise ValueError(f"decay (={decay}) must be linear or gaussian")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold (={iou_threshold}) must lie in 0…1")
    if not sigma > 0:
        raise ValueError(f"sigma (={sigma}) must be more than 0")
    check_scored_boxes(boxes_xyxy, scores, labels)
    if (scores < 0).any():
        raise ValueError(f"scores from {float(scores.min())} must not be negative: lowering would raise them")
    boxes = boxes_xyxy.detach().cpu().double()
    left = scores.detach().cpu().double().numpy().copy()
    groups = np.zeros(len(left), np.int64) if labels is None else labels.cpu().numpy()
    alive = groups.argsort(kind="stable")
    alive = alive[left[alive] >= min_score]
    kept = [np.empty(0, np.int64)]
    while len(alive):
        # (n,) for each box, where the best of its group stands
        which = first_best(groups[alive], left[alive])
        best = alive[which]
        kept.append(np.unique(best))
        overlap = iou(boxes[best], boxes[alive]).numpy()
        if decay == "linear":
            factor = np.where(overlap > iou_threshold, 1 - overlap, 1)
        else:
            factor = np.exp(-(overlap**2) / sigma)
        others = best != alive
        left[alive[others]] *= factor[others]
        alive = alive[others & (left[alive] >= min_score)]
    places = np.sort(np.concatenate(kept))
    places = places[(-left[places]).argsort(kind="stable")]
    return (
        torch.from_numpy(places).to(boxes_xyxy.device),
        torch.from_numpy(left[places]).to(scores.device, scores.dtype),
    )
