"""Detections of several parts as one: of pieces of a split, one after the other, or of several looks, fused.

Looks are those of several networks at the same pictures, in pixels of the pictures, whatever size each network takes,
or those of one network at a picture and its mirror image or other sizes. Weighted boxes fusion (models.fusion) has a
higher AP than suppression of all boxes together: docs/detection.md has the figures.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from models.detector import Found
from models.fusion import fuse
from tasks.detectionmatches import Detections

# boxes of a class that overlap by more are of one object, where suppression leaves none; better than the paper's 0.55
FUSION_IOU = 0.65


def moved(found: Detections, start: int) -> Detections:
    """The same, of pictures that begin at place `start`."""
    return replace(found, image=found.image + start)


def joined(parts: Sequence[Detections]) -> Detections:
    """Detections of several pieces as one, in their order; none of no pieces."""
    return Detections(
        image=np.concatenate([np.empty(0, np.int64), *(each.image for each in parts)]),
        boxes_xyxy=np.concatenate([np.empty((0, 4)), *(each.boxes_xyxy for each in parts)]),
        labels=np.concatenate([np.empty(0, np.int64), *(each.labels for each in parts)]),
        scores=np.concatenate([np.empty(0), *(each.scores for each in parts)]),
    )


def taken(found: Detections, order: np.ndarray) -> Detections:
    """Those at the places `order`."""
    return Detections(
        image=found.image[order], boxes_xyxy=found.boxes_xyxy[order], labels=found.labels[order],
        scores=found.scores[order],
    )  # fmt: skip


def by_picture(found: Detections) -> Detections:
    """Sorted by picture, in it by falling score."""
    return taken(found, np.lexsort((-found.scores, found.image)))


def of_batch(found: Found) -> Detections:
    """What a detector found in a batch."""
    return Detections(
        image=found.image.cpu().numpy(),
        boxes_xyxy=found.boxes_xyxy.cpu().double().numpy(),
        labels=found.labels.cpu().numpy(),
        scores=found.scores.cpu().double().numpy(),
    )


def fused(parts: Sequence[Detections], num_classes: int, nms_iou: float) -> Detections:
    """What several looks find of the same pictures as one: by picture, in it by falling score.

    Each look counts the same: the score of a box is the mean of theirs, and one that does not find it counts as 0.
    None are merged that overlap by no more than `nms_iou`, the highest of the looks': what one of them reports so are
    two objects. Soft suppression leaves boxes that overlap by more: two such of one look are merged, and count as two.
    """
    if len(parts) == 1:
        return parts[0]
    every = joined(parts)
    look = np.repeat(np.arange(len(parts)), [len(each.scores) for each in parts])
    groups = every.image * num_classes + every.labels
    boxes, scores, labels, _ = fuse(
        torch.from_numpy(every.boxes_xyxy), torch.from_numpy(every.scores), torch.from_numpy(groups),
        torch.from_numpy(look), [1.0] * len(parts), max(FUSION_IOU, nms_iou),
    )  # fmt: skip
    own = labels.numpy()
    found = Detections(
        image=own // num_classes, boxes_xyxy=boxes.numpy(), labels=own % num_classes, scores=scores.numpy()
    )
    return by_picture(found)
