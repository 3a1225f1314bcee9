"""Signals' input: what is cut out of each, and how training changes it."""

from typing import Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from data.dataset import DatasetInfo
from data.fitting import (
    ArrayPreprocessing,
    Normalise,
    add_noise,
    around_one,
    by_channel,
    crop_middle,
    pad,
    random_crop,
    scale,
    statistics,
)
from data.parameters import Parameters
from data.random import SampleGenerator
from data.records import Batch, Records

LONGEST_KEPT = 4096  # samples, where nobody said how many


class SignalInput(Parameters):
    """From encoded signals to the network's input."""

    stored_length: int = Field(
        ge=0,
        le=1 << 24,
        description="samples kept of each signal: its middle; shorter ones are filled up; 0: as many as the longest "
        f"has, at most {LONGEST_KEPT:,}",
    )
    length: int = Field(
        ge=0, le=1 << 24, description="samples of them that the network sees; 0: all that are kept"
    )
    sample_rate_hz: float = Field(
        ge=0,
        description="signals that tell their rate are resampled to this; 0: to the dataset's most common",
    )
    normalise: Normalise = Field(
        description="dataset: by the training split's mean and deviation of each channel; item: each by its own"
    )

    @model_validator(mode="after")
    def _length_fits(self) -> Self:
        if self.stored_length and self.length > self.stored_length:
            raise ValueError(f"length (={self.length}) must not exceed stored_length (={self.stored_length})")
        return self


def resolve(info: DatasetInfo, config: SignalInput) -> SignalInput:
    """The same with all lengths told."""
    stored = config.stored_length or max(config.length, min(info.axes[0][2], LONGEST_KEPT))
    return config.model_copy(update={"stored_length": stored, "length": config.length or stored})


class SignalAugment(Parameters):
    """What training does to its signals; everything off gives their middle."""

    random_crop: bool = Field(description="take `length` at a random place; otherwise the middle")
    shift_share: float = Field(
        ge=0, lt=1, description="random crops may reach beyond the ends by up to this share of `length`"
    )
    scale: float = Field(ge=0, lt=1, description="amplitudes are multiplied by up to 1 ± this")
    noise: float = Field(
        ge=0, le=2, description="greatest deviation of added white noise, as a share of the channel's own"
    )
    mask_share: float = Field(
        ge=0, le=0.5, description="longest stretch that is blanked, as a share of `length`"
    )


def preprocessing(info: DatasetInfo, config: SignalInput) -> ArrayPreprocessing:
    """What decoding needs to know."""
    config = resolve(info, config)
    return ArrayPreprocessing(
        channels=info.channels,
        stored=(config.stored_length,),
        crop=(config.length,),
        rate_hz=config.sample_rate_hz or info.rate_hz,
        spacing_mm=0,
        normalise=config.normalise,
        fill=statistics(info, config.normalise)[0],
    )


def mask(signals: Tensor, start: Tensor, width: Tensor, fill: tuple[float, ...]) -> Tensor:
    """Blank `width` (B,) samples from `start` (B,) on with `fill` (C,): (B, C, L) → (B, C, L).

    As time masking does to spectrograms (Park et al. 2019, https://arxiv.org/abs/1904.08779).
    """
    place = torch.arange(signals.shape[2], device=signals.device)
    inside = (place >= start[:, None]) & (place < (start + width)[:, None])
    return torch.where(inside[:, None], by_channel(fill, signals), signals)


def augment(
    signals: Tensor,
    indices: np.ndarray,
    info: DatasetInfo,
    config: SignalInput,
    changes: SignalAugment,
    generator: SampleGenerator,
) -> Tensor:
    """As `changes` says: (B, C, stored_length) → (B, C, length); each sample's choices are drawn by its index."""
    mean, std = statistics(info, config.normalise)
    if changes.random_crop:
        reach = round(changes.shift_share * config.length)
        signals = random_crop(pad(signals, reach, mean), (config.length,), indices, generator)
    else:
        signals = crop_middle(signals, (config.length,))
    if changes.scale:
        factor = around_one(indices, "scale", changes.scale, generator).to(signals.device)
        signals = scale(signals, factor, mean)
    if changes.noise:
        share = torch.from_numpy(generator.uniform(indices, "noise.share")).float().to(signals.device)
        noisy = add_noise(signals, [changes.noise * deviation for deviation in std], indices, generator)
        signals = torch.lerp(signals, noisy, share[:, :, None])
    if changes.mask_share:
        draws = torch.from_numpy(generator.uniform(indices, "mask", 2)).float().to(signals.device)
        width = (draws[:, 0] * (changes.mask_share * config.length)).long()
        start = (draws[:, 1] * (config.length - width + 1)).long()
        signals = mask(signals, start, width, mean)
    return signals


def make_batch(
    records: Records,
    indices: np.ndarray,
    info: DatasetInfo,
    config: SignalInput,
    changes: SignalAugment,
    generator: SampleGenerator | None,
    rows: np.ndarray | None = None,
) -> Batch:
    """Take the signals at `indices` (B,) and augment them; without a generator, their middle.

    Where `records` hold only a part of the split, `rows` (B,) are the places in them of those samples.
    """
    taken, config = records.take(indices if rows is None else rows), resolve(info, config)
    if generator is None:
        signals = crop_middle(taken.images, (config.length,))
    else:
        signals = augment(taken.images, indices, info, config, changes, generator)
    return Batch(signals, taken.labels, indices)
