"""Embedding pictures of faces with a saved network: encoded pictures in, vectors of unit length out.

The one path for evaluation, the command line, galleries and serving. A picture is used as it comes: cut out, and
aligned as those that the network was trained on were.
"""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.card import Preprocessing
from tasks.faces import FaceView
from tasks.inputs import decode_readable
from tasks.modelfile import SavedModel
from tasks.precision import predicting, resolve_precision
from tasks.predict import default_device, placed
from tasks.settings import Precision
from tasks.views import single, view_named

BATCH_SIZE = 64  # pictures a forward pass
VIEWS: tuple[FaceView, ...] = get_args(FaceView)

FACE_SCHEMA = pa.schema(
    [
        ("embedding", pa.list_(pa.float32())),  # of unit length
        ("error", pa.string()),  # why the picture could not be read; null where it could
    ]
)


class FacePredictor:
    """A saved embedder on a device, and its preprocessing."""

    def __init__(
        self,
        saved: SavedModel,
        device: torch.device | None = None,
        precision: Precision = "fp32",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Move the network to `device` (None: the first GPU, else the CPU)."""
        self.card = saved.card
        self.device = device if device is not None else default_device()
        self.dtype = resolve_precision(precision, self.device)
        want = saved.card.preprocessing
        assert isinstance(want, Preprocessing)
        self.preprocessing = want
        self.view = view_named(saved.card.views, VIEWS)
        self.batch_size = batch_size
        [member] = saved.members
        self.dim: int = saved.card.members[0].arguments["dim"]
        self.network = placed(member, self.device)

    def predict(self, blobs: Sequence[bytes]) -> pa.Table:
        """A table of `FACE_SCHEMA`, one row a picture, in order; one that cannot be read says so in `error`."""
        embeddings, errors = self.embed(blobs)
        rows = iter(embeddings.tolist())
        own = [next(rows) if error is None else None for error in errors]
        return pa.table([own, errors], schema=FACE_SCHEMA)

    def embed(
        self, blobs: Sequence[bytes], view: FaceView | None = None
    ) -> tuple[np.ndarray, list[str | None]]:
        """Embeddings (M, D) float32 of the M readable pictures, and each one's error; `view`: not the model's own."""
        found, errors = [np.empty((0, self.dim), np.float32)], []
        for start in range(0, len(blobs), self.batch_size):
            images, faults = decode_readable(blobs[start : start + self.batch_size], self.preprocessing)
            errors += faults
            if len(images):
                found.append(self.embed_images(torch.from_numpy(images), view or self.view).cpu().numpy())
        return np.concatenate(found), errors

    @torch.inference_mode()
    def embed_images(self, images: Tensor, view: FaceView) -> Tensor:
        """(B, C, T, T) uint8, decoded to the stored side → (B, D) float32 on the device."""
        [images], _weights = single(images.to(self.device), self.preprocessing)
        seen = torch.cat([images, images.flip(3)]) if view == "mirror" else images
        with predicting(self.device, self.dtype):
            embeddings: Tensor = self.network(seen).embeddings
        if view == "mirror":
            embeddings = F.normalize(embeddings[: len(images)] + embeddings[len(images) :])
        return embeddings
