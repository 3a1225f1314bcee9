"""Features of the last frozen stage, computed once and kept as Parquet: what a head trains on, many times as fast.

A file holds one split, in the order of its indices: `label`, and `features`, float32, whose shape stands in the
schema's metadata. Its name is a hash of everything that the features depend on (`key_of`), so that runs which freeze
the same stages of the same weights on the same pictures read the same file, whatever they train on top.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data.dataset import Dataset, DatasetInfo, Split, read_rows
from data.files import whole
from data.random import SampleGenerator
from data.records import Batch, Records
from models.classification import Classifier
from models.stages import require_composed, stages_of
from tasks import classification
from tasks.families import FAMILIES, Family
from tasks.paths import features
from tasks.precision import autocast, resolve_precision
from tasks.transfer import TransferConfig, Weights, num_frozen

FORMAT = 1
BATCH_SIZE = 64
SPLITS: tuple[Split, ...] = ("train", "val")
Part = tuple[bytes, int, int]  # a shard's bytes, and which rows of it: first, end
Hear = Callable[[int], None]  # told of how many more pictures there are features now
# (parts of a split, info, config, weights, hear) -> the arrays of each part, in order
Compute = Callable[[list[Part], DatasetInfo, Any, Weights, Hear], list[dict[str, np.ndarray]]]


def caches(config: Any) -> bool:
    """Whether a run trains on cached features; families without transfer learning never do."""
    transfer = getattr(config, "transfer", None)
    return isinstance(transfer, TransferConfig) and transfer.cache_features


def started(name: str, weights: Weights | None, cached: bool) -> Family:
    """The family, its models beginning with these weights; `cached`: trained on features in place of pictures."""
    family = FAMILIES[name]
    if weights is None:
        return family
    if not cached:
        return replace(family, model=partial(family.model, weights=weights))
    model = partial(classification.build_model, weights=weights, features=True)
    return replace(family, model=model, batch=feature_batch)


def feature_batch(
    samples: Records,
    indices: np.ndarray,
    info: DatasetInfo,  # noqa: ARG001
    config: Any,  # noqa: ARG001
    generator: SampleGenerator | None,  # noqa: ARG001
    shrink_px: int = 0,  # noqa: ARG001
    rows: np.ndarray | None = None,
) -> Batch:
    """Features in the place of pictures: (B, ...) float32. Nothing is augmented."""
    places = torch.from_numpy(indices if rows is None else rows).to(samples.labels.device)
    return Batch(samples.images.index_select(0, places), samples.labels.index_select(0, places), indices)


def device_of(config: Any) -> torch.device:
    return torch.device("cuda" if config.train.gpus_per_worker and torch.cuda.is_available() else "cpu")


def key_of(dataset: Dataset, split: Split, config: Any, weights: Weights, num_stages: int) -> str:
    """sha256 of all that a split's features depend on: pictures, weights, how both are used, and the stage."""
    info = dataset.info
    values = {
        "format": FORMAT,
        "shards": [shard.sha256 for shard in info.shards if shard.split == split],
        "channels": info.channels,
        "weights": weights.sha256,
        "statistics": [weights.mean, weights.std],
        "architecture": config.model.name,
        "input": config.input.model_dump(mode="json"),
        "num_stages": num_stages,
        "precision": config.train.precision,
        "device": config.train.gpus_per_worker > 0,
        "computed": str(resolve_precision(config.train.precision, device_of(config))),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def frozen_model(info: DatasetInfo, config: Any, weights: Weights) -> Classifier:
    """The network of a run in evaluation mode, to take features from; its head is of no account."""
    model = classification.build_model(config, info, sample=_no_sample, weights=weights)
    assert isinstance(model, Classifier)
    return model.eval()


def _no_sample() -> list[Batch]:
    raise AssertionError("weights that are given need no pictures to begin with")


@torch.inference_mode()
def compute_part(
    part: Part, info: DatasetInfo, config: Any, weights: Weights, hear: Hear = lambda _num: None
) -> dict[str, np.ndarray]:
    """Features (N, ...) float32 and labels (N,) int64 of some rows of a shard, as evaluation sees the pictures."""
    shard, first, end = part
    device = device_of(config)
    model = frozen_model(info, config, weights).to(device)
    dtype = resolve_precision(config.train.precision, device)
    rows = read_rows(shard, FAMILIES["classification"].columns).slice(first, end - first)
    found, labels = [], []
    for start in range(0, rows.num_rows, BATCH_SIZE):
        arrays = classification.decode(rows.slice(start, BATCH_SIZE), info, config)
        samples = classification.records({name: torch.from_numpy(array) for name, array in arrays.items()})
        batch = classification.batch(samples, np.arange(len(samples)), info, config, None).to(device)
        if start == 0:
            require_composed(model.net, model.normalise(batch.images[:2]))
        with autocast(device, dtype):
            features = model.features(batch.images, model.num_frozen)
        found.append(features.float().cpu().contiguous().numpy())
        labels.append(batch.labels.cpu().numpy())
        hear(len(samples))
    return {"images": np.concatenate(found), "labels": np.concatenate(labels)}


def compute_here(
    parts: list[Part], info: DatasetInfo, config: Any, weights: Weights, hear: Hear
) -> list[dict[str, np.ndarray]]:
    return [compute_part(part, info, config, weights, hear) for part in parts]


def parts_of(dataset: Dataset, split: Split, num_parts: int) -> list[Part]:
    """A split cut into at least `num_parts` pieces where it has as many rows, none of two shards."""
    files = dataset.shards(split)
    each = -(-num_parts // max(1, len(files)))
    parts = []
    for file in files:
        num = pq.read_metadata(file).num_rows
        bounds = sorted({num * i // each for i in range(each + 1)})
        shard = file.read_bytes()
        parts += [(shard, first, end) for first, end in itertools.pairwise(bounds)]
    return parts


def cached_features(
    dataset: Dataset, config: Any, weights: Weights, compute: Compute, num_parts: int = 1,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[Split, dict[str, np.ndarray]]:  # fmt: skip
    """The features of the train and val splits: read, or computed and kept.

    `on_progress` is told the pictures done, and all whose features are computed; nothing where all are read. Raises
    ValueError if they do not fit into `train.data_gb`: they are held in memory.
    """
    model = frozen_model(dataset.info, config, weights)
    num_stages = num_frozen(config.transfer, model)
    if num_stages == 0:
        raise ValueError("transfer.cache_features: nothing is frozen; lower transfer.num_stages")
    shape = shape_of(model, num_stages, config.input.crop_px, dataset.info.channels)
    num = sum(dataset.info.num_images(split) for split in SPLITS)
    needed_gb = num * 4 * float(np.prod(shape)) / 1e9
    if needed_gb > config.train.data_gb:
        raise ValueError(
            f"transfer.cache_features: the features of stage {stages_of(model.net)[num_stages - 1].name} take "
            f"{needed_gb:.3g} GB of memory, and train.data_gb is {config.train.data_gb:g}: raise it, lower "
            "transfer.num_stages, or set transfer.cache_features=false"
        )
    found: dict[Split, dict[str, np.ndarray]] = {}
    files = {
        split: features() / f"{key_of(dataset, split, config, weights, num_stages)}.parquet"
        for split in SPLITS
    }
    total = sum(dataset.info.num_images(split) for split, file in files.items() if not file.is_file())
    done = 0

    def hear(more: int) -> None:
        nonlocal done
        done += more
        on_progress(done, total)

    for split, file in files.items():
        if not file.is_file():
            hear(0)
            pieces = compute(parts_of(dataset, split, num_parts), dataset.info, config, weights, hear)
            empty: dict[str, np.ndarray] = {
                "images": np.empty((0, *shape), np.float32),
                "labels": np.empty(0, np.int64),
            }
            write_features(
                file, {name: np.concatenate([piece[name] for piece in [*pieces, empty]]) for name in empty}
            )
        found[split] = read_features(file)
    return found


@torch.inference_mode()
def shape_of(model: Classifier, num_stages: int, crop_px: int, channels: int) -> tuple[int, ...]:
    """Shape of one picture's features."""
    return tuple(
        model.features(torch.zeros((1, channels, crop_px, crop_px), dtype=torch.uint8), num_stages).shape[1:]
    )


def write_features(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write one split as a file that appears whole."""
    images = arrays["images"]
    size = int(np.prod(images.shape[1:]))
    column = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), size)
    table = pa.table({"label": arrays["labels"], "features": column})
    table = table.replace_schema_metadata({"shape": json.dumps(images.shape[1:])})
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as stream:
        pq.write_table(table, stream, compression="none", use_dictionary=False)


def read_features(file: Path) -> dict[str, np.ndarray]:
    """The arrays that `write_features` was given."""
    table = pq.read_table(file)
    shape = json.loads(table.schema.metadata[b"shape"])
    values = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return {"images": values.reshape(-1, *shape).copy(), "labels": table["label"].to_numpy().copy()}
