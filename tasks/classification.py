"""The classification family: its parameters, and how it turns pictures into batches, losses and predictions."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data.augment import AugmentConfig
from data.classification import (
    InputConfig,
    Pictures,
    decode_rows,
    empty_split,
    make_batch,
    samples_of,
)
from data.dataset import DatasetInfo
from data.parameters import Parameters
from data.random import SampleGenerator
from data.records import Batch, Records
from models.airnet import AirNet
from models.classification import (
    ARCHITECTURES,
    SIZED_BY_INPUT,
    ModelConfig,
    arguments_of,
    build,
    cross_entropy,
    least_px,
    saved_arguments_of,
)
from models.sides import WithSides
from tasks.card import Member, ModelCard, Preprocessing, card_of_one
from tasks.distil import DistilConfig, divergence
from tasks.optim import OptimConfig
from tasks.settings import EvaluateConfig, TrainConfig
from tasks.transfer import TransferConfig, Weights, start_from


class ClassificationConfig(Parameters):
    """Everything that decides what a training run of a classifier gives."""

    dataset: str = Field(description="name of an ingested dataset: ./convoy data list")
    model: ModelConfig
    input: InputConfig
    augment: AugmentConfig
    transfer: TransferConfig
    distil: DistilConfig
    optim: OptimConfig
    train: TrainConfig
    evaluate: EvaluateConfig

    @model_validator(mode="after")
    def _sides_fit(self) -> Self:
        too_large = [px for px, _share in self.train.growth if px > self.input.crop_px]
        if too_large:
            raise ValueError(
                f"train.growth shrinks pictures, so its sides (={too_large}) must not exceed input.crop_px "
                f"(={self.input.crop_px})"
            )
        smallest = min([self.input.crop_px, *(px for px, _share in self.train.growth)])
        if smallest < least_px(self.model.name):
            raise ValueError(
                f"input.crop_px and the sides of train.growth must be at least {least_px(self.model.name)} for "
                f"{self.model.name} (got {smallest})"
            )
        with torch.device("meta"):  # a network that these sides do not fit says so, and takes no memory
            ARCHITECTURES[self.model.name](
                num_classes=2, channels=3, **arguments_of(self.model.name, self.input.crop_px)
            )
        if self.train.growth and self.model.name in SIZED_BY_INPUT:
            raise ValueError(
                f"train.growth must be [] for {self.model.name}: its dense layers take pictures of one size only"
            )
        return self

    @model_validator(mode="after")
    def _features_are_of_plain_pictures(self) -> Self:
        if not self.transfer.cache_features:
            return self
        if self.distil.teacher:
            raise ValueError(
                "transfer.cache_features leaves no pictures to show to distil.teacher: set it to false"
            )
        on = [f"augment.{name}" for name in changing(self.augment)] + ["train.growth"] * bool(
            self.train.growth
        )
        if on:
            raise ValueError(
                f"transfer.cache_features trains on features of plain pictures, so it must see no {', '.join(on)}: "
                "switch them off, or set transfer.cache_features=false"
            )
        return self


def changing(augment: AugmentConfig) -> list[str]:
    """Names of what augmentation changes by chance."""
    values = augment.model_dump(exclude={"crop_aspect", "crop_from", "mixing_until"})
    return [name for name, value in values.items() if value and value != (1.0, 1.0)]


def without_chance(augment: AugmentConfig) -> AugmentConfig:
    """The same with all that `changing` names switched off: the plain centre crop."""
    off = {
        name: (1.0, 1.0) if name == "crop_area" else type(getattr(augment, name))(0)
        for name in changing(augment)
    }
    return augment.model_copy(update={**off, "crop_from": "square", "mixing_until": 1.0})


class OfPictures(Protocol):
    """The parameters of a family whose samples are classified pictures: that of faces too."""

    @property
    def input(self) -> InputConfig: ...
    @property
    def augment(self) -> AugmentConfig: ...


def decode(rows: pa.Table, info: DatasetInfo, config: OfPictures) -> dict[str, np.ndarray]:
    """Decode rows of a dataset to arrays; see data.classification.decode_rows."""
    return decode_rows(rows, info.picture_channels, config.input, config.augment)


def empty(info: DatasetInfo, config: OfPictures) -> dict[str, np.ndarray]:
    """The arrays of a split without images."""
    return empty_split(info.picture_channels, config.input, config.augment)


def records(arrays: dict[str, Tensor]) -> Records | Pictures:
    """The split as samples."""
    return samples_of(arrays)


def batch(
    samples: Records | Pictures,
    indices: np.ndarray,
    info: DatasetInfo,
    config: OfPictures,
    generator: SampleGenerator | None,
    shrink_px: int = 0,
    rows: np.ndarray | None = None,
) -> Batch:
    """The samples at `indices`, augmented where a generator is given; see data.classification.make_batch."""
    return make_batch(samples, indices, info, config.input, config.augment, generator, shrink_px, rows)


def build_model(
    config: ClassificationConfig,
    info: DatasetInfo,
    sample: Callable[[], Sequence[Batch]],
    weights: Weights | None = None,
    features: bool = False,
) -> nn.Module:
    """A fresh classifier; `sample()` gives plain batches of training pictures, which fit what is data-dependent.

    With `weights`, it begins with them and their normalisation; with `features`, it takes cached ones for pictures.
    """
    arguments = arguments_of(config.model.name, config.input.crop_px)
    mean, std = (info.channel_mean, info.channel_std) if weights is None else (weights.mean, weights.std)
    model = build(config.model.name, len(info.classes), info.channels, arguments, mean, std)
    if weights is not None:
        start_from(model, config.transfer, weights, info.classes, features)
    elif isinstance(model.net, AirNet):
        pictures = torch.cat([each.images.cpu() for each in sample()])
        model.net.fit_whitening(model.normalise(pictures))
    return model


def loss(
    model: nn.Module,
    batch: Batch,
    config: Any,
    class_weights: Tensor | None = None,
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward pass: the mean loss to descend, side branches by their weights included, and what to log of it.

    Samples count by the `class_weights` (K,) of their labels. `teacher` gives soft targets (B, K) for the pictures,
    whose part in the loss is `config.distil.weight` (tasks.distil).
    """
    output = model(batch.images)
    logits, sides, shares = output if isinstance(output, WithSides) else (output, (), ())
    entropy = partial(
        cross_entropy,
        labels=batch.labels,
        label_smoothing=config.optim.label_smoothing,
        partner_labels=batch.partner_labels,
        weights=batch.weights,
        class_weights=class_weights,
    )
    value = entropy(logits)
    for side, share in zip(sides, shares, strict=True):
        value = value + share * entropy(side)
    logged = {}
    if teacher is not None:
        apart = divergence(logits, teacher(batch.images), config.distil.temperature)
        value = config.distil.weight * apart + (1 - config.distil.weight) * value
        logged["from_teacher"] = apart.detach()
    accuracy = (logits.argmax(1) == batch.labels).float().mean()
    return value, {"loss": value.detach(), "accuracy": accuracy.detach(), **logged}


def validate(model: nn.Module, batches: Iterable[Batch], config: Any) -> dict[str, float]:  # noqa: ARG001
    """Accuracy and cross-entropy (nats) of single views; called without gradients, in evaluation mode."""
    num, correct, nats = 0, 0, 0.0
    for batch in batches:
        logits = model(batch.images).float()
        num += len(batch.labels)
        correct += int((logits.argmax(1) == batch.labels).sum())
        nats += float(cross_entropy(logits, batch.labels, 0.0)) * len(batch.labels)
    return {"accuracy": correct / num, "loss": nats / num}


def card(config: ClassificationConfig, info: DatasetInfo, digest: str, run: str) -> ModelCard:
    """What a single trained classifier says of itself."""
    return card_of_one(
        config, info, digest, run,
        arguments=saved_arguments_of(config.model.name, config.input.crop_px),
        classes=info.classes,
        preprocessing=Preprocessing(**config.input.model_dump(), channels=info.picture_channels),
    )  # fmt: skip


def rebuild(card: ModelCard, member: Member) -> nn.Module:
    """A network of the member's shape; its weights, statistics included, come from the member's file."""
    channels = card.preprocessing.channels
    unset = (0.0,) * channels
    return build(member.architecture, len(card.classes), channels, member.arguments, unset, unset)
