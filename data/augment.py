"""Augmentation: batched functions on uint8 tensors, on the CPU or a GPU.

Every function takes (B, C, H, W) uint8 and the random choices for each sample, drawn beforehand from a
`SampleGenerator`: so a sample looks the same whoever makes its batch. Pictures stay uint8 until the network
normalises them: float32 pictures cost four times the memory traffic between processes.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from data import colour, geometry
from data.parameters import Parameters
from data.random import SampleGenerator

BELOW_ONE = 1 - 2.0**-24  # the greatest float32: a float64 nearer to one would round to it
ELASTIC_NODES = 5  # of the mesh that local warps move, along each side


class AugmentConfig(Parameters):
    """What training does to its pictures; everything off gives the plain centre crop."""

    mirror: bool = Field(
        description="mirror left-right: random in epoch 0, then alternating, so that two "
        "epochs show both sides of every picture"
    )
    random_crop: bool = Field(description="crop at a random place; otherwise at the centre")
    crop_area: tuple[float, float] = Field(
        description="random resized crop: least and greatest share of the picture that is shown; [1, 1]: none"
    )
    crop_aspect: float = Field(ge=1, le=4, description="random resized crop: greatest ratio of its sides")
    crop_from: Literal["square", "picture"] = Field(
        description="what random crops are cut from: the stored square, decoded once; or the whole picture, decoded "
        "anew for each crop, at the scale that the crop needs (large photos)"
    )
    rotation_deg: float = Field(ge=0, le=180, description="greatest turn to either side, in degrees")
    shear_deg: float = Field(ge=0, le=45, description="greatest slant of rows and of columns, in degrees")
    elastic_px: float = Field(ge=0, le=64, description="greatest local warp, in pixels of the crop")
    brightness: float = Field(ge=0, le=1, description="levels are multiplied by up to 1 ± this")
    contrast: float = Field(ge=0, le=1, description="distances from the mean grey, by up to 1 ± this")
    saturation: float = Field(
        ge=0, le=1, description="distances from each pixel's own grey, by up to 1 ± this"
    )
    colour_shift: float = Field(ge=0, le=0.5, description="largest shift of each channel, as a share of 255")
    pca_colour: float = Field(
        ge=0, le=1, description="shift along the main axes of the dataset's colours: deviation; AlexNet: 0.1"
    )
    cutout_px: int = Field(ge=0, description="side of the square that is blanked out; 0: none")
    mixup_alpha: float = Field(
        ge=0,
        le=1,
        description="mixup with a weight of Beta(alpha, alpha); 0: none; with cutmix, each half the time",
    )
    cutmix_alpha: float = Field(ge=0, le=1, description="CutMix with a share of Beta(alpha, alpha); 0: none")
    mixing_until: float = Field(
        ge=0,
        le=1,
        description="share of the training after which pictures are mixed no more, of the steps or of the time budget, "
        "whichever is further",
    )

    @model_validator(mode="after")
    def _area_is_a_range(self) -> Self:
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"crop_area (={[low, high]}) must be [least, greatest] with 0 < least <= greatest <= 1"
            )
        if self.crop_from == "picture" and high == low == 1:
            raise ValueError(
                "crop_from (=picture) cuts random resized crops: set crop_area too, for instance to [0.35, 1]"
            )
        return self

    @model_validator(mode="after")
    def _what_ends_is_there(self) -> Self:
        if self.mixing_until < 1 and not (self.mixup_alpha or self.cutmix_alpha):
            raise ValueError(
                f"mixing_until (={self.mixing_until:g}) ends mixing, but neither mixup_alpha nor cutmix_alpha is set: "
                "set one of them above 0, or mixing_until to 1"
            )
        return self

    @property
    def warps(self) -> bool:
        """Whether pictures are resampled: if not, crops and mirror images copy whole pixels."""
        moved = self.rotation_deg or self.shear_deg or self.elastic_px
        return bool(moved or self.crop_area != (1.0, 1.0))

    def after_cutting(self) -> "AugmentConfig":
        """What is left to do to pictures that are random resized crops, and mirrored, already."""
        cut = {"mirror": False, "random_crop": False, "crop_area": (1.0, 1.0), "crop_from": "square"}
        return self.model_copy(update=cut)

    @property
    def recolours(self) -> bool:
        return bool(
            self.brightness or self.contrast or self.saturation or self.colour_shift or self.pca_colour
        )


class ToneChanges(Protocol):
    """Parameters of a family's augmentation that leave grey pictures grey, as `AugmentConfig` describes them."""

    @property
    def brightness(self) -> float: ...
    @property
    def contrast(self) -> float: ...
    @property
    def saturation(self) -> float: ...


class ColourChanges(ToneChanges, Protocol):
    """All that are about colour."""

    @property
    def colour_shift(self) -> float: ...
    @property
    def pca_colour(self) -> float: ...


def reflect_pad(images: Tensor, pad_px: int) -> Tensor:
    """Reflected border of `pad_px` on all sides: (B, C, H, W) → (B, C, H + 2p, W + 2p)."""
    if pad_px == 0:
        return images
    return F.pad(images, (pad_px,) * 4, mode="reflect")


def crop(images: Tensor, top: Tensor, left: Tensor, crop_px: int) -> Tensor:
    """Cut a square of `crop_px` from each picture, its upper left corner at (top, left), each (B,) int64."""
    B, C, H, W = images.shape
    # One gather of whole pixels: unfolded windows are a view, indexing copies just the chosen ones.
    windows = images.unfold(2, crop_px, 1).unfold(3, crop_px, 1)  # (B, C, H-c+1, W-c+1, c, c), no copy
    return windows[torch.arange(B, device=images.device), :, top, left]  # (B, C, c, c)


def mirror(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror the pictures where `flip` (B,) bool is set."""
    chosen = flip.nonzero()[:, 0]
    return images.index_copy(0, chosen, images.index_select(0, chosen).flip(3))


def cutout(images: Tensor, top: Tensor, left: Tensor, side_px: int, fill: Tensor) -> Tensor:
    """Blank a square (DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552).

    The square of `side_px` has its corner at (top, left), which may be outside the picture; `fill` (C,) uint8.
    """
    B, C, H, W = images.shape
    rows = torch.arange(H, device=images.device)[None, :, None]
    cols = torch.arange(W, device=images.device)[None, None, :]
    top, left = top[:, None, None], left[:, None, None]
    inside = (rows >= top) & (rows < top + side_px) & (cols >= left) & (cols < left + side_px)
    return torch.where(inside[:, None], fill.view(1, C, 1, 1), images)


def mirror_flags(indices: np.ndarray, generator: SampleGenerator) -> np.ndarray:
    """Alternating flip (https://github.com/KellerJordan/cifar10-airbench): random sides at epoch 0, then the
    other side at each epoch, so that no picture is seen the same way round twice in a row."""
    first = SampleGenerator(generator.seed, 0).uniform(indices, "mirror")[:, 0] < 0.5
    return first ^ (generator.epoch % 2 == 1)


@dataclass(frozen=True)
class Draws:
    """The random choices for the samples of one batch, as tensors where the pictures are."""

    indices: np.ndarray
    generator: SampleGenerator
    device: torch.device

    def uniform(self, name: str, num: int = 1) -> Tensor:
        """(B, num) float32 in [0, 1)."""
        drawn = torch.from_numpy(self.generator.uniform(self.indices, name, num)).float()
        return drawn.clamp_(max=BELOW_ONE).to(self.device)

    def around(self, name: str, reach: float, num: int = 1) -> Tensor:
        """(B, num) float32 in ±`reach`."""
        return (self.uniform(name, num) * 2 - 1) * reach

    def normal(self, name: str, num: int) -> Tensor:
        """(B, num) float32 of mean 0 and deviation 1, by Box and Muller."""
        radius, angle = self.uniform(name, 2 * num).split(num, 1)
        return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)

    def place(self, name: str, high: int) -> Tensor:
        """(B,) int64 in [0, high)."""
        return torch.from_numpy(self.generator.integers(self.indices, name, high)).to(self.device)

    def flips(self) -> Tensor:
        """(B,) bool."""
        return torch.from_numpy(mirror_flags(self.indices, self.generator)).to(self.device)


def augment(
    images: Tensor,
    indices: np.ndarray,
    crop_px: int,
    pad_px: int,
    colours: colour.Colours,
    config: AugmentConfig,
    generator: SampleGenerator,
) -> Tensor:
    """All but mixing, as `config` says: (B, C, H, W) uint8 → (B, C, crop_px, crop_px) uint8.

    Geometry first, then colour, then cutout; each sample's choices are drawn from `generator` by its index.
    """
    draws = Draws(indices, generator, images.device)
    move = warp if config.warps else shift_and_mirror
    images = move(images, crop_px, pad_px, config, draws)
    if config.recolours:  # what was warped is still in floats, and is rounded once
        images = colour.apply(images, colour_maps(images, colours, config, draws))
    images = colour.to_levels(images)
    if config.cutout_px:
        half = config.cutout_px // 2
        top, left = draws.place("cutout.top", crop_px) - half, draws.place("cutout.left", crop_px) - half
        blank = torch.tensor(colours.mean, dtype=torch.uint8, device=images.device)
        images = cutout(images, top, left, config.cutout_px, blank)
    return images if images.is_contiguous(memory_format=torch.channels_last) else images.contiguous()


def shift_and_mirror(
    images: Tensor, crop_px: int, pad_px: int, config: AugmentConfig, draws: Draws
) -> Tensor:
    """Geometry that moves whole pixels: a copy, which costs a tenth of resampling."""
    images = reflect_pad(images, pad_px)
    span_y, span_x = images.shape[2] - crop_px, images.shape[3] - crop_px
    if config.random_crop and (span_y or span_x):
        top, left = draws.place("crop.top", span_y + 1), draws.place("crop.left", span_x + 1)
        images = crop(images, top, left, crop_px)
    else:
        images = images[:, :, span_y // 2 : span_y // 2 + crop_px, span_x // 2 : span_x // 2 + crop_px]
    return mirror(images, draws.flips()) if config.mirror else images


def warp(images: Tensor, crop_px: int, pad_px: int, config: AugmentConfig, draws: Draws) -> Tensor:
    """Geometry that resamples, once whatever it is made of: (B, C, crop_px, crop_px) float32 in grey levels."""
    maps, field = geometric_maps(images.shape[2], images.shape[3], crop_px, pad_px, config, draws)
    return geometry.warp_images(images, maps, (crop_px, crop_px), field)


def geometric_maps(
    height: int, width: int, crop_px: int, pad_px: int, config: AugmentConfig, draws: Draws
) -> tuple[Tensor, Tensor | None]:
    """Where each new pixel comes from: maps (B, 2, 3) to the picture of `height` x `width`, and a field or None.

    The same maps move boxes and points: see data.geometry.
    """
    B = len(draws.indices)
    middle = torch.full((B, 2), crop_px / 2, device=draws.device)
    maps = crop_maps(height, width, crop_px, pad_px, config, draws)
    if config.rotation_deg:
        angle = geometry.degrees(draws.around("rotation", config.rotation_deg)[:, 0])
        maps = geometry.compose(maps, geometry.rotation(angle, middle))
    if config.shear_deg:
        angles = geometry.degrees(draws.around("shear", config.shear_deg, 2))
        maps = geometry.compose(maps, geometry.shear(angles[:, 0], angles[:, 1], middle))
    if config.mirror:
        maps = geometry.compose(maps, geometry.mirroring(draws.flips(), crop_px))
    field = None
    if config.elastic_px:
        nodes = draws.uniform("elastic", 2 * ELASTIC_NODES**2).view(B, 2, ELASTIC_NODES, ELASTIC_NODES)
        field = geometry.elastic_field(nodes, config.elastic_px, crop_px, crop_px)
    return maps, field


def crop_maps(
    height: int, width: int, crop_px: int, pad_px: int, config: AugmentConfig, draws: Draws
) -> Tensor:
    """The part of each picture that is shown, (B, 2, 3): a resized crop, or `crop_px` at random or in the centre."""
    if config.crop_area != (1.0, 1.0):
        sides = torch.tensor([width, height], device=draws.device).expand(len(draws.indices), 2)
        return geometry.crop_resize(crop_boxes(sides, config, draws), crop_px, crop_px)
    spans = torch.tensor([width, height], device=draws.device) + 2 * pad_px - crop_px
    if config.random_crop:
        left, top = draws.place("crop.left", int(spans[0]) + 1), draws.place("crop.top", int(spans[1]) + 1)
        corner = torch.stack([left, top], 1) - pad_px
    else:
        corner = (spans // 2 - pad_px).expand(len(draws.indices), 2)
    return geometry.crop_resize(torch.cat([corner, corner + crop_px], 1).float(), crop_px, crop_px)


def crop_boxes(sides_px: Tensor, config: AugmentConfig, draws: Draws) -> Tensor:
    """Random resized crops, (B, 4) boxes, of pictures whose width and height are `sides_px` (B, 2)."""
    width, height = sides_px.float().unbind(1)
    return geometry.random_resized_boxes(
        draws.uniform("crop", 4), width, height, config.crop_area, math.log(config.crop_aspect)
    )


def tone_maps(images: Tensor, config: ToneChanges, draws: Draws) -> Tensor:
    """One colour map a sample (B, C, C + 1): brightness, then contrast, then saturation."""
    B, C, H, W = images.shape
    maps = colour.identity(B, C, images.device)
    if config.brightness:
        maps = colour.brightness(1 + draws.around("brightness", config.brightness)[:, 0], C)
    if config.contrast:
        # the mean is affine too, so that of the brightened picture follows from that of the picture
        brightened = (maps[:, :, :C] * colour.mean_levels(images)[:, None]).sum(2) + maps[:, :, C]
        grey = (brightened * colour.luma_weights(C, images.device)).sum(1)
        factor = 1 + draws.around("contrast", config.contrast)[:, 0]
        maps = colour.compose(colour.contrast(factor, grey, C), maps)
    if config.saturation:
        factor = 1 + draws.around("saturation", config.saturation)[:, 0]
        maps = colour.compose(colour.saturation(factor, C), maps)
    return maps


def colour_maps(images: Tensor, colours: colour.Colours, config: ColourChanges, draws: Draws) -> Tensor:
    """The maps of `tone_maps`, then the shifts: (B, C, C + 1)."""
    C, maps = images.shape[1], tone_maps(images, config, draws)
    if config.colour_shift:
        levels = (draws.generator.uniform(draws.indices, "colour", C) * 2 - 1) * config.colour_shift * 255
        shift = torch.from_numpy(levels.round()).float().to(images.device)
        maps = colour.compose(colour.shift(shift), maps)
    if config.pca_colour and colours.components:
        components = torch.tensor(colours.components, device=images.device)
        maps = colour.compose(colour.pca_shift(draws.normal("pca", C) * config.pca_colour, components), maps)
    return maps


def centre_crop(images: Tensor, crop_px: int) -> Tensor:
    """The middle square of `crop_px`: what evaluation sees in a single view."""
    top, left = (images.shape[2] - crop_px) // 2, (images.shape[3] - crop_px) // 2
    return images[:, :, top : top + crop_px, left : left + crop_px]


def shrink(images: Tensor, side_px: int) -> Tensor:
    """Reduce to squares of `side_px`, antialiased: (B, C, H, W) uint8 → (B, C, side_px, side_px) uint8."""
    size = (side_px, side_px)
    if images.is_cuda:  # the uint8 kernel exists on the CPU only
        small = F.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return small.round_().clamp_(0, 255).to(torch.uint8)
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
