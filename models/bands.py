"""Rendering a picture that is too large for one pass: in bands of rows, to the same picture.

Instance normalisation needs the mean and the variance of each channel over the whole picture. They are exact here,
measured over all bands, layer by layer: the layers at full and half size are run again for each norm that follows,
which costs half as much again as one pass. What is at a quarter of the side, a sixteenth of the places, is held whole.
AdaIN's decoder has no norms: its features are held whole, and their moments taken there.

A band is run with rows around it that its result depends on, and these are cut off; where the picture ends, so does the
band, and the border is the one that the whole picture has.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from models.stylizer import PROBE_PX, AdaINStylizer, JohnsonStylizer, Stylizer
from models.transformnet import STRIDE, Moments, TransformNet, Unit, run_units

HEAD_HALO = 8  # pixels: 4 of the first convolution, 1 of the second, 2 of the third; in whole strides
# places of the trunk: 1 of the first enlargement; less than 1 of the second and the last convolution
TAIL_HALO = 2


def in_bands(stylizer: Stylizer, picture: Tensor, manner: Any, rows: int) -> Tensor:
    """`stylizer.render` of one picture (1, 3, H, W), `rows` at a time (a multiple of its stride)."""
    if isinstance(stylizer, JohnsonStylizer):
        return johnson_in_bands(stylizer.network, picture, manner, rows)
    assert isinstance(stylizer, AdaINStylizer)
    return adain_in_bands(stylizer, picture, manner, rows)


def bands(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """First row, and the one after the last, of each band."""
    return pairwise([*range(0, height, rows), height])


def within(
    run: Callable[[Tensor], Tensor], x: Tensor, band: tuple[int, int], halo: int, scale: float
) -> Tensor:
    """What `run` gives of the rows of a band of x (1, C, H, W); its output has `scale` rows for each of x."""
    first, last = band
    top, bottom = max(0, first - halo), min(x.shape[2], last + halo)
    made = run(x[:, :, top:bottom])
    start = round((first - top) * scale)
    return made[:, :, start : start + round((last - first) * scale)]


class Measure:
    """Mean and variance of each channel over pieces of a picture, added up in float64 (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.num = 0
        self.mean = self.total = torch.zeros(())

    def add(self, x: Tensor) -> None:
        num = x.shape[2] * x.shape[3]
        wide = x.float()
        mean = wide.mean((2, 3))
        total = (wide - mean[:, :, None, None]).square().sum((2, 3)).double()
        apart = mean.double() - self.mean
        both = self.num + num
        self.total = self.total + total + apart.square() * (self.num * num / both)
        self.mean = self.mean + apart * (num / both)
        self.num = both

    @property
    def moments(self) -> Moments:
        return self.mean.float(), (self.total / self.num).float()


def johnson_in_bands(net: TransformNet, picture: Tensor, shares: Tensor, rows: int) -> Tensor:
    """A pass for each norm before and after the trunk, and one for the picture."""
    height = picture.shape[2]

    def head(place: int, moments: list[Moments]) -> Iterator[Tensor]:
        """What the convolution of unit `place` gives, in pieces."""

        def run(x: Tensor) -> Tensor:
            return unit_of(net.head, place).conv(run_units(net.head[:place], net.enter(x), shares, moments))

        return (within(run, picture, band, HEAD_HALO, 0.5**place) for band in bands(height, rows))

    moments: list[Moments] = []
    for place in range(len(net.head) - 1):
        moments.append(measured(head(place, moments)))
    x = torch.cat(list(head(len(net.head) - 1, moments)), 2)
    x = torch.relu_(unit_of(net.head, -1).norm(x, shares))
    for block in net.trunk:
        x = block(x, shares)

    def tail(place: int, moments: list[Moments]) -> Iterator[Tensor]:
        def run(part: Tensor) -> Tensor:
            inner = run_units(net.tail[:place], part, shares, moments)
            return unit_of(net.tail, place).conv(inner) if place < len(net.tail) else net.leave(inner)

        scale = 2.0 ** min(place + 1, len(net.tail))
        return (within(run, x, band, TAIL_HALO, scale) for band in bands(x.shape[2], rows // STRIDE))

    moments = []
    for place in range(len(net.tail)):
        moments.append(measured(tail(place, moments)))
    return torch.cat(list(tail(len(net.tail), moments)), 2)


def unit_of(units: nn.ModuleList, place: int) -> Unit:
    unit = units[place]
    assert isinstance(unit, Unit)
    return unit


def measured(pieces: Iterator[Tensor]) -> Moments:
    measure = Measure()
    for piece in pieces:
        measure.add(piece)
    return measure.moments


def adain_in_bands(stylizer: AdaINStylizer, picture: Tensor, manner: Any, rows: int) -> Tensor:
    """One pass of the encoder, one of the decoder."""
    stride, levels, halo = stylizer.stride, stylizer.network.levels, reach(stylizer)
    pieces = []
    for first, last in bands(picture.shape[2], rows):
        top, bottom = max(0, first - halo), min(picture.shape[2], last + halo)
        seen = stylizer.encode(picture[:, :, top:bottom])
        pieces.append([
            x[:, :, (first - top) // level.stride : (last - top) // level.stride]
            for x, level in zip(seen, levels, strict=True)
        ])  # fmt: skip
    features = stylizer.adapted([torch.cat(level, 2) for level in zip(*pieces, strict=True)], manner)
    height, made = picture.shape[2] // stride, []
    for first, last in bands(height, rows // stride):
        top, bottom = max(0, first - stylizer.network.halo), min(height, last + stylizer.network.halo)
        part = stylizer.network([
            x[:, :, top * stride // level.stride : bottom * stride // level.stride]
            for x, level in zip(features, levels, strict=True)
        ])  # fmt: skip
        made.append(part[:, :, (first - top) * stride : (last - top) * stride])
    return torch.cat(made, 2)


@torch.no_grad()
def reach(stylizer: AdaINStylizer) -> int:
    """Rows around a band that the encoder's features of it depend on, at most; in whole strides.

    Each filter and pooling adds the half of its side, and what its stride may move it, in pixels of the picture.
    """
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal total
        sides = [getattr(module, name) for name in ("kernel_size", "stride")]
        kernel, step = (side[0] if isinstance(side, tuple) else side for side in sides)
        total += (kernel // 2 + step - 1) * (PROBE_PX // inputs[0].shape[2])

    features = stylizer.judge.features
    modules = [m for m in features.net.modules() if hasattr(m, "kernel_size")]
    handles = [module.register_forward_pre_hook(add) for module in modules]
    features(features.mean.new_zeros(1, 3, PROBE_PX, PROBE_PX))
    for handle in handles:
        handle.remove()
    return (total // stylizer.stride + 2) * stylizer.stride
