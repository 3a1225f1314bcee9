"""Random resized crops of encoded pictures: decoded at the least scale that the crop needs, and resampled once."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.decode import DecodeError, decode_part, quiet_pillow


def decode_crops(
    blobs: Sequence[bytes], boxes_xyxy: np.ndarray, mirror: np.ndarray, side_px: int, channels: Literal[1, 3]
) -> Tensor:
    """Decode a box of each picture and fit it to a square: (N, channels, side_px, side_px) uint8, channels last.

    `boxes_xyxy` (N, 4) are pixels of the upright pictures; what is shown is mirrored left-right where `mirror` (N,)
    bool is set. Scaling is antialiased bilinear. A DecodeError names the blob's place.
    """
    squares = torch.empty(
        len(blobs), channels, side_px, side_px, dtype=torch.uint8, memory_format=torch.channels_last
    )
    with quiet_pillow():
        for i, (blob, box, flip) in enumerate(zip(blobs, boxes_xyxy.tolist(), mirror.tolist(), strict=True)):
            try:
                part = decode_part(blob, box, side_px, channels)
            except DecodeError as error:
                raise DecodeError(f"image {i} of {len(blobs)}: {error}") from None
            # torch's kernel takes interleaved pixels as they lie, and a quarter of the time of Pillow's; but only if
            # all strides say so, that of the batch of one too
            planes = torch.from_numpy(part)[None].permute(0, 3, 1, 2)
            square = F.interpolate(planes, (side_px, side_px), mode="bilinear", antialias=True)[0]
            squares[i] = square.flip(2) if flip else square  # here, while it is in the processor's cache
    return squares
