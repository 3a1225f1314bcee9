"""Samples made of several: mixup, CutMix and mosaic, on batches that already have their size.

A partner is another sample of the same batch, so a batch mixes alike wherever it is made. Labels become a weight
between a sample's own label and its partner's; a mosaic keeps the boxes of all four pictures.
"""

import numpy as np
import torch
from torch import Tensor

from data.augment import AugmentConfig
from data.random import SampleGenerator


def partners(indices: np.ndarray, generator: SampleGenerator) -> Tensor:
    """For each sample of the batch the place of its partner in the batch, (B,) int64: never itself, where B > 1."""
    B = len(indices)
    step = generator.integers(indices, "mix.partner", max(B - 1, 1)) + 1
    return torch.from_numpy((np.arange(B) + (step if B > 1 else 0)) % B)


def beta(indices: np.ndarray, name: str, alpha: float, generator: SampleGenerator) -> np.ndarray:
    """One draw of Beta(alpha, alpha) for each sample, (B,): by Jöhnk's method for alpha <= 1.

    Its rejection is made a fixed number of draws by keeping the first that is accepted (each with probability of at
    least π/4; after 16 draws one in 5e10 samples is left with its last).
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha (={alpha}) must be above 0 and at most 1")
    draws = generator.uniform(indices, name, 32).reshape(-1, 16, 2)
    # In logarithms: for small alpha both powers underflow.
    log_x, log_y = np.moveaxis(np.log(np.maximum(draws, 1e-300)) / alpha, 2, 0)
    log_sum = np.logaddexp(log_x, log_y)
    accepted = log_sum <= 0
    accepted[:, -1] = True
    first = accepted.argmax(1)
    rows = np.arange(len(indices))
    return np.exp(log_x[rows, first] - log_sum[rows, first])


def mixup(images: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """weight · own + (1 - weight) · partner (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).

    `images` (B, C, H, W) uint8, `other` (B,) places, `weight` (B,) in [0, 1].
    """
    share = weight.to(torch.float32)[:, None, None, None]
    return images.float().mul_(share).add_(images[other].float() * (1 - share)).round_().to(torch.uint8)


def cutmix(images: Tensor, other: Tensor, weight: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of the partner over (1 - weight) of the picture (Yun et al. 2019, https://arxiv.org/abs/1905.04899).

    `centre` (B, 2) in [0, 1) is the rectangle's middle, y then x; it is cut off at the border. Returns the pictures and
    the weights (B,) that the own labels keep: exactly the share of own pixels.
    """
    B, C, H, W = images.shape
    side = (1 - weight).clamp(0, 1).sqrt()

    def span(middle: Tensor, length: int) -> tuple[Tensor, Tensor]:
        half = side * length / 2
        start = (middle * length - half).round().clamp(0, length).long()
        return start, (middle * length + half).round().clamp(0, length).long()

    (top, bottom), (left, right) = span(centre[:, 0], H), span(centre[:, 1], W)
    rows = torch.arange(H, device=images.device)[None, :, None]
    cols = torch.arange(W, device=images.device)[None, None, :]
    inside = (rows >= top[:, None, None]) & (rows < bottom[:, None, None])
    inside = inside & (cols >= left[:, None, None]) & (cols < right[:, None, None])
    kept = 1 - inside.flatten(1).float().mean(1)
    return torch.where(inside[:, None], images[other], images), kept


def mix(
    images: Tensor, indices: np.ndarray, config: AugmentConfig, generator: SampleGenerator
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix a batch as `config` says: the pictures, each one's partner (B,) in the batch, and the own label's share (B,).

    With both switched on, chance decides for each sample.
    """
    device = images.device
    other = partners(indices, generator).to(device)

    def share(name: str, alpha: float) -> Tensor:
        return torch.from_numpy(beta(indices, name, alpha, generator)).float().to(device)

    if config.mixup_alpha:
        weight = share("mixup", config.mixup_alpha)
        mixed = mixup(images, other, weight)
        if not config.cutmix_alpha:
            return mixed, other, weight
    centre = torch.from_numpy(generator.uniform(indices, "cutmix.centre", 2)).float().to(device)
    cut, kept = cutmix(images, other, share("cutmix", config.cutmix_alpha), centre)
    if not config.mixup_alpha:
        return cut, other, kept
    first = torch.from_numpy(generator.uniform(indices, "mix.which")[:, 0] < 0.5).to(device)
    return torch.where(first[:, None, None, None], mixed, cut), other, torch.where(first, weight, kept)


def mosaic(
    images: Tensor, boxes_xyxy: Tensor, others: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four pictures in one (Bochkovskiy et al. 2020, https://arxiv.org/abs/2004.10934), each showing the part nearest
    to where they meet.

    `images` (B, C, S, S) uint8, `boxes_xyxy` (B, N, 4) in pixels, `others` (B, 3) the places in the batch of the three
    that join each picture, `centre` (B, 2) int64 where they meet, y then x, in [0, S]. Upper left is the picture's own.

    Returns the pictures; their boxes (B, 4N, 4), clipped to their quarter; the share of each box that is seen, (B, 4N);
    and whose they are, (B, 4) places in the batch: `labels[owners].flatten(1)` are the boxes' labels.
    """
    B, C, S, _ = images.shape
    owners = torch.cat([torch.arange(B, device=images.device)[:, None], others], 1)
    # Each quarter is its picture moved by the centre, as on a torus: its corner at the centre comes from one of the
    # picture's four corners, and the quarter cuts away what came round the other side.
    place = torch.arange(S, device=images.device)
    rows, cols = (place - centre[:, :1]) % S, (place - centre[:, 1:]) % S  # (B, S) each
    below, right = place >= centre[:, :1], place >= centre[:, 1:]
    whose = torch.take_along_dim(owners, (below[:, :, None] * 2 + right[:, None]).flatten(1), 1).view(B, S, S)
    mixed = images[whose, :, rows[:, :, None], cols[:, None]].permute(0, 3, 1, 2).contiguous()

    quarter = torch.arange(4, device=images.device)
    is_below, is_right = quarter // 2, quarter % 2  # (4,)
    y, x = centre[:, :1], centre[:, 1:]  # (B, 1)
    low = torch.stack([x * is_right, y * is_below], 2)  # (B, 4, 2): where each quarter begins, x then y
    high = torch.stack([torch.where(is_right == 1, S, x), torch.where(is_below == 1, S, y)], 2)
    offset = torch.stack([torch.where(is_right == 1, x, x - S), torch.where(is_below == 1, y, y - S)], 2)
    moved = boxes_xyxy[owners] + torch.cat([offset, offset], 2)[:, :, None]  # (B, 4, N, 4)
    clipped = torch.cat(
        [moved[..., :2].maximum(low[:, :, None]), moved[..., 2:].minimum(high[:, :, None])], 3
    )
    # wholly outside: empty
    clipped = torch.cat([clipped[..., :2], clipped[..., 2:].maximum(clipped[..., :2])], 3)
    areas = (moved[..., 2:] - moved[..., :2]).prod(3).clamp(min=1e-6)
    seen = (clipped[..., 2:] - clipped[..., :2]).prod(3) / areas
    return mixed, clipped.flatten(1, 2), seen.flatten(1), owners
