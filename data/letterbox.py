"""Pictures laid into squares, with a border of grey, squashed, or their middle: where boxes are, there and back."""

from typing import Literal

import numpy as np

from data.squares import Resize, letterboxed

Whole = Literal["letterbox", "squash"]


def placement(
    width_px: int, height_px: int, side_px: int, resize: Resize
) -> tuple[float, float, float, float]:
    """How a picture lies in its square: scale of x and y, and its upper left corner, in the square's pixels.

    Of a `crop` that corner lies outside. As data.squares.fit lays it; where a JPEG was decoded smaller, a `crop` is off
    by half a pixel at most.
    """
    if resize == "squash":
        return side_px / width_px, side_px / height_px, 0.0, 0.0
    if resize == "crop":
        side = min(width_px, height_px)
        scale = side_px / side
        cut_x, cut_y = ((length - side) / 2 for length in (width_px, height_px))
        if side == side_px:  # pixels are copied
            cut_x, cut_y = cut_x // 1, cut_y // 1
        return scale, scale, -cut_x * side_px / side, -cut_y * side_px / side
    width, height, left, top = letterboxed(width_px, height_px, side_px)
    return width / width_px, height / height_px, float(left), float(top)


def into_square(boxes_xyxy: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Boxes (M, 4) of pictures in pixels of their squares; `placed` (M, 4) as `placement` gives it for each."""
    return boxes_xyxy * np.tile(placed[:, :2], 2) + np.tile(placed[:, 2:], 2)


def out_of_square(boxes_xyxy: np.ndarray, placed: np.ndarray, sizes_px: np.ndarray) -> np.ndarray:
    """Boxes (M, 4) of squares in pixels of their pictures, cut at the edges; `sizes_px` (M, 2) width and height."""
    boxes = (boxes_xyxy - np.tile(placed[:, 2:], 2)) / np.tile(placed[:, :2], 2)
    return np.clip(boxes, 0, np.tile(sizes_px, 2))
