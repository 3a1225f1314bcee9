"""Pictures fitted to squares of one side: their middle, all of them squashed, or all of them with a border of grey."""

from typing import Literal

import numpy as np
from PIL import Image

Resize = Literal["crop", "squash", "letterbox"]  # how a picture is fitted to a square
BORDER = 114  # grey level around a letterboxed picture, and beyond the edge of a moved one


def to_square(
    image: Image.Image, side_px: int, resize: Resize, full_wh: tuple[int, int] | None = None
) -> np.ndarray:
    """Fit an L or RGB image to a square: (C, side_px, side_px) uint8, C = 1 or 3.

    `crop` scales the shorter side to `side_px` and keeps the centre; `squash` scales both sides; `letterbox` scales the
    longer side and fills with grey. Scaling is antialiased bilinear; where the sizes fit already, pixels are copied
    untouched. `full_wh` is the size of an image that was decoded smaller: a letterbox's border depends on it.
    """
    pixels = np.asarray(fit(image, side_px, resize, full_wh or image.size))
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(planes)


def letterboxed(width_px: int, height_px: int, side_px: int) -> tuple[int, int, int, int]:
    """Width and height, at least a pixel, and upper left corner of a picture whose longer side becomes `side_px`."""
    scale = side_px / max(width_px, height_px)
    width, height = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    return width, height, (side_px - width) // 2, (side_px - height) // 2


def fit(image: Image.Image, side_px: int, resize: Resize, full_wh: tuple[int, int]) -> Image.Image:
    """An L or RGB image of side `side_px`; see `to_square`."""
    width, height = image.size
    if width == height == side_px and resize != "letterbox":
        return image
    if resize == "letterbox":
        wide, high, left, top = letterboxed(*full_wh, side_px)
        inner = image if image.size == (wide, high) else image.resize((wide, high), Image.Resampling.BILINEAR)
        square = Image.new(image.mode, (side_px, side_px), (BORDER,) * len(image.getbands()))
        square.paste(inner, (left, top))
        return square
    if resize == "squash":
        return image.resize((side_px, side_px), Image.Resampling.BILINEAR)
    side = min(width, height)
    if side == side_px:
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))
    left_px, top_px = (width - side) / 2, (height - side) / 2  # only the pixels that stay are scaled
    box = (left_px, top_px, left_px + side, top_px + side)
    return image.resize((side_px, side_px), Image.Resampling.BILINEAR, box=box)
