"""A residual network that makes a face a place in 128 dimensions: that of dlib (King 2017,
http://blog.dlib.net/2017/02/high-quality-face-recognition-with-deep.html) as face-api publishes it, 5.61 M weights.

A ResNet-34 of fewer layers and half the channels (https://arxiv.org/abs/1512.03385), in which a batch norm of dlib's
is a scale and a shift a channel. Where a block halves the picture its shortcut is the mean of four pixels, and its new
channels are 0. Two faces are taken for one person's where their places are less than 0.6 apart; places are not of
length one.

Tensors keep the names of face-api's files: `conv32_1.conv1.conv.filters` and so on.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_PX = 150
MEAN_RGB, DIVISOR = (122.782, 117.001, 104.298), 256.0
SAME_PERSON_DISTANCE = 0.6  # dlib's own threshold
EMBEDDING = 128
# name, channels in and out, stride
BLOCKS: tuple[tuple[str, int, int, int], ...] = (
    ("conv32_1", 32, 32, 1), ("conv32_2", 32, 32, 1), ("conv32_3", 32, 32, 1),
    ("conv64_down", 32, 64, 2), ("conv64_1", 64, 64, 1), ("conv64_2", 64, 64, 1), ("conv64_3", 64, 64, 1),
    ("conv128_down", 64, 128, 2), ("conv128_1", 128, 128, 1), ("conv128_2", 128, 128, 1),
    ("conv256_down", 128, 256, 2), ("conv256_1", 256, 256, 1), ("conv256_2", 256, 256, 1),
    ("conv256_down_out", 256, 256, 2),
)  # fmt: skip


class Filters(nn.Module):
    """A convolution, named as in the files."""

    def __init__(self, ins: int, outs: int, kernel: int) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.empty(outs, ins, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outs))
        nn.init.kaiming_normal_(self.filters)


class Scale(nn.Module):
    """A factor and a summand a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(channels))
        self.biases = nn.Parameter(torch.zeros(channels))


class ScaledConv(nn.Module):
    """A convolution, then a scale; the two are one convolution, since both are linear."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv, self.scale = Filters(ins, outs, kernel), Scale(outs)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        factor = self.scale.weights
        filters = self.conv.filters * factor[:, None, None, None]
        bias = self.conv.bias * factor + self.scale.biases
        return F.conv2d(x, filters, bias, self.stride, self.padding)


class Block(nn.Module):
    """Two convolutions beside a shortcut: (B, C, H, W) → (B, C', H / s, W / s)."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        # halving, dlib pads nothing before its first convolution
        self.conv1 = ScaledConv(ins, outs, 3, stride, padding=1 if stride == 1 else 0)
        self.conv2 = ScaledConv(outs, outs, 3, 1, padding=1)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        shortcut = F.avg_pool2d(x, 2) if self.stride == 2 else x
        B, C, H, W = y.shape
        channels, height, width = (a - b for a, b in zip(shortcut.shape[1:], (C, H, W), strict=True))
        y = F.pad(y, (0, max(width, 0), 0, max(height, 0)))  # of odd sides the shortcut has a pixel more
        shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, max(-channels, 0)))
        return F.relu(y + shortcut)


class FaceResNet(nn.Module):
    """Faces (B, 3, 150, 150), RGB levels 0…255 → places (B, 128)."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv32_down = ScaledConv(3, 32, 7, 2, padding=0)
        for name, ins, outs, stride in BLOCKS:
            self.add_module(name, Block(ins, outs, stride))
        self.fc = nn.Parameter(torch.empty(256, EMBEDDING))
        nn.init.normal_(self.fc, std=256**-0.5)
        self.register_buffer("mean", torch.tensor(MEAN_RGB).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.float() - self.mean) / DIVISOR
        x = F.max_pool2d(F.relu(self.conv32_down(x)), 3, 2)
        for name, *_ in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3)) @ self.fc
