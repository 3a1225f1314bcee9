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
from models.efficientnet_lite import EfficientNetLite
from models.lenet import LeNet5
from models.resnet import CifarResNet, ResNet
from models.stages import parameters_of, stages_of

Architecture = Literal[
    "lenet5",
    "airnet94",
    "airnet_narrow",
    "resnet8_cifar",
    "resnet20_cifar",
    "resnet56_cifar",
    "resnet18",
    "resnet34",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
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
    "efficientnet_lite0": EfficientNetLite,
    "efficientnet_lite1": partial(EfficientNetLite, depth=1.1),
    "efficientnet_lite2": partial(EfficientNetLite, width=1.1, depth=1.2, dropout=0.3),
}
assert set(ARCHITECTURES) == set(get_args(Architecture))


class ModelConfig(Parameters):
    """Which network."""

    name: Architecture = Field(description="a network of the catalogue: ./convoy models list --catalogue")


class Classifier(nn.Module):
    """A network with its input normalisation: uint8 pictures in, logits out.

    The channel statistics are buffers, so they travel inside the weights file and cannot be forgotten. Its first
    `num_frozen` stages (models.stages) are not trained: no gradient, and their norms and dropout stay in evaluation
    mode. Where `reads_features` is set, it takes what those stages would give instead of pictures.
    """

    mean: Tensor
    std: Tensor
    num_frozen: int = 0
    reads_features: bool = False
    body_lr_factor: float = 1.0  # rates of what is trained before the head, relative to the head's

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

    def freeze(self, num_frozen: int) -> None:
        """Do not train the first `num_frozen` stages."""
        self.num_frozen = num_frozen
        frozen = parameters_of(self.net, stages_of(self.net)[:num_frozen])
        for name, parameter in self.net.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if self.num_frozen:
            for stage in stages_of(self.net)[: self.num_frozen]:
                for name in stage.modules:
                    self.net.get_submodule(name).eval()
        return self

    def rate_factors(self) -> dict[str, float]:
        """Factors of learning rates by the names of parameters; of those that are not listed it is one."""
        if self.body_lr_factor == 1:
            return {}
        body = parameters_of(self.net, stages_of(self.net)[:-1])
        return {f"net.{name}": self.body_lr_factor for name in body}

    def features(self, images: Tensor, num_stages: int) -> Tensor:
        """(B, C, H, W) uint8 → what the first `num_stages` stages give."""
        x = self.normalise(images)
        for stage in stages_of(self.net)[:num_stages]:
            x = stage.run(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        if not self.reads_features:
            return self.net(self.normalise(images))
        x = images if images.ndim < 4 else images.contiguous(memory_format=torch.channels_last)
        for stage in stages_of(self.net)[self.num_frozen :]:
            x = stage.run(x)
        return x


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
) -> Tensor:
    """Mean cross-entropy in nats, in float32 whatever the autocast: (B, K), (B,) → scalar.

    Of mixed pictures: `weights` (B,) of it against `labels`, the rest against `partner_labels` (B,).
    """
    logits = logits.float()
    if weights is None or partner_labels is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    own = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    other = F.cross_entropy(logits, partner_labels, label_smoothing=label_smoothing, reduction="none")
    return (weights * own + (1 - weights) * other).mean()
