"""Embedding networks made for faces and small processors: MobileFaceNet, and a residual net of ordinary convolutions.

Both end as MobileFaceNet (Chen et al. 2018, https://arxiv.org/abs/1804.07573) does: a global depthwise convolution, a
mean over the map whose weights are learnt, since an aligned face has its eyes in the same place everywhere; then one
linear layer to the embedding. A CPU computes ordinary 3x3 convolutions at several times the rate of depthwise ones, so
the residual net (He et al. 2015, https://arxiv.org/abs/1512.03385) has those; and leaky ReLU in place of PReLU, whose
gradient took a quarter of a training step.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from models.depthwise import DepthwiseConv2d
from models.resnet import conv3x3

# MobileFaceNet: expansion, output channels, blocks, stride of the first
STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
SLOPE = 0.1  # of leaky ReLU
STRIDE = 16  # of both networks' last map


class GlobalHead(nn.Module):
    """A learnt mean of the whole map, and a linear layer: (B, C, S, S) → (B, dim)."""

    def __init__(self, channels: int, side: int, dim: int) -> None:
        super().__init__()
        self.mean = nn.Conv2d(channels, channels, side, groups=channels, bias=False)
        nn.init.constant_(self.mean.weight, side**-2)
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, dim, bias=False)
        self.last_norm = nn.BatchNorm1d(dim, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_norm(self.linear(self.norm(self.mean(x)).flatten(1)))


def active(conv: nn.Conv2d) -> nn.Sequential:
    """The convolution, batch norm, PReLU."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.PReLU(conv.out_channels))


def leaky(conv: nn.Conv2d) -> nn.Sequential:
    """The convolution, batch norm, leaky ReLU."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.LeakyReLU(SLOPE, inplace=True))


def side_of(input_px: int) -> int:
    """Side of the last map; three halvings of a stem's, each rounded up."""
    return -(-input_px // STRIDE)


class Bottleneck(nn.Module):
    """1x1 widening, 3x3 per channel, 1x1 narrowing without activation; a shortcut where the shape stays."""

    def __init__(self, ins: int, outs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = ins * expansion
        self.conv = nn.Sequential(
            active(nn.Conv2d(ins, wide, 1, bias=False)),
            active(DepthwiseConv2d(wide, 3, stride)),
            nn.Conv2d(wide, outs, 1, bias=False),
            nn.BatchNorm2d(outs),
        )
        self.shortcut = stride == 1 and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileFaceNet(nn.Module):
    """(B, channels, input_px, input_px) → (B, dim), not of unit length yet; the paper has 112 pixels and dim 128."""

    def __init__(self, dim: int, channels: int, input_px: int = 112) -> None:
        super().__init__()
        layers: list[nn.Module] = [active(conv3x3(channels, 64, 2)), active(DepthwiseConv2d(64, 3))]
        width = 64
        for expansion, outs, num, stride in STAGES:
            for number in range(num):
                layers.append(Bottleneck(width, outs, stride if number == 0 else 1, expansion))
                width = outs
        layers.append(active(nn.Conv2d(width, 512, 1, bias=False)))
        self.features = nn.Sequential(*layers)
        self.head = GlobalHead(512, side_of(input_px), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input is added: (B, C, H, W) → the same. It begins as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.BatchNorm2d(channels)
        nn.init.zeros_(last.weight)
        self.body = nn.Sequential(leaky(conv3x3(channels, channels)), conv3x3(channels, channels), last)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.body(x), SLOPE, inplace=True)


class ResidualFaceNet(nn.Module):
    """(B, channels, input_px, input_px) → (B, dim), not of unit length yet.

    `widths` are the channels at strides 2, 4, 8 and 16, `depths` the residual blocks there.
    """

    def __init__(
        self,
        dim: int,
        channels: int,
        input_px: int = 112,
        widths: tuple[int, int, int, int] = (32, 64, 128, 256),
        depths: tuple[int, int, int, int] = (0, 1, 2, 1),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for ins, outs, depth in zip((channels, *widths), widths, depths, strict=False):
            layers += [leaky(conv3x3(ins, outs, 2)), *(Residual(outs) for _ in range(depth))]
        self.features = nn.Sequential(*layers)
        self.head = GlobalHead(widths[-1], side_of(input_px), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
