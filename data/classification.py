"""Classification's input: decoded pictures that stay in memory, and batches made from them."""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, model_validator
from torch import Tensor

from data.augment import AugmentConfig, augment, centre_crop, reflect_pad, shrink
from data.dataset import DatasetInfo
from data.decode import decode_many
from data.mixing import mix
from data.parameters import Parameters
from data.random import SampleGenerator

COLUMNS = ("image", "label")  # of a dataset's rows: what samples are made of


class InputConfig(Parameters):
    """From encoded pictures to the network's input."""

    stored_px: int = Field(
        ge=1, le=1024, description="pictures are decoded to squares of this side, in pixels"
    )
    crop_px: int = Field(ge=1, le=1024, description="side of the square that the network sees, in pixels")
    pad_px: int = Field(
        ge=0, le=256, description="reflected border that random crops may reach into, in pixels"
    )
    resize: Literal["crop", "squash"] = Field(
        description="crop: keep proportions and cut the middle; squash: the whole picture, distorted"
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop_px > self.stored_px + 2 * self.pad_px:
            raise ValueError(
                f"crop_px (={self.crop_px}) must not exceed stored_px + 2 * pad_px "
                f"(={self.stored_px + 2 * self.pad_px})"
            )
        if self.pad_px >= self.stored_px:
            raise ValueError(
                f"pad_px (={self.pad_px}) must be below stored_px (={self.stored_px}): "
                "a reflected border cannot be wider than the picture"
            )
        return self


@dataclass(frozen=True)
class Records:
    """Decoded samples of one split, in the order of their indices. Images (N, C, S, S) uint8, labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Records":
        return Records(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Batch:
    """What one step sees: images (B, C, crop, crop) uint8, labels (B,) int64, indices (B,) into the split.

    Where pictures are mixed, `partner_labels` (B,) are those of each one's partner, and `weights` (B,) float32 the
    share that its own label keeps.
    """

    images: Tensor
    labels: Tensor
    indices: np.ndarray
    partner_labels: Tensor | None = None
    weights: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.indices,
            move(self.partner_labels),
            move(self.weights),
        )


def decode_rows(rows: pa.Table, channels: Literal[1, 3], config: InputConfig) -> dict[str, np.ndarray]:
    """Decode rows of COLUMNS: `images` (N, C, S, S) uint8 and `labels` (N,) int64."""
    images = decode_many(rows["image"].to_pylist(), config.stored_px, channels, config.resize)
    return {"images": images, "labels": rows["label"].to_numpy().astype(np.int64)}


def empty_split(channels: Literal[1, 3], config: InputConfig) -> dict[str, np.ndarray]:
    """The arrays of a split without images."""
    side = config.stored_px
    return {"images": np.empty((0, channels, side, side), np.uint8), "labels": np.empty(0, np.int64)}


def fill_colour(info: DatasetInfo) -> tuple[int, ...]:
    """The dataset's mean colour in grey levels: what cutout blanks with, zero after normalisation."""
    return tuple(round(mean * 255) for mean in info.channel_mean)


def make_batch(
    records: Records,
    indices: np.ndarray,
    info: DatasetInfo,
    config: InputConfig,
    augmentation: AugmentConfig,
    generator: SampleGenerator | None,
    shrink_px: int = 0,
    rows: np.ndarray | None = None,
) -> Batch:
    """Take the samples at `indices` (B,) and augment them; without a generator, the plain centre crop.

    `shrink_px` > 0 reduces the finished pictures to that side, for training that starts on small ones. Where `records`
    hold only a part of the split, `rows` (B,) are the places in them of those samples.
    """
    where = torch.from_numpy(indices if rows is None else rows).to(records.images.device)
    # index_select copies whole rows; indexing by a tensor goes byte by byte
    images, labels = records.images.index_select(0, where), records.labels.index_select(0, where)
    if generator is None:
        if config.crop_px > config.stored_px:
            images = reflect_pad(images, config.pad_px)
        images = centre_crop(images, config.crop_px)
    else:
        images = augment(
            images, indices, config.crop_px, config.pad_px, fill_colour(info), augmentation, generator
        )
    if shrink_px:
        images = shrink(images, shrink_px)
    if generator is not None and (augmentation.mixup_alpha or augmentation.cutmix_alpha):
        images, other, weights = mix(images, indices, augmentation, generator)
        return Batch(images, labels, indices, labels[other], weights)
    return Batch(images, labels, indices)
