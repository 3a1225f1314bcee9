"""The stages of each classification network, from its input to its head: what transfer learning freezes and caches.

A network is the composition of its stages: `run` of each, one after the other, is its forward pass. The last stage is
the head, which depends on the number of classes. Other networks fall back to their children in the order in which they
were made; that this is their forward pass is checked before features are taken from them (`require_composed`).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.airnet import LOGIT_SCALE, AirNet
from models.alexnet import AlexNet
from models.efficientnet_lite import EfficientNetLite
from models.googlenet import GoogLeNet
from models.inception import InceptionV3
from models.lenet import LeNet5
from models.mobilenet import STAGES as GROUPS
from models.mobilenet import MobileNetV2
from models.nin import NetworkInNetwork
from models.overfeat import OverFeatCourse
from models.resnet import CifarResNet, ResNet
from models.squeezenet import SqueezeNet
from models.vgg import VGG

RTOL, ATOL = 1e-3, 1e-4  # float32, whatever kernels two ways of calling choose


@dataclass(frozen=True)
class Stage:
    """A part of a network."""

    name: str
    modules: tuple[str, ...]  # dotted names of the sub-modules that belong to it
    run: Callable[[Tensor], Tensor]


def of_efficientnet_lite(net: EfficientNetLite) -> list[Stage]:
    stages, first = [Stage("stem", ("_conv_stem", "_bn0"), net.stem)], 0
    for number, end in enumerate(net.group_ends):
        names = tuple(f"_blocks.{block}" for block in range(first, end))
        stages.append(Stage(f"group{number + 1}", names, partial(net.run_blocks, first=first, end=end)))
        first = end
    stages.append(Stage("pool", ("_conv_head", "_bn1"), net.pool))
    return [*stages, Stage("head", ("_dropout", "_fc"), net.head)]


def of_resnet(net: ResNet) -> list[Stage]:
    def stem(x: Tensor) -> Tensor:
        return net.maxpool(net.relu(net.bn1(net.conv1(x))))

    def last(x: Tensor) -> Tensor:
        return torch.flatten(net.avgpool(net.layer4(x)), 1)

    return [
        Stage("stem", ("conv1", "bn1"), stem),
        Stage("layer1", ("layer1",), net.layer1),
        Stage("layer2", ("layer2",), net.layer2),
        Stage("layer3", ("layer3",), net.layer3),
        Stage("layer4", ("layer4",), last),
        Stage("head", ("fc",), net.fc),
    ]


def of_cifar_resnet(net: CifarResNet) -> list[Stage]:
    """Three groups, by the width of their maps."""
    size = len(net.layers) // 3

    def stem(x: Tensor) -> Tensor:
        return net.relu(net.bn1(net.conv1(x)))

    def group(x: Tensor, number: int) -> Tensor:
        x = net.layers[number * size : (number + 1) * size](x)
        return x.mean(dim=(2, 3)) if number == 2 else x

    names = [tuple(f"layers.{i}" for i in range(number * size, (number + 1) * size)) for number in range(3)]
    groups = [Stage(f"group{n + 1}", names[n], partial(group, number=n)) for n in range(3)]
    return [Stage("stem", ("conv1", "bn1"), stem), *groups, Stage("head", ("fc",), net.fc)]


def of_airnet(net: AirNet) -> list[Stage]:
    def group(x: Tensor, number: int) -> Tensor:
        x = net.groups[number](x)
        return x.amax(dim=(2, 3)) if number == len(net.groups) - 1 else x

    groups = [
        Stage(f"group{n + 1}", (f"groups.{n}",), partial(group, number=n)) for n in range(len(net.groups))
    ]
    return [
        Stage("whiten", ("whiten",), lambda x: F.gelu(net.whiten(x))),
        *groups,
        Stage("head", ("head",), lambda x: net.head(x) * LOGIT_SCALE),
    ]


def of_lenet(net: LeNet5) -> list[Stage]:
    def names(kind: str, first: int, end: int) -> tuple[str, ...]:
        return tuple(f"{kind}.{i}" for i in range(first, end))

    return [
        Stage("conv1", names("features", 0, 3), net.features[:3]),
        Stage("conv2", names("features", 3, 6), lambda x: torch.flatten(net.features[3:](x), 1)),
        Stage("dense1", names("classifier", 0, 2), net.classifier[:2]),
        Stage("dense2", names("classifier", 2, 4), net.classifier[2:4]),
        Stage("head", names("classifier", 4, 5), net.classifier[4]),
    ]


def of_overfeat(net: OverFeatCourse) -> list[Stage]:
    return [
        Stage("conv", ("features",), lambda x: torch.flatten(net.features(x), 1)),
        Stage("dense1", ("classifier.0",), net.classifier[:2]),
        Stage("dense2", ("classifier.2",), net.classifier[2:4]),
        Stage("head", ("classifier.4",), net.classifier[4]),
    ]


def cut_after_pools(features: nn.Sequential, end: int) -> list[Stage]:
    """The first `end` modules of `features`, a stage up to each pooling."""
    pools = [i + 1 for i in range(end) if isinstance(features[i], nn.MaxPool2d)]
    bounds = sorted({0, *pools, end})
    return [
        Stage(f"block{number}", tuple(f"features.{i}" for i in range(first, last)), features[first:last])
        for number, (first, last) in enumerate(itertools.pairwise(bounds), start=1)
    ]


def then(stage: Stage, after: Callable[[Tensor], Tensor], *modules: str) -> Stage:
    """The stage with more behind it."""
    return Stage(stage.name, (*stage.modules, *modules), lambda x: after(stage.run(x)))


def of_dense(net: AlexNet | VGG) -> list[Stage]:
    """Convolutions up to each pooling, then the three dense layers."""
    *blocks, last = cut_after_pools(net.features, len(net.features))
    dense = [
        Stage(name, tuple(f"classifier.{i}" for i in range(first, end)), net.classifier[first:end])
        for name, first, end in (("dense1", 0, 3), ("dense2", 3, 6), ("head", 6, len(net.classifier)))
    ]
    return [*blocks, then(last, lambda x: torch.flatten(net.avgpool(x), 1), "avgpool"), *dense]


def of_nin(net: NetworkInNetwork) -> list[Stage]:
    """The head is the last convolution, which has a map for each class."""
    last = max(i for i, module in enumerate(net.features) if isinstance(module, nn.Conv2d))
    names = tuple(f"features.{i}" for i in range(last, len(net.features)))
    head = Stage("head", names, lambda x: net.features[last:](x).mean(dim=(2, 3)))
    return [*cut_after_pools(net.features, last), head]


def of_squeezenet(net: SqueezeNet) -> list[Stage]:
    head = Stage("head", ("classifier",), lambda x: torch.flatten(net.classifier(x), 1))
    return [*cut_after_pools(net.features, len(net.features)), head]


def of_mobilenet(net: MobileNetV2) -> list[Stage]:
    """The stem, the seven groups of the paper's table, the last convolution."""
    bounds = [0, *itertools.accumulate((num for _, _, num, _ in GROUPS), initial=1), len(net.features)]
    names = ["stem", *(f"group{i}" for i in range(1, len(GROUPS) + 1)), "pool"]
    *groups, last = [
        Stage(name, tuple(f"features.{i}" for i in range(first, end)), net.features[first:end])
        for name, (first, end) in zip(names, itertools.pairwise(bounds), strict=True)
    ]
    return [*groups, then(last, lambda x: x.mean(dim=(2, 3))), Stage("head", ("classifier",), net.classifier)]


def of_names(
    net: nn.Module, table: Sequence[tuple[str, Sequence[str], Callable[[Tensor], Tensor] | None]]
) -> list[Stage]:
    """A stage a row: its name, its modules one after the other, and what is done before them."""

    def run(x: Tensor, modules: Sequence[str], before: Callable[[Tensor], Tensor] | None) -> Tensor:
        x = before(x) if before else x
        for module in modules:
            x = net.get_submodule(module)(x)
        return x

    return [
        Stage(name, tuple(modules), partial(run, modules=modules, before=before))
        for name, modules, before in table
    ]


def with_sides(stages: list[Stage], net: nn.Module, *sides: str) -> list[Stage]:
    """Side branches belong to the head: they are of its classes, and are not run in evaluation."""
    head = stages[-1]
    there = tuple(name for name in sides if getattr(net, name) is not None)
    return [*stages[:-1], Stage(head.name, (*head.modules, *there), head.run)]


def mean_over_places(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3))


def of_googlenet(net: GoogLeNet) -> list[Stage]:
    def pool(x: Tensor, size: int) -> Tensor:
        return F.max_pool2d(x, size, 2, ceil_mode=True)

    three, two = partial(pool, size=3), partial(pool, size=2)
    table = [
        ("conv1", ["conv1"], None),
        ("conv2", ["conv2", "conv3"], three),
        ("inception3", ["inception3a", "inception3b"], three),
        ("inception4", [f"inception4{letter}" for letter in "abcde"], three),
        ("inception5", ["inception5a", "inception5b"], two),
        ("head", ["dropout", "fc"], mean_over_places),
    ]
    return with_sides(of_names(net, table), net, "aux1", "aux2")


def of_inception(net: InceptionV3) -> list[Stage]:
    pool = partial(F.max_pool2d, kernel_size=3, stride=2)
    table = [
        ("stem", ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"], None),
        ("conv", ["Conv2d_3b_1x1", "Conv2d_4a_3x3"], pool),
        ("mixed5", [f"Mixed_5{letter}" for letter in "bcd"], pool),
        ("mixed6", [f"Mixed_6{letter}" for letter in "abcde"], None),
        ("mixed7", [f"Mixed_7{letter}" for letter in "abc"], None),
        ("head", ["dropout", "fc"], mean_over_places),
    ]
    return with_sides(of_names(net, table), net, "AuxLogits")


def of_children(net: nn.Module) -> list[Stage]:
    """Each child a stage; what has no parameters goes with the child before it, so that the last one is the head."""
    stages: list[Stage] = []
    for name, child in net.named_children():
        if stages and not list(child.parameters()):
            before = stages.pop()
            both = nn.Sequential(*(net.get_submodule(n) for n in before.modules), child)
            stages.append(Stage(before.name, (*before.modules, name), both))
        else:
            stages.append(Stage(name, (name,), child))
    return stages


STAGES: dict[type[nn.Module], Callable[..., list[Stage]]] = {
    EfficientNetLite: of_efficientnet_lite,
    ResNet: of_resnet,
    CifarResNet: of_cifar_resnet,
    AirNet: of_airnet,
    LeNet5: of_lenet,
    OverFeatCourse: of_overfeat,
    AlexNet: of_dense,
    VGG: of_dense,
    NetworkInNetwork: of_nin,
    SqueezeNet: of_squeezenet,
    MobileNetV2: of_mobilenet,
    GoogLeNet: of_googlenet,
    InceptionV3: of_inception,
}


def stages_of(net: nn.Module) -> list[Stage]:
    """The stages of a bare network, from input to head; raises ValueError if it has no two."""
    stages = STAGES.get(type(net), of_children)(net)
    if len(stages) < 2:
        raise ValueError(f"{type(net).__name__} has no stages: its children are {[s.name for s in stages]}")
    return stages


def run_stages(stages: list[Stage], x: Tensor) -> Tensor:
    """The stages, one after the other."""
    for stage in stages:
        x = stage.run(x)
    return x


def parameters_of(net: nn.Module, stages: list[Stage]) -> set[str]:
    """Names in the state dict of `net` that belong to these stages."""
    prefixes = tuple(f"{module}." for stage in stages for module in stage.modules)
    return {name for name in net.state_dict() if name.startswith(prefixes)}


@torch.no_grad()
def require_composed(net: nn.Module, x: Tensor) -> None:
    """Raise ValueError unless the stages, one after the other, give what the network in evaluation mode gives."""
    wanted = net(x)
    try:
        got = run_stages(stages_of(net), x)
    except RuntimeError:
        got = x
    if got.shape != wanted.shape or not torch.allclose(got.float(), wanted.float(), rtol=RTOL, atol=ATOL):
        raise ValueError(
            f"{type(net).__name__}: its children in order are not its forward pass, so no features can be cached; list "
            "its stages in models/stages.py, or set transfer.cache_features=false"
        )


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps the state dict `given` from being loaded in place of `own`: each missing or other tensor."""
    return [
        *(f"{name} is missing" for name in own if name not in given),
        *(f"{name} is unknown" for name in given if name not in own),
        *(
            f"{name} is {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
            for name in own
            if name in given and given[name].shape != own[name].shape
        ),
    ]
