"""What colours become: one 3x4 matrix a sample, applied once, however many changes it is made of.

Brightness, contrast, saturation, colour shift and PCA colour are all affine in (red, green, blue), so they multiply
into one map (B, C, C + 1) on grey levels 0 to 255: `new = map[:, :, :C] @ old + map[:, :, C]`. It saturates once, at
the end, where a chain of separate steps would clip after each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# ITU-R BT.601, as Pillow and torchvision weigh grey
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Colours:
    """What augmentation knows of a dataset's colours, in grey levels."""

    mean: tuple[int, ...]  # what is blanked out gets this colour: zero after normalisation
    components: tuple[tuple[float, ...], ...]  # see `principal_components`


def principal_components(covariance: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """The main axes of a colour covariance (C, C), each as long as its deviation, in columns.

    Of the two directions of an axis, the one whose largest part is positive: so it does not depend on who computes it.
    """
    if not len(covariance):
        return ()
    values, vectors = np.linalg.eigh(np.array(covariance, np.float64))
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(len(values))])
    return tuple(map(tuple, (vectors * np.sqrt(values.clip(0))).tolist()))


def identity(num: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Maps that change nothing: (num, C, C + 1)."""
    return torch.eye(channels, channels + 1, device=device).repeat(num, 1, 1)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """First `inner`, then `outer`."""
    C = outer.shape[1]
    maps = (outer[:, :, :C, None] * inner[:, None]).sum(2)  # quicker than products of such small matrices
    maps[:, :, C] += outer[:, :, C]
    return maps


def luma_weights(channels: int, device: torch.device | None = None) -> Tensor:
    """How much each channel counts in the grey of a picture; sums to one."""
    return torch.tensor(LUMA if channels == 3 else (1.0,) * channels, device=device) / (
        1 if channels == 3 else channels
    )


def brightness(factor: Tensor, channels: int) -> Tensor:
    """Multiply all levels by `factor` (B,)."""
    return identity(len(factor), channels, factor.device) * factor[:, None, None]


def contrast(factor: Tensor, mean_grey: Tensor, channels: int) -> Tensor:
    """Move levels from the picture's mean grey (B,) by `factor` (B,): 0 leaves that grey alone, 1 changes nothing."""
    maps = brightness(factor, channels)
    maps[:, :, channels] = ((1 - factor) * mean_grey)[:, None]
    return maps


def saturation(factor: Tensor, channels: int) -> Tensor:
    """Move colours from their own grey by `factor` (B,): 0 is a grey picture, 1 changes nothing."""
    grey = luma_weights(channels, factor.device).expand(channels, channels)
    maps = brightness(factor, channels)
    maps[:, :, :channels] += (1 - factor)[:, None, None] * grey
    return maps


def shift(levels: Tensor) -> Tensor:
    """Add `levels` (B, C), in grey levels."""
    B, C = levels.shape
    maps = identity(B, C, levels.device)
    maps[:, :, C] = levels
    return maps


def pca_shift(draws: Tensor, components: Tensor) -> Tensor:
    """AlexNet's PCA colour augmentation (Krizhevsky et al. 2012): add Σ draw · √eigenvalue · eigenvector.

    `draws` (B, C), normal with the deviation one wants (0.1 in the paper); `components` (C, C) has the eigenvectors of
    the dataset's colour covariance, times the roots of their eigenvalues in grey levels, in its columns.
    """
    return shift(draws @ components.T)


def mean_levels(images: Tensor) -> Tensor:
    """Mean of each channel of (B, C, H, W), uint8 or float32: (B, C) float32."""
    flat = images.flatten(2)
    total = flat.sum(2) if images.is_floating_point() else flat.sum(2, dtype=torch.int64)
    return total.float() / flat.shape[2]


def to_levels(images: Tensor) -> Tensor:
    """Round to whole grey levels, in place where they are floats, and saturate at 0 and 255: uint8."""
    return images.round_().clamp_(0, 255).to(torch.uint8) if images.is_floating_point() else images


def apply(images: Tensor, maps: Tensor) -> Tensor:
    """Map the colours of (B, C, H, W) uint8, or float32 in grey levels: uint8, saturated at 0 and 255."""
    B, C, H, W = images.shape
    flat = images.flatten(2).float()  # (B, C, HW)
    mapped = torch.baddbmm(maps[:, :, C:], maps[:, :, :C], flat)
    return to_levels(mapped).view(B, C, H, W)
