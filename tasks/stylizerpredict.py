"""Predicting with a saved stylizer: encoded pictures of any size in, stylised PNGs of the same size out.

The one path for evaluation, the command line, and serving. A picture of more than `max_whole_px` pixels is rendered in
bands of rows, to the same picture (models.bands). Sides that the network cannot halve are filled up by a mirrored
border at the right and below, at most 3 pixels for johnson, which is cut off again.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.decode import DecodeError, decode_image
from models.bands import in_bands
from models.stylizer import AdaINStylizer, Stylizer
from tasks.inputs import readable
from tasks.modelfile import SavedModel
from tasks.precision import predicting, resolve_precision
from tasks.predict import default_device
from tasks.settings import Precision

LEAST_PX = 16  # side of a picture
# of a picture that is rendered in one pass: some 1.5 GB at the paper's width in float32
MAX_WHOLE_PX = 2_500_000
BAND_PX = 600_000

STYLE_SCHEMA = pa.schema(
    [
        # an RGB PNG of the size of the upright picture; null where it cannot be read
        ("picture", pa.binary()),
        ("error", pa.string()),  # why the picture could not be read; null where it could
    ]
)


class StylizerPredictor:
    """A saved stylizer on a device, and the manner in which it renders: its first style, until `choose` is called."""

    def __init__(
        self,
        saved: SavedModel,
        device: torch.device | None = None,
        precision: Precision = "fp32",
        max_whole_px: int = MAX_WHOLE_PX,
        band_px: int = BAND_PX,
    ) -> None:
        """Move the network to `device` (None: the first GPU, else the CPU)."""
        self.card = saved.card
        self.device = device if device is not None else default_device()
        self.dtype = resolve_precision(precision, self.device)
        self.max_whole_px, self.band_px = max_whole_px, band_px
        [member] = saved.members
        assert isinstance(member, Stylizer)
        self.network = member.eval().to(self.device)
        self.manner = self.manner_of({self.card.classes[0]: 1.0})

    @torch.inference_mode()
    def manner_of(
        self,
        styles: Mapping[str, float],
        pictures: Sequence[tuple[Tensor, float]] = (),
        strength: float = 1.0,
    ) -> Any:
        """How to render in styles by name, and in pictures (1, 3, H, W) of 0 to 1, mixed by their weights.

        Raises ValueError for a name that is not known, and for pictures or a strength where the network has learnt its
        styles.
        """
        known = self.card.classes
        unknown = [name for name in styles if name not in known]
        if unknown:
            raise ValueError(f"no style {', '.join(unknown)} in this model; it has: {', '.join(known)}")
        weights = [*styles.values(), *(weight for _, weight in pictures)]
        if not weights or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"weights of styles (={', '.join(map(str, weights))}) must be 0 or more, one of them above"
            )
        shares = torch.tensor(weights, device=self.device) / sum(weights)
        with predicting(self.device, self.dtype):
            if isinstance(self.network, AdaINStylizer):
                named = [self.network.styles[known.index(name)].float() / 255 for name in styles]
                others = [picture[0].to(self.device) for picture, _ in pictures]
                return self.network.manner_of([*named, *others], shares.tolist(), strength)
            if pictures or strength != 1:
                what = "a picture as a style" if pictures else f"a strength (={strength:g})"
                raise ValueError(
                    f"{what} is for adain models; this one has learnt its styles: {', '.join(known)}"
                )
            all_shares = torch.zeros(len(known), device=self.device)
            for name, share in zip(styles, shares, strict=True):
                all_shares[known.index(name)] = share
            return self.network.manner(all_shares)

    def choose(
        self,
        styles: Mapping[str, float],
        pictures: Sequence[tuple[Tensor, float]] = (),
        strength: float = 1.0,
    ) -> None:
        """Render in this manner from now on; see `manner_of`."""
        self.manner = self.manner_of(styles, pictures, strength)

    def predict(self, blobs: Sequence[bytes]) -> pa.Table:
        """A table of `STYLE_SCHEMA`, one row a picture, in order; one that cannot be read says so in `error`."""

        def render(blob: bytes) -> bytes:
            buffer = io.BytesIO()
            Image.fromarray(pixels_of(self.render(decoded(blob)))).save(buffer, "PNG")
            return buffer.getvalue()

        made, errors = readable(blobs, render)
        rows = iter(made)
        pictures = [next(rows) if error is None else None for error in errors]
        return pa.table([pictures, errors], schema=STYLE_SCHEMA)

    @torch.inference_mode()
    def render(self, picture: Tensor, manner: Any = None) -> Tensor:
        """A picture (1, 3, H, W) of 0 to 1 in a manner (None: the one that was chosen): the same size, 0 to 1."""
        height, width = picture.shape[2:]
        stride = self.network.stride
        whole = filled(picture.to(self.device), stride)
        with predicting(self.device, self.dtype):
            how = self.manner if manner is None else manner
            if height * width > self.max_whole_px:
                rows = max(1, self.band_px // whole.shape[3] // stride) * stride
                made = in_bands(self.network, whole, how, rows)
            else:
                made = self.network.render(whole, how)
        return made[:, :, :height, :width].clamp(0, 1)


def filled(picture: Tensor, stride: int) -> Tensor:
    """A picture with sides that are multiples of `stride`: a mirror at the right and below; behind that, the edge."""
    height, width = picture.shape[2:]
    down, across = -height % stride, -width % stride
    there = min(down, height - 1), min(across, width - 1)
    mirrored = F.pad(picture, (0, there[1], 0, there[0]), mode="reflect")
    return F.pad(mirrored, (0, across - there[1], 0, down - there[0]), mode="replicate")


def decoded(blob: bytes, least_px: int = LEAST_PX) -> Tensor:
    """An encoded picture, upright: (1, 3, H, W) float32 of 0 to 1; raises DecodeError for one that is too small too."""
    pixels = np.asarray(decode_image(blob, channels=3))
    height, width, _ = pixels.shape
    if min(height, width) < least_px:
        raise DecodeError(
            f"a picture of {width}x{height} px is too small: each side must be at least {least_px} px"
        )
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float() / 255


def pixels_of(picture: Tensor) -> np.ndarray:
    """(1, 3, H, W) of 0 to 1 as (H, W, 3) uint8."""
    return (picture[0].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
