"""Inception-ResNet-v1 (Szegedy et al. 2016, https://arxiv.org/abs/1602.07261), as FaceNet's open versions have it.

Layout and keys are those of facenet-pytorch (https://github.com/timesler/facenet-pytorch), so that its published
weights load. 23,482,624 parameters with 512 dimensions. It takes pictures of 160x160 with levels (x - 127.5) / 128.
"""

import torch
from torch import Tensor, nn

EPS = 1e-3  # of its batch norms, from TensorFlow
MEAN, STD = 127.5 / 255, 128 / 255  # of its published weights' input
Size = int | tuple[int, int]


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU; without `padding`, the map shrinks by what the filter reaches over."""

    def __init__(self, ins: int, outs: int, kernel: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outs, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class ResidualBlock(nn.Module):
    """Branches side by side, joined and brought back to the block's width, added to its input by `scale`."""

    def __init__(
        self, channels: int, branches: list[nn.Module], joined: int, scale: float, active: bool = True
    ) -> None:
        super().__init__()
        self.num_branches, self.scale, self.active = len(branches), scale, active
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)
        self.conv2d = nn.Conv2d(joined, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.get_submodule(f"branch{i}")(x) for i in range(self.num_branches)], 1)
        x = x + self.scale * self.conv2d(joined)
        return torch.relu(x) if self.active else x


class Reduction(nn.Module):
    """Branches of stride 2 side by side, the last a max-pooling: (B, C, H, W) → (B, C', (H - 1) // 2, (W - 1) // 2)."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        branches = [*branches, nn.MaxPool2d(3, stride=2)]
        self.num_branches = len(branches)
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.get_submodule(f"branch{i}")(x) for i in range(self.num_branches)], 1)


def block35() -> ResidualBlock:
    """At 35x35 in the paper."""
    third = [ConvNorm(256, 32, 1), ConvNorm(32, 32, 3, padding=1), ConvNorm(32, 32, 3, padding=1)]
    second = nn.Sequential(ConvNorm(256, 32, 1), ConvNorm(32, 32, 3, padding=1))
    return ResidualBlock(256, [ConvNorm(256, 32, 1), second, nn.Sequential(*third)], 96, scale=0.17)


def block17() -> ResidualBlock:
    """At 17x17."""
    second = nn.Sequential(
        ConvNorm(896, 128, 1),
        ConvNorm(128, 128, (1, 7), padding=(0, 3)),
        ConvNorm(128, 128, (7, 1), padding=(3, 0)),
    )
    return ResidualBlock(896, [ConvNorm(896, 128, 1), second], 256, scale=0.1)


def block8(scale: float = 0.2, active: bool = True) -> ResidualBlock:
    """At 8x8."""
    second = nn.Sequential(
        ConvNorm(1792, 192, 1),
        ConvNorm(192, 192, (1, 3), padding=(0, 1)),
        ConvNorm(192, 192, (3, 1), padding=(1, 0)),
    )
    return ResidualBlock(1792, [ConvNorm(1792, 192, 1), second], 384, scale, active)


def reduction_a() -> Reduction:
    """256 → 896 channels."""
    second = [ConvNorm(256, 192, 1), ConvNorm(192, 192, 3, padding=1), ConvNorm(192, 256, 3, stride=2)]
    return Reduction([ConvNorm(256, 384, 3, stride=2), nn.Sequential(*second)])


def reduction_b() -> Reduction:
    """896 → 1792 channels."""
    first = [ConvNorm(896, 256, 1), ConvNorm(256, 384, 3, stride=2)]
    second = [ConvNorm(896, 256, 1), ConvNorm(256, 256, 3, stride=2)]
    third = [ConvNorm(896, 256, 1), ConvNorm(256, 256, 3, padding=1), ConvNorm(256, 256, 3, stride=2)]
    return Reduction([nn.Sequential(*branch) for branch in (first, second, third)])


class InceptionResNetV1(nn.Module):
    """(B, channels, H, W) → (B, dim), not of unit length yet; H and W at least 75."""

    def __init__(self, dim: int, channels: int, dropout: float = 0.6) -> None:
        super().__init__()
        self.conv2d_1a = ConvNorm(channels, 32, 3, stride=2)
        self.conv2d_2a = ConvNorm(32, 32, 3)
        self.conv2d_2b = ConvNorm(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = ConvNorm(64, 80, 1)
        self.conv2d_4a = ConvNorm(80, 192, 3)
        self.conv2d_4b = ConvNorm(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(block35() for _ in range(5)))
        self.mixed_6a = reduction_a()
        self.repeat_2 = nn.Sequential(*(block17() for _ in range(10)))
        self.mixed_7a = reduction_b()
        self.repeat_3 = nn.Sequential(*(block8() for _ in range(5)))
        self.block8 = block8(scale=1.0, active=False)
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(1792, dim, bias=False)
        self.last_bn = nn.BatchNorm1d(dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool_3a(self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x))))
        x = self.repeat_1(self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(x))))
        x = self.repeat_2(self.mixed_6a(x))
        x = self.block8(self.repeat_3(self.mixed_7a(x)))
        return self.last_bn(self.last_linear(self.dropout(x.mean(dim=(2, 3)))))


def without_logits(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published weights but for the layer that told the people they were trained on."""
    return {name: value for name, value in state.items() if not name.startswith("logits.")}
