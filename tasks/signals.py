"""The family signals: its parameters, and how it turns signals into batches and cards; losses are classification's."""

from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator
from torch import nn

from data.dataset import DatasetInfo
from data.fitting import ArrayPreprocessing
from data.parameters import Parameters
from data.random import SampleGenerator
from data.records import Batch, Records
from data.signals import SignalAugment, SignalInput, make_batch, preprocessing, resolve
from models.signals import SignalModel, require_fit
from tasks import arrays
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

    def preprocessing(self, info: DatasetInfo) -> ArrayPreprocessing:
        """What decoding needs to know."""
        return preprocessing(info, self.input)

    def arguments(self) -> dict[str, Any]:
        """What the network's builder must be told beside classes and channels."""
        return {}


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


def build_model(config: SignalConfig, info: DatasetInfo, sample: Any) -> nn.Module:
    """A fresh network for the dataset; nothing in it depends on `sample`."""
    require_fit(config.model.name, resolve(info, config.input).length)
    return arrays.build_model(config, info, sample)
