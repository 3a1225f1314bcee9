"""The family volumes: its parameters, and how it turns volumes into batches and cards; losses are classification's."""

from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from data.dataset import DatasetInfo
from data.fitting import ArrayPreprocessing
from data.parameters import Parameters
from data.random import SampleGenerator
from data.records import Batch, Records
from data.volumes import VolumeAugment, VolumeInput, make_batch, preprocessing
from models.volumes import ARCHITECTURES, VolumeModel, arguments_of
from tasks import arrays
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
            ARCHITECTURES[self.model.name](num_classes=2, channels=1, **self.arguments())
        return self

    def preprocessing(self, info: DatasetInfo) -> ArrayPreprocessing:
        """What decoding needs to know."""
        return preprocessing(info, self.input)

    def arguments(self) -> dict[str, Any]:
        """What the network's builder must be told beside classes and channels."""
        return arguments_of(self.model.name, self.input.crop_voxels)


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
