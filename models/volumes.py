"""The catalogue of networks for volumes.

- `voxnet`: Maturana and Scherer 2015 (https://www.ri.cmu.edu/pub_files/2015/9/voxnet_maturana_scherer_iros15.pdf), for
  cubes of 32 voxels: two convolutions, a pooling, two dense layers; at 40 classes the paper's 921,736 parameters.
- `resnet8_3d`: three residual blocks behind a first halving, and a mean over space, so that any size fits.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from data.parameters import Parameters
from models.catalogue import make_network
from models.standardised import Standardised, initialise

Architecture = Literal["voxnet", "resnet8_3d"]
LEAST_VOXELS = 11  # of VoxNet: what is left after its convolutions and its pooling is one voxel


class VoxNet(nn.Module):
    """(B, channels, S, S, S) → (B, num_classes) logits; S is 32 in the paper."""

    def __init__(self, num_classes: int, channels: int, input_voxels: int = 32) -> None:
        super().__init__()
        side = ((input_voxels - 5) // 2 + 1 - 2) // 2
        if side < 1:
            raise ValueError(f"voxnet needs crop_voxels of at least {LEAST_VOXELS}, got {input_voxels}")
        self.features = nn.Sequential(
            nn.Conv3d(channels, 32, 5, stride=2), nn.LeakyReLU(0.1), nn.Dropout(0.2),
            nn.Conv3d(32, 32, 3), nn.LeakyReLU(0.1), nn.MaxPool3d(2), nn.Dropout(0.3),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(32 * side**3, 128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, num_classes)
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class Block(nn.Module):
    """Two 3x3x3 convolutions around a shortcut: (B, C, D, H, W) → (B, C', D/stride, H/stride, W/stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(in_channels, channels, 3, stride, 1, bias=False), nn.BatchNorm3d(channels), nn.ReLU(),
            nn.Conv3d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm3d(channels),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != channels or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm3d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return (self.layers(x) + self.shortcut(x)).relu()


class VolumeResNet(nn.Module):
    """(B, channels, D, H, W) → (B, num_classes) logits."""

    def __init__(self, num_classes: int, channels: int, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Sequential(
            nn.Conv3d(channels, first, 3, 2, 1, bias=False), nn.BatchNorm3d(first), nn.ReLU()
        )
        self.blocks = nn.Sequential(Block(first, first, 1), Block(first, second, 2), Block(second, third, 2))
        self.head = nn.Linear(third, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3, 4)))


# name → builder(num_classes, channels, ...) of the bare network
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"voxnet": VoxNet, "resnet8_3d": VolumeResNet}
assert set(ARCHITECTURES) == set(get_args(Architecture))


class VolumeModel(Parameters):
    """Which network."""

    name: Architecture = Field(description="a network of the catalogue: ./convoy models list --catalogue")


def least_voxels(name: str) -> int:
    """Side of the smallest volumes that a network takes."""
    return LEAST_VOXELS if name == "voxnet" else 1


def arguments_of(name: str, crop_voxels: int) -> dict[str, Any]:
    """What the builder must be told beside classes and channels: VoxNet's dense layers are sized by its input."""
    return {"input_voxels": crop_voxels} if name == "voxnet" else {}


def build(
    name: str,
    num_classes: int,
    channels: int,
    arguments: dict[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Standardised:
    """A fresh network by its catalogue name; raises ValueError for a name or an argument that is not known."""
    net = make_network(ARCHITECTURES, name, num_classes=num_classes, channels=channels, **arguments)
    return Standardised(net, mean, std, 3)
