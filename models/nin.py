"""Network in Network (Lin, Chen, Yan 2013, https://arxiv.org/abs/1312.4400), its form for CIFAR: 966,986 parameters.

Each convolution is followed by two 1x1 convolutions; the mean over places of the last maps are the logits.
Deviations: He initialisation, and no ReLU on the logits.
"""

from torch import Tensor, nn


def mlpconv(in_channels: int, widths: tuple[int, int, int], kernel_px: int) -> list[nn.Module]:
    """A convolution and two 1x1 convolutions, a ReLU after each."""
    return [
        nn.Conv2d(in_channels, widths[0], kernel_px, padding=kernel_px // 2), nn.ReLU(inplace=True),
        nn.Conv2d(widths[0], widths[1], 1), nn.ReLU(inplace=True),
        nn.Conv2d(widths[1], widths[2], 1), nn.ReLU(inplace=True),
    ]  # fmt: skip


class NetworkInNetwork(nn.Module):
    """(B, channels, H, W) → (B, num_classes) logits; 32x32 in the paper."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *mlpconv(channels, (192, 160, 96), 5), nn.MaxPool2d(3, stride=2, ceil_mode=True), nn.Dropout(0.5),
            *mlpconv(96, (192, 192, 192), 5), nn.MaxPool2d(3, stride=2, ceil_mode=True), nn.Dropout(0.5),
            *mlpconv(192, (192, 192, num_classes), 3)[:-1],
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean(dim=(2, 3))
