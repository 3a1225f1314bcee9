"""Groups of boxes, one for each image and class, side by side in flat arrays: what suppression and fusion share."""

import numpy as np


def first_best(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each of n places, where the first of the highest `values` of its group stands: (n,) int64.

    `groups` (n,) are ascending.
    """
    starts = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1))
    sizes = np.diff(starts, append=len(groups))
    highest = np.repeat(np.maximum.reduceat(values, starts), sizes)
    where = np.where(values == highest, np.arange(len(values)), len(values))
    return np.repeat(np.minimum.reduceat(where, starts), sizes)
