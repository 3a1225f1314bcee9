"""The family style: its parameters, and how it turns pictures into batches, losses and networks that stylise them.

    ./convoy data add photos/ --name photos --family style
    ./convoy train style --dataset photos --set 'styles=[[starry, starry.jpg]]'

A network is trained on content pictures against J of models.style, which a frozen feature network judges; afterwards it
renders in one pass what the optimisation (tasks.stylize) needs hundreds for. Pictures are read as classification reads
them; what folder one lies in counts for nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data.augment import AugmentConfig
from data.classification import InputConfig
from data.dataset import DatasetInfo
from data.parameters import Parameters
from data.records import Batch
from models.stylizer import AdaINStylizer, Stylizer, StylizerModel, build, layers_needed
from tasks.card import Member, ModelCard, Preprocessing, card_of_one
from tasks.featurenet import CHANNELS, StyleNet, bare, tapped
from tasks.optim import OptimConfig
from tasks.settings import TrainConfig
from tasks.styleconfig import StyleCostConfig, StyleNetConfig, StyleOptimConfig
from tasks.transfer import Weights

FIT_PICTURES = 64  # that tell what is usual of an encoder's features


class StylizerEvaluate(Parameters):
    """How a network is tested."""

    views: tuple[Literal["single"], ...] = Field(min_length=1, description="ways to look at each picture")
    registered_view: Literal["single"] = Field(description="the way that the registered model uses")
    batch_size: int = Field(ge=1, description="pictures a forward pass of validation")
    num_worst: int = Field(ge=0, le=100, description="pictures on the sheet, each in every style")
    longer_px: int = Field(ge=64, le=4096, description="larger pictures are tested at this longer side")
    optimise_pictures: int = Field(
        ge=0, le=100, description="pictures that the optimisation renders too, for comparison; 0: none"
    )
    optimise_s: float = Field(gt=0, description="seconds of optimisation for each of these")
    optimise_by: StyleOptimConfig


class StylizerConfig(Parameters):
    """Everything that decides what a training run on style gives."""

    dataset: str = Field(description="name of an ingested dataset: ./convoy data list")
    model: StylizerModel
    styles: tuple[tuple[str, str], ...] = Field(
        min_length=1,
        description="[[name, picture], …]: files, or photographs that scikit-image ships (skimage:NAME). johnson "
        "learns these; adain is tested on them, and takes others too",
    )
    style_px: int = Field(
        ge=16, le=2048, description="side of the square that the middle of each style picture is brought to"
    )
    net: StyleNetConfig
    cost: StyleCostConfig
    input: InputConfig
    augment: AugmentConfig
    optim: OptimConfig
    train: TrainConfig
    evaluate: StylizerEvaluate

    @model_validator(mode="after")
    def _styles_have_names(self) -> Self:
        names = [name for name, _ in self.styles]
        if len(set(names)) < len(names) or any(not name.isidentifier() for name in names):
            raise ValueError(
                f"styles must have names of their own, of letters, digits and _; got {', '.join(names)}"
            )
        if not self.cost.style_weight:
            raise ValueError("cost.style_weight must be above 0: there is no style to learn without it")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.train.growth:
            raise ValueError("train.growth must be [] for style: textures have a size in pixels")
        if self.augment.mixup_alpha or self.augment.cutmix_alpha:
            raise ValueError(
                "augment.mixup_alpha and cutmix_alpha must be 0 for style: there are no labels to mix"
            )
        if self.optim.class_weights != "none" or self.optim.label_smoothing:
            raise ValueError(
                "optim.class_weights must be none and optim.label_smoothing 0: there are no classes"
            )
        if self.train.patience_metric != "loss":
            raise ValueError(f"train.patience_metric (={self.train.patience_metric}) must be loss for style")
        parts = self.train.num_workers * self.train.accumulate_batches
        if self.model.name == "adain" and self.train.batch_size // parts < 2:
            raise ValueError(
                f"train.batch_size (={self.train.batch_size}) must be at least {2 * parts} for adain: each picture "
                "takes the style of another"
            )
        if self.model.name == "adain" and self.evaluate.batch_size < 2:
            raise ValueError(
                "evaluate.batch_size (=1) must be at least 2 for adain: validation does as training"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class StyleSources(Weights):
    """The feature network and the style pictures: read on the driver, since a worker has neither files nor registry.

    `sha256` is of both.
    """

    net: StyleNet
    styles: Tensor  # (S, 3, P, P) uint8


def build_model(
    config: StylizerConfig,
    info: DatasetInfo,  # noqa: ARG001
    sample: Callable[[], Sequence[Batch]],
    weights: StyleSources | None = None,
) -> nn.Module:
    """A fresh network and its judge, made of `weights` (tasks.stylesources).

    Raises ValueError for layers that the feature network does not have, and crops that do not divide.
    """
    assert weights is not None, "net.weights and styles were not read"
    costs = config.cost.weights()
    features = weights.net.build(layers_needed(config.model, costs), config.train.seed)
    model = build(config.model, features, costs, config.cost.normalisation, weights.styles)
    if config.input.crop_px % model.stride:
        raise ValueError(
            f"input.crop_px (={config.input.crop_px}) must be a multiple of {model.stride} for this network"
        )
    if isinstance(model, AdaINStylizer):
        images = torch.cat([each.images for each in sample()])[:FIT_PICTURES]
        model.fit(images.cpu())
    return model


def loss(model: nn.Module, batch: Batch, config: Any) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG001
    """One forward pass: the mean J of the batch, and its parts without their weights."""
    costs = model(batch.images, int(batch.indices[0]))
    value = costs["total"].mean()
    parts = {name: costs[name].mean().detach() for name in ("content", "style", "variation")}
    return value, {"loss": value.detach(), **parts}


def validate(model: nn.Module, batches: Iterable[Batch], config: Any) -> dict[str, float]:
    """Mean J and its parts; called without gradients, in evaluation mode."""
    num, totals = 0, {"loss": 0.0, "content": 0.0, "style": 0.0}
    for each in batches:
        _value, logged = loss(model, each, config)
        num += len(each.images)
        for name in totals:
            totals[name] += float(logged[name]) * len(each.images)
    return {name: total / num for name, total in totals.items()}


def card(config: StylizerConfig, info: DatasetInfo, digest: str, run: str) -> ModelCard:
    """What a trained network says of itself; its classes are the names of the styles."""
    sections = {name: getattr(config, name).model_dump(mode="json") for name in ("model", "net", "cost")}
    return card_of_one(
        config, info, digest, run,
        arguments={**sections, "style_px": config.style_px},
        classes=tuple(name for name, _ in config.styles),
        preprocessing=Preprocessing(**config.input.model_dump(), channels=CHANNELS),
    )  # fmt: skip


def rebuild(card: ModelCard, member: Member) -> Stylizer:
    """A network of the member's shape; its weights, the judge's included, come from the member's file."""
    about = member.arguments
    model = StylizerModel.parse(about["model"], "model.json")
    net = StyleNetConfig.parse(about["net"], "model.json")
    cost = StyleCostConfig.parse(about["cost"], "model.json")
    caffe = card.initial_weights is not None and bool(card.initial_weights.about.get("caffe"))
    unset = (0.0,) * CHANNELS, (1.0,) * CHANNELS
    features = tapped(bare(net.name), layers_needed(model, cost.weights()), *unset, net, caffe)
    styles = torch.zeros(len(card.classes), 3, about["style_px"], about["style_px"], dtype=torch.uint8)
    return build(model, features, cost.weights(), cost.normalisation, styles)
