"""The network by which a first course explains convolutional sliding windows, after OverFeat.

Sermanet et al. 2014, https://arxiv.org/abs/1312.6229, section 3.5. The course's: 14x14x3, 16 filters of 5x5, maxima of
2x2, two dense layers of 400, softmax over 4 classes: 1,216 + 160,400 + 160,400 + 1,604 = 323,620 parameters. Made
fully convolutional by models/slidingwindow.py, 14x14 gives one place, 16x16 four, 28x28 eight by eight.
"""

import torch
from torch import Tensor, nn


class OverFeatCourse(nn.Module):
    """(B, channels, input_px, input_px) → (B, num_classes) logits; input_px is 14 in the course."""

    def __init__(self, num_classes: int, channels: int, input_px: int = 14) -> None:
        super().__init__()
        if input_px < 6 or input_px % 2:
            raise ValueError(f"overfeat_course needs crop_px to be even and at least 6, got {input_px}")
        side = (input_px - 4) // 2
        self.features = nn.Sequential(nn.Conv2d(channels, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(
            nn.Linear(16 * side * side, 400),
            nn.ReLU(),
            nn.Linear(400, 400),
            nn.ReLU(),
            nn.Linear(400, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(images), 1))
