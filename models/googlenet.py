"""GoogLeNet (Szegedy et al. 2014, https://arxiv.org/abs/1409.4842), torchvision's layout and keys.

With batch norm, and 3x3 where the paper has 5x5, as torchvision has it: 13,004,888 parameters at 1,000 classes,
6,624,904 without its two side branches. Their losses weigh 0.3 each, in training only. With `original` it has the
paper's 5x5 filters, biases in place of norms, and dropout of 0.4: 13,378,280 and 6,998,552.

Deviations of the original: no local response normalisation, He initialisation, and side branches that pool to 4x4 from
any size, as torchvision's do.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.sides import WithSides

SIDE_WEIGHT = 0.3

# name → in, 1x1, 3x3 narrowed to and out, "5x5" narrowed to and out, 1x1 after pooling
MODULES = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU; without `norm`, a convolution with bias and ReLU."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_px: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_px, stride, padding, bias=not norm)
        self.bn = nn.BatchNorm2d(channels, eps=0.001) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four branches side by side, joined by channels: (B, C, H, W) → (B, C', H, W)."""

    def __init__(
        self, ins: int, one: int, narrow3: int, three: int, narrow5: int, five: int, pooled: int,
        original: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        conv, five_px = partial(ConvNorm, norm=not original), 5 if original else 3
        self.branch1 = conv(ins, one, 1)
        self.branch2 = nn.Sequential(conv(ins, narrow3, 1), conv(narrow3, three, 3, padding=1))
        self.branch3 = nn.Sequential(
            conv(ins, narrow5, 1), conv(narrow5, five, five_px, padding=five_px // 2)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(ins, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Side(nn.Module):
    """A side branch: (B, C, H, W) → (B, num_classes) logits."""

    def __init__(self, in_channels: int, num_classes: int, original: bool = False) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, 128, 1, norm=not original)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(0.7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.conv(F.adaptive_avg_pool2d(x, 4)), 1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


def initialise(network: nn.Module, original: bool) -> None:
    """Normal of deviation 0.01, cut at ±2; the heads' too. Without norms so little would vanish on its way: He's."""
    for module in network.modules():
        if original and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, 0, 0.01)


class GoogLeNet(nn.Module):
    """(B, channels, H, W) → (B, num_classes) logits, in training WithSides; H and W at least 15, 224 in the paper."""

    def __init__(self, num_classes: int, channels: int, sides: bool = True, original: bool = False) -> None:
        super().__init__()
        conv, inception = partial(ConvNorm, norm=not original), partial(Inception, original=original)
        self.conv1 = conv(channels, 64, 7, stride=2, padding=3)
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3, padding=1)
        self.inception3a = inception(*MODULES["3a"])
        self.inception3b = inception(*MODULES["3b"])
        self.inception4a = inception(*MODULES["4a"])
        self.inception4b = inception(*MODULES["4b"])
        self.inception4c = inception(*MODULES["4c"])
        self.inception4d = inception(*MODULES["4d"])
        self.inception4e = inception(*MODULES["4e"])
        self.inception5a = inception(*MODULES["5a"])
        self.inception5b = inception(*MODULES["5b"])
        self.aux1 = Side(512, num_classes, original) if sides else None
        self.aux2 = Side(528, num_classes, original) if sides else None
        self.dropout = nn.Dropout(0.4 if original else 0.2)
        self.fc = nn.Linear(1024, num_classes)
        initialise(self, original)

    def forward(self, x: Tensor) -> Tensor | WithSides:
        x = F.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.conv3(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.inception3b(self.inception3a(x))
        after_4a = self.inception4a(F.max_pool2d(x, 3, 2, ceil_mode=True))
        after_4d = self.inception4d(self.inception4c(self.inception4b(after_4a)))
        x = F.max_pool2d(self.inception4e(after_4d), 2, 2, ceil_mode=True)
        x = self.inception5b(self.inception5a(x))
        logits = self.fc(self.dropout(x.mean(dim=(2, 3))))
        if self.training and self.aux1 is not None and self.aux2 is not None:
            return WithSides(logits, (self.aux1(after_4a), self.aux2(after_4d)), (SIDE_WEIGHT, SIDE_WEIGHT))
        return logits
