"""Pictures with boxes, for training a detector: stored as squares with a border, augmented, four in one.

rows of a dataset → decode_rows → Records → make_batch → Batch (pictures, and the boxes of all of them)
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Truths:
    """The M boxes of a batch's pictures, of all of them one after the other."""

    boxes_xyxy: Tensor  # (M, 4) float32: edges, in pixels of the batch's pictures, inside them, with area
    labels: Tensor  # (M,) int64
    image: Tensor  # (M,) int64, ascending: place in the batch
    ignored: (
        Tensor  # (M,) bool: crowds, difficult ones, and what is hardly seen: neither object nor background
    )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Batch:
    """What one step sees: images (B, C, S, S) uint8, their boxes, and indices (B,) into the split."""

    images: Tensor
    truths: Truths
    indices: np.ndarray
