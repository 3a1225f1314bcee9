"""The family landmarks: its parameters, and how it turns pictures with points into batches, losses and networks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data.dataset import DatasetInfo
from data.landmarks import (
    LandmarkAugment,
    LandmarkBatch,
    LandmarkInput,
    LandmarkRecords,
    decode_rows,
    empty_split,
    make_batch,
    mirrored_order,
)
from data.parameters import Parameters
from data.random import SampleGenerator
from models.classification import arguments_of, least_px
from models.landmarks import LandmarkModel, Landmarks, build, landmark_loss
from tasks.card import Member, ModelCard, Preprocessing, card_of_one
from tasks.landmarkmetrics import NormaliseBy
from tasks.optim import OptimConfig
from tasks.settings import TrainConfig
from tasks.transfer import TransferConfig, Weights, start_from


class LandmarkEvaluate(Parameters):
    """How a network is tested."""

    views: tuple[Literal["single"], ...] = Field(min_length=1, description="ways to look at each picture")
    registered_view: Literal["single"] = Field(description="the way that the registered model uses")
    batch_size: int = Field(ge=1, description="pictures a forward pass")
    num_worst: int = Field(ge=0, le=100, description="pictures to show: the best, the median and the worst")
    normalise_by: NormaliseBy = Field(
        description="what errors are shares of: the distance of the eye_corners, the diagonal of the box of the true "
        "points, the picture's side; auto: eye_corners where they are known, else box"
    )
    eye_corners: tuple[int, int] | None = Field(
        description="numbers, from 0, of the points that are the outer eye corners; null: those of iBUG's 68 points"
    )


class LandmarkConfig(Parameters):
    """Everything that decides what a training run on landmarks gives."""

    dataset: str = Field(description="name of an ingested dataset: ./convoy data list")
    model: LandmarkModel
    input: LandmarkInput
    augment: LandmarkAugment
    transfer: TransferConfig
    optim: OptimConfig
    train: TrainConfig
    evaluate: LandmarkEvaluate

    @model_validator(mode="after")
    def _fits(self) -> Self:
        least = least_px(self.model.name)
        if self.input.input_px < least:
            raise ValueError(
                f"input.input_px (={self.input.input_px}) must be at least {least} for {self.model.name}"
            )
        if self.train.growth:
            raise ValueError("train.growth must be [] for landmarks: places are pixels of one side")
        if self.transfer.cache_features:
            raise ValueError(
                "transfer.cache_features must be false for landmarks: points move with the picture"
            )
        if self.optim.class_weights != "none" or self.optim.label_smoothing:
            raise ValueError(
                "optim.class_weights must be none and optim.label_smoothing 0: there are no classes"
            )
        if self.train.patience_metric != "loss":
            raise ValueError(
                f"train.patience_metric (={self.train.patience_metric}) must be loss for landmarks"
            )
        return self


def decode(rows: pa.Table, info: DatasetInfo, config: LandmarkConfig) -> dict[str, np.ndarray]:
    """Decode rows of a dataset to arrays; see data.landmarks.decode_rows."""
    return decode_rows(rows, info, config.input)


def empty(info: DatasetInfo, config: LandmarkConfig) -> dict[str, np.ndarray]:
    """The arrays of a split without pictures."""
    return empty_split(info, config.input)


def records(arrays: dict[str, Tensor]) -> LandmarkRecords:
    """The split as samples."""
    return LandmarkRecords(**arrays)


def batch(
    samples: LandmarkRecords,
    indices: np.ndarray,
    info: DatasetInfo,
    config: LandmarkConfig,
    generator: SampleGenerator | None,
    shrink_px: int = 0,
    rows: np.ndarray | None = None,
) -> LandmarkBatch:
    """The samples at `indices`, augmented where a generator is given; see data.landmarks.make_batch."""
    assert shrink_px == 0, "the parameters refuse growth"
    return make_batch(samples, indices, info, config.input, config.augment, generator, rows)


def build_model(
    config: LandmarkConfig,
    info: DatasetInfo,
    sample: Callable[[], Sequence[LandmarkBatch]],
    weights: Weights | None = None,
) -> nn.Module:
    """A fresh network, whose head begins at the mean shape of `sample()`, plain batches of training pictures.

    With `weights` its body begins with them and their normalisation; its head too, with the mean shape that it was
    learnt around, where they are of a network for the same points (tasks.transfer). Raises ValueError where pictures
    are to be mirrored, and nobody said which points change places.
    """
    if config.augment.mirror:
        mirrored_order(info, config.augment)
    mean, std = (info.channel_mean, info.channel_std) if weights is None else (weights.mean, weights.std)
    arguments = arguments_of(config.model.name, config.input.input_px)
    model = build(config.model.name, len(info.points), info.channels, arguments, mean, std)
    batches = sample()
    points = torch.cat([each.points_xy for each in batches]) / config.input.input_px
    model.fit_mean_shape(points.cpu(), torch.cat([each.given for each in batches]).cpu())
    if weights is not None:  # after the shape is fitted: a head that is taken over brings its own
        start_from(model, config.transfer, weights, info.points, features=False)
    return model


def loss(model: nn.Module, batch: LandmarkBatch, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward pass: the loss of places and of visibility, and what to log of it, the mean error in pixels too."""
    found: Landmarks = model(batch.images)
    side_px = batch.images.shape[3]
    terms = landmark_loss(found, batch.points_xy, batch.visible, batch.given, side_px, config.model)
    value = terms["points"] + terms["visibility"]
    logged = {"loss": value, **terms, "error_px": mean_error_px(found, batch)}
    return value, {name: term.detach() for name, term in logged.items()}


def mean_error_px(found: Landmarks, batch: LandmarkBatch) -> Tensor:
    """Mean distance of the given points from where they were found, in pixels of the input."""
    distance = (found.points * batch.images.shape[3] - batch.points_xy).norm(dim=2)
    return torch.where(batch.given, distance, 0.0).sum() / batch.given.sum().clamp(min=1)


def validate(model: nn.Module, batches: Iterable[LandmarkBatch], config: Any) -> dict[str, float]:
    """Loss and mean error in pixels; called without gradients, in evaluation mode."""
    num, totals = 0, {"loss": 0.0, "error_px": 0.0}
    for each in batches:
        _value, logged = loss(model, each, config)
        num += len(each.images)
        for name in totals:
            totals[name] += float(logged[name]) * len(each.images)
    return {name: total / num for name, total in totals.items()}


def card(config: LandmarkConfig, info: DatasetInfo, digest: str, run: str) -> ModelCard:
    """What a single trained network says of itself; its classes are the names of the points."""
    side_px = config.input.input_px
    return card_of_one(
        config, info, digest, run,
        arguments=arguments_of(config.model.name, side_px),
        classes=info.points,
        preprocessing=Preprocessing(
            stored_px=side_px, crop_px=side_px, pad_px=0, channels=info.picture_channels, resize=config.input.resize
        ),
    )  # fmt: skip


def rebuild(card: ModelCard, member: Member) -> nn.Module:
    """A network of the member's shape; its weights, statistics included, come from the member's file."""
    channels = card.preprocessing.channels
    unset = (0.0,) * channels
    return build(member.architecture, len(card.classes), channels, member.arguments, unset, unset)
