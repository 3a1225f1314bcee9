"""Features of a frozen network at named layers: what style transfer compares pictures by.

VGG's layers are called as in the literature: conv1_1, relu1_1, …, pool1 (block, place in it). Other networks give the
outputs of their stages (models.stages). Nothing above the deepest layer asked for is run.

Deviations from the published VGG, by choice: average pooling in place of maximum (Gatys et al. 2016 find its pictures
smoother), and poolings that round up, for weights that were trained so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from models.stages import stages_of
from models.vgg import VGG

Pooling = Literal["max", "average"]
CAFFE_FIRST = "conv1_1.weight"
CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)  # red, green, blue
CAFFE_STD = (1 / 255,) * 3


@dataclass(frozen=True)
class Layer:
    """A step of a network, and what its output is called."""

    name: str
    run: Callable[[Tensor], Tensor]


class FeatureNet(nn.Module):
    """(B, 3, H, W) float32 pictures, 0 to 1 → {layer: (B, C, h, w)} in `dtype`, for the layers in `names`.

    The first convolution takes the pictures as they are; what it gives, and all behind it, is in `dtype`. Frozen and in
    evaluation mode; gradients go to the pictures alone. Raises ValueError for a name it has no layer of.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        names: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        dtype: torch.dtype = torch.float32,
        pooling: Pooling = "max",
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
        for convolution in convolutions[1:]:  # norms stay exact: they take features of either precision
            convolution.to(dtype)
        # bfloat16 would round a bright pixel to half a grey level, and hide the small steps of an optimisation
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        convolutions[0].to(self.wide)
        if self.wide != dtype:
            convolutions[0].register_forward_hook(partial(narrow, dtype))
        self.dtype, self.names = dtype, tuple(dict.fromkeys(names))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.layers = cut(layers_of(net, self.names, pooling, ceil_mode), self.names, type(net).__name__)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        x = (pictures.to(self.wide) - self.mean) / self.std
        x = x.contiguous(memory_format=torch.channels_last)
        found: dict[str, Tensor] = {}
        for layer in self.layers:
            x = layer.run(x)
            if layer.name in self.names:
                if x.dim() != 4:
                    raise ValueError(f"layer {layer.name} gives a vector, not a map: take one before it")
                found[layer.name] = x
        return found


def narrow(dtype: torch.dtype, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    """A forward hook: what a module gives, in another type."""
    return output.to(dtype)


def layers_of(net: nn.Module, names: Sequence[str], pooling: Pooling, ceil_mode: bool) -> list[Layer]:
    """The layers that a network has names for, from its input on."""
    if isinstance(net, VGG):
        return of_vgg(net, names, pooling, ceil_mode)
    if pooling != "max" or ceil_mode:
        raise ValueError(
            f"pooling (={pooling}) can be chosen for VGG alone, and this is {type(net).__name__}"
        )
    return [Layer(stage.name, stage.run) for stage in stages_of(net)[:-1]]


def of_vgg(net: VGG, names: Sequence[str], pooling: Pooling, ceil_mode: bool) -> list[Layer]:
    """conv, relu and pool of each block; batch norm belongs to its convolution."""
    layers: list[Layer] = []
    block, place = 1, 0
    for module in net.features:
        if isinstance(module, nn.Conv2d):
            place += 1
            layers.append(Layer(f"conv{block}_{place}", module))
        elif isinstance(module, nn.BatchNorm2d):
            before = layers.pop()
            assert isinstance(before.run, nn.Conv2d)
            layers.append(Layer(before.name, nn.Sequential(before.run, module)))
        elif isinstance(module, nn.ReLU):
            in_place = layers[-1].name not in names  # what was asked for must not be written over
            layers.append(Layer(f"relu{block}_{place}", nn.ReLU(inplace=in_place)))
        else:
            layers.append(Layer(f"pool{block}", pool_of(pooling, ceil_mode)))
            block, place = block + 1, 0
    return layers


def pool_of(pooling: Pooling, ceil_mode: bool) -> nn.Module:
    if pooling == "max":
        return nn.MaxPool2d(2, ceil_mode=ceil_mode)
    return nn.AvgPool2d(2, ceil_mode=ceil_mode, count_include_pad=False)


def cut(layers: list[Layer], names: Sequence[str], network: str) -> list[Layer]:
    """The layers up to the deepest of `names`; raises ValueError naming those there are."""
    known = [layer.name for layer in layers]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(
            f"no layer {', '.join(unknown) or 'is named'} of {network}; known: {', '.join(known)}"
        )
    return layers[: 1 + max(known.index(name) for name in names)]


def is_caffe(state: dict[str, Tensor]) -> bool:
    """Whether weights are called as Caffe's VGG: conv1_1.weight, … They take BGR of 0 to 255, and pool upwards."""
    return CAFFE_FIRST in state


def from_caffe(state: dict[str, Tensor], net: VGG) -> dict[str, Tensor]:
    """Caffe's convolutions by our keys, the first one turned to take RGB; raises ValueError where one is missing."""
    places = [i for i, module in enumerate(net.features) if isinstance(module, nn.Conv2d)]
    layers = [layer.name for layer in of_vgg(net, (), "max", True) if layer.name.startswith("conv")]
    if set(state) != {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}:
        raise ValueError(
            f"weights called as Caffe's must be weight and bias of {layers[0]} to {layers[-1]} ({len(layers)} "
            f"convolutions), got {len(state)} tensors: {', '.join(sorted(state)[:4])}, …"
        )
    own = {
        f"features.{place}.{part}": state[f"{layer}.{part}"].float()
        for place, layer in zip(places, layers, strict=True)
        for part in ("weight", "bias")
    }
    own["features.0.weight"] = own["features.0.weight"].flip(1)
    return own


def convolutions_alone(net: VGG) -> VGG:
    """The network without its dense layers, nine tenths of it, which no features need."""
    net.classifier, net.avgpool = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    return net


def random_filters(net: nn.Module, seed: int) -> None:
    """Fill every convolution with orthogonal filters of chance, biases with zero: features without any training.

    He, Wang, Hopcroft 2016 (https://arxiv.org/abs/1606.04801): depth and pooling alone already tell textures apart.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight, gain=2**0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
