"""What colours become: one 3x4 matrix a sample, applied once, however many changes it is made of.

Brightness, contrast, saturation, colour shift and PCA colour are all affine in (red, green, blue), so they multiply
into one map (B, C, C + 1) on grey levels 0 to 255: `new = map[:, :, :C] @ old + map[:, :, C]`. It saturates once, at
the end, where a chain of separate steps would clip after each.
"""

import torch
from torch import Tensor

# ITU-R BT.601, as Pillow and torchvision weigh grey
LUMA = (0.299, 0.587, 0.114)


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


def apply(images: Tensor, maps: Tensor) -> Tensor:
    """Map the colours of (B, C, H, W) uint8; rounds, saturates at 0 and 255, returns uint8."""
    B, C, H, W = images.shape
    flat = images.flatten(2).float()  # (B, C, HW)
    mapped = torch.baddbmm(maps[:, :, C:], maps[:, :, :C], flat)
    return mapped.round_().clamp_(0, 255).to(torch.uint8).view(B, C, H, W)
