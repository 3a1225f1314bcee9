"""Signals and volumes of one size: decoded, resampled, normalised, cut or filled up; and what augments both alike.

`n` axes: 1 of signals, 3 of volumes. Arrays are (B, C, *axes) float32; every function takes the random choices for
each sample, drawn beforehand by its index, so that a sample looks the same in any batch.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.arrays import SIGNAL, WHAT, Item, decode_item, resample
from data.dataset import DatasetInfo
from data.decode import DecodeError
from data.parameters import Parameters
from data.random import SampleGenerator

SINC_REACH = 16  # of data.arrays.resample, in samples of the lower rate
Normalise = Literal["dataset", "item"]


class ArrayPreprocessing(Parameters):
    """From an encoded signal or volume to the network's input; a model's card keeps it."""

    channels: int
    stored: tuple[int, ...]  # length of each axis, once decoded
    crop: tuple[int, ...]  # of the part that the network sees
    rate_hz: float  # signals that tell theirs are resampled to it; 0: they stay as they are
    # volumes that tell theirs are resampled to cubes of this side; 0: they stay as they are
    spacing_mm: float
    # item: each to zero mean and unit deviation; dataset: the network does, by train's figures
    normalise: Normalise
    fill: tuple[float, ...]  # what is put around shorter ones, by channel: the mean

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one decoded item."""
        return (self.channels, *self.stored)


def statistics(info: DatasetInfo, normalise: Normalise) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel as the network gets them."""
    if normalise == "item":
        return (0.0,) * info.channels, (1.0,) * info.channels
    return info.channel_mean, info.channel_std


def decode_fitted(blob: bytes, want: ArrayPreprocessing) -> np.ndarray:
    """Decode one item: (C, *stored) float32. Raises DecodeError."""
    item = _decode(blob, want)
    values = item.values
    if want.normalise == "item":
        flat = values.reshape(len(values), -1)
        mean, std = flat.mean(1, dtype=np.float64), flat.std(1, dtype=np.float64)
        std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)
        shape = (-1,) + (1,) * len(want.stored)
        values = ((values - mean.reshape(shape)) / std.reshape(shape)).astype(np.float32)
    values = _at_wanted_rate(values, item, want)
    return fit(values, want.stored, want.fill)


def decode_as_it_came(blob: bytes, want: ArrayPreprocessing) -> np.ndarray | None:
    """Decode one item, at the wanted rate or spacing, but neither normalised nor fitted: (C, *axes) float32.

    None where it is resampled after it was normalised: nobody could give that. Raises DecodeError.
    """
    item = _decode(blob, want)
    values = _at_wanted_rate(item.values, item, want)
    return None if want.normalise == "item" and values is not item.values else values


def _decode(blob: bytes, want: ArrayPreprocessing) -> Item:
    item = decode_item(blob, len(want.stored))
    if len(item.values) != want.channels:
        raise DecodeError(f"{len(item.values)} channels, where {want.channels} are expected")
    return item


def decode_all(blobs: Sequence[bytes], want: ArrayPreprocessing) -> np.ndarray:
    """Decode the items of a shard: (N, C, *stored) float32; a DecodeError names the place of what cannot be read."""
    arrays = np.empty((len(blobs), *want.shape), np.float32)
    for i, blob in enumerate(blobs):
        try:
            arrays[i] = decode_fitted(blob, want)
        except DecodeError as error:
            raise DecodeError(f"{WHAT[len(want.stored)]} {i} of {len(blobs)}: {error}") from None
    return arrays


def _at_wanted_rate(values: np.ndarray, item: Item, want: ArrayPreprocessing) -> np.ndarray:
    """Resample where the item says what it is; what would be cut off anyway is cut off first."""
    if len(want.stored) == SIGNAL:
        if not want.rate_hz or not item.rate_hz or item.rate_hz == want.rate_hz:
            return values
        ratio = item.rate_hz / want.rate_hz
        needed = math.ceil(want.stored[0] * ratio) + 2 * math.ceil(SINC_REACH * max(1.0, ratio))
        return resample(cut_middle(values, (needed,)), item.rate_hz, want.rate_hz)
    if not want.spacing_mm or not item.spacing_mm or set(item.spacing_mm) == {want.spacing_mm}:
        return values
    ratios = [side / want.spacing_mm for side in item.spacing_mm]
    needed_sides = [math.ceil(side / ratio) + 2 for side, ratio in zip(want.stored, ratios, strict=True)]
    values = cut_middle(values, needed_sides)
    size = [max(1, round(side * ratio)) for side, ratio in zip(values.shape[1:], ratios, strict=True)]
    tensor = torch.from_numpy(np.ascontiguousarray(values))[None]
    return F.interpolate(tensor, size, mode="trilinear", align_corners=False)[0].numpy()


def cut_middle(values: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """The middle of (C, *axes), at most `sides` long."""
    starts = [max(0, have - side) // 2 for have, side in zip(values.shape[1:], sides, strict=True)]
    return values[(slice(None), *(slice(a, a + side) for a, side in zip(starts, sides, strict=True)))]


def fit(values: np.ndarray, sides: Sequence[int], fill: Sequence[float]) -> np.ndarray:
    """(C, *axes) → (C, *sides): the middle where it is longer; in the middle, among `fill` (C,), where shorter."""
    values = cut_middle(values, sides)
    if values.shape[1:] == tuple(sides):
        return values
    whole = np.empty((len(values), *sides), np.float32)
    whole[:] = np.reshape(fill, (-1,) + (1,) * len(sides))
    starts = [(side - have) // 2 for side, have in zip(sides, values.shape[1:], strict=True)]
    ends = [a + have for a, have in zip(starts, values.shape[1:], strict=True)]
    whole[(slice(None), *map(slice, starts, ends))] = values
    return whole


def by_channel(values: Sequence[float], arrays: Tensor) -> Tensor:
    """One value a channel, to compute with (B, C, *axes)."""
    return torch.tensor(values, dtype=torch.float32, device=arrays.device).view(-1, *(1,) * (arrays.ndim - 2))


def crop_middle(arrays: Tensor, sides: Sequence[int]) -> Tensor:
    """The middle of (B, C, *axes): (B, C, *sides)."""
    for axis, side in enumerate(sides, 2):
        arrays = arrays.narrow(axis, (arrays.shape[axis] - side) // 2, side)
    return arrays


def crop_at(arrays: Tensor, starts: Tensor, sides: Sequence[int]) -> Tensor:
    """Cut `sides` from each (B, C, *axes), beginning at `starts` (B, n) int64."""
    windows = arrays
    for axis, side in enumerate(sides, 2):
        windows = windows.unfold(axis, side, 1)  # a view
    rows = torch.arange(len(arrays), device=arrays.device)
    places: Any = (rows, slice(None), *starts.unbind(1))
    return windows[places]


def pad(arrays: Tensor, num: int, fill: Sequence[float]) -> Tensor:
    """`num` values of `fill` (C,) at both ends of each axis."""
    if num == 0:
        return arrays
    level = by_channel(fill, arrays)
    return F.pad(arrays - level, (num,) * 2 * (arrays.ndim - 2)) + level


def random_crop(
    arrays: Tensor, sides: Sequence[int], indices: np.ndarray, generator: SampleGenerator
) -> Tensor:
    """Cut `sides` at a random place of each."""
    starts = [
        torch.from_numpy(generator.integers(indices, f"crop.{axis}", have - side + 1))
        for axis, (have, side) in enumerate(zip(arrays.shape[2:], sides, strict=True))
    ]
    return crop_at(arrays, torch.stack(starts, 1).to(arrays.device), sides)


def scale(arrays: Tensor, factor: Tensor, level: Sequence[float]) -> Tensor:
    """Multiply distances from `level` (C,) by each sample's `factor` (B,)."""
    middle = by_channel(level, arrays)
    return torch.lerp(middle, arrays, factor.view(-1, *(1,) * (arrays.ndim - 1)))


def add_noise(
    arrays: Tensor, deviation: Sequence[float], indices: np.ndarray, generator: SampleGenerator
) -> Tensor:
    """Add white noise of `deviation` (C,), uniformly distributed: each value has a draw of its own."""
    num = arrays[0].numel()
    draws = torch.from_numpy(generator.uniform(indices, "noise", num).astype(np.float32))
    unit = (draws.to(arrays.device).view_as(arrays) - 0.5) * math.sqrt(12)
    return arrays + unit * by_channel(deviation, arrays)


def around_one(indices: np.ndarray, name: str, reach: float, generator: SampleGenerator) -> Tensor:
    """(B,) float32 in 1 ± `reach`."""
    return torch.from_numpy(1 + (generator.uniform(indices, name)[:, 0] * 2 - 1) * reach).float()
