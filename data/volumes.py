"""Volumes' input: what is cut out of each, and how training changes it."""

from typing import Literal, Self

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
    crop_middle,
    pad,
    random_crop,
    scale,
    statistics,
)
from data.parameters import Parameters
from data.random import SampleGenerator
from data.records import Batch, Records

Axis = Literal[0, 1, 2]  # of the volume as stored; of NIfTI: to the right, forward, up


class VolumeInput(Parameters):
    """From encoded volumes to the network's input: cubes."""

    stored_voxels: int = Field(
        ge=1,
        le=512,
        description="side of the cube kept of each volume: its middle; smaller ones are filled up",
    )
    crop_voxels: int = Field(ge=1, le=512, description="side of the cube that the network sees")
    spacing_mm: float = Field(
        ge=0, description="volumes that tell the sides of their voxels are resampled to this side; 0: never"
    )
    normalise: Normalise = Field(
        description="dataset: by the training split's mean and deviation of each channel; item: each by its own"
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop_voxels > self.stored_voxels:
            raise ValueError(
                f"crop_voxels (={self.crop_voxels}) must not exceed stored_voxels (={self.stored_voxels})"
            )
        return self


class VolumeAugment(Parameters):
    """What training does to its volumes; everything off gives their middle."""

    random_crop: bool = Field(description="take the cube at a random place; otherwise the middle")
    shift_voxels: int = Field(ge=0, le=64, description="random crops may reach so far beyond the faces")
    mirror_axes: tuple[Axis, ...] = Field(description="axes along which half of the volumes are mirrored")
    turn_axis: Literal[-1, 0, 1, 2] = Field(
        description="axis about which volumes are turned by 0, 90, 180 or 270 degrees; -1: none"
    )
    scale: float = Field(ge=0, lt=1, description="values' distances from the mean, by up to 1 ± this")
    noise: float = Field(
        ge=0, le=2, description="greatest deviation of added white noise, as a share of the channel's own"
    )


def preprocessing(info: DatasetInfo, config: VolumeInput) -> ArrayPreprocessing:
    """What decoding needs to know."""
    return ArrayPreprocessing(
        channels=info.channels,
        stored=(config.stored_voxels,) * 3,
        crop=(config.crop_voxels,) * 3,
        rate_hz=0,
        spacing_mm=config.spacing_mm,
        normalise=config.normalise,
        fill=statistics(info, config.normalise)[0],
    )


def mirror(volumes: Tensor, flip: Tensor, axis: Axis) -> Tensor:
    """Mirror along `axis` those (B, C, D, H, W) where `flip` (B,) bool is set."""
    mirrored = volumes.clone()
    mirrored[flip] = volumes[flip].flip(axis + 2)
    return mirrored


def turn(volumes: Tensor, quarters: Tensor, axis: Axis) -> Tensor:
    """Turn (B, C, S, S, S) about `axis`, `quarters` (B,) times a quarter, the first other axis towards the next."""
    first, second = (other + 2 for other in range(3) if other != axis)
    turned = volumes.clone()
    for number in (1, 2, 3):
        these = quarters == number
        turned[these] = torch.rot90(volumes[these], number, (first, second))
    return turned


def augment(
    volumes: Tensor,
    indices: np.ndarray,
    info: DatasetInfo,
    config: VolumeInput,
    changes: VolumeAugment,
    generator: SampleGenerator,
) -> Tensor:
    """As `changes` says: (B, C, *stored) → (B, C, *crop); each sample's choices are drawn by its index."""
    mean, std = statistics(info, config.normalise)
    sides = (config.crop_voxels,) * 3
    if changes.random_crop:
        volumes = random_crop(pad(volumes, changes.shift_voxels, mean), sides, indices, generator)
    else:
        volumes = crop_middle(volumes, sides)
    for axis in changes.mirror_axes:
        flip = torch.from_numpy(generator.uniform(indices, f"mirror.{axis}")[:, 0] < 0.5)
        volumes = mirror(volumes, flip.to(volumes.device), axis)
    if changes.turn_axis != -1:
        quarters = torch.from_numpy(generator.integers(indices, "turn", 4)).to(volumes.device)
        volumes = turn(volumes, quarters, changes.turn_axis)
    if changes.scale:
        factor = around_one(indices, "scale", changes.scale, generator).to(volumes.device)
        volumes = scale(volumes, factor, mean)
    if changes.noise:
        share = torch.from_numpy(generator.uniform(indices, "noise.share")).float().to(volumes.device)
        noisy = add_noise(volumes, [changes.noise * deviation for deviation in std], indices, generator)
        volumes = torch.lerp(volumes, noisy, share.view(-1, 1, 1, 1, 1))
    return volumes


def make_batch(
    records: Records,
    indices: np.ndarray,
    info: DatasetInfo,
    config: VolumeInput,
    changes: VolumeAugment,
    generator: SampleGenerator | None,
    rows: np.ndarray | None = None,
) -> Batch:
    """Take the volumes at `indices` (B,) and augment them; without a generator, their middle.

    Where `records` hold only a part of the split, `rows` (B,) are the places in them of those samples.
    """
    taken = records.take(indices if rows is None else rows)
    if generator is None:
        volumes = crop_middle(taken.images, (config.crop_voxels,) * 3)
    else:
        volumes = augment(taken.images, indices, info, config, changes, generator)
    return Batch(volumes, taken.labels, indices)
