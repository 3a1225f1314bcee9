"""The family signals: its parameters, and how it turns signals into batches and cards; losses are classification's."""

from typing import Any, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator
from torch import nn

from data.dataset import DatasetInfo
from data.fitting import ArrayPreprocessing, statistics
from data.parameters import Parameters
from data.random import SampleGenerator
from data.records import Batch, Records
from data.signals import SignalAugment, SignalInput, make_batch, preprocessing, resolve
from models.signals import SignalModel, build, require_fit
from tasks import arrays
from tasks.card import Member, ModelCard
from tasks.optim import OptimConfig
from tasks.settings import EvaluateConfig, TrainConfig


class SignalConfig(Parameters):
    """Everything that decides what a training run on signals gives."""

    dataset: str = Field(description="name of an ingested dataset: ./convoy data list")
    model: SignalModel
    input: SignalInput
    augment: SignalAugment
    optim: OptimConfig
    train: TrainConfig
    evaluate: EvaluateConfig

    @model_validator(mode="after")
    def _fits(self) -> Self:
        arrays.require_plain(self.train, self.evaluate)
        if self.input.length:
            require_fit(self.model.name, self.input.length)
        return self


def decode(rows: pa.Table, info: DatasetInfo, config: SignalConfig) -> dict[str, np.ndarray]:
    """Decode rows of a dataset to arrays; see data.fitting."""
    return arrays.decode(rows, preprocessing(info, config.input))


def empty(info: DatasetInfo, config: SignalConfig) -> dict[str, np.ndarray]:
    """The arrays of a split without signals."""
    return arrays.empty(preprocessing(info, config.input))


def batch(
    samples: Records,
    indices: np.ndarray,
    info: DatasetInfo,
    config: SignalConfig,
    generator: SampleGenerator | None,
    shrink_px: int = 0,
    rows: np.ndarray | None = None,
) -> Batch:
    """The samples at `indices`, augmented where a generator is given; see data.signals.make_batch."""
    assert shrink_px == 0, "the parameters refuse growth"
    return make_batch(samples, indices, info, config.input, config.augment, generator, rows)


def build_model(config: SignalConfig, info: DatasetInfo, sample: Any) -> nn.Module:  # noqa: ARG001
    """A fresh network for the dataset; nothing in it depends on `sample`."""
    require_fit(config.model.name, resolve(info, config.input).length)
    mean, std = statistics(info, config.input.normalise)
    return build(config.model.name, len(info.classes), info.channels, mean, std)


def card(config: SignalConfig, info: DatasetInfo, digest: str, run: str) -> ModelCard:
    """What a single trained network says of itself."""
    return arrays.make_card(config, info, digest, run, preprocessing(info, config.input), {})


def rebuild(card: ModelCard, member: Member) -> nn.Module:
    """A network of the member's shape; its weights, statistics included, come from the member's file."""
    assert isinstance(card.preprocessing, ArrayPreprocessing)
    channels = card.preprocessing.channels
    unset = (0.0,) * channels
    return build(member.architecture, len(card.classes), channels, unset, unset)
