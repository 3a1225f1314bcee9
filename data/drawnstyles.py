"""Style pictures that are drawn here, from a seed: what style transfer is shown with, free of anybody's rights.

`convoy:mosaic`: tiles around jittered points, with dark joints, in patches of related colours.
`convoy:strokes`: brush strokes that follow a field of swirls, in blues and yellows.
"""

import io

import numpy as np
from PIL import Image, ImageDraw

SIDE_PX = 512
TILE_PX, JOINT_PX = 20, 2.6
STROKES = ((2500, 46, 13), (5000, 30, 7), (7000, 18, 4))  # number, length, width in pixels: large ones first
WARM = ("#c8372d", "#e8842c", "#f2c14e", "#1f6f78", "#123c69", "#f4ead5", "#7a1f3d", "#4f9d69")
NIGHT = ("#0b1f4b", "#17418f", "#2f6fb3", "#79a9d1", "#f2d16b", "#f0a93b", "#dfe7ea", "#10152e")


def mosaic(side_px: int = SIDE_PX) -> bytes:
    """A PNG of tiles: each pixel belongs to the nearest point of a jittered grid; where two are as near is a joint."""
    generator = np.random.default_rng(11)
    num = side_px // TILE_PX + 3
    points = (
        np.mgrid[:num, :num].transpose(1, 2, 0) + generator.uniform(0.1, 0.9, (num, num, 2)) - 1
    ) * TILE_PX
    colours = tinted(patches(num, 5, generator), WARM, 22, generator)
    y, x = np.mgrid[:side_px, :side_px].astype(np.float64)
    row, column = (y // TILE_PX).astype(int) + 1, (x // TILE_PX).astype(int) + 1
    steps = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)]
    away = np.stack([
        np.hypot(y - points[row + down, column + across, 0], x - points[row + down, column + across, 1])
        for down, across in steps
    ])  # fmt: skip
    order = np.argsort(away, axis=0)[:2]
    nearest, second = np.take_along_axis(away, order, 0)
    down, across = np.array(steps).T
    pixels = colours[row + down[order[0]], column + across[order[0]]]
    joint = np.clip((second - nearest) / JOINT_PX, 0, 1)[:, :, None]
    return png(pixels * joint + 24 * (1 - joint))


def strokes(side_px: int = SIDE_PX) -> bytes:
    """A PNG of brush strokes, each along the level lines of a smooth field, so that they turn in swirls."""
    generator = np.random.default_rng(5)
    heights, hues = patches(side_px, 5, generator), patches(side_px, 6, generator)
    slope_y, slope_x = np.gradient(heights)
    image = Image.new("RGB", (side_px, side_px), NIGHT[0])
    draw = ImageDraw.Draw(image)
    for num, length, width in STROKES:
        places = generator.integers(0, side_px, (num, 2))
        tints = tinted(hues[places[:, 0], places[:, 1]], NIGHT, 14, generator).round().astype(int)
        for (y, x), tint in zip(places.tolist(), tints.tolist(), strict=True):
            angle = np.arctan2(slope_x[y, x], -slope_y[y, x])  # across the slope
            dx, dy = np.cos(angle) * length / 2, np.sin(angle) * length / 2
            draw.line((x - dx, y - dy, x + dx, y + dy), tuple(tint), width)
            for end in (-1, 1):
                cx, cy, r = x + end * dx, y + end * dy, width / 2
                draw.ellipse((cx - r, cy - r, cx + r, cy + r), tuple(tint))
    return png(np.asarray(image))


def patches(side: int, num: int, generator: np.random.Generator) -> np.ndarray:
    """Smooth chance of 0 to 1: (side, side) float64, with `num` hills and hollows a side."""
    coarse = Image.fromarray(generator.random((num, num)).astype(np.float32))
    fine = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float64)
    return (fine - fine.min()) / (fine.max() - fine.min())


def tinted(
    values: np.ndarray, palette: tuple[str, ...], spread: float, generator: np.random.Generator
) -> np.ndarray:
    """Colours (…, 3) of 0 to 255 for values (…) of 0 to 1, by their place in a palette and with chance in each."""
    known = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in palette], np.float64)
    place = values * len(known) + generator.normal(0, 0.9, values.shape)
    colours = known[place.astype(int) % len(known)]
    return np.clip(colours + generator.normal(0, spread, colours.shape), 0, 255)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


DRAWN = {"convoy:mosaic": mosaic, "convoy:strokes": strokes}
