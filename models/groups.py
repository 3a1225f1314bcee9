"""Groups of boxes, one for each image and class, side by side in flat arrays: what suppression and fusion share."""

import numpy as np


def boxes_iou(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union (P,) of pairs; 0 of two boxes without area."""
    sides = np.minimum(a_xyxy[:, 2:], b_xyxy[:, 2:]) - np.maximum(a_xyxy[:, :2], b_xyxy[:, :2])
    both = np.maximum(sides, 0).prod(1)
    union = (a_xyxy[:, 2:] - a_xyxy[:, :2]).prod(1) + (b_xyxy[:, 2:] - b_xyxy[:, :2]).prod(1) - both
    return np.divide(both, union, out=np.zeros(len(both)), where=both > 0)


def first_best(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each of n places, where the first of the highest `values` of its group stands: (n,) int64.

    `groups` (n,) are ascending.
    """
    starts = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1))
    sizes = np.diff(starts, append=len(groups))
    highest = np.repeat(np.maximum.reduceat(values, starts), sizes)
    where = np.where(values == highest, np.arange(len(values)), len(values))
    return np.repeat(np.minimum.reduceat(where, starts), sizes)
