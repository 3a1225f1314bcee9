"""MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381), torchvision's layout and keys.

3,504,872 parameters at 1,000 classes.
"""

from torch import Tensor, nn

from models.depthwise import DepthwiseConv2d

# expansion, output channels, blocks, stride of the first
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def conv_norm(in_channels: int, channels: int, kernel_px: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    return norm_after(
        nn.Conv2d(in_channels, channels, kernel_px, stride, kernel_px // 2, bias=False), channels
    )


def norm_after(conv: nn.Conv2d, channels: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """1x1 widening, 3x3 per channel, 1x1 narrowing without activation; a shortcut where the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        widening = [conv_norm(in_channels, wide, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *widening,
            norm_after(DepthwiseConv2d(wide, 3, stride), wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """(B, channels, H, W) → (B, num_classes) logits; 224x224 in the paper."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm(channels, 32, 3, 2)]
        width = 32
        for expansion, out, num, stride in STAGES:
            for i in range(num):
                layers.append(InvertedResidual(width, out, stride if i == 0 else 1, expansion))
                width = out
        layers.append(conv_norm(width, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))
