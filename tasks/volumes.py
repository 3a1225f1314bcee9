"""The family volumes: its parameters, and how it turns volumes into batches and cards; losses are classification's."""

from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, model_validator
from torch import nn

from data.dataset import DatasetInfo
from data.fitting import ArrayPreprocessing, statistics
from data.parameters import Parameters
from data.random import SampleGenerator
from data.records import Batch, Records
from data.volumes import VolumeAugment, VolumeInput, make_batch, preprocessing
from models.volumes import ARCHITECTURES, VolumeModel, arguments_of, build
from tasks import arrays
from tasks.card import Member, ModelCard
from tasks.optim import OptimConfig
from tasks.settings import EvaluateConfig, TrainConfig


class VolumeConfig(Parameters):
    """Everything that decides what a training run on volumes gives."""

    dataset: str = Field(description="name of an ingested dataset: ./convoy data list")
    model: VolumeModel
    input: VolumeInput
    augment: VolumeAugment
    optim: OptimConfig
    train: TrainConfig
    evaluate: EvaluateConfig

    @model_validator(mode="after")
    def _fits(self) -> Self:
        arrays.require_plain(self.train, self.evaluate)
        with torch.device("meta"):  # a network that this side does not fit says so, and takes no memory
            ARCHITECTURES[self.model.name](
                num_classes=2, channels=1, **arguments_of(self.model.name, self.input.crop_voxels)
            )
        return self


def decode(rows: pa.Table, info: DatasetInfo, config: VolumeConfig) -> dict[str, np.ndarray]:
    """Decode rows of a dataset to arrays; see data.fitting."""
    return arrays.decode(rows, preprocessing(info, config.input))


def empty(info: DatasetInfo, config: VolumeConfig) -> dict[str, np.ndarray]:
    """The arrays of a split without volumes."""
    return arrays.empty(preprocessing(info, config.input))


def batch(
    samples: Records,
    indices: np.ndarray,
    info: DatasetInfo,
    config: VolumeConfig,
    generator: SampleGenerator | None,
    shrink_px: int = 0,
    rows: np.ndarray | None = None,
) -> Batch:
    """The samples at `indices`, augmented where a generator is given; see data.volumes.make_batch."""
    assert shrink_px == 0, "the parameters refuse growth"
    return make_batch(samples, indices, info, config.input, config.augment, generator, rows)


def build_model(config: VolumeConfig, info: DatasetInfo, sample: Any) -> nn.Module:  # noqa: ARG001
    """A fresh network for the dataset; nothing in it depends on `sample`."""
    mean, std = statistics(info, config.input.normalise)
    arguments = arguments_of(config.model.name, config.input.crop_voxels)
    return build(config.model.name, len(info.classes), info.channels, arguments, mean, std)


def card(config: VolumeConfig, info: DatasetInfo, digest: str, run: str) -> ModelCard:
    """What a single trained network says of itself."""
    arguments = arguments_of(config.model.name, config.input.crop_voxels)
    return arrays.make_card(config, info, digest, run, preprocessing(info, config.input), arguments)


def rebuild(card: ModelCard, member: Member) -> nn.Module:
    """A network of the member's shape; its weights, statistics included, come from the member's file."""
    assert isinstance(card.preprocessing, ArrayPreprocessing)
    channels = card.preprocessing.channels
    unset = (0.0,) * channels
    return build(member.architecture, len(card.classes), channels, member.arguments, unset, unset)
