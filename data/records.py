"""Samples of a split that stay in memory, and batches of them: of pictures, signals and volumes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Records:
    """Decoded samples of one split, in the order of their indices. Labels (N,) int64.

    Images are (N, C, S, S) uint8; of signals (N, C, L) and volumes (N, C, D, H, W) float32.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: np.ndarray) -> "Records":
        """Those at `places` (B,)."""
        where = torch.from_numpy(places).to(self.images.device)
        # index_select copies whole rows; indexing by a tensor goes byte by byte
        return Records(self.images.index_select(0, where), self.labels.index_select(0, where))

    def to(self, device: torch.device) -> "Records":
        return Records(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Batch:
    """What one step sees: images (B, …) as Records have them, cut and augmented, labels (B,) int64, indices (B,).

    Where pictures are mixed, `partner_labels` (B,) are those of each one's partner, and `weights` (B,) float32 the
    share that its own label keeps.
    """

    images: Tensor
    labels: Tensor
    indices: np.ndarray
    partner_labels: Tensor | None = None
    weights: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.indices,
            move(self.partner_labels),
            move(self.weights),
        )
