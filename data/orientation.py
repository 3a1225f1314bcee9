"""Coordinates in images that EXIF turns: from the pixels as stored to the upright image, and back.

The eight orientations are those of EXIF 2.3, section 4.6.4 (tag 274): 6 is stored lying on its left side, so that
a quarter turn clockwise makes it upright.
"""

import numpy as np

INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def stored_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height of the pixels as stored, of an image with upright `size`; and the other way round."""
    return (size[1], size[0]) if orientation >= 5 else size


def turn_xy(
    points_xy: np.ndarray, orientation: np.ndarray | int, width: np.ndarray, height: np.ndarray
) -> np.ndarray:
    """Turn points (n, 2), each by its `orientation`; `width` and `height` (n,) are of the image before.

    Points are measured from the image's edge; of points measured from the first pixel's centre, give the sides
    less 1.
    """
    x, y = points_xy[:, 0], points_xy[:, 1]
    far_x, far_y = width - x, height - y
    turned = np.select(
        [np.broadcast_to(orientation == i, x.shape)[:, None] for i in range(1, 9)],
        [
            np.stack(pair, 1)
            for pair in (
                (x, y), (far_x, y), (far_x, far_y), (x, far_y), (y, x), (far_y, x), (far_y, far_x), (y, far_x)
            )
        ],
    )  # fmt: skip
    return np.asarray(turned)


def turn_boxes(
    boxes_xyxy: np.ndarray, orientation: np.ndarray | int, width: np.ndarray, height: np.ndarray
) -> np.ndarray:
    """Turn boxes (n, 4), with x0 <= x1 and y0 <= y1 again afterwards; see `turn_xy`."""
    a = turn_xy(boxes_xyxy[:, :2], orientation, width, height)
    b = turn_xy(boxes_xyxy[:, 2:], orientation, width, height)
    return np.concatenate([np.minimum(a, b), np.maximum(a, b)], 1)
