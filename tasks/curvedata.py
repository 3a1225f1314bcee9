"""What the cells of a learning curve train on: pictures or cached features, made once and shared by all (tasks.curve).

Of the train split only the pictures that some cell needs are read, and at any time few of them lie still encoded in
memory.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data.dataset import Dataset, DatasetInfo, Split
from data.stream import RowReader
from tasks.batches import Job, join_arrays
from tasks.calls import call_each, compute_features, gpus_of_call, share
from tasks.classification import ClassificationConfig
from tasks.cluster import cluster_info, connect, require_resources
from tasks.families import FAMILIES, Family
from tasks.features import Compute, cached_features, caches, compute_here
from tasks.feed import Feed, probe
from tasks.settings import TrainConfig
from tasks.transfer import Weights

FAMILY = "classification"
DECODE_ROWS = 256  # in one piece
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Place:
    """Where cells run: how a function is called on each of many arguments, and how large ones are shared by them."""

    each: Callable[..., Iterator[tuple[int, Any]]]
    share: Callable[[Any], Any]
    compute: Compute
    num_parts: int
    gpus: int  # to ask for with a call that runs on a GPU where there is one


def here() -> Place:
    own_threads = torch.get_num_threads()

    def each(
        function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], num_threads: int, _num_gpus: float,
        *, in_order: bool = True,  # noqa: ARG001  # it always is
    ) -> Iterator[tuple[int, Any]]:  # fmt: skip
        torch.set_num_threads(num_threads or own_threads)
        try:
            for place, arguments in enumerate(calls):
                yield place, function(*arguments)
        finally:
            torch.set_num_threads(own_threads)

    return Place(each, lambda value: value, compute_here, 1, 0)


def everywhere() -> Place:
    """On Ray, with one thread a call."""
    connect()
    return Place(call_each, share, compute_features, cluster_info().num_cpus, gpus_of_call())


def on_ray(settings: TrainConfig) -> Place:
    """Raises ValueError where no node holds a single cell."""
    place = everywhere()
    require_resources(1, max(1, settings.cpus_per_worker), settings.gpus_per_worker)
    return place


def chosen(
    family: Family, samples: Any, rows: np.ndarray, places: np.ndarray, info: DatasetInfo, config: Any
) -> Feed:
    """Batches of the samples at `rows` of the split, which lie at `places` in `samples`."""

    def batch(job: Job) -> Any:
        own = job.indices
        return family.batch(samples, rows[own], info, config, job.generator, job.shrink_px, places[own])

    return lambda jobs: map(batch, jobs)


def decode_piece(rows: pa.Table, info: DatasetInfo, config: ClassificationConfig) -> Arrays:
    return FAMILIES[FAMILY].decode(rows, info, config)


def decode_pictures(
    dataset: Dataset, config: ClassificationConfig, needed: np.ndarray, where: Place
) -> dict[Split, Arrays]:
    """The pictures at `needed` of train, and all of val; raises ValueError if they exceed `train.data_gb`."""
    family = FAMILIES[FAMILY]
    sample = probe(family, dataset)
    decoded = family.decode(sample, dataset.info, config)
    num = len(needed) + dataset.info.num_images("val")
    needed_gb = num * sum(array.nbytes for array in decoded.values()) / sample.num_rows / 1e9
    if needed_gb > config.train.data_gb:
        raise ValueError(
            f"the pictures of this learning curve take {needed_gb:.3g} GB of memory, and train.data_gb is "
            f"{config.train.data_gb:g}: raise it, or lower the shots or the seeds"
        )
    places: dict[Split, np.ndarray] = {
        "train": needed,
        "val": np.arange(dataset.info.num_images("val")),
    }
    found: dict[Split, Arrays] = {}
    for split, rows in places.items():
        reader = RowReader(dataset, split, family.columns, cache_bytes=0)
        calls = ((piece, dataset.info, config) for piece in reader.pieces(rows, DECODE_ROWS))
        pieces = dict(where.each(decode_piece, calls, 1, 0.0))
        found[split] = join_arrays([pieces[i] for i in sorted(pieces)], family.empty(dataset.info, config))
    return found


class Materials:
    """What cells are trained on, each made when the first cell asks for it: features of a stage, or pictures."""

    def __init__(
        self, dataset: Dataset, weights: Weights, needed: np.ndarray, where: Place,
        on_features: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        self.dataset, self.weights, self.needed, self.where = dataset, weights, needed, where
        self.on_features = on_features
        self.made: dict[tuple[bool, int], tuple[Any, Any]] = {}

    def of(self, config: ClassificationConfig, rows: np.ndarray) -> tuple[np.ndarray, Any, Any]:
        """Where the samples at `rows` lie in train's arrays, and references to the arrays of train and of val."""
        cached = caches(config)
        key = (cached, config.transfer.num_stages if cached else 0)
        if key not in self.made:
            where = self.where
            arrays = (
                cached_features(
                    self.dataset, config, self.weights, where.compute, where.num_parts, self.on_features
                )
                if cached
                else decode_pictures(self.dataset, config, self.needed, where)
            )
            self.made[key] = self.where.share(arrays["train"]), self.where.share(arrays["val"])
        places = rows if cached else np.searchsorted(self.needed, rows)
        return places, *self.made[key]
