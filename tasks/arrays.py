"""What the families signals and volumes share: records of fitted arrays, networks, cards, and pictures to look at."""

import io
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image
from torch import Tensor, nn

from data.arrays import decode_item
from data.dataset import DatasetInfo
from data.decode import DecodeError
from data.fitting import ArrayPreprocessing, decode_all, statistics
from data.records import Records
from data.signals import SignalInput
from data.volumes import VolumeInput
from models import signals, volumes
from tasks.card import Member, ModelCard, card_of_one
from tasks.settings import EvaluateConfig, TrainConfig

COLUMNS = ("image", "label")  # of a dataset's rows: what samples are made of
PICTURE_PX = 96
PANELS = "a volume: middle slices across axes 0 and 1 above; across axis 2, and the mean along axis 0, below"
BUILDERS = {"signals": signals.build, "volumes": volumes.build}


def require_plain(train: TrainConfig, evaluate: EvaluateConfig) -> None:
    """Raise a ValueError for what only pictures have."""
    if train.growth:
        raise ValueError(f"train.growth (={list(train.growth)}) must be []: only pictures are shrunk")
    views = {*evaluate.views, evaluate.registered_view} - {"single"}
    if views:
        raise ValueError(
            f"evaluate.views (={sorted(views)[0]!r}) must be [single]: other views are of pictures"
        )


class ArrayConfig(Protocol):
    """What is needed of both families' parameters."""

    @property
    def model(self) -> signals.SignalModel | volumes.VolumeModel: ...

    @property
    def input(self) -> SignalInput | VolumeInput: ...

    def preprocessing(self, info: DatasetInfo) -> ArrayPreprocessing: ...

    def arguments(self) -> dict[str, Any]: ...


def decode(rows: pa.Table, info: DatasetInfo, config: ArrayConfig) -> dict[str, np.ndarray]:
    """Decode rows of COLUMNS: `images` (N, C, *stored) float32 and `labels` (N,) int64."""
    labels = rows["label"].to_numpy().astype(np.int64)
    return {"images": decode_all(rows["image"].to_pylist(), config.preprocessing(info)), "labels": labels}


def empty(info: DatasetInfo, config: ArrayConfig) -> dict[str, np.ndarray]:
    """The arrays of a split without items."""
    shape = config.preprocessing(info).shape
    return {"images": np.empty((0, *shape), np.float32), "labels": np.empty(0, np.int64)}


def records(arrays: dict[str, Tensor]) -> Records:
    """The split as samples."""
    return Records(arrays["images"], arrays["labels"])


def build_model(config: ArrayConfig, info: DatasetInfo, sample: Any) -> nn.Module:  # noqa: ARG001
    """A fresh network for the dataset; nothing in it depends on `sample`."""
    mean, std = statistics(info, config.input.normalise)
    build = BUILDERS[info.family]
    return build(config.model.name, len(info.classes), info.channels, config.arguments(), mean, std)


def rebuild(card: ModelCard, member: Member) -> nn.Module:
    """A network of the member's shape; its weights, statistics included, come from the member's file."""
    assert isinstance(card.preprocessing, ArrayPreprocessing)
    channels = card.preprocessing.channels
    unset = (0.0,) * channels
    build = BUILDERS[card.family]
    return build(member.architecture, len(card.classes), channels, member.arguments, unset, unset)


def card(config: ArrayConfig, info: DatasetInfo, digest: str, run: str) -> ModelCard:
    """What a single trained network says of itself."""
    return card_of_one(
        config, info, digest, run,
        arguments=config.arguments(), classes=info.classes, preprocessing=config.preprocessing(info),
    )  # fmt: skip


def draw_all(arrays: np.ndarray) -> np.ndarray:
    """Pictures of signals (N, C, L), as curves, or volumes (N, C, D, H, W), as slices: (N, 1, S, S) uint8."""
    draw = draw_signal if arrays.ndim == 3 else draw_volume
    pictures = [draw(values) for values in arrays.astype(np.float32)]
    return np.array(pictures, np.uint8).reshape(-1, 1, PICTURE_PX, PICTURE_PX)


def as_png(blob: bytes, num_axes: int) -> bytes:
    """An encoded signal or volume as a picture to look at; what cannot be read stays as it is."""
    try:
        values = decode_item(blob, num_axes).values
    except DecodeError:
        return blob
    stream = io.BytesIO()
    Image.fromarray(draw_all(values[None])[0, 0]).save(stream, "PNG")
    return stream.getvalue()


def draw_signal(values: np.ndarray) -> np.ndarray:
    """(C, L) → (S, S) uint8: a curve for each channel, one below the other, dark on white.

    A column spans what its samples reach, so that no peak is lost where there are more samples than columns.
    """
    S, (C, L) = PICTURE_PX, values.shape
    shown = min(C, 12)
    picture = np.full((S, S), 255, np.uint8)
    starts = np.arange(S) * L // S
    # to the next column's first sample, so that the curve hangs together
    ends = np.maximum((np.arange(S) + 1) * L // S, starts + 1) + 1
    for channel in range(shown):
        top, bottom = S * channel // shown, S * (channel + 1) // shown - 1
        low, high = float(values[channel].min()), float(values[channel].max())
        level = (values[channel] - low) / max(high - low, 1e-12)
        rows = np.rint(bottom - level * (bottom - top)).astype(np.int64)
        for column in range(S):
            span = rows[starts[column] : ends[column]]
            picture[span.min() : span.max() + 1, column] = 0
    return picture


def draw_volume(values: np.ndarray) -> np.ndarray:
    """(C, D, H, W) → (S, S) uint8: of channel 0 the middle slices across the axes, and the mean along the first."""
    S = PICTURE_PX // 2
    volume = values[0]
    low, high = float(volume.min()), float(volume.max())
    grey = (volume - low) / max(high - low, 1e-12) * 255
    D, H, W = grey.shape
    slices = [grey[D // 2], grey[:, H // 2], grey[:, :, W // 2], grey.mean(0)]
    tiles = [tile[np.arange(S) * tile.shape[0] // S][:, np.arange(S) * tile.shape[1] // S] for tile in slices]
    return np.block([tiles[:2], tiles[2:]]).round().astype(np.uint8)
