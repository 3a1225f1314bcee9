"""Weighted boxes fusion: one box of those that several models, or views of a picture, give of an object.

Solovyev et al. 2019, https://arxiv.org/abs/1910.13302. By falling score, each box joins the fused box that it overlaps
most, if by more than the threshold, else it founds one; a fused box is the mean of its members by their scores. Unlike
the authors' code, boxes without area are kept (they overlap nothing) and coordinates are of any unit. All classes (and
images) go step by step at once.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from models.boxes import check_scored_boxes
from models.groups import boxes_iou, first_best

Confidence = Literal["avg", "overflow", "max", "box_and_model_avg", "absent_model_aware_avg"]


class Fused(NamedTuple):
    """F fused boxes by falling score, of equals the first founded of the lowest label first."""

    boxes_xyxy: Tensor  # (F, 4)
    scores: Tensor  # (F,)
    labels: Tensor  # (F,)
    members: Tensor  # (N,) int64: the fused box that each given one went into, -1 for none


def fuse(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    models: Tensor,
    weights: Sequence[float],
    iou_threshold: float,
    *,
    confidence: Confidence = "avg",
    min_score: float = 0.0,
) -> Fused:
    """Fuse the N boxes of M models: `models` (N,) says which gave each, `weights` (M,) how much each counts.

    To fuse in a batch at once, let a label stand for an image and a class. Boxes of a score below `min_score` are left
    out. With a box's score c, its model's weight w, and T boxes in a fused one, its score is
    - avg: Σ cw / T · min(T, M) / Σ weights (equation 6); overflow: Σ cw / Σ weights (equation 5), which may pass 1;
    - max: the highest cw / the highest weight;
    - box_and_model_avg: Σ cw / Σ w · (the weights of its models) / Σ weights;
    - absent_model_aware_avg: Σ cw / (Σ w + the weights of the models without a box in it).

    Computed in float64 on the CPU. Raises ValueError for boxes, scores and labels as `nms` does, negative scores,
    models without a weight, and weights that are not positive.
    """
    check_scored_boxes(boxes_xyxy, scores, labels)
    share = np.asarray(weights, np.float64)
    _check(scores, models, share, iou_threshold, confidence)
    boxes, given = boxes_xyxy.detach().cpu().double().numpy(), scores.detach().cpu().double().numpy()
    classes, of_model = labels.cpu().numpy(), models.cpu().numpy()
    weighted = given * share[of_model]
    order = np.lexsort((-weighted, classes))
    order = order[given[order] >= min_score]
    founder, fused = _cluster(boxes[order], weighted[order], classes[order], iou_threshold)
    found, cluster = np.unique(founder, return_inverse=True)
    values = _confidences(cluster, weighted[order], of_model[order], share, confidence)
    rank = (-values).argsort(kind="stable")
    members = np.full(len(given), -1)
    members[order] = rank.argsort()[cluster]
    device = boxes_xyxy.device
    return Fused(
        torch.from_numpy(fused[found][rank]).to(device, boxes_xyxy.dtype),
        torch.from_numpy(values[rank]).to(device, scores.dtype),
        torch.from_numpy(classes[order][found][rank]).to(device),
        torch.from_numpy(members).to(device),
    )


def _check(
    scores: Tensor, models: Tensor, weights: np.ndarray, iou_threshold: float, confidence: Confidence
) -> None:
    if confidence not in get_args(Confidence):
        raise ValueError(f"confidence (={confidence}) must be one of {', '.join(get_args(Confidence))}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold (={iou_threshold}) must lie in 0…1")
    if (scores < 0).any():
        raise ValueError(
            f"scores from {float(scores.min())} must not be negative: boxes are weighted by them"
        )
    if weights.ndim != 1 or not len(weights) or not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"weights (={weights.tolist()}) must be positive numbers, one a model")
    if models.shape != scores.shape or models.is_floating_point():
        raise ValueError(
            f"models {tuple(models.shape)} of {models.dtype} must be {len(scores)} integers, one a box"
        )
    if len(models) and not (models.min() >= 0 and models.max() < len(weights)):
        raise ValueError(
            f"models from {int(models.min())} to {int(models.max())} must lie in 0…{len(weights) - 1}: "
            f"there are {len(weights)} weights"
        )


def _cluster(
    boxes: np.ndarray, weighted: np.ndarray, classes: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which box founded the fused one of each (n,), and the fused boxes (n, 4), right where they were founded.

    Boxes are by class, in it by falling score; step k takes the k-th of every class.
    """
    N = len(boxes)
    starts = np.flatnonzero(np.diff(classes, prepend=classes[:1] - 1))
    sizes = np.diff(starts, append=N)
    founder, fused = np.arange(N), boxes.copy()
    sums, total = boxes * weighted[:, None], weighted.copy()  # of the fused boxes, at their founders
    heads = np.empty(0, np.int64)  # founders so far, ascending, and so by class
    for k in range(int(sizes.max(initial=0))):
        new = starts[sizes > k] + k
        at = np.searchsorted(classes[new], classes[heads])
        active = (at < len(new)) & (classes[new[np.minimum(at, len(new) - 1)]] == classes[heads])
        rivals, mine = heads[active], new[at[active]]
        if len(rivals):
            overlap = boxes_iou(fused[rivals], boxes[mine])
            best = np.unique(first_best(mine, overlap))
            joins = best[overlap[best] > iou_threshold]
            host, guest = rivals[joins], mine[joins]
            founder[guest] = host
            sums[host] += boxes[guest] * weighted[guest, None]
            total[host] += weighted[guest]
            some = host[total[host] > 0]  # boxes of score 0 leave the founder as it is
            fused[some] = sums[some] / total[some, None]
        heads = np.sort(np.concatenate([heads, new[founder[new] == new]]))
    return founder, fused


def _confidences(
    cluster: np.ndarray, weighted: np.ndarray, models: np.ndarray, weights: np.ndarray, confidence: Confidence
) -> np.ndarray:
    """Scores (F,) of the fused boxes, of which `cluster` (n,) says where each box is a member."""
    T = np.bincount(cluster)
    total, of_boxes = np.bincount(cluster, weighted), np.bincount(cluster, weights[models])
    has = np.zeros((len(T), len(weights)), bool)
    has[cluster, models] = True
    of_models, M = has @ weights, len(weights)
    if confidence == "avg":
        return np.asarray(total / T * np.minimum(T, M) / weights.sum())
    if confidence == "overflow":
        return np.asarray(total / weights.sum())
    if confidence == "max":
        highest = np.zeros(len(T))
        np.maximum.at(highest, cluster, weighted)
        return np.asarray(highest / weights.max())
    if confidence == "box_and_model_avg":
        return np.asarray(total / of_boxes * of_models / weights.sum())
    return np.asarray(total / (of_boxes + weights.sum() - of_models))
