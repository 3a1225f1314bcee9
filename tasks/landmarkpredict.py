"""Predicting with a saved network for landmarks: encoded pictures in, points in their own pixels out.

The one path for evaluation, the command line, and serving. Places count from the centre of the first pixel of the
upright picture, as those of a dataset do (data.dataset).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from data.decode import decode_image
from data.landmarks import LandmarkInput, square_maps
from data.squares import to_square
from tasks.card import Preprocessing
from tasks.inputs import readable
from tasks.modelfile import SavedModel
from tasks.precision import predicting, resolve_precision
from tasks.predict import default_device, placed
from tasks.settings import Precision

BATCH_SIZE = 64  # pictures a forward pass

LANDMARK_SCHEMA = pa.schema(
    [
        ("points_xy", pa.list_(pa.float32())),  # 2 a point, in the order of the model's points
        ("visible", pa.list_(pa.bool_())),  # 1 a point
        ("error", pa.string()),  # why the picture could not be read; null where it could
    ]
)


class LandmarkPredictor:
    """A saved network on a device, its preprocessing, and the names of its points."""

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
        self.channels = want.channels
        self.input = LandmarkInput.parse({"input_px": want.stored_px, "resize": want.resize}, "model.json")
        self.batch_size = batch_size
        [member] = saved.members
        self.network = placed(member, self.device)

    def predict(self, blobs: Sequence[bytes]) -> pa.Table:
        """A table of `LANDMARK_SCHEMA`, one row a picture, in order; one that cannot be read says so in `error`."""
        points, visible, errors = self.locate(blobs)
        flat = points.reshape(len(points), 2 * len(self.card.classes))
        rows = iter(zip(flat.tolist(), visible.tolist(), strict=True))
        columns: tuple[list[object], list[object], list[object]] = ([], [], [])
        for error in errors:
            own = next(rows) if error is None else (None, None)
            for column, value in zip(columns, (*own, error), strict=True):
                column.append(value)
        return pa.table(list(columns), schema=LANDMARK_SCHEMA)

    @torch.inference_mode()
    def locate(self, blobs: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, list[str | None]]:
        """Points (M, P, 2) float32 and visibility (M, P) bool of the M readable pictures, and each one's error."""
        P = len(self.card.classes)
        points, visible, errors = [np.empty((0, P, 2), np.float32)], [np.empty((0, P), bool)], []
        for start in range(0, len(blobs), self.batch_size):
            images, sizes, faults = self.decode(blobs[start : start + self.batch_size])
            errors += faults
            if not len(images):
                continue
            with predicting(self.device, self.dtype):
                found = self.network(torch.from_numpy(images).to(self.device))
            scale, shift = square_maps(sizes, self.input)
            places = found.points.float().cpu().numpy() * self.input.input_px
            points.append(((places - shift[:, None]) / scale[:, None] - 0.5).astype(np.float32))
            visible.append((found.visibility > 0).cpu().numpy())
        return np.concatenate(points), np.concatenate(visible), errors

    def decode(self, blobs: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, list[str | None]]:
        """Squares (M, C, S, S) uint8 of the readable pictures, their sizes (M, 2), and each blob's error or None."""
        side = self.input.input_px

        def decode(blob: bytes) -> tuple[np.ndarray, tuple[int, int]]:
            picture = decode_image(blob, channels=self.channels)
            return to_square(picture, side, self.input.resize), picture.size

        pictures, errors = readable(blobs, decode)
        squares, sizes = [square for square, _ in pictures], [size for _, size in pictures]
        shape = (-1, self.channels, side, side)
        return np.array(squares, np.uint8).reshape(shape), np.array(sizes, np.int64).reshape(-1, 2), errors
