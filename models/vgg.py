"""VGG-11, 13, 16 and 19 (Simonyan, Zisserman 2014, https://arxiv.org/abs/1409.1556), torchvision's layout and keys.

At 1,000 classes VGG-16 has 138,357,544 parameters, with batch norm 138,365,992.
"""

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # depth → 3x3 convolutions before each of the five poolings
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """(B, channels, H, W) → (B, num_classes) logits; H and W at least 32, 224 in the paper."""

    def __init__(
        self, num_classes: int, channels: int, depth: int = 16, batch_norm: bool = False, dense: int = 4096
    ) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"depth (={depth}) must be one of {', '.join(map(str, CONVOLUTIONS))}")
        layers: list[nn.Module] = []
        for width, num in zip(WIDTHS, CONVOLUTIONS[depth], strict=True):
            for _ in range(num):
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, dense), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Linear(dense, dense), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Linear(dense, num_classes),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
