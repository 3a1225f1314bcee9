"""Bodies of detectors: networks that give maps of features at strides 8, 16 and 32, without a head.

`PlainBody` is made to be trained from nothing on a few cores: ordinary 3x3 convolutions, which a CPU computes at
several times the rate of depthwise ones, in residual blocks (He et al. 2015). The others are networks of the
classification catalogue without their heads, whose published weights fit (`load_body`).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.classification import ARCHITECTURES
from models.efficientnet_lite import EfficientNetLite
from models.mobilenet import MobileNetV2
from models.resnet import ResNet

STRIDES = (8, 16, 32)
SLOPE = 0.1  # of leaky ReLU
# widths at strides 2, 4, 8, 16, 32, and residual blocks
PLAIN: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "plain_tiny": ((8, 16, 32, 48, 64), (0, 0, 1, 1, 1)),
    "plain_small": ((16, 32, 64, 128, 192), (0, 1, 2, 2, 1)),
    "plain_medium": ((24, 48, 96, 192, 288), (0, 1, 2, 3, 2)),
}
FROM_CLASSIFIERS = ("efficientnet_lite0", "mobilenet_v2", "resnet18", "resnet34", "resnet50")


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, leaky ReLU: (B, C, H, W) → (B, C', ⌈H / stride⌉, ⌈W / stride⌉).

    Leaky, as in Darknet: under a plain one a head's features can be 0 wherever there is an object, and no gradient
    brings them back.
    """

    def __init__(self, ins: int, outs: int, kernel: int = 3, stride: int = 1, active: bool = True) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outs, momentum=0.03),
        ]
        super().__init__(*layers, *([nn.LeakyReLU(SLOPE, inplace=True)] if active else []))


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input is added: (B, C, H, W) → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(channels, channels), ConvNorm(channels, channels, active=False)
        norm = self.second[1]
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.zeros_(norm.weight)  # a block begins as the identity

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.second(self.first(x)), SLOPE)


class PlainBody(nn.Module):
    """(B, channels, H, W) → maps (B, C, H / s, W / s) at the first `num_maps` of s = 8, 16, 32."""

    def __init__(self, channels: int, widths: Sequence[int], depths: Sequence[int], num_maps: int) -> None:
        super().__init__()
        stages, ins = [], channels
        for width, depth in zip(widths[: 2 + num_maps], depths, strict=False):  # strides 2 and 4 come first
            blocks = (Residual(width) for _ in range(depth))
            stages.append(nn.Sequential(ConvNorm(ins, width, stride=2), *blocks))
            ins = width
        self.stages = nn.ModuleList(stages)
        self.widths = tuple(widths[2 : 2 + num_maps])

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[2:]


@dataclass(frozen=True)
class Part:
    """What leads from one map to the next: how, and the modules that it needs."""

    run: Callable[[Tensor], Tensor]
    modules: tuple[str, ...]


class ClassifierBody(nn.Module):
    """A network of the classification catalogue without its head and what comes after the last map."""

    def __init__(self, name: str, channels: int, num_maps: int) -> None:
        super().__init__()
        self.net = ARCHITECTURES[name](num_classes=1, channels=channels)
        self.num_maps = num_maps
        needed = [module for part in self.parts() for module in part.modules]
        for path, module in list(self.net.named_modules()):
            kept = any(
                path == one or path.startswith(f"{one}.") or one.startswith(f"{path}.") for one in needed
            )
            if path and not kept and list(module.parameters()):
                self.net.set_submodule(path, nn.Identity())
        with torch.no_grad():
            self.net.eval()
            self.widths = tuple(each.shape[1] for each in self(torch.zeros(1, channels, 64, 64)))
            self.net.train()

    def parts(self) -> list[Part]:
        """Up to each of its maps."""
        return PARTS[type(self.net)](self.net)[: self.num_maps]

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for part in self.parts():
            x = part.run(x)
            maps.append(x)
        return maps


def _of_efficientnet(net: EfficientNetLite) -> list[Part]:
    def first(x: Tensor) -> Tensor:
        return net.run_blocks(net.stem(x), 0, bounds[1])

    bounds = [0, net.group_ends[2], net.group_ends[4], net.group_ends[6]]
    names = [tuple(f"_blocks.{block}" for block in range(*pair)) for pair in itertools.pairwise(bounds)]
    later = [Part(partial(net.run_blocks, first=bounds[i], end=bounds[i + 1]), names[i]) for i in (1, 2)]
    return [Part(first, ("_conv_stem", "_bn0", *names[0])), *later]


def _of_mobilenet(net: MobileNetV2) -> list[Part]:
    bounds = itertools.pairwise([0, 7, 14, 18])
    return [
        Part(net.features[first:end], tuple(f"features.{i}" for i in range(first, end)))
        for first, end in bounds
    ]


def _of_resnet(net: ResNet) -> list[Part]:
    def stem(x: Tensor) -> Tensor:
        return net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x))))))

    first = Part(stem, ("conv1", "bn1", "layer1", "layer2"))
    return [first, Part(net.layer3, ("layer3",)), Part(net.layer4, ("layer4",))]


PARTS: dict[type[nn.Module], Callable[..., list[Part]]] = {
    EfficientNetLite: _of_efficientnet,
    MobileNetV2: _of_mobilenet,
    ResNet: _of_resnet,
}
BODIES = (*PLAIN, *FROM_CLASSIFIERS)


def make_body(name: str, channels: int, num_maps: int = len(STRIDES)) -> PlainBody | ClassifierBody:
    """A body by name, with the first `num_maps` of `STRIDES`; raises ValueError naming those that there are."""
    if name in PLAIN:
        return PlainBody(channels, *PLAIN[name], num_maps)
    if name in FROM_CLASSIFIERS:
        return ClassifierBody(name, channels, num_maps)
    raise ValueError(f"no body {name!r}; known: {', '.join(BODIES)}")


def load_body(body: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Put published weights of a whole classifier into a body, but for its head.

    Raises ValueError where one is missing or of another shape.
    """
    if isinstance(body, PlainBody):
        raise ValueError(
            f"transfer.weights (={source}) need a body of the classification catalogue: set model.body to one of "
            f"{', '.join(FROM_CLASSIFIERS)}"
        )
    net = body.net if isinstance(body, ClassifierBody) else body
    own = net.state_dict()
    given = {name: value for name, value in state.items() if name in own}
    given |= {name: own[name] for name in own if name.endswith("num_batches_tracked") and name not in given}
    faults = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if faults:
        raise ValueError(
            f"transfer.weights (={source}) do not fit {type(net).__name__}: {len(faults)} of {len(own)} tensors "
            f"are missing or of another shape, as {', '.join(faults[:4])}; set model.body to the network they are of"
        )
    net.load_state_dict(given, strict=True)
