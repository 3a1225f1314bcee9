"""Where a run's pictures are, and how they come to the loop: resident in memory, or streamed from their shards.

Resident: a split is decoded once, and batches are made from it. Streaming: a batch's rows are read when its turn comes,
decoded and augmented, by Ray processes ahead of training; what is in memory stays within `train.data_gb`. Both give
the same batches for the same seed and step: the order is the same (data.stream), and so is what is done to a sample.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, Literal

import numpy as np
from torch import Tensor

from data.dataset import Dataset, DatasetInfo, Split
from data.stream import RowReader, layout_of
from tasks.families import Family
from tasks.loop import Job, batch_of, batch_of_rows

PREFETCH_BATCHES = 3  # per augmentation worker
CACHE_SHARE = (
    0.6  # of the memory for pictures: a window of half of it, and the blocks that it begins and ends in
)
FLIGHT_SHARE = 0.3  # and what is on its way from the reader to the loop
PROBE_ROWS = 8
SAMPLE_IMAGES = 5000  # training pictures that data-dependent initial weights may look at

Feed = Callable[[Iterator[Job]], Iterator[Any]]  # jobs -> their batches, in order


def choose_mode(family: Family, dataset: Dataset, config: Any) -> Literal["resident", "streaming"]:
    """What `train.data_mode` says, or where it is `auto`, what fits: judged by a few rows, decoded."""
    if config.train.data_mode != "auto":
        return config.train.data_mode
    rows = probe(family, dataset)
    arrays = family.decode(rows, dataset.info, config)
    each = sum(array.nbytes for array in arrays.values()) / max(1, rows.num_rows)
    num = dataset.info.num_images("train") + dataset.info.num_images("val")
    return "resident" if num * each <= config.train.data_gb * 1e9 else "streaming"


def probe(family: Family, dataset: Dataset) -> Any:
    """The first rows of the train split, which are random ones."""
    num = min(PROBE_ROWS, dataset.info.num_images("train"))
    return RowReader(dataset, "train", family.columns, 0).take(np.arange(num))


def stream_depth(family: Family, dataset: Dataset, config: Any, batch_size: int) -> int:
    """Batches of a rank that may be under way at a time; raises ValueError if the memory for pictures holds none."""
    settings = config.train
    rows = probe(family, dataset)
    batch = batch_of_rows(family, rows, Job(np.arange(rows.num_rows)), dataset.info, config)
    tensors = [getattr(batch, field.name) for field in fields(batch)]
    made = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor)) / rows.num_rows
    layout = layout_of(dataset, "train")
    each = batch_size * (made + layout.num_bytes / layout.num_rows)
    fitting = int(settings.data_gb * 1e9 * FLIGHT_SHARE / settings.num_workers / each)
    if fitting < 1:
        least = each * settings.num_workers / FLIGHT_SHARE / 1e9
        raise ValueError(
            f"train.data_gb (={settings.data_gb:g}) holds no batch of {settings.batch_size} pictures: give at least "
            f"{least:.2g}, or lower train.batch_size"
        )
    return min(fitting, PREFETCH_BATCHES * max(1, settings.augment_workers))


def cache_bytes(config: Any) -> int:
    """What a reader may keep of the blocks that it read."""
    return int(config.train.data_gb * 1e9 * CACHE_SHARE)


def spread_indices(num_samples: int, most: int) -> np.ndarray:
    """At most `most` of a split's samples, evenly spread over it."""
    return np.arange(0, num_samples, -(-num_samples // most)) if num_samples else np.arange(0)


def resident(family: Family, samples: Any, info: DatasetInfo, config: Any) -> Feed:
    """Batches made by this process from samples that it holds."""
    return lambda jobs: (batch_of(family, samples, job, info, config) for job in jobs)


def streamed_here(family: Family, dataset: Dataset, split: Split, config: Any) -> Feed:
    """Batches made by this process from rows that it reads: no helper, nothing made ahead."""
    reader = RowReader(dataset, split, family.columns, cache_bytes(config))
    return lambda jobs: (
        batch_of_rows(family, reader.take(job.indices), job, dataset.info, config) for job in jobs
    )
