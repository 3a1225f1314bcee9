"""Residual networks (He, Zhang, Ren, Sun 2015, https://arxiv.org/abs/1512.03385).

`ResNet` has torchvision's layout and keys (ResNet-18: 11,689,512 parameters at 1,000 classes);
`CifarResNet` is the paper's section 4.2 for 32x32 pictures, with the parameter-free shortcut A by default
(ResNet-20: 269,722 parameters). With `shortcut="none"` the same stacks are the paper's plain networks.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def initialise(network: nn.Module) -> None:
    """He initialisation of convolutions by fan-out, ones and zeros for norms."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: (B, C, H, W) → (B, C', H/stride, W/stride)."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None, plain: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.plain:
            return self.relu(y)
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up by four, around a shortcut; the 3x3 has the stride, as in torchvision (v1.5)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + shortcut)


class PadShortcut(nn.Module):
    """Shortcut A: every second pixel, new channels zero; no parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2
        return F.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before)
        )


def projection(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """Shortcut B: a 1x1 convolution and its norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
    )


def residual_layer(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, num_blocks: int, stride: int
) -> nn.Sequential:
    """Blocks at one resolution; only the first changes channels or size, and has a projection if so."""
    out = channels * block.expansion
    downsample = projection(in_channels, out, stride) if in_channels != out else None
    first = block(in_channels, channels, stride, downsample)
    return nn.Sequential(first, *(block(out, channels, 1, None) for _ in range(num_blocks - 1)))


def plain_layer(in_channels: int, channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    """The same convolutions without shortcuts."""
    first = BasicBlock(in_channels, channels, stride, None, plain=True)
    rest = (BasicBlock(channels, channels, 1, None, plain=True) for _ in range(num_blocks - 1))
    return nn.Sequential(first, *rest)


class ResNet(nn.Module):
    """ImageNet's ResNet, torchvision's keys: (B, channels, H, W) → (B, num_classes) logits.

    `bottleneck` makes blocks of three convolutions (ResNet-50 and deeper), `plain` leaves the shortcuts out.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        blocks: tuple[int, int, int, int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        plain: bool = False,
    ) -> None:
        super().__init__()
        if bottleneck and plain:
            raise ValueError("plain networks have basic blocks: give bottleneck or plain, not both")
        block: type[BasicBlock] | type[Bottleneck] = Bottleneck if bottleneck else BasicBlock
        layer = plain_layer if plain else partial(residual_layer, block)
        self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = layer(64, 64, blocks[0], stride=1)
        self.layer2 = layer(64 * block.expansion, 128, blocks[1], stride=2)
        self.layer3 = layer(128 * block.expansion, 256, blocks[2], stride=2)
        self.layer4 = layer(256 * block.expansion, 512, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class CifarResNet(nn.Module):
    """Depth 6n + 2 for small pictures: (B, channels, H, W) → (B, num_classes) logits."""

    def __init__(
        self, num_classes: int, channels: int, depth: int = 20, shortcut: Literal["A", "B", "none"] = "A"
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth (={depth}) must be 6n + 2: 8, 14, 20, 32, 44, 56, 110, ...")
        make_shortcut = PadShortcut if shortcut == "A" else projection
        plain = shortcut == "none"
        self.conv1, self.bn1, self.relu = conv3x3(channels, 16), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        layers, width = [], 16
        for i, out in enumerate((16, 32, 64)):
            for j in range((depth - 2) // 6):
                stride = 2 if i > 0 and j == 0 else 1
                downsample = make_shortcut(width, out, stride) if width != out and not plain else None
                layers.append(BasicBlock(width, out, stride, downsample, plain))
                width = out
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(64, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean(dim=(2, 3)))
