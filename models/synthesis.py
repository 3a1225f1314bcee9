"""Pictures that a unit answers strongly to, by gradient ascent (Olah, Mordvintsev, Schubert 2017,
https://distill.pub/2017/feature-visualization).

As in Lucid: the picture is parametrised by its Fourier coefficients, scaled so that all frequencies move alike, and
by decorrelated colours; at each step the network sees it jittered, scaled and turned a little at random, and Adam
climbs. Where a unit does not answer at all at first, the gradient goes through the ReLUs that are off. Beside that the
older regularisers: pixels that are blurred every few steps (Yosinski et al. 2015, https://arxiv.org/abs/1506.06579),
total variation (Mahendran, Vedaldi 2015, https://arxiv.org/abs/1412.0035), and decay towards grey. All is drawn from a
seed; each picture depends on its own unit alone, but for rounding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from data.parameters import Parameters

# Square root of the covariance of ImageNet's colours, as Lucid has it, by the largest column's length.
COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
FILL = 0.5  # of what is turned or shifted into the picture: grey


class SynthesisConfig(Parameters):
    """How pictures are made that units answer to."""

    steps: int = Field(ge=1, description="steps of Adam")
    lr: float = Field(gt=0, description="Adam's rate")
    side_px: int = Field(
        ge=8, le=1024, description="side of the picture, at most; a network's own where it has one"
    )
    parametrisation: Literal["frequency", "pixels"] = Field(
        description="frequency: Fourier coefficients; pixels: the values themselves"
    )
    objective: Literal["channel", "centre"] = Field(
        description="channel: the mean of the unit over all places of its map; centre: the place in the middle"
    )
    jitter: float = Field(
        ge=0, lt=1, description="the picture is shifted by up to this share of its side at each step"
    )
    scale: float = Field(ge=0, lt=1, description="and scaled by up to this share, up or down")
    rotate_deg: float = Field(ge=0, le=180, description="and turned by up to so many degrees")
    blur_px: float = Field(
        ge=0, description="pixels: deviation of the blur every `blur_every` steps; 0: none"
    )
    blur_every: int = Field(ge=1, description="steps between two blurs")
    total_variation: float = Field(
        ge=0, description="weight of the mean squared difference of neighbours, by the unit's answer"
    )
    weight_decay: float = Field(
        ge=0, description="weight of the mean squared distance from grey, by the unit's answer"
    )
    seed: int = Field(ge=0, description="of the beginning and of all that is drawn")

    @model_validator(mode="after")
    def _blurs_pixels(self) -> Self:
        if self.blur_px and self.parametrisation == "frequency":
            raise ValueError(
                f"blur_px (={self.blur_px:g}) is of parametrisation=pixels; frequencies are scaled, not blurred: "
                "set it to 0"
            )
        return self


def ascend(
    objective: Callable[[Tensor], Tensor],
    num: int,
    channels: int,
    side_px: int,
    config: SynthesisConfig,
    on_step: Callable[[int], None] = lambda _step: None,
) -> Tensor:
    """Pictures (num, C, side, side) in 0…1 that raise `objective`: pictures (num, C, s, s) in 0…1 → (num,).

    Every picture begins alike, and all see the same shifts and turns.
    """
    generator = torch.Generator().manual_seed(config.seed)
    parameters = _beginning(channels, side_px, config, generator).repeat(num, 1, 1, 1, 1).requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=config.lr)
    for step in range(config.steps):
        pictures = _pictures(parameters, side_px, config)
        with _Redirecting():
            values = objective(_jittered(pictures, config, generator))
        penalty = config.total_variation * _total_variation(pictures)
        penalty = penalty + config.weight_decay * (pictures - FILL).square().mean(dim=(1, 2, 3))
        # relative to the answer: units differ in their scale by orders
        loss = (values.detach().abs() * penalty - values).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"synthesis: the objective is not finite at step {step}; lower synthesis.lr"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if config.blur_px and (step + 1) % config.blur_every == 0 and step + 1 < config.steps:
            with torch.no_grad():
                parameters.copy_(blurred(parameters[..., 0], config.blur_px)[..., None])
        on_step(step + 1)
    return _pictures(parameters.detach(), side_px, config)


def _frequencies(side_px: int) -> Tensor:
    """Length of each frequency of the real transform: (side, side // 2 + 1), in cycles a pixel."""
    return torch.hypot(torch.fft.fftfreq(side_px)[:, None], torch.fft.rfftfreq(side_px)[None])


def _beginning(channels: int, side_px: int, config: SynthesisConfig, generator: torch.Generator) -> Tensor:
    """Of one picture: (1, C, side, side // 2 + 1, 2) coefficients, or (1, C, side, side, 1) pixels, close to grey."""
    if config.parametrisation == "pixels":
        return torch.randn(1, channels, side_px, side_px, 1, generator=generator) * 0.01
    return torch.randn(1, channels, *_frequencies(side_px).shape, 2, generator=generator) * 0.01


def _pictures(parameters: Tensor, side_px: int, config: SynthesisConfig) -> Tensor:
    """What the parameters stand for, in 0…1."""
    if config.parametrisation == "pixels":
        pixels = parameters[..., 0]
    else:
        scale = side_px / _frequencies(side_px).clamp_min(1 / side_px)
        spectrum = torch.view_as_complex(parameters.contiguous()) * scale
        pixels = torch.fft.irfft2(spectrum, s=(side_px, side_px)) / 4  # Lucid's measure
    return torch.sigmoid(_coloured(pixels))


def _coloured(pixels: Tensor) -> Tensor:
    """Three decorrelated channels as colours; one channel stays."""
    if pixels.shape[1] != 3:
        return pixels
    matrix = torch.tensor(COLOURS)
    matrix = matrix / matrix.norm(dim=0).max()
    return torch.einsum("oc,bchw->bohw", matrix, pixels)


def _jittered(pictures: Tensor, config: SynthesisConfig, generator: torch.Generator) -> Tensor:
    """All pictures shifted, scaled and turned alike, by bilinear interpolation; grey comes in from outside."""
    shift_x, shift_y, size, turn = (2 * torch.rand(4, generator=generator) - 1).tolist()
    side = pictures.shape[-1]
    angle, factor = math.radians(config.rotate_deg) * turn, 1 / (1 + config.scale * size)
    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    dx, dy = (round(shift * config.jitter * side) * 2 / side for shift in (shift_x, shift_y))
    matrix = torch.tensor([[cos, -sin, dx], [sin, cos, dy]]).expand(len(pictures), 2, 3)
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures - FILL, grid, padding_mode="zeros", align_corners=False) + FILL


def _total_variation(pictures: Tensor) -> Tensor:
    """Mean squared difference of neighbours: (B,)."""
    down, right = pictures.diff(dim=2), pictures.diff(dim=3)
    return down.square().mean(dim=(1, 2, 3)) + right.square().mean(dim=(1, 2, 3))


def blurred(pictures: Tensor, deviation_px: float) -> Tensor:
    """Gaussian blur, reflected at borders: (B, C, H, W) → the same."""
    reach = min(math.ceil(3 * deviation_px), pictures.shape[-1] - 1)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation_px) ** 2)
    bell = (bell / bell.sum()).repeat(pictures.shape[1], 1)
    padded = F.pad(pictures, (reach,) * 4, mode="reflect")
    rows = F.conv2d(padded, bell[:, None, :, None], groups=pictures.shape[1])
    return F.conv2d(rows, bell[:, None, None, :], groups=pictures.shape[1])


class _Redirected(torch.autograd.Function):
    """A ReLU, cut at `most`; the gradient of a picture that would lose all of it here passes where it asks for more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, most: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.most = most
        return x.clamp(0, most)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        [x] = ctx.saved_tensors
        usual = gradient * ((x > 0) & (x < ctx.most))
        more = gradient * ((x < ctx.most) & ((x > 0) | (gradient < 0)))  # descending, so less than 0 is up
        lost = (usual == 0).flatten(1).all(1).view(-1, *[1] * (x.ndim - 1))
        return torch.where(lost, more, usual), None


# ReLUs by the value at which they are cut
MOST: dict[Any, float] = {F.relu: math.inf, torch.relu: math.inf, torch.relu_: math.inf, F.relu6: 6.0}


class _Redirecting(TorchFunctionMode):
    """Puts those in the place of ReLUs."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        most, more = MOST.get(func), kwargs or {}
        if func is F.hardtanh and more.get("min_val") == 0:  # what nn.ReLU6 calls
            most = more["max_val"]
        return func(*args, **more) if most is None else _Redirected.apply(args[0], most)


def of_units(maps: Tensor, units: Sequence[int], objective: Literal["channel", "centre"]) -> Tensor:
    """What each picture's own unit gives: maps (B, C, h, w) or (B, C), `units` (B,) → (B,)."""
    own = maps[torch.arange(len(units)), torch.tensor(units)]
    if own.ndim == 1:
        return own
    if objective == "centre":
        return own[:, own.shape[1] // 2, own.shape[2] // 2]
    return own.mean(dim=(1, 2))
