"""Arbitrary style transfer by adaptive instance normalisation: a decoder for features that got a style's moments.

Huang, Belongie 2017 (https://arxiv.org/abs/1703.06868): the encoder is a frozen feature network (models.taps); each
channel of the content's features gets the mean and the deviation that it has in the style's, and a decoder makes a
picture of them. No weight is of a style, so any picture can be one.

Deviation: features of several layers are treated so, and the decoder takes the shallower ones as it comes up to their
size (Sheng et al. 2018, https://arxiv.org/abs/1805.03857): outlines stay sharp although the encoder is small.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.transformnet import EPS, MIDDLE, SPREAD, Convolution, Moments, affine


@dataclass(frozen=True)
class Level:
    """A layer of the encoder."""

    channels: int
    stride: int  # pixels of the picture a place


def moments_of(x: Tensor) -> Moments:
    """Mean and variance over the places of each channel: (B, C, h, w) → (B, C) twice, float32 or wider."""
    wide = x if x.dtype == torch.float64 else x.float()
    mean = wide.mean((2, 3))
    return mean, (wide - mean[:, :, None, None]).square().mean((2, 3))


def mixed(moments: Sequence[Moments], shares: Sequence[float]) -> Moments:
    """Moments between those of several styles: means and deviations are mixed, as the features would be."""
    mean = sum(share * each[0] for share, each in zip(shares, moments, strict=True))
    deviation = sum(share * (each[1] + EPS).sqrt() for share, each in zip(shares, moments, strict=True))
    return mean, deviation.square() - EPS  # type: ignore[union-attr, return-value]


def adapt(x: Tensor, style: Moments, strength: float = 1.0) -> Tensor:
    """Features (B, C, h, w) with the moments of a style; strength 0 leaves them as they are."""
    mean, variance = moments_of(x)
    ratio = ((style[1] + EPS) / (variance + EPS)).sqrt()
    return affine(x, 1 + strength * (ratio - 1), strength * (style[0] - mean * ratio))


class Refine(nn.Module):
    """Two convolutions, and what came in added; it begins as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Convolution(channels, channels, 3), Convolution(channels, channels, 3)
        nn.init.normal_(self.second.weight, 0, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class Decoder(nn.Module):
    """Features of each level, shallow to deep, (B, C, h, w) → pictures (B, 3, H, W); values may leave 0 to 1.

    Each level's features are first brought to about mean 0 and deviation 1 by what they were over training pictures
    (`fit`), since those of one network are a thousand times another's. Raises ValueError for levels that do not come
    from fine to coarse.
    """

    def __init__(self, levels: Sequence[Level], width: int, num_blocks: int) -> None:
        super().__init__()
        strides = [level.stride for level in levels]
        if strides != sorted(strides) or strides[0] < 1:
            raise ValueError(
                f"layers of an encoder must come from fine to coarse; their strides are {strides}"
            )
        self.levels = tuple(levels)
        widths = [width * min(4, max(1, stride // 2)) for stride in strides]
        self.merge, self.enlarge = nn.ModuleList(), nn.ModuleList()
        for place, level in enumerate(levels):
            self.register_buffer(f"mean_{place}", torch.zeros(level.channels))
            self.register_buffer(f"deviation_{place}", torch.ones(level.channels))
            deeper = widths[place] if place + 1 < len(levels) else 0
            self.merge.append(Convolution(level.channels + deeper, widths[place], 3))
            finer = (strides[place - 1], widths[place - 1]) if place else (1, width)
            self.enlarge.append(Convolution(widths[place], finer[1], 3, enlarge=strides[place] // finer[0]))
        self.blocks = nn.ModuleList([Refine(widths[-1]) for _ in range(num_blocks)])
        self.output = Convolution(width, 3, 3)
        nn.init.normal_(self.output.weight, 0, 0.02)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def fit(self, features: Sequence[Tensor]) -> None:
        """Take the moments of each channel over these pictures for those of all."""
        for place, x in enumerate(features):
            mean, variance = moments_of(x.transpose(0, 1).flatten(1)[None, :, :, None])
            self.get_buffer(f"mean_{place}").copy_(mean[0])
            self.get_buffer(f"deviation_{place}").copy_((variance[0] + EPS).sqrt())

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x: Tensor | None = None
        for place in reversed(range(len(self.levels))):
            own = self.standard(features[place], place)
            x = F.relu(self.merge[place](own if x is None else torch.cat([own, x], 1)))
            if place == len(self.levels) - 1:
                for block in self.blocks:
                    x = block(x)
            x = F.relu(self.enlarge[place](x))
        assert x is not None
        made = self.output(x)
        return (made if made.dtype == torch.float64 else made.float()) * SPREAD + MIDDLE

    def standard(self, x: Tensor, place: int) -> Tensor:
        """Features of one level at about mean 0 and deviation 1, in the precision of the weights."""
        inverse = 1 / self.get_buffer(f"deviation_{place}")
        shift = -self.get_buffer(f"mean_{place}") * inverse
        return affine(x.to(inverse.dtype), inverse[None], shift[None])

    @property
    def halo(self) -> int:
        """Places of the deepest level around a band that its picture depends on."""
        return 2 * len(self.blocks) + 4
