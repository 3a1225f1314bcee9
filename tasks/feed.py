"""Where a run's pictures are, and how they come to the loop: resident in memory, or streamed from their shards.

Resident: a split is decoded once, and batches are made from it. Streaming: a batch's rows are read when its turn comes,
decoded and augmented, by Ray processes ahead of training; what is in memory stays within `train.data_gb`. Both give
the same batches for the same seed and step: the order is the same (data.stream), and so is what is done to a sample.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from torch import Tensor

from data.dataset import Dataset, DatasetInfo, Split
from data.stream import Layout, RowReader
from tasks.batches import BatchPlan, Job, batch_of, batch_of_rows, plain_jobs, training_jobs
from tasks.families import Family
from tasks.loop import Session, fit

PREFETCH_BATCHES = 3  # per augmentation worker
# Shares of the memory for pictures. The cache: the window of tasks.batches, and the blocks that it begins and ends in.
# What is left over goes to what reading, decoding and allocators take beside the pictures.
CACHE_SHARE = 0.5
FLIGHT_SHARE = 0.2  # what is on its way to the loop; as much again while validation comes between
PROBE_ROWS = 8
# of training pictures that data-dependent initial weights look at
SAMPLE_IMAGES, SAMPLE_BYTES = 5000, 64 << 20

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
    with pq.ParquetFile(dataset.shards("train")[0]) as shard:  # one file, however many there are
        return shard.read_row_group(0, columns=list(family.columns)).slice(0, PROBE_ROWS)


def stream_depth(family: Family, dataset: Dataset, config: Any, layout: Layout) -> int:
    """Batches of a rank that may be under way at a time; raises ValueError if the memory for pictures holds none."""
    settings = config.train
    rows = probe(family, dataset)
    batch = batch_of_rows(family, rows, Job(np.arange(rows.num_rows)), dataset.info, config)
    tensors = [getattr(batch, field.name) for field in fields(batch)]
    made = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor)) / rows.num_rows
    each = (
        settings.batch_size
        // settings.num_workers
        // settings.accumulate_batches
        * (made + layout.num_bytes / layout.num_rows)
    )
    fitting = int(settings.data_gb * 1e9 * FLIGHT_SHARE / settings.num_workers / each)
    if fitting < 1:
        least = round_up(each * settings.num_workers / FLIGHT_SHARE / 1e9)
        raise ValueError(
            f"train.data_gb (={settings.data_gb:g}) holds no batch of {settings.batch_size} pictures: give at least "
            f"{least:g}, or lower train.batch_size"
        )
    return min(fitting, PREFETCH_BATCHES * max(1, settings.augment_workers))


def round_up(value: float) -> float:
    """To two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.3g}")


def cache_bytes(config: Any, split: Split) -> int:
    """What a reader may keep of the blocks that it read. Validation goes from block to block, and keeps none."""
    return int(config.train.data_gb * 1e9 * CACHE_SHARE) if split == "train" else 0


def spread_indices(num_samples: int, most: int) -> np.ndarray:
    """At most `most` of a split's samples, evenly spread over it."""
    return np.arange(0, num_samples, -(-num_samples // most)) if num_samples else np.arange(0)


def resident(family: Family, samples: Any, info: DatasetInfo, config: Any) -> Feed:
    """Batches made by this process from samples that it holds."""
    return lambda jobs: (batch_of(family, samples, job, info, config) for job in jobs)


def streamed_here(family: Family, dataset: Dataset, split: Split, config: Any) -> Feed:
    """Batches made by this process from rows that it reads: no helper, nothing made ahead."""
    reader = RowReader(dataset, split, family.columns, cache_bytes(config, split))
    return lambda jobs: (
        batch_of_rows(family, reader.take(job.indices), job, dataset.info, config) for job in jobs
    )


@dataclass(frozen=True)
class Feeds:
    """Where a rank's batches come from."""

    train: Feed
    val: Feed
    num_val: int


def fit_from(
    feeds: Feeds,
    family: Family,
    config: Any,
    info: DatasetInfo,
    layout: Layout,
    session: Session,
    on_start: Callable[[int], None],
) -> dict[str, Any]:
    """Run the loop on what `feeds` give; `on_start` hears the number of its first step."""
    own = config.train.batch_size // session.world_size // config.train.accumulate_batches
    plain_size = min(config.evaluate.batch_size, own)

    def sample() -> list[Any]:
        [one] = feeds.train(plain_jobs(np.arange(1), 1))
        places = spread_indices(layout.num_rows, min(SAMPLE_IMAGES, 1 + SAMPLE_BYTES // one.images.nbytes))
        return list(feeds.train(plain_jobs(places, plain_size)))

    def batches(plan: BatchPlan, first_step: int, place_at: Callable[[int], float]) -> Iterator[Any]:
        on_start(first_step)
        return feeds.train(training_jobs(plan, first_step, place_at))

    def validate(model: Any) -> dict[str, float]:
        if not feeds.num_val:
            return {}
        jobs = plain_jobs(np.arange(feeds.num_val), plain_size)
        return family.validate(model, (batch.to(session.device) for batch in feeds.val(jobs)), config)

    return fit(family, config, info, sample, batches, layout, validate, session)
