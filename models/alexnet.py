"""AlexNet, as torchvision has it and as it was at first.

torchvision's layout and keys are of "one weird trick" (Krizhevsky 2014, https://arxiv.org/abs/1404.5997): 61,100,840
parameters at 1,000 classes. With `original` it is that of Krizhevsky, Sutskever, Hinton 2012
(https://papers.nips.cc/paper/4824), with wider first layers, of which three see half of the maps each, for there were
two GPUs: 60,965,224; with `groups=1`, as courses draw it, 62,378,344.

Deviations of the original: no local response normalisation, which did not help VGG either (Simonyan, Zisserman 2014,
section 4.1); any picture that is large enough is taken, by averaging to the 6x6 maps that one of 227x227 gives.
"""

import torch
from torch import Tensor, nn


def torchvision_features(channels: int) -> nn.Sequential:
    """(B, channels, H, W) → (B, 256, H', W'); 6x6 of 224x224."""
    return nn.Sequential(
        nn.Conv2d(channels, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2),
    )  # fmt: skip


def original_features(channels: int, groups: int) -> nn.Sequential:
    """(B, channels, H, W) → (B, 256, H', W'); 6x6 of 227x227."""
    return nn.Sequential(
        nn.Conv2d(channels, 96, 11, stride=4), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2),
        nn.Conv2d(96, 256, 5, padding=2, groups=groups), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(384, 384, 3, padding=1, groups=groups), nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1, groups=groups), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2),
    )  # fmt: skip


class AlexNet(nn.Module):
    """(B, channels, H, W) → (B, num_classes) logits; H and W at least 63, 224 in the paper; the original 67, 227."""

    def __init__(
        self, num_classes: int, channels: int, dense: int = 4096, original: bool = False, groups: int = 2
    ) -> None:
        super().__init__()
        self.features = original_features(channels, groups) if original else torchvision_features(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(256 * 6 * 6, dense), nn.ReLU(inplace=True),
            nn.Dropout(0.5), nn.Linear(dense, dense), nn.ReLU(inplace=True),
            nn.Linear(dense, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
