"""Boxes and points drawn onto pictures; a box with a text: a detection's class and score, or a true object's class."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.decode import decode_image

COLOURS = (
    "#ff3b30",
    "#34c759",
    "#0a84ff",
    "#ffcc00",
    "#bf5af2",
    "#64d2ff",
)  # of classes, again from the first
MIN_FONT_PX = 12
# shorter side of what is written: on a smaller picture texts would hide what they tell of
LEAST_DRAWN_PX = 320
MOST_DRAWN_PX = 4096  # longer side of what is enlarged: a strip of few pixels would fill the memory
DASH_PX = 6


class Mark(NamedTuple):
    """One box to draw."""

    box_xyxy: tuple[float, float, float, float]  # edges, in pixels of the picture
    text: str  # "" for none
    colour: str
    dashed: bool = False  # a true object, beside detections


def colour_of(label: int) -> str:
    """A class's colour."""
    return COLOURS[label % len(COLOURS)]


def draw_boxes(picture: np.ndarray, marks: Sequence[Mark]) -> np.ndarray:
    """The picture (H, W, 3) uint8 with its boxes, a new array; the later ones on top.

    Texts stand above their box, or inside it at the top of the picture, and never past its right edge where they fit.
    Raises ValueError for what is not such a picture.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"picture {picture.shape} of {picture.dtype} must be (H, W, 3) uint8")
    drawn = Image.fromarray(picture)  # copies
    pen, shorter = ImageDraw.Draw(drawn), min(drawn.size)
    width, font = max(2, round(shorter / 200)), ImageFont.load_default(size=max(MIN_FONT_PX, shorter // 32))
    for mark in marks:
        if mark.dashed:
            _dashed(pen, mark, width)
        else:
            pen.rectangle(_pixels(mark.box_xyxy), outline=mark.colour, width=width)
    for mark in marks:  # no box crosses a text
        if mark.text:
            _write(pen, mark, font, drawn.width)
    return np.asarray(drawn)


def _pixels(box_xyxy: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The first and the last pixels of a box: Pillow counts pixels, a box has edges."""
    x0, y0, x1, y1 = box_xyxy
    return x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)


def _dashed(pen: ImageDraw.ImageDraw, mark: Mark, width: int) -> None:
    """Dashes of the colour and black in turn, which stand out on anything."""
    x0, y0, x1, y1 = _pixels(mark.box_xyxy)
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    for start, end in pairwise(np.array(corners)):
        length = float(np.abs(end - start).max())
        for i, low in enumerate(np.arange(0, length, DASH_PX * 1.0)):
            ends = [start + (end - start) * min(at, length) / length for at in (low, low + DASH_PX)]
            pen.line([tuple(point) for point in ends], fill="black" if i % 2 else mark.colour, width=width)


def _write(
    pen: ImageDraw.ImageDraw, mark: Mark, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, end: int
) -> None:
    x, y = mark.box_xyxy[0], mark.box_xyxy[1]
    _, _, right, bottom = pen.textbbox((0, 0), mark.text, font=font)
    x = max(0.0, min(x, end - right - 6))
    y = y - bottom - 4 if y > bottom + 4 else max(y, 0.0)
    pen.rectangle((x, y, x + right + 6, y + bottom + 4), fill=mark.colour)
    pen.text((x + 3, y + 1), mark.text, fill="black", font=font)


def draw_points(picture: np.ndarray, points_xy: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) uint8 with points (P, 2), from the centre of its first pixel; hollow where not visible."""
    drawn = Image.fromarray(picture)
    pen, radius = ImageDraw.Draw(drawn), max(1.5, min(drawn.size) / 100)
    for (x, y), seen in zip(points_xy.tolist(), visible.tolist(), strict=True):
        ring = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(ring, fill=COLOURS[1] if seen else None, outline="black" if seen else COLOURS[3])
    return np.asarray(drawn)


def write_drawn(
    files: Sequence[Path],
    rows: Sequence[dict[str, Any]],
    folder: Path,
    draw: Callable[[np.ndarray, dict[str, Any], int], np.ndarray],
) -> list[str]:
    """Write the pictures with what was found drawn into `folder`, as PNGs; the names of the files written.

    `draw` makes of a picture (H, W, 3) uint8, its row, and the whole factor by which the picture is enlarged, the
    picture to write; small ones are, see `enlargement`. Rows with an `error` are left out. Files of one name get
    numbers. What was there under such a name is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    good = [(file, row) for file, row in zip(files, rows, strict=True) if row["error"] is None]
    written = [folder / f"{name}.png" for name in distinct(file.stem for file, _ in good)]
    for (file, row), target in zip(good, written, strict=True):
        picture = decode_image(file.read_bytes(), channels=3)
        zoom = enlargement(*picture.size)
        large = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.BICUBIC)
        Image.fromarray(draw(np.asarray(large), row, zoom)).save(target)
    return [str(each) for each in written]


def enlargement(width_px: int, height_px: int) -> int:
    """The whole factor that brings the shorter side to LEAST_DRAWN_PX, but not the longer one past MOST_DRAWN_PX."""
    wanted = -(-LEAST_DRAWN_PX // min(width_px, height_px))  # rounded up
    return max(1, min(wanted, MOST_DRAWN_PX // max(width_px, height_px)))


def distinct(stems: Iterable[str]) -> list[str]:
    """Names for files: the stems; one that was there before gets the first free number from 2 on, as `a-2`."""
    names: dict[str, None] = {}
    for stem in stems:
        choices = chain([stem], (f"{stem}-{number}" for number in count(2)))
        names[next(each for each in choices if each not in names)] = None
    return list(names)
