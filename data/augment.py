"""Augmentation: batched functions on uint8 tensors, on the CPU or a GPU.

Every function takes (B, C, H, W) uint8 and the random choices for each sample, drawn beforehand from a
`SampleGenerator`: so a sample looks the same whoever makes its batch. Pictures stay uint8 until the network
normalises them: float32 pictures cost four times the memory traffic between processes.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from data.parameters import Parameters
from data.random import SampleGenerator


class AugmentConfig(Parameters):
    """What training does to its pictures; everything off gives the plain centre crop."""

    mirror: bool = Field(
        description="mirror left-right: random in epoch 0, then alternating, so that two "
        "epochs show both sides of every picture"
    )
    random_crop: bool = Field(description="crop at a random place; otherwise at the centre")
    cutout_px: int = Field(ge=0, description="side of the square that is blanked out; 0: none")
    colour_shift: float = Field(ge=0, le=0.5, description="largest shift of each channel, as a share of 255")


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
    mirrored = images.clone()
    mirrored[flip] = images[flip].flip(3)
    return mirrored


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


def colour_shift(images: Tensor, shift: Tensor) -> Tensor:
    """Add `shift` (B, C) int16, in grey levels, to each channel; saturates at 0 and 255."""
    return (images.to(torch.int16) + shift[:, :, None, None]).clamp_(0, 255).to(torch.uint8)


def mirror_flags(indices: np.ndarray, generator: SampleGenerator) -> np.ndarray:
    """Alternating flip (https://github.com/KellerJordan/cifar10-airbench): random sides at epoch 0, then the
    other side at each epoch, so that no picture is seen the same way round twice in a row."""
    first = SampleGenerator(generator.seed, 0).uniform(indices, "mirror")[:, 0] < 0.5
    return first ^ (generator.epoch % 2 == 1)


def augment(
    images: Tensor,
    indices: np.ndarray,
    crop_px: int,
    pad_px: int,
    fill: tuple[int, ...],
    config: AugmentConfig,
    generator: SampleGenerator,
) -> Tensor:
    """All of it, as `config` says: (B, C, H, W) uint8 → (B, C, crop_px, crop_px) uint8."""
    B, C, H, W = images.shape
    device = images.device

    def place(name: str, high: int) -> Tensor:
        return torch.from_numpy(generator.integers(indices, name, high)).to(device)

    images = reflect_pad(images, pad_px)
    span_y, span_x = H + 2 * pad_px - crop_px, W + 2 * pad_px - crop_px
    if config.random_crop and (span_y or span_x):
        images = crop(images, place("crop.top", span_y + 1), place("crop.left", span_x + 1), crop_px)
    else:
        images = images[:, :, span_y // 2 : span_y // 2 + crop_px, span_x // 2 : span_x // 2 + crop_px]
    if config.mirror:
        images = mirror(images, torch.from_numpy(mirror_flags(indices, generator)).to(device))
    if config.colour_shift:
        levels = (generator.uniform(indices, "colour", C) * 2 - 1) * config.colour_shift * 255
        images = colour_shift(images, torch.from_numpy(levels.round().astype(np.int16)).to(device))
    if config.cutout_px:
        half = config.cutout_px // 2
        top, left = place("cutout.top", crop_px) - half, place("cutout.left", crop_px) - half
        images = cutout(
            images, top, left, config.cutout_px, torch.tensor(fill, dtype=torch.uint8, device=device)
        )
    return images.contiguous()


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
