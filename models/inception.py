"""Inception-v3 (Szegedy et al. 2015, https://arxiv.org/abs/1512.00567), torchvision's layout and keys.

27,161,264 parameters at 1,000 classes, 23,834,568 without its side branch, whose loss weighs 0.4 in training only.
Deviation: fresh dense layers begin at a deviation of 0.01, where torchvision's last one has 0.1.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.googlenet import ConvNorm
from models.sides import WithSides

SIDE_WEIGHT = 0.4
ROW: dict[str, Any] = {"kernel_px": (1, 7), "padding": (0, 3)}
COLUMN: dict[str, Any] = {"kernel_px": (7, 1), "padding": (3, 0)}


def pooled(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1)


class InceptionA(nn.Module):
    """1x1, 5x5, two 3x3, pooling: (B, C, H, W) → (B, 224 + pool, H, W)."""

    def __init__(self, ins: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(ins, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = ConvNorm(ins, 48, 1), ConvNorm(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvNorm(ins, 64, 1), ConvNorm(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, padding=1)
        self.branch_pool = ConvNorm(ins, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(pooled(x))], 1)


class InceptionB(nn.Module):
    """Halves the sides: (B, 288, H, W) → (B, 768, H', W')."""

    def __init__(self, ins: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNorm(ins, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvNorm(ins, 64, 1), ConvNorm(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionC(nn.Module):
    """7x7 filters as rows and columns: (B, 768, H, W) → the same."""

    def __init__(self, ins: int, narrow: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(ins, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = ConvNorm(ins, narrow, 1), ConvNorm(narrow, narrow, **ROW)
        self.branch7x7_3 = ConvNorm(narrow, 192, **COLUMN)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = (
            ConvNorm(ins, narrow, 1),
            ConvNorm(narrow, narrow, **COLUMN),
        )
        self.branch7x7dbl_3, self.branch7x7dbl_4 = (
            ConvNorm(narrow, narrow, **ROW),
            ConvNorm(narrow, narrow, **COLUMN),
        )
        self.branch7x7dbl_5 = ConvNorm(narrow, 192, **ROW)
        self.branch_pool = ConvNorm(ins, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(pooled(x))], 1)


class InceptionD(nn.Module):
    """Halves the sides: (B, 768, H, W) → (B, 1280, H', W')."""

    def __init__(self, ins: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = ConvNorm(ins, 192, 1), ConvNorm(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = ConvNorm(ins, 192, 1), ConvNorm(192, 192, **ROW)
        self.branch7x7x3_3, self.branch7x7x3_4 = ConvNorm(192, 192, **COLUMN), ConvNorm(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionE(nn.Module):
    """3x3 filters split into a row and a column side by side: (B, C, H, W) → (B, 2048, H, W)."""

    def __init__(self, ins: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(ins, 320, 1)
        self.branch3x3_1 = ConvNorm(ins, 384, 1)
        self.branch3x3_2a = ConvNorm(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvNorm(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvNorm(ins, 448, 1), ConvNorm(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvNorm(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvNorm(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvNorm(ins, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        split = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        split += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *split, self.branch_pool(pooled(x))], 1)


class Side(nn.Module):
    """The side branch: (B, 768, H, W) → (B, num_classes) logits.

    torchvision pools 5x5 with stride 3 at 299 px (17x17 → 5x5); here to 5x5 from any size, so that small pictures fit.
    """

    def __init__(self, ins: int, num_classes: int) -> None:
        super().__init__()
        self.conv0 = ConvNorm(ins, 128, 1)
        self.conv1 = ConvNorm(128, 768, 5)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 5, stride=3) if x.shape[-1] >= 17 else F.adaptive_avg_pool2d(x, 5)
        return self.fc(self.conv1(self.conv0(x)).mean(dim=(2, 3)))


class InceptionV3(nn.Module):
    """(B, channels, H, W) → (B, num_classes) logits, in training WithSides; H and W at least 75, 299 in the paper."""

    def __init__(self, num_classes: int, channels: int, sides: bool = True) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(channels, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (
            InceptionA(192, 32),
            InceptionA(256, 64),
            InceptionA(288, 64),
        )
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b, self.Mixed_6c = InceptionC(768, 128), InceptionC(768, 160)
        self.Mixed_6d, self.Mixed_6e = InceptionC(768, 160), InceptionC(768, 192)
        self.AuxLogits = Side(768, num_classes) if sides else None
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b, self.Mixed_7c = InceptionE(1280), InceptionE(2048)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2048, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, 0, 0.1 if isinstance(module, nn.Conv2d) else 0.01)

    def forward(self, x: Tensor) -> Tensor | WithSides:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        middle = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(middle)))
        logits = self.fc(self.dropout(x.mean(dim=(2, 3))))
        if self.training and self.AuxLogits is not None:
            return WithSides(logits, (self.AuxLogits(middle),), (SIDE_WEIGHT,))
        return logits
