"""JPEGs as cameras and editors mostly write them, decoded no further than asked.

No objects of Pillow's, no copies, and no rows below those wanted: the header is given a lower height. What is odd in
any way is left to data.decode, and so to Pillow; where both decode a file, the pixels are the same.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg

# of a progressive JPEG: each costs a pass over all pixels; cameras and editors write about ten
MAX_SCANS = 100

# Markers: ITU-T T.81, table B.1.
SCAN = b"\xff\xda"  # what a scan begins with
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2  # what their frames begin with
EXIF = 0xE1


class Scaled(NamedTuple):
    """A decoded picture, perhaps without its lower part: pixels (h, w, C), whole it were `size`, unscaled `full`."""

    pixels: np.ndarray
    size: tuple[int, int]  # width and height
    full: tuple[int, int]


def decode_upper(
    data: bytes, factor: int, channels: Literal[1, 3], bottom: float, max_pixels: int
) -> Scaled | None:
    """A JPEG as most are, at 1 / factor of its size, down to row `bottom` at least; None for any other one.

    The same pixels as Pillow's, without its objects and copies: they cost a third of the time.
    """
    frame = _plain_frame(data)
    if frame is None:
        return None
    try:
        height, width, space, _sampling = simplejpeg.decode_jpeg_header(data)
        if (space, channels) not in (("YCbCr", 3), ("Gray", 1)) or width * height > max_pixels:
            return None
        rows = _rows_to_decode(data, frame, bottom, height)
        cut = rows < height
        if cut:
            data = data[: frame + 5] + rows.to_bytes(2, "big") + data[frame + 7 :]
        least_px = {"min_width": -(-width // factor), "min_height": -(-min(rows, height) // factor)}
        # what is left over of a picture that was cut short is a warning of libjpeg's
        pixels = simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", strict=not cut, **least_px)
        return Scaled(pixels, (-(-width // factor), -(-height // factor)), (width, height))
    except ValueError:  # it refuses what libjpeg only warns of; ingest asked Pillow, so Pillow decides
        return None


def _plain_frame(data: bytes) -> int | None:
    """Where the frame of a JPEG begins that has no EXIF and not too many scans; a search would cost 50 µs."""
    place, frame = 2, None
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == SCAN[1]:
            return frame
        if marker == EXIF and data.startswith(b"Exif\0\0", place + 4):
            return None
        if marker == PROGRESSIVE and data.count(SCAN) > MAX_SCANS:
            return None
        if marker in (*SEQUENTIAL, PROGRESSIVE):
            frame = place
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None  # an odd header is Pillow's


def _rows_to_decode(data: bytes, frame: int, bottom: float, height: int) -> int:
    """The rows that the decoder must be told a JPEG has for those above `bottom` to come out as they are.

    A row of blocks more than they need, since its colours are interpolated with those of the next. All rows where
    nothing can be saved: of a progressive one all scans are read whatever its height, and a file that
    does not end as it should is truncated, which must be noticed.
    """
    if data[frame + 1] not in SEQUENTIAL or not data.endswith(b"\xff\xd9"):
        return height
    block_px = 8 * max(data[frame + 11 + 3 * part] & 15 for part in range(data[frame + 9]))
    return (math.ceil(bottom / block_px) + 1) * block_px
