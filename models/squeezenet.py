"""SqueezeNet 1.0 and 1.1 (Iandola et al. 2016, https://arxiv.org/abs/1602.07360), torchvision's layout and keys.

1,248,424 and 1,235,496 parameters at 1,000 classes. The logits of each place pass a ReLU before their mean, as there.
"""

import torch
from torch import Tensor, nn


class Fire(nn.Module):
    """1x1 squeeze, then 1x1 and 3x3 expansions side by side: (B, C, H, W) → (B, 2 * expand, H, W)."""

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.squeeze(x))
        return torch.cat([self.relu(self.expand1x1(x)), self.relu(self.expand3x3(x))], 1)


def features(channels: int, small: bool) -> nn.Sequential:
    """Eight fire modules; version 1.1 (`small`) has a smaller first filter and pools earlier."""
    fires = [
        Fire(in_channels, 16 * i, 64 * i)
        for in_channels, i in ((128, 2), (256, 2), (256, 3), (384, 3), (384, 4), (512, 4))
    ]

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)

    if small:
        first = nn.Conv2d(channels, 64, 3, stride=2)
        start = [first, nn.ReLU(inplace=True), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool()]
        return nn.Sequential(*start, *fires[:2], pool(), *fires[2:])
    first = nn.Conv2d(channels, 96, 7, stride=2)
    start = [first, nn.ReLU(inplace=True), pool(), Fire(96, 16, 64), Fire(128, 16, 64)]
    return nn.Sequential(*start, fires[0], pool(), *fires[1:5], pool(), fires[5])


class SqueezeNet(nn.Module):
    """(B, channels, H, W) → (B, num_classes) logits; 224x224 in the paper."""

    def __init__(self, num_classes: int, channels: int, small: bool = False) -> None:
        super().__init__()
        self.features = features(channels, small)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(512, num_classes, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        last = self.classifier[1]
        nn.init.normal_(last.weight, 0, 0.01)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)
