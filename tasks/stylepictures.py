"""The pictures of style transfer: read, fitted to a scale, coloured as asked, written."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.decode import DecodeError, decode_image
from data.files import whole
from data.palette import luminance, match_colours, match_luminance, with_colours_of
from data.samples import read_photo
from models.style import Style
from tasks.styleconfig import Colour, StylizeConfig

LEAST_PX = 16
PREVIEW_PX = 512


@dataclass(frozen=True)
class Pictures:
    """The content and the styles, decoded at their own sizes, masks too."""

    content: Tensor
    styles: tuple[Style, ...]


@dataclass(frozen=True)
class Scale:
    """What one scale works on."""

    content: Tensor  # as it is
    seen: Tensor  # as the features take it
    styles: tuple[Style, ...]


def read_picture(photo: Path | str, channels: int = 3) -> Tensor:
    """A file, or a picture that data.samples knows by name: (1, channels, H, W) float32 of 0 to 1."""
    try:
        image = decode_image(read_photo(photo), channels=3 if channels == 3 else 1)
    except DecodeError as error:
        raise DecodeError(f"{photo}: {error}") from None
    pixels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
    return torch.from_numpy(pixels.copy())[None].float() / 255


def fit(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """At another size (height, width), by antialiased bicubic sampling, cut to 0 to 1."""
    if picture.shape[2:] == size:
        return picture
    return torch.nn.functional.interpolate(
        picture, size=size, mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)


def size_at(picture: Tensor, longer_px: int) -> tuple[int, int]:
    """Height and width with the longer side at `longer_px`; raises ValueError where the other becomes too small."""
    height, width = picture.shape[2:]
    scale = longer_px / max(height, width)
    size = (round(height * scale), round(width * scale))
    if min(size) < LEAST_PX:
        raise ValueError(
            f"a picture of {width}x{height} px has {min(size)} px across at a longer side of {longer_px}; at least "
            f"{LEAST_PX} are needed: raise the first side of scales, or crop the picture"
        )
    return size


def at_scale(pictures: Pictures, longer_px: int, config: StylizeConfig) -> Scale:
    """Content, styles and masks as one scale takes them, in the colours that the parameters ask for."""
    size = size_at(pictures.content, longer_px)
    content = fit(pictures.content, size)
    last_px = config.scales[-1][0]
    style_px = round((config.style_px or last_px) * longer_px / last_px)
    seen = luminance(content) if config.colour == "luminance" else content
    styles = []
    for source in pictures.styles:
        picture = fit(source.picture, size_at(source.picture, style_px))
        mask = None if source.mask is None else fit(source.mask, size)
        styles.append(Style(coloured(picture, content, config.colour), source.weight, mask))
    return Scale(content, seen, tuple(styles))


def coloured(style: Tensor, content: Tensor, colour: Colour) -> Tensor:
    """A style as it is looked at: in grey as bright as the content, or in the content's colours, or as it is."""
    if colour == "luminance":
        return match_luminance(luminance(style), luminance(content))
    return match_colours(style, content) if colour == "histogram" else style


def finished(picture: Tensor, content: Tensor, colour: Colour) -> Tensor:
    """What is shown of an optimised picture: cut to 0 to 1, with the content's colours where these are kept."""
    shown = picture.detach().clamp(0, 1)
    return with_colours_of(shown, content) if colour == "luminance" else shown


def to_image(picture: Tensor) -> Image.Image:
    """(1, 3, H, W) of 0 to 1 as an RGB image."""
    levels = (picture[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.contiguous().numpy())


def write_picture(file: Path, image: Image.Image) -> None:
    """Write a PNG or, by the suffix, a JPEG, whole or not at all; raises ValueError for another suffix."""
    forms = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    if file.suffix.lower() not in forms:
        raise ValueError(f"{file} must end in {', '.join(forms)}")
    buffer = io.BytesIO()
    image.save(
        buffer, forms[file.suffix.lower()], **({} if file.suffix.lower() == ".png" else {"quality": 92})
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as stream:
        stream.write(buffer.getvalue())


def data_uri(file: Path) -> str:
    """A small JPEG of a picture's file, written out as an address."""
    with Image.open(file) as image:
        shown = image.convert("RGB")
    shown.thumbnail((PREVIEW_PX, PREVIEW_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def read_pictures(
    content: str, styles: Sequence[str], weights: Sequence[float], masks: Sequence[str]
) -> Pictures:
    """Everything that a person named.

    Raises ValueError where the numbers of styles, weights and masks differ, or a mask has not the content's shape.
    """
    if not styles:
        raise ValueError("at least one style picture is needed, after the content picture")
    for name, given in (("weights", weights), ("masks", masks)):
        if given and len(given) != len(styles):
            raise ValueError(
                f"{len(given)} {name} for {len(styles)} style picture(s): give one for each, or none"
            )
    if any(weight <= 0 for weight in weights):
        raise ValueError(f"weights of styles (={', '.join(map(str, weights))}) must be above 0")
    picture = read_picture(content)
    return Pictures(
        picture,
        tuple(
            Style(
                read_picture(style),
                weights[i] if weights else 1.0,
                read_mask(masks[i], picture) if masks else None,
            )
            for i, style in enumerate(styles)
        ),
    )


def read_mask(photo: Path | str, content: Tensor) -> Tensor:
    """A mask (1, 1, h, w) of 0 to 1 at its own size.

    Raises ValueError where it would be stretched over the content, or is black everywhere.
    """
    mask = read_picture(photo, 1)
    if not mask.any():
        raise ValueError(
            f"the mask {photo} is black everywhere, and its style would come nowhere: make it white where it is wanted"
        )
    (height, width), (h, w) = content.shape[2:], mask.shape[2:]
    if abs(h * width - w * height) > max(width, height):  # more than a pixel of the mask
        raise ValueError(
            f"the mask {photo} is {w}x{h} px and the content {width}x{height}: a mask lies on the content, so "
            "its sides must be in the same ratio"
        )
    return mask
