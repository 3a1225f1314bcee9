"""Classification's input: decoded pictures that stay in memory, and batches made from them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, model_validator
from torch import Tensor

from data.augment import AugmentConfig, Draws, augment, centre_crop, crop_boxes, reflect_pad, shrink
from data.colour import Colours, principal_components
from data.crops import decode_crops
from data.dataset import DatasetInfo
from data.decode import decode_many
from data.mixing import mix
from data.parameters import Parameters
from data.random import SampleGenerator
from data.records import Batch, Records

COLUMNS = ("image", "label", "width", "height")  # of a dataset's rows: what samples are made of


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
class Pictures:
    """Samples that stay encoded, since each crop is decoded anew: N files one after the other, on the CPU.

    `encoded` (sum of bytes,) uint8, `num_bytes` (N,) int64, `sides_px` (N, 2) int64 (width, height), labels (N,) int64.
    """

    encoded: Tensor
    num_bytes: Tensor
    sides_px: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Pictures":  # noqa: ARG002 - decoders run on the CPU
        return self

    def blobs(self, rows: np.ndarray) -> list[bytes]:
        ends = self.ends
        encoded = self.encoded.numpy()
        return [encoded[ends[row] : ends[row + 1]].tobytes() for row in rows.tolist()]

    @cached_property
    def ends(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.num_bytes.numpy())])


def decode_rows(
    rows: pa.Table, channels: Literal[1, 3], config: InputConfig, augmentation: AugmentConfig
) -> dict[str, np.ndarray]:
    """Rows of COLUMNS as arrays: the fields of `Records`, or of `Pictures` where crops are cut from the picture."""
    labels = rows["label"].to_numpy().astype(np.int64)
    if augmentation.crop_from == "square":
        images = decode_many(rows["image"].to_pylist(), config.stored_px, channels, config.resize)
        return {"images": images, "labels": labels}
    blobs = rows["image"].to_pylist()
    return {
        "encoded": np.frombuffer(bytearray().join(blobs), np.uint8),
        "num_bytes": np.array([len(blob) for blob in blobs], np.int64),
        "sides_px": np.stack([rows["width"].to_numpy(), rows["height"].to_numpy()], 1).astype(np.int64),
        "labels": labels,
    }


def empty_split(
    channels: Literal[1, 3], config: InputConfig, augmentation: AugmentConfig
) -> dict[str, np.ndarray]:
    """The arrays of a split without images."""
    labels = np.empty(0, np.int64)
    if augmentation.crop_from == "square":
        return {
            "images": np.empty((0, channels, config.stored_px, config.stored_px), np.uint8),
            "labels": labels,
        }
    return {
        "encoded": np.empty(0, np.uint8),
        "num_bytes": np.empty(0, np.int64),
        "sides_px": np.empty((0, 2), np.int64),
        "labels": labels,
    }


def samples_of(arrays: dict[str, Tensor]) -> Records | Pictures:
    """What `decode_rows` gave, as samples."""
    return Records(**arrays) if "images" in arrays else Pictures(**arrays)


def colours_of(info: DatasetInfo) -> Colours:
    """What augmentation needs of a dataset's colours, in grey levels."""
    return Colours(
        tuple(round(mean * 255) for mean in info.channel_mean), principal_components(info.colour_covariance)
    )


def make_batch(
    samples: Records | Pictures,
    indices: np.ndarray,
    info: DatasetInfo,
    config: InputConfig,
    augmentation: AugmentConfig,
    generator: SampleGenerator | None,
    shrink_px: int = 0,
    rows: np.ndarray | None = None,
) -> Batch:
    """Take the samples at `indices` (B,) and augment them; without a generator, the plain centre crop.

    `shrink_px` > 0 reduces the finished pictures to that side, for training that starts on small ones. Where `samples`
    hold only a part of the split, `rows` (B,) are the places in them of those samples.
    """
    rows = indices if rows is None else rows
    if isinstance(samples, Records):
        # index_select copies whole rows; indexing by a tensor goes byte by byte
        images = samples.images.index_select(0, torch.from_numpy(rows).to(samples.images.device))
    elif generator is None:
        images = torch.from_numpy(
            decode_many(samples.blobs(rows), config.stored_px, info.picture_channels, config.resize)
        )
    else:
        images = cut_crops(
            samples, rows, indices, config.crop_px, info.picture_channels, augmentation, generator
        )
    labels = samples.labels.index_select(0, torch.from_numpy(rows).to(samples.labels.device))
    if generator is None:
        if config.crop_px > config.stored_px:
            images = reflect_pad(images, config.pad_px)
        images = centre_crop(images, config.crop_px)
    elif isinstance(samples, Records):
        images = augment(
            images, indices, config.crop_px, config.pad_px, colours_of(info), augmentation, generator
        )
    else:
        rest = augmentation.after_cutting()
        images = augment(images, indices, config.crop_px, 0, colours_of(info), rest, generator)
    if shrink_px:
        images = shrink(images, shrink_px)
    mixes = augmentation.mixup_alpha or augmentation.cutmix_alpha
    if generator is not None and mixes and generator.done < augmentation.mixing_until:
        images, other, weights = mix(images, indices, augmentation, generator)
        return Batch(images, labels, indices, labels[other], weights)
    return Batch(images, labels, indices)


def cut_crops(
    samples: Pictures,
    rows: np.ndarray,
    indices: np.ndarray,
    crop_px: int,
    channels: Literal[1, 3],
    augmentation: AugmentConfig,
    generator: SampleGenerator,
) -> Tensor:
    """A random resized crop of each picture, decoded for it, or its mirror image: (B, C, crop_px, crop_px) uint8."""
    sides = samples.sides_px.index_select(0, torch.from_numpy(rows))
    draws = Draws(indices, generator, sides.device)
    boxes = crop_boxes(sides, augmentation, draws).numpy()
    mirror = draws.flips().numpy() if augmentation.mirror else np.zeros(len(rows), bool)
    return decode_crops(samples.blobs(rows), boxes, mirror, crop_px, channels)
