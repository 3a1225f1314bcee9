"""What is trained to stylise in one pass: a network that renders, beside the frozen one that judges what it renders.

J is that of models.style, of each picture of a batch, and its mean is the loss. The judge is a part of the module and
travels with the weights: a model is tested by the very network that it was trained by, and AdaIN encodes with it. The
style pictures travel too, as uint8.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data.parameters import Parameters
from models.adain import Decoder, Level, adapt, mixed, moments_of
from models.style import (
    Normalisation,
    Weights,
    content_cost,
    gram_matrix,
    style_cost,
    total_variation,
)
from models.taps import FeatureNet
from models.transformnet import Moments, TransformNet

PROBE_PX = 128  # side of the picture that tells which modules are run, and the sizes of an encoder's layers
PARTS = ("content", "style", "variation")


class StylizerModel(Parameters):
    """Which network renders."""

    name: Literal["johnson", "adain"] = Field(
        description="johnson: learns the styles that it is given; adain: takes any picture as a style"
    )
    width: int = Field(
        ge=1,
        le=256,
        description="channels at full size; four times as many at the smallest. Time grows with it",
    )
    num_blocks: int = Field(
        ge=0, le=16, description="residual blocks at the smallest size; 5 in Johnson's paper"
    )
    layers: tuple[str, ...] = Field(
        description="adain: layers of the feature network that are given the style's moments, from fine to coarse; "
        "johnson: []"
    )

    @model_validator(mode="after")
    def _layers_are_read(self) -> "StylizerModel":
        if (self.name == "adain") != bool(self.layers):
            raise ValueError(
                f"model.layers (={list(self.layers)}) must name layers for adain, and be [] for johnson"
            )
        return self


@torch.no_grad()
def drop_unused(features: FeatureNet) -> None:
    """Take the modules out of a feature network that its layers do not run: a saved model need not carry them."""
    leaves = {name: module for name, module in features.net.named_modules() if not list(module.children())}
    used: set[nn.Module] = set()
    handles = [
        module.register_forward_pre_hook(lambda module, _inputs: used.add(module))
        for module in leaves.values()
    ]
    features(torch.zeros(1, 3, PROBE_PX, PROBE_PX))
    for handle in handles:
        handle.remove()
    for name, module in leaves.items():
        if module not in used and module.state_dict():
            parent, _, child = name.rpartition(".")
            setattr(features.net.get_submodule(parent), child, nn.Identity())


class Judge(nn.Module):
    """J's parts of rendered pictures, by the features of a frozen network."""

    def __init__(self, features: FeatureNet, weights: Weights, normalisation: Normalisation) -> None:
        super().__init__()
        drop_unused(features)
        self.features, self.weights, self.normalisation = features, weights, normalisation
        self.style_layers = {name: value for name, value in weights.style_layers.items() if value}

    def train(self, mode: bool = True) -> "Judge":  # noqa: ARG002
        """Stay in evaluation mode: norms keep their statistics."""
        return super().train(False)

    def look(self, pictures: Tensor) -> dict[str, Tensor]:
        """Features of (B, 3, H, W) pictures of 0 to 1, in the network's own precision."""
        with torch.autocast(pictures.device.type, enabled=False):
            return self.features(pictures)

    def grams(self, features: dict[str, Tensor]) -> list[Tensor]:
        """The Gram matrices of each style layer, (B, C, C) each."""
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            return [
                torch.stack([gram_matrix(one[None]) for one in features[name]]) for name in self.style_layers
            ]

    def costs(self, made: Tensor, content: dict[str, Tensor], styles: Sequence[Tensor]) -> dict[str, Tensor]:
        """`content`, `style`, `variation` without their weights, and `total` with them, of each picture: (B,) each.

        `content` are the features of the content pictures, `styles` the Gram matrices (B, C, C) of each style layer.
        """
        B, weights = len(made), self.weights
        seen = self.look(made)
        with torch.autocast(made.device.type, enabled=False):
            grams, layer = self.grams(seen), weights.content_layer
            zero = made.new_zeros(B)
            found = dict.fromkeys(PARTS, zero)
            if weights.content:
                pairs = zip(seen[layer], content[layer], strict=True)
                each = [content_cost(one[None], other[None], self.normalisation) for one, other in pairs]
                found["content"] = torch.stack(each)
            for gram, style, weight in zip(grams, styles, self.style_layers.values(), strict=True):
                each = [style_cost(gram[i], style[i], self.normalisation) for i in range(B)]
                found["style"] = found["style"] + weight * torch.stack(each)
            if weights.variation:
                found["variation"] = torch.stack([total_variation(made[i : i + 1]) for i in range(B)])
            parts = (weights.content, weights.style, weights.variation)
            found["total"] = sum((part * found[name] for part, name in zip(parts, PARTS, strict=True)), zero)
        return found


class Stylizer(nn.Module, ABC):
    """Content pictures (B, C, H, W) uint8 in, J's parts of what is rendered of them out, (B,) each.

    `styles` (S, 3, P, P) uint8 are pictures. `stride`: sides of what `render` takes are multiples of it.
    """

    styles: Tensor

    def __init__(self, judge: Judge, styles: Tensor) -> None:
        super().__init__()
        self.judge = judge
        self.register_buffer("styles", styles)

    @property
    @abstractmethod
    def stride(self) -> int: ...

    @abstractmethod
    def manner(self, shares: Tensor) -> Any:
        """How `render` renders in these shares (S,) of the styles, which sum to 1."""

    @abstractmethod
    def render(self, pictures: Tensor, manner: Any) -> Tensor:
        """Pictures (B, 3, H, W) of 0 to 1 in a manner, float32; values may leave 0 to 1."""

    @torch.no_grad()
    def costs_of(self, made: Tensor, content: Tensor, number: int) -> dict[str, Tensor]:
        """J's parts of pictures (B, 3, H, W) made of `content` in style `number`, (B,) each."""
        style = self.judge.grams(self.judge.look(unit(self.styles[number : number + 1])))
        grams = [gram.expand(len(made), -1, -1) for gram in style]
        return self.judge.costs(made, self.judge.look(content), grams)


def unit(images: Tensor) -> Tensor:
    """(B, C, H, W) uint8 of one channel or three → (B, 3, H, W) float32 of 0 to 1."""
    return images.expand(-1, 3, -1, -1).float() / 255


class JohnsonStylizer(Stylizer):
    """Renders in the styles it was trained for."""

    def __init__(self, judge: Judge, styles: Tensor, width: int, num_blocks: int) -> None:
        super().__init__(judge, styles)
        self.network = TransformNet(len(styles), width, num_blocks)
        with torch.no_grad():
            for place, gram in enumerate(judge.grams(judge.look(unit(styles)))):
                self.register_buffer(f"gram_{place}", gram)

    @property
    def stride(self) -> int:
        return 4

    def manner(self, shares: Tensor) -> Tensor:
        return shares[None]

    def render(self, pictures: Tensor, manner: Tensor) -> Tensor:
        return self.network(pictures, manner)

    def forward(self, images: Tensor, first: int) -> dict[str, Tensor]:
        """Each picture in the next style, from number `first` on."""
        content, S = unit(images), len(self.styles)
        which = (first + torch.arange(len(images), device=images.device)) % S
        with torch.no_grad():
            seen = self.judge.look(content)
        made = self.network(content, nn.functional.one_hot(which, S).float())
        grams = [self.get_buffer(f"gram_{place}")[which] for place in range(len(self.judge.style_layers))]
        return self.judge.costs(made, seen, grams)


class AdaINStylizer(Stylizer):
    """Renders in any style: while it trains, each picture of a batch in that of the one before it."""

    def __init__(
        self, judge: Judge, styles: Tensor, width: int, num_blocks: int, layers: Sequence[str]
    ) -> None:
        super().__init__(judge, styles)
        self.layers = tuple(layers)
        with torch.no_grad():
            seen = judge.look(torch.zeros(1, 3, PROBE_PX, PROBE_PX))
        levels = [Level(seen[name].shape[1], PROBE_PX // seen[name].shape[2]) for name in layers]
        self.network = Decoder(levels, width, num_blocks)

    @property
    def stride(self) -> int:
        return self.network.levels[-1].stride

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Begin with what is usual of the encoder's features, over pictures (B, C, H, W) uint8."""
        self.network.fit(self.encode(unit(images)))

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> list[Tensor]:
        """Features of each layer, fine to coarse."""
        seen = self.judge.look(pictures)
        return [seen[name] for name in self.layers]

    def manner(self, shares: Tensor) -> tuple[list[Moments], float]:
        return self.manner_of(unit(self.styles), shares.tolist())

    @torch.no_grad()
    def manner_of(
        self, pictures: Sequence[Tensor] | Tensor, shares: Sequence[float], strength: float = 1.0
    ) -> tuple[list[Moments], float]:
        """The moments of each layer, mixed by shares, of pictures (3, H, W) of 0 to 1, and how strongly they count."""
        seen = [[moments_of(x) for x in self.encode(picture[None])] for picture in pictures]
        return [mixed(layer, shares) for layer in zip(*seen, strict=True)], strength

    def render(self, pictures: Tensor, manner: tuple[list[Moments], float]) -> Tensor:
        return self.decode(self.encode(pictures), manner)

    def decode(self, features: Sequence[Tensor], manner: tuple[list[Moments], float]) -> Tensor:
        return self.network(self.adapted(features, manner))

    def adapted(self, features: Sequence[Tensor], manner: tuple[list[Moments], float]) -> list[Tensor]:
        """The features of whole pictures with the moments of a style."""
        moments, strength = manner
        return [adapt(x, each, strength) for x, each in zip(features, moments, strict=True)]

    def forward(self, images: Tensor, first: int) -> dict[str, Tensor]:  # noqa: ARG002 - any is a style
        content = unit(images)
        with torch.no_grad():
            seen = self.judge.look(content)
            features = [seen[name] for name in self.layers]
            moments = [tuple(part.roll(1, 0) for part in moments_of(x)) for x in features]
            grams = [gram.roll(1, 0) for gram in self.judge.grams(seen)]
        made = self.decode(features, (moments, 1.0))  # type: ignore[arg-type]
        return self.judge.costs(made, seen, grams)


def build(
    model: StylizerModel, features: FeatureNet, weights: Weights, normalisation: Normalisation, styles: Tensor
) -> Stylizer:
    """A fresh network for these styles (S, 3, P, P) uint8; `features` have the layers of `layers_needed`."""
    judge = Judge(features, weights, normalisation)
    if model.name == "johnson":
        return JohnsonStylizer(judge, styles, model.width, model.num_blocks)
    return AdaINStylizer(judge, styles, model.width, model.num_blocks, model.layers)


def layers_needed(model: StylizerModel, weights: Weights) -> list[str]:
    """Layers of the feature network that are looked at."""
    return [*weights.layers, *model.layers]
