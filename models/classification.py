"""The catalogue of classification networks, and the module that wraps each with its normalisation."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from data.parameters import Parameters
from models.airnet import AirNet
from models.lenet import LeNet5
from models.resnet import CifarResNet, ResNet

Architecture = Literal[
    "lenet5",
    "airnet94",
    "airnet_narrow",
    "resnet8_cifar",
    "resnet20_cifar",
    "resnet56_cifar",
    "resnet18",
    "resnet34",
]

# name → builder(num_classes, channels, ...) of the bare network
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "airnet94": AirNet,
    "airnet_narrow": partial(AirNet, widths=(32, 128, 256)),
    "resnet8_cifar": partial(CifarResNet, depth=8),
    "resnet20_cifar": partial(CifarResNet, depth=20),
    "resnet56_cifar": partial(CifarResNet, depth=56),
    "resnet18": ResNet,
    "resnet34": partial(ResNet, blocks=(3, 4, 6, 3)),
}
assert set(ARCHITECTURES) == set(get_args(Architecture))


class ModelConfig(Parameters):
    """Which network."""

    name: Architecture = Field(description="a network of the catalogue: ./convoy models list --catalogue")


class Classifier(nn.Module):
    """A network with its input normalisation: uint8 pictures in, logits out.

    The channel statistics are buffers, so they travel inside the weights file and cannot be forgotten.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalise(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 → float32, zero mean and unit deviation over the training pixels."""
        x = images.to(torch.float32, memory_format=torch.channels_last)
        scale = 1 / (255 * self.std)
        return torch.addcmul(-self.mean / self.std, x, scale)  # one pass over the pixels

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.normalise(images))


def least_px(name: str) -> int:
    """Side of the smallest pictures that a network takes: what is left after its poolings is at least one pixel."""
    return 9 if name.startswith("airnet") else 1


def arguments_of(name: str, crop_px: int) -> dict[str, Any]:
    """What the builder must be told beside classes and channels: only LeNet-5 has dense layers sized by its input."""
    return {"input_px": crop_px} if name == "lenet5" else {}


def build(
    name: str,
    num_classes: int,
    channels: int,
    arguments: dict[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Classifier:
    """A fresh classifier by its catalogue name; raises ValueError for a name or an argument that is not known."""
    if name not in ARCHITECTURES:
        raise ValueError(f"model {name!r} is not in the catalogue; known: {', '.join(ARCHITECTURES)}")
    net = ARCHITECTURES[name](num_classes=num_classes, channels=channels, **arguments)
    return Classifier(net.to(memory_format=torch.channels_last), mean, std)  # type: ignore[call-overload]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float,
    partner_labels: Tensor | None = None,
    weights: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy in nats, in float32 whatever the autocast: (B, K), (B,) → scalar.

    Of mixed pictures: `weights` (B,) of it against `labels`, the rest against `partner_labels` (B,).
    `class_weights` (K,) multiply each sample's loss by that of its label; the mean is over samples, not over weights.
    """
    logits = logits.float()
    if (weights is None or partner_labels is None) and class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    own = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    if class_weights is not None:
        own = class_weights[labels] * own
    if weights is None or partner_labels is None:
        return own.mean()
    other = F.cross_entropy(logits, partner_labels, label_smoothing=label_smoothing, reduction="none")
    if class_weights is not None:
        other = class_weights[partner_labels] * other
    return (weights * own + (1 - weights) * other).mean()
