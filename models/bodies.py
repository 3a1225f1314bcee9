"""Bodies of detectors: networks that give maps of features at strides 8, 16 and 32, without a head.

`PlainBody` is made to be trained from nothing on a few cores: ordinary 3x3 convolutions, which a CPU computes at
several times the rate of depthwise ones, in residual blocks (He et al. 2015). The others are networks of the
classification catalogue without their heads, whose published weights fit (`load_body`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.classification import ARCHITECTURES
from models.efficientnet_lite import EfficientNetLite
from models.mobilenet import MobileNetV2
from models.resnet import ResNet

STRIDES = (8, 16, 32)
PLAIN: dict[
    str, tuple[tuple[int, ...], tuple[int, ...]]
] = {  # widths at strides 2, 4, 8, 16, 32, and residual blocks
    "plain_tiny": ((8, 16, 32, 48, 64), (0, 0, 1, 1, 1)),
    "plain_small": ((16, 32, 64, 128, 192), (0, 1, 2, 2, 1)),
    "plain_medium": ((24, 48, 96, 192, 288), (0, 1, 2, 3, 2)),
}
FROM_CLASSIFIERS = ("efficientnet_lite0", "mobilenet_v2", "resnet18", "resnet34", "resnet50")


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, ReLU: (B, C, H, W) → (B, C', ⌈H / stride⌉, ⌈W / stride⌉)."""

    def __init__(self, ins: int, outs: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outs, momentum=0.03),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input is added: (B, C, H, W) → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(channels, channels), ConvNorm(channels, channels, relu=False)
        norm = self.second[1]
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.zeros_(norm.weight)  # a block begins as the identity

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class PlainBody(nn.Module):
    """(B, channels, H, W) → maps (B, C, H / s, W / s) at s = 8, 16, 32."""

    def __init__(self, channels: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        stages, ins = [], channels
        for width, depth in zip(widths, depths, strict=True):
            stages.append(
                nn.Sequential(ConvNorm(ins, width, stride=2), *(Residual(width) for _ in range(depth)))
            )
            ins = width
        self.stages = nn.ModuleList(stages)
        self.widths = tuple(widths[-len(STRIDES) :])

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[-len(STRIDES) :]


class ClassifierBody(nn.Module):
    """A network of the classification catalogue without its head, in the same form."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.net = ARCHITECTURES[name](num_classes=1, channels=channels)
        for module in HEADS[type(self.net)]:
            self.net.set_submodule(module, nn.Identity())
        with torch.no_grad():
            self.net.eval()
            self.widths = tuple(each.shape[1] for each in self(torch.zeros(1, channels, 64, 64)))
            self.net.train()

    def forward(self, x: Tensor) -> list[Tensor]:
        return MAPS[type(self.net)](self.net, x)


def _efficientnet_maps(net: EfficientNetLite, x: Tensor) -> list[Tensor]:
    ends = net.group_ends
    c3 = net.run_blocks(net.stem(x), 0, ends[2])
    c4 = net.run_blocks(c3, ends[2], ends[4])
    return [c3, c4, net.run_blocks(c4, ends[4], ends[6])]


def _mobilenet_maps(net: MobileNetV2, x: Tensor) -> list[Tensor]:
    c3 = net.features[:7](x)
    c4 = net.features[7:14](c3)
    return [c3, c4, net.features[14:18](c4)]


def _resnet_maps(net: ResNet, x: Tensor) -> list[Tensor]:
    c3 = net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x))))))
    c4 = net.layer3(c3)
    return [c3, c4, net.layer4(c4)]


MAPS: dict[type[nn.Module], Callable[..., list[Tensor]]] = {
    EfficientNetLite: _efficientnet_maps,
    MobileNetV2: _mobilenet_maps,
    ResNet: _resnet_maps,
}
HEADS: dict[type[nn.Module], tuple[str, ...]] = {  # modules that no map needs
    EfficientNetLite: ("_conv_head", "_bn1", "_dropout", "_fc"),
    MobileNetV2: ("features.18", "classifier"),
    ResNet: ("avgpool", "fc"),
}
BODIES = (*PLAIN, *FROM_CLASSIFIERS)


def make_body(name: str, channels: int) -> PlainBody | ClassifierBody:
    """A body by name; raises ValueError naming those that there are."""
    if name in PLAIN:
        return PlainBody(channels, *PLAIN[name])
    if name in FROM_CLASSIFIERS:
        return ClassifierBody(name, channels)
    raise ValueError(f"no body {name!r}; known: {', '.join(BODIES)}")


def load_body(body: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Put published weights of a whole classifier into a body, but for its head.

    Raises ValueError where one is missing or of another shape.
    """
    if not isinstance(body, ClassifierBody):
        raise ValueError(
            f"transfer.weights (={source}) need a body of the classification catalogue: set model.body to one of "
            f"{', '.join(FROM_CLASSIFIERS)}"
        )
    own = body.net.state_dict()
    given = {name: value for name, value in state.items() if name in own}
    given |= {name: own[name] for name in own if name.endswith("num_batches_tracked") and name not in given}
    faults = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if faults:
        raise ValueError(
            f"transfer.weights (={source}) do not fit {type(body.net).__name__}: {len(faults)} of {len(own)} tensors "
            f"are missing or of another shape, as {', '.join(faults[:4])}; set model.body to the network they are of"
        )
    body.net.load_state_dict(given, strict=True)
