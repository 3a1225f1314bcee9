"""The edges of a picture by the filters of models.filters, as pictures to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.decode import DecodeError, decode_image
from data.parameters import did_you_mean
from data.samples import read_photo
from models.filters import FILTERS, Padding, convolve, correlate, output_px, padding_px

# what is drawn of two filters, vertical and horizontal, together
MAGNITUDES = {f"{pair}_magnitude": (f"{pair}_vertical", f"{pair}_horizontal") for pair in ("sobel", "scharr")}
SHARE_SHOWN = 0.995  # of the responses lie within the range of grey levels; the rest are cut
LEAST_MAP_PX = 8  # shorter side of a map of which a stride has left something to look at
TILE_PX, LABEL_PX, COLUMNS = 320, 26, 3
TALLEST_PX = 3 * TILE_PX  # of a tile: a strip that is one pixel wide would be as high as memory is large


def edge_maps(
    picture: Tensor, names: Sequence[str], padding: Padding, stride: int, true_convolution: bool
) -> dict[str, Tensor]:
    """Responses of the named filters to a grey picture (H, W) of levels 0 to 255: name → (H', W').

    Beside them the magnitude √(vertical² + horizontal²) where both filters of a pair are named; a magnitude may
    also be named alone. A ValueError lists the filters that there are, or says which strides leave something to look
    at.
    """
    known = [*FILTERS, *MAGNITUDES]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        meant = meant_by(unknown[0]) if unknown else ""
        raise ValueError(f"no filter {', '.join(unknown) or 'is named'}; known: {', '.join(known)}{meant}")
    asked = names
    names = list(dict.fromkeys(side for each in asked for side in MAGNITUDES.get(each, (each,))))
    apply = convolve if true_convolution else correlate
    responses = apply(picture[None], torch.stack([FILTERS[name] for name in names]), padding, stride)[0]
    if stride > 1 and min(responses.shape[1:]) < LEAST_MAP_PX:
        (height, width), (rows, columns) = picture.shape, responses.shape[1:]
        filter_px = len(FILTERS[names[0]])
        reach = output_px(min(height, width), filter_px, padding_px(filter_px, padding), 1) - 1
        raise ValueError(
            f"stride (={stride}) makes maps of {columns}x{rows} px of a picture of {width}x{height}, which show "
            f"nothing: give at most {max(1, reach // (LEAST_MAP_PX - 1))}"
        )
    maps = dict(zip(names, responses, strict=True))
    for magnitude, (vertical, horizontal) in MAGNITUDES.items():
        if magnitude in asked or {vertical, horizontal} <= set(asked):
            maps[magnitude] = torch.hypot(maps[vertical], maps[horizontal])
    return {name: response for name, response in maps.items() if name in asked or name in MAGNITUDES}


def meant_by(name: str) -> str:
    """The end of an error: the filters of a family such as sobel, or else the one most like `name`."""
    family = [known for known in (*FILTERS, *MAGNITUDES) if known.startswith(f"{name}_")]
    return f"; did you mean {' or '.join(family)}?" if family else did_you_mean(name, [*FILTERS, *MAGNITUDES])


def as_grey(response: Tensor, signed: bool) -> np.ndarray:
    """A response (H, W) as grey levels (H, W) uint8: signed, 0 is the middle grey; else 0 is black."""
    values = response.numpy()
    reach = float(np.quantile(np.abs(values), SHARE_SHOWN)) or float(np.abs(values).max()) or 1.0
    level = values / reach
    return np.rint(np.clip(127.5 + 127.5 * level if signed else 255 * level, 0, 255)).astype(np.uint8)


def write_edges(
    photo: str,
    folder: Path,
    names: Sequence[str],
    padding: Padding = "valid",
    stride: int = 1,
    true_convolution: bool = False,
) -> dict[str, Path]:
    """Write a PNG for each filter, and `edges.png` with all of them beside the picture; returns name → file.

    `photo` is a file, or one of data.samples.PHOTOS. Raises DecodeError for what is no picture, ValueError for an
    unknown filter or a picture that is too small.
    """
    try:
        grey = decode_image(read_photo(photo), channels=1)
    except DecodeError as error:
        raise DecodeError(f"{photo}: {error}") from None
    picture = torch.from_numpy(np.array(grey, np.float32))
    maps = edge_maps(picture, names, padding, stride, true_convolution)
    tiles = {name: as_grey(response, not name.endswith("magnitude")) for name, response in maps.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, tile in tiles.items():
        files[name] = folder / f"{name}.png"
        Image.fromarray(tile).save(files[name])
    files["edges"] = folder / "edges.png"
    named = {name.replace("_", " "): tile for name, tile in tiles.items()}
    contact_sheet({Path(photo).name: np.asarray(grey), **named}).save(files["edges"])
    return files


def contact_sheet(tiles: dict[str, np.ndarray]) -> Image.Image:
    """Grey pictures (H, W) uint8 side by side, each under its name."""
    sizes = [tile_size(*tile.shape) for tile in tiles.values()]
    width, height = TILE_PX, max(size[1] for size in sizes)
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("L", (columns * (width + 8) + 8, rows * (height + LABEL_PX + 8) + 8), 255)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for i, ((name, tile), size) in enumerate(zip(tiles.items(), sizes, strict=True)):
        left, top = 8 + i % columns * (width + 8), 8 + i // columns * (height + LABEL_PX + 8)
        draw.text((left, top + 2), name, fill=0, font=font)
        sheet.paste(Image.fromarray(tile).resize(size), (left, top + LABEL_PX))
    return sheet


def tile_size(height: int, width: int) -> tuple[int, int]:
    """Width and height at which a picture stands on the sheet: as wide as a tile, but where it would be too tall."""
    scale = min(TILE_PX / width, TALLEST_PX / height)
    return max(1, round(width * scale)), max(1, round(height * scale))
