"""AlexNet in torchvision's layout and keys, "one weird trick" (Krizhevsky 2014, https://arxiv.org/abs/1404.5997).

61,100,840 parameters at 1,000 classes. Krizhevsky, Sutskever, Hinton 2012 had wider first layers, two groups and
local response normalisation.
"""

import torch
from torch import Tensor, nn


class AlexNet(nn.Module):
    """(B, channels, H, W) → (B, num_classes) logits; H and W at least 63, 224 in the paper."""

    def __init__(self, num_classes: int, channels: int, dense: int = 4096) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(256 * 6 * 6, dense), nn.ReLU(inplace=True),
            nn.Dropout(0.5), nn.Linear(dense, dense), nn.ReLU(inplace=True),
            nn.Linear(dense, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
