"""What `dataset.json` says of a dataset that was just read: counts, sizes, statistics of its channels and colours."""

import hashlib
from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np

from data import arrays
from data.dataset import (
    NUM_AXES,
    SCHEMA_VERSION,
    DatasetInfo,
    Shard,
    Split,
    count_boxes,
    count_images,
)
from data.measurement import Measured
from data.report import Found


def describe_dataset(
    name: str,
    family: str,
    licence: str,
    source: str,
    found: Found,
    splits: Sequence[Split],
    shards: tuple[Shard, ...],
) -> DatasetInfo:
    """What `dataset.json` says."""
    measured = found.measured
    rows = [found.row(i) for i in range(len(found.items))]
    digest = hashlib.sha256()
    for item, key in zip(found.items, measured.sha256, strict=True):
        digest.update(f"{item.id}\0{key}\n".encode())
    channels: int = 1 if measured.grey.all() else 3
    trained = measured.take(np.flatnonzero(np.array(splits) == "train"))
    about: dict[str, Any] = {}
    if family in NUM_AXES:
        facts = [fact for fact in measured.facts if fact is not None]
        of_train = [fact for fact in trained.facts if fact is not None]
        channels, (mean, std) = len(facts[0].sums), arrays.channel_statistics(of_train)
        about = {"axes": arrays.spreads(facts), "rate_hz": arrays.usual_rate(facts)}
        about["spacing_mm"] = arrays.usual_spacing(facts)
    else:
        mean, std = channel_statistics(trained, channels)
    return DatasetInfo(
        **about,
        schema_version=SCHEMA_VERSION,
        name=name,
        family=family,
        classes=found.classes,
        channels=channels,
        counts=count_images(family, splits, rows, found.classes),
        width_px=_spread(measured.width_px),
        height_px=_spread(measured.height_px),
        channel_mean=mean,
        channel_std=std,
        colour_covariance=colour_covariance(trained) if channels == 3 and family not in NUM_AXES else (),
        source=source,
        source_sha256=digest.hexdigest(),
        licence=licence,
        set_aside=len(found.set_aside),
        shards=shards,
        num_boxes=count_boxes(splits, rows, found.classes) if family == "detection" else {},
        box_areas="box_areas" in found.targets.columns,
    )


def channel_statistics(measured: Measured, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of all pixels in [0, 1], each image at its own size; exact sums.

    A deviation below 1/255 (a channel that is the same everywhere) is given as 1/255, since one divides by it.
    """
    num = sum((measured.width_px * measured.height_px).tolist())
    means, deviations = [], []
    for channel in range(channels):
        total = sum(measured.sums[:, channel].tolist())  # Python's integers do not overflow
        squares = sum(measured.squares[:, channel].tolist())
        means.append(round(total / num / 255, 8))
        deviations.append(round(max(sqrt(squares * num - total**2) / num, 1.0) / 255, 8))
    return tuple(means), tuple(deviations)


def colour_covariance(measured: Measured) -> tuple[tuple[float, ...], ...]:
    """Covariance of red, green and blue over the pixels that were looked at, in grey levels squared: (3, 3)."""
    num, *rest = measured.colour.sum(0).tolist()
    if not num:
        return ()
    means = np.array(rest[:3]) / num
    products = np.zeros((3, 3))
    products[np.triu_indices(3)] = np.array(rest[3:]) / num
    covariance = np.triu(products - np.outer(means, means))
    whole = covariance + np.triu(covariance, 1).T
    return tuple(tuple(round(value, 4) for value in row) for row in whole.tolist())


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    ordered = np.sort(values)
    return int(ordered[0]), int(ordered[len(ordered) // 2]), int(ordered[-1])
