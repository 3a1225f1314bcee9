"""Pictures laid into squares, whole: with a border of grey, or squashed; and boxes there and back."""

from typing import Literal

import numpy as np
from PIL import Image

from data.decode import decode_image

BORDER = 114  # grey level around a letterboxed picture, and beyond the edge of a moved one
Resize = Literal["letterbox", "squash"]


def placement(
    width_px: int, height_px: int, side_px: int, resize: Resize
) -> tuple[float, float, float, float]:
    """How a picture lies in its square: scale of x and y, and its upper left corner, in the square's pixels."""
    if resize == "squash":
        return side_px / width_px, side_px / height_px, 0.0, 0.0
    width, height = fitted(width_px, height_px, side_px)
    left, top = (side_px - width) // 2, (side_px - height) // 2
    return width / width_px, height / height_px, float(left), float(top)


def fitted(width_px: int, height_px: int, side_px: int) -> tuple[int, int]:
    """Width and height of a picture whose longer side is `side_px`; at least one pixel."""
    scale = side_px / max(width_px, height_px)
    return max(1, round(width_px * scale)), max(1, round(height_px * scale))


def decode_square(blob: bytes, side_px: int, channels: Literal[1, 3], resize: Resize) -> np.ndarray:
    """Decode a picture and lay it into its square: (C, side, side) uint8, antialiased bilinear. Raises DecodeError."""
    image = decode_image(blob, channels=channels, draft_px=side_px)
    size = (side_px, side_px) if resize == "squash" else fitted(*image.size, side_px)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if size == (side_px, side_px):
        return np.ascontiguousarray(planes)
    square = np.full((channels, side_px, side_px), BORDER, np.uint8)
    left, top = (side_px - size[0]) // 2, (side_px - size[1]) // 2
    square[:, top : top + size[1], left : left + size[0]] = planes
    return square


def to_square(boxes_xyxy: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Boxes (M, 4) of pictures in pixels of their squares; `placed` (M, 4) as `placement` gives it for each."""
    return boxes_xyxy * np.tile(placed[:, :2], 2) + np.tile(placed[:, 2:], 2)


def from_square(boxes_xyxy: np.ndarray, placed: np.ndarray, sizes_px: np.ndarray) -> np.ndarray:
    """Boxes (M, 4) of squares in pixels of their pictures, cut at the edges; `sizes_px` (M, 2) width and height."""
    boxes = (boxes_xyxy - np.tile(placed[:, 2:], 2)) / np.tile(placed[:, :2], 2)
    return np.clip(boxes, 0, np.tile(sizes_px, 2))
