"""Johnson's image transformation network: one pass renders a picture in a style that the weights have learnt.

Johnson, Alahi, Fei-Fei 2016 (https://arxiv.org/abs/1603.08155): convolutions down to a quarter of the side, residual
blocks, and up again. One network renders several styles, and mixtures of them, by conditional instance normalisation
(Dumoulin, Shlens, Kudlur 2017, https://arxiv.org/abs/1610.07629): a scale and a shift of each channel for each style.

Deviations: nearest-neighbour enlargement and a convolution in place of transposed ones, which leave checkerboards
(https://distill.pub/2016/deconv-checkerboard); reflected borders everywhere; a linear output in place of a scaled tanh,
which washes colours out where it saturates, cut to 0 to 1 by who shows it.

The network is `head`, `trunk` and `tail`, and each unit has its convolution and its norm apart: models.bands computes
the statistics of a picture that is too large for one pass by them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 4  # of the trunk; sides must be a multiple of it
EPS = 1e-5
MIDDLE, SPREAD = 0.5, 0.25  # of a picture's values: what the network works in
Moments = tuple[Tensor, Tensor]  # mean and variance of each channel of one layer, (B, C) each


def reflected(x: Tensor, border: int) -> Tensor:
    """A border that mirrors the picture, of at most what there is to mirror; the rest repeats the edge."""
    height, width = x.shape[2:]
    down, across = min(border, height - 1), min(border, width - 1)
    with torch.autocast(x.device.type, enabled=False):  # which would make float32 of it
        x = F.pad(x, (across, across, down, down), mode="reflect")
        if down < border or across < border:
            x = F.pad(x, (border - across,) * 2 + (border - down,) * 2, mode="replicate")
    return x


class Convolution(nn.Conv2d):
    """A convolution with a reflected border, after an enlargement by `enlarge` where that is above 1."""

    def __init__(self, ins: int, outs: int, kernel: int, *, stride: int = 1, enlarge: int = 1) -> None:
        super().__init__(ins, outs, kernel, stride)
        self.enlarge, self.border = enlarge, kernel // 2
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if self.enlarge > 1:
            input = F.interpolate(input, scale_factor=float(self.enlarge), mode="nearest")
        return super().forward(reflected(input, self.border))


class _Normalise(torch.autograd.Function):
    """Instance norm with a scale and a shift (B, C) of each picture; its gradient is some passes over the places.

    PyTorch's own, of as many groups as channels, takes most of a training step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        normal, inverse = standard(x, scale.dtype)
        ctx.save_for_backward(normal, inverse, scale)
        return affine(normal, scale, shift)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normal, inverse, scale = ctx.saved_tensors
        [gradient] = gradients
        num, dtype = normal[0, 0].numel(), scale.dtype
        total = gradient.sum((2, 3), dtype=dtype)
        along = (gradient * normal).sum((2, 3), dtype=dtype)
        factor = scale * inverse
        inner = affine(gradient, factor, -factor * total / num)
        inner = torch.addcmul(inner, normal, (-factor * along / num).to(normal.dtype)[:, :, None, None])
        return inner, along, total


def standard(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each channel (B, C, H, W) at mean 0 and deviation 1, and 1 over what its deviation was (B, C), in `dtype`."""
    if x.device.type != "cpu":
        return standard_by_moments(x, dtype)
    B, C, H, W = x.shape
    wide = torch.ones(C, dtype=dtype)  # so that the deviations keep their digits
    normal, _mean, inverse = torch.native_group_norm(x, wide, torch.zeros_like(wide), B, C, H * W, C, EPS)
    return normal, inverse


def standard_by_moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same where PyTorch's group norm takes no scale that is wider than x: on a GPU."""
    wide = x.to(dtype)
    variance, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
    inverse = (variance + EPS).rsqrt()
    return ((wide - mean) * inverse).to(x.dtype), inverse[:, :, 0, 0]


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Each channel (B, C, H, W) times its scale (B, C), and its shift added, in the precision of x."""
    return torch.addcmul(shift.to(x.dtype)[:, :, None, None], x, scale.to(x.dtype)[:, :, None, None])


class StyleNorm(nn.Module):
    """Each channel to mean 0 and deviation 1 over its places, then a scale and a shift of the styles, mixed by shares.

    (B, C, H, W), shares (B, S) → (B, C, H, W). `moments` stand for its own where the picture is part of a larger one.
    """

    def __init__(self, channels: int, num_styles: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_styles, channels))
        self.shift = nn.Parameter(torch.zeros(num_styles, channels))

    def forward(self, x: Tensor, shares: Tensor, moments: Moments | None = None) -> Tensor:
        scale, shift = ((shares[:, :, None] * each).sum(1) for each in (self.scale, self.shift))
        # one pass over the places in place of two
        if moments is None and len(x) == 1 and not x.requires_grad:
            return F.group_norm(x, x.shape[1], scale[0].to(x.dtype), shift[0].to(x.dtype), EPS)
        if moments is None:
            return _Normalise.apply(x, scale, shift)
        mean, variance = moments
        inverse = (variance + EPS).rsqrt()
        return affine(x, scale * inverse, shift - scale * inverse * mean)


class Unit(nn.Module):
    """Convolution, norm, and ReLU but at the end of a residual block."""

    def __init__(
        self, ins: int, outs: int, kernel: int, num_styles: int, *, stride: int = 1, enlarge: int = 1,
        relu: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = Convolution(ins, outs, kernel, stride=stride, enlarge=enlarge)
        self.norm = StyleNorm(outs, num_styles)
        self.relu = relu

    def forward(self, x: Tensor, shares: Tensor, moments: Moments | None = None) -> Tensor:
        x = self.norm(self.conv(x), shares, moments)
        return F.relu(x, inplace=not torch.is_grad_enabled()) if self.relu else x


class Residual(nn.Module):
    """Two units, and what came in added to what they give."""

    def __init__(self, channels: int, num_styles: int) -> None:
        super().__init__()
        self.first = Unit(channels, channels, 3, num_styles)
        self.second = Unit(channels, channels, 3, num_styles, relu=False)

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        return x + self.second(self.first(x, shares), shares)


class TransformNet(nn.Module):
    """Pictures (B, 3, H, W) of 0 to 1, H and W multiples of STRIDE, and shares of styles (B, S) → pictures.

    With a width of 32, five blocks and one style it is the paper's: 1,679,235 parameters. Values may leave 0 to 1.
    """

    def __init__(self, num_styles: int, width: int, num_blocks: int) -> None:
        super().__init__()
        S, W = num_styles, width
        self.head = nn.ModuleList(
            [Unit(3, W, 9, S), Unit(W, 2 * W, 3, S, stride=2), Unit(2 * W, 4 * W, 3, S, stride=2)]
        )
        self.trunk = nn.ModuleList([Residual(4 * W, S) for _ in range(num_blocks)])
        self.tail = nn.ModuleList([Unit(4 * W, 2 * W, 3, S, enlarge=2), Unit(2 * W, W, 3, S, enlarge=2)])
        self.output = Convolution(W, 3, 9)
        nn.init.normal_(self.output.weight, 0, 0.02)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pictures: Tensor, shares: Tensor) -> Tensor:
        x = run_units(self.head, self.enter(pictures), shares)
        for block in self.trunk:
            x = block(x, shares)
        return self.leave(run_units(self.tail, x, shares))

    def enter(self, pictures: Tensor) -> Tensor:
        """Pictures as the first unit takes them."""
        return ((pictures - MIDDLE) / SPREAD).to(memory_format=torch.channels_last)

    def leave(self, x: Tensor) -> Tensor:
        """What the last unit gives, as pictures in float32 (float64 where the network is)."""
        made = self.output(x)
        return (made if made.dtype == torch.float64 else made.float()) * SPREAD + MIDDLE


def run_units(
    units: Sequence[nn.Module] | nn.ModuleList, x: Tensor, shares: Tensor, moments: Sequence[Moments] = ()
) -> Tensor:
    """One unit after the other, the first of them with the `moments` given."""
    for place, unit in enumerate(units):
        x = unit(x, shares, moments[place] if place < len(moments) else None)
    return x
