"""Pictures that are drawn by this project's code, to take a style from: as free as it is, and the same each time.

    ./convoy stylize skimage:chelsea convoy:whirls

`convoy:whirls`    short strokes of a brush along a field that turns, dark blue to yellow
`convoy:circles`   rings of plain colours, in squares
`convoy:stones`    stones of plain colours in bands, with dark joints
`convoy:mosaic`    tiles around jittered points, with dark joints, in patches of related colours
`convoy:strokes`   strokes of a brush that follow a field of swirls, in blues and yellows
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

SIDE_PX, FINER = 512, 2  # of the picture; how much larger it is drawn, for smooth edges
Colour = tuple[int, int, int]
NIGHT = np.array(
    [(12, 20, 60), (24, 50, 120), (46, 98, 172), (120, 170, 205), (236, 226, 160), (250, 196, 48)]
)
WHIRLS = ((0.27, 0.30, 1.0), (0.74, 0.24, -1.0), (0.62, 0.72, 1.0), (0.14, 0.80, -1.0))  # x, y, sense
BRIGHT: tuple[Colour, ...] = (
    (200, 40, 42), (240, 146, 34), (246, 212, 72), (66, 140, 86), (38, 86, 156), (108, 60, 130), (238, 230, 212),
    (30, 36, 58), (132, 190, 206), (224, 120, 140),
)  # fmt: skip
STONES = np.array([(176, 58, 40), (222, 150, 70), (236, 216, 168), (60, 118, 128), (28, 60, 92)])
TILE_PX, JOINT_PX = 20, 2.6
STROKES = ((2500, 46, 13), (5000, 30, 7), (7000, 18, 4))  # number, length, width in pixels: large ones first
WARM = ("#c8372d", "#e8842c", "#f2c14e", "#1f6f78", "#123c69", "#f4ead5", "#7a1f3d", "#4f9d69")
BLUES = ("#0b1f4b", "#17418f", "#2f6fb3", "#79a9d1", "#f2d16b", "#f0a93b", "#dfe7ea", "#10152e")


def whirls() -> Image.Image:
    """Short strokes along a field of whirls: darker far from these, yellow in their middle."""
    generator = np.random.default_rng(0)
    side = SIDE_PX * FINER
    image = Image.new("RGB", (side, side), tuple(NIGHT[1]))
    draw = ImageDraw.Draw(image)
    paths = [generator.uniform(-0.03, 1.03, (9000, 2))]
    for _ in range(7):
        paths.append(paths[-1] + 0.009 * flow(paths[-1]))
    levels = nearness(paths[0]) + generator.normal(0, 0.09, len(paths[0]))
    colours = blend(NIGHT, levels) + generator.normal(0, 12, (len(levels), 3))
    widths = generator.integers(5, 10, len(levels)) * FINER
    for path, colour, width in zip(np.stack(paths, 1) * side, colours, widths, strict=True):
        line = list(map(tuple, path.tolist()))
        draw.line(line, fill=as_colour(colour), width=int(width), joint="curve")
        draw.line(line, fill=as_colour(colour + 26), width=FINER)  # where the bristles left it thick
    return image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)


def flow(points: np.ndarray) -> np.ndarray:
    """Directions of strokes at places (N, 2) of 0 to 1: round each whirl, and from left to right between them."""
    direction = np.stack([np.full(len(points), 0.9), 0.35 * np.sin(7 * points[:, 0])], 1)
    for x, y, sense in WHIRLS:
        apart = points - (x, y)
        distance = np.hypot(*apart.T)[:, None]
        around = apart[:, ::-1] * (-1, 1) / (distance + 0.02)
        direction += sense * 9 * np.exp(-((distance / 0.17) ** 2)) * around
    return direction / (np.hypot(*direction.T)[:, None] + 1e-9)


def nearness(points: np.ndarray) -> np.ndarray:
    """Of places (N, 2): from 0.3 far from every whirl to 1.3 in its middle, with rings about it."""
    apart = np.min([np.hypot(points[:, 0] - x, points[:, 1] - y) for x, y, _ in WHIRLS], axis=0)
    return np.exp(-((apart / 0.13) ** 2)) + 0.3 + 0.16 * np.sin(apart * 60)


def circles() -> Image.Image:
    """Eight by eight squares, each with some rings of other colours, none quite round."""
    generator = np.random.default_rng(1)
    side, cell = SIDE_PX * FINER, SIDE_PX * FINER // 8
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    for row in range(8):
        for column in range(8):
            left, top = column * cell, row * cell
            chosen = generator.permutation(len(BRIGHT))[: generator.integers(5, 7)]
            draw.rectangle((left, top, left + cell, top + cell), fill=BRIGHT[chosen[0]])
            for place, radius in enumerate(np.linspace(0.47, 0.08, len(chosen) - 1)):
                x, y = (cell / 2 + generator.normal(0, 0.015 * cell, 2)).tolist()
                wide, high = (cell * (radius + generator.normal(0, 0.012, 2))).tolist()
                box = (left + x - wide, top + y - high, left + x + wide, top + y + high)
                draw.ellipse(box, fill=BRIGHT[chosen[place + 1]])
    return image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)


def stones() -> Image.Image:
    """Voronoi cells about points of a shaken grid, coloured in bands."""
    from scipy.spatial import KDTree  # whoever reads samples need not wait for it

    generator, side, num = np.random.default_rng(2), SIDE_PX * FINER, 30
    grid = np.stack(np.meshgrid(np.arange(-1, num + 1), np.arange(-1, num + 1)), -1).reshape(-1, 2)
    points = (grid + 0.5 + generator.uniform(-0.32, 0.32, grid.shape)) / num
    band = 0.5 + 0.5 * np.sin(9 * points[:, 1] + 2.2 * np.sin(5 * points[:, 0]))
    colours = blend(STONES, band + generator.normal(0, 0.13, len(band)))
    colours = np.clip(colours + generator.normal(0, 14, (len(points), 1)), 0, 255)
    places = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) + 0.5) / side
    distances, owners = KDTree(points).query(places, k=2)
    pixels = colours[owners[:, 0]]
    pixels[distances[:, 1] - distances[:, 0] < 0.16 / num] = (38, 32, 34)
    image = Image.fromarray(pixels.reshape(side, side, 3).astype(np.uint8))
    return image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)


def mosaic(side_px: int = SIDE_PX) -> Image.Image:
    """Tiles: each pixel belongs to the nearest point of a jittered grid; where two are as near is a joint."""
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
    return Image.fromarray((pixels * joint + 24 * (1 - joint)).round().astype(np.uint8))


def strokes(side_px: int = SIDE_PX) -> Image.Image:
    """Strokes of a brush, each along the level lines of a smooth field, so that they turn in swirls."""
    generator = np.random.default_rng(5)
    heights, hues = patches(side_px, 5, generator), patches(side_px, 6, generator)
    slope_y, slope_x = np.gradient(heights)
    image = Image.new("RGB", (side_px, side_px), BLUES[0])
    draw = ImageDraw.Draw(image)
    for num, length, width in STROKES:
        places = generator.integers(0, side_px, (num, 2))
        tints = tinted(hues[places[:, 0], places[:, 1]], BLUES, 14, generator).round().astype(int)
        for (y, x), tint in zip(places.tolist(), tints.tolist(), strict=True):
            angle = np.arctan2(slope_x[y, x], -slope_y[y, x])  # across the slope
            dx, dy = np.cos(angle) * length / 2, np.sin(angle) * length / 2
            draw.line((x - dx, y - dy, x + dx, y + dy), tuple(tint), width)
            for end in (-1, 1):
                cx, cy, r = x + end * dx, y + end * dy, width / 2
                draw.ellipse((cx - r, cy - r, cx + r, cy + r), tuple(tint))
    return image


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


def blend(palette: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Colours (N, 3) at levels (N,) of 0 to 1 between those of a palette; beyond, its ends."""
    places = np.linspace(0, 1, len(palette))
    return np.stack([np.interp(levels, places, channel) for channel in palette.T], 1)


def as_colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(np.rint(values), 0, 255).astype(int).tolist()
    return red, green, blue


PAINTINGS: dict[str, Callable[[], Image.Image]] = {
    "convoy:whirls": whirls,
    "convoy:circles": circles,
    "convoy:stones": stones,
    "convoy:mosaic": mosaic,
    "convoy:strokes": strokes,
}


def paint(name: str) -> bytes:
    """One of `PAINTINGS`, as a PNG."""
    buffer = io.BytesIO()
    PAINTINGS[name]().save(buffer, "PNG")
    return buffer.getvalue()
