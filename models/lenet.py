"""LeNet-5 as taught: two convolutions with pooling, three dense layers.

LeCun, Bottou, Bengio, Haffner 1998 (http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf), with dense connections
between all maps, max pooling and ReLU, as courses teach it today. On 1x32x32 and 10 classes: 61,706 parameters.
With `widths=(8, 16)` on 3x32x32 it is the course's network: 608 + 3,216 + 48,120 + 10,164 + 850 = 62,958.
"""

import torch
from torch import Tensor, nn


class LeNet5(nn.Module):
    """(B, channels, input_px, input_px) → (B, num_classes) logits; input_px is 32 in the paper."""

    def __init__(
        self, num_classes: int, channels: int, input_px: int = 32, widths: tuple[int, int] = (6, 16)
    ) -> None:
        super().__init__()
        if input_px < 16 or input_px % 4:
            raise ValueError(f"lenet5 needs crop_px to be a multiple of 4 and at least 16, got {input_px}")
        side = (((input_px - 4) // 2) - 4) // 2  # two 5x5 valid convolutions, each followed by a halving
        self.features = nn.Sequential(
            nn.Conv2d(channels, widths[0], 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(widths[0], widths[1], 5), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(widths[1] * side * side, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(images), 1))
