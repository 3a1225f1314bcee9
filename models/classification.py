"""The catalogue of classification networks, and the module that wraps each with its normalisation."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.airnet import AirNet
from models.alexnet import AlexNet
from models.catalogue import NetworkConfig, make_network
from models.efficientnet_lite import EfficientNetLite
from models.googlenet import GoogLeNet
from models.inception import InceptionV3
from models.lenet import LeNet5
from models.mobilenet import MobileNetV2
from models.nin import NetworkInNetwork
from models.overfeat import OverFeatCourse
from models.resnet import CifarResNet, ResNet
from models.sides import WithSides, is_side
from models.squeezenet import SqueezeNet
from models.stages import parameters_of, run_stages, stages_of
from models.vgg import VGG

Architecture = Literal[
    "lenet5",
    "lenet5_course",
    "overfeat_course",
    "airnet94",
    "airnet_narrow",
    "alexnet",
    "alexnet_2012",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "plain20_cifar",
    "plain32_cifar",
    "plain44_cifar",
    "plain56_cifar",
    "plain110_cifar",
    "plain18",
    "plain34",
    "resnet8_cifar",
    "resnet20_cifar",
    "resnet32_cifar",
    "resnet44_cifar",
    "resnet56_cifar",
    "resnet110_cifar",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "nin",
    "googlenet",
    "googlenet_2014",
    "inception_v3",
    "squeezenet1_0",
    "squeezenet1_1",
    "mobilenet_v2",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
]

# name → builder(num_classes, channels, ...) of the bare network
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "lenet5_course": partial(LeNet5, widths=(8, 16)),
    "overfeat_course": OverFeatCourse,
    "airnet94": AirNet,
    "airnet_narrow": partial(AirNet, widths=(32, 128, 256)),
    "alexnet": AlexNet,
    "alexnet_2012": partial(AlexNet, original=True),
    "vgg11": partial(VGG, depth=11),
    "vgg11_bn": partial(VGG, depth=11, batch_norm=True),
    "vgg13": partial(VGG, depth=13),
    "vgg13_bn": partial(VGG, depth=13, batch_norm=True),
    "vgg16": partial(VGG, depth=16),
    "vgg16_bn": partial(VGG, depth=16, batch_norm=True),
    "vgg19": partial(VGG, depth=19),
    "vgg19_bn": partial(VGG, depth=19, batch_norm=True),
    "plain20_cifar": partial(CifarResNet, depth=20, shortcut="none"),
    "plain32_cifar": partial(CifarResNet, depth=32, shortcut="none"),
    "plain44_cifar": partial(CifarResNet, depth=44, shortcut="none"),
    "plain56_cifar": partial(CifarResNet, depth=56, shortcut="none"),
    "plain110_cifar": partial(CifarResNet, depth=110, shortcut="none"),
    "plain18": partial(ResNet, plain=True),
    "plain34": partial(ResNet, blocks=(3, 4, 6, 3), plain=True),
    "resnet8_cifar": partial(CifarResNet, depth=8),
    "resnet20_cifar": partial(CifarResNet, depth=20),
    "resnet32_cifar": partial(CifarResNet, depth=32),
    "resnet44_cifar": partial(CifarResNet, depth=44),
    "resnet56_cifar": partial(CifarResNet, depth=56),
    "resnet110_cifar": partial(CifarResNet, depth=110),
    "resnet18": ResNet,
    "resnet34": partial(ResNet, blocks=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
    "resnet101": partial(ResNet, blocks=(3, 4, 23, 3), bottleneck=True),
    "resnet152": partial(ResNet, blocks=(3, 8, 36, 3), bottleneck=True),
    "nin": NetworkInNetwork,
    "googlenet": GoogLeNet,
    "googlenet_2014": partial(GoogLeNet, original=True),
    "inception_v3": InceptionV3,
    "squeezenet1_0": SqueezeNet,
    "squeezenet1_1": partial(SqueezeNet, small=True),
    "mobilenet_v2": MobileNetV2,
    "efficientnet_lite0": EfficientNetLite,
    "efficientnet_lite1": partial(EfficientNetLite, depth=1.1),
    "efficientnet_lite2": partial(EfficientNetLite, width=1.1, depth=1.2, dropout=0.3),
}
assert set(ARCHITECTURES) == set(get_args(Architecture))

# start of the names → side of the smallest pictures, where that is more than 1; the first that fits counts
LEAST_PX = {
    "lenet5": 16,
    "overfeat_course": 6,
    "airnet": 9,
    "alexnet_2012": 67,
    "alexnet": 63,
    "vgg": 32,
    "nin": 4,
    "googlenet": 15,
    "inception_v3": 75,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
}

SIZED_BY_INPUT = ("lenet5", "lenet5_course", "overfeat_course")  # their dense layers are
WITH_SIDES = ("googlenet", "googlenet_2014", "inception_v3")


class ModelConfig(NetworkConfig):
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
        W, C = x.shape[3], x.shape[1]
        scale, shift = 1 / (255 * self.std), -self.mean / self.std
        # In rows of W * C numbers: along the three channels of a pixel alone, addcmul takes twice as long.
        rows = x.permute(0, 2, 3, 1).flatten(2)
        rows = torch.addcmul(shift.flatten().repeat(W), rows, scale.flatten().repeat(W))
        return rows.unflatten(2, (W, C)).permute(0, 3, 1, 2)

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
        return run_stages(stages_of(self.net)[:num_stages], self.normalise(images))

    def forward(self, images: Tensor) -> Tensor | WithSides:
        if not self.reads_features:
            return self.net(self.normalise(images))
        x = images if images.ndim < 4 else images.contiguous(memory_format=torch.channels_last)
        return run_stages(stages_of(self.net)[self.num_frozen :], x)


def least_px(name: str) -> int:
    """Side of the smallest pictures that a network takes: what is left after its poolings is at least one pixel."""
    return next((px for start, px in LEAST_PX.items() if name.startswith(start)), 1)


def usual_px(name: str) -> int:
    """Side of the pictures that a network was made for."""
    if name == "overfeat_course":
        return 14
    small = name.endswith("_cifar") or name.startswith(("lenet", "airnet", "nin"))
    return 32 if small else {"inception_v3": 299, "alexnet_2012": 227}.get(name, 224)


def arguments_of(name: str, crop_px: int) -> dict[str, Any]:
    """What the builder must be told beside classes and channels: the side of the input, where dense layers are
    sized by it."""
    return {"input_px": crop_px} if name in SIZED_BY_INPUT else {}


def saved_arguments_of(name: str, crop_px: int) -> dict[str, Any]:
    """What the builder must be told for the network that is kept: prediction has no use for side branches."""
    return arguments_of(name, crop_px) | ({"sides": False} if name in WITH_SIDES else {})


def without_sides(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's state dict but for its side branches."""
    return {name: value for name, value in state.items() if not is_side(name.removeprefix("net."))}


def build(
    name: str,
    num_classes: int,
    channels: int,
    arguments: dict[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Classifier:
    """A fresh classifier by its catalogue name; raises ValueError for a name or an argument that is not known."""
    net = make_network(ARCHITECTURES, name, num_classes=num_classes, channels=channels, **arguments)
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
