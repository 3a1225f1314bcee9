"""Learning curves of transfer learning: how good is each mode with 1, 5, 20, 100 training pictures a class?

    ./convoy learning-curve classification --dataset ants --recipe finetune --shots 1 5 20 100

A cell is a mode, a number of pictures a class and a seed: one run of the loop (tasks.loop) on those pictures alone,
judged on all of validation. It is validation since a curve is there to choose by: the test split stays unseen until
what was chosen is tested. The seed chooses the pictures too, so that modes are compared on the same ones; those of
fewer are among those of more. Every cell takes the same number of steps, for an epoch of two pictures is one step: what
differs is what there is to learn from, not how often the weights are moved. Of less than a batch a step sees all.

`head` trains on cached features; so does `stages` where the recipe changes no picture by chance. Both caches, and the
pictures of `all` and `scratch`, are made once and shared by all cells. A finished cell is a file in the run's folder
and is not run again. Cells run one after the other in this process, or side by side on Ray.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data.dataset import Dataset, DatasetInfo, Split
from data.files import write_whole
from data.stream import Layout, RowReader
from tasks.batches import Job
from tasks.classification import ClassificationConfig
from tasks.cluster import (
    call_each,
    cluster_info,
    compute_features,
    connect,
    join_arrays,
    readonly_tensors,
    require_resources,
    share,
)
from tasks.curveplan import Cell, CellResult, CurveConfig, cells_of, choose_rows, config_of, of_rows, steps_of
from tasks.families import FAMILIES, Family
from tasks.features import Compute, cached_features, caches, compute_here, device_of, started
from tasks.feed import Feed, Feeds, fit_from, probe, resident
from tasks.loop import Progress
from tasks.settings import TrainConfig
from tasks.train import Executor
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


def here() -> Place:
    own_threads = torch.get_num_threads()

    def each(
        function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], num_threads: int, _num_gpus: float
    ) -> Iterator[tuple[int, Any]]:
        torch.set_num_threads(num_threads or own_threads)
        try:
            for place, arguments in enumerate(calls):
                yield place, function(*arguments)
        finally:
            torch.set_num_threads(own_threads)

    return Place(each, lambda value: value, compute_here, 1)


def on_ray(settings: TrainConfig) -> Place:
    """Raises ValueError where no node holds a single cell."""
    connect()
    require_resources(1, max(1, settings.cpus_per_worker), settings.gpus_per_worker)
    return Place(call_each, share, compute_features, cluster_info().num_cpus)


class CellSession:
    """The only rank of a cell; nothing is kept of it before it ends."""

    rank, world_size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def load(self) -> dict[str, Any] | None:
        return None

    def save(self, state: dict[str, Any], step: int) -> None:
        pass

    def report(self, progress: Progress) -> None:
        pass

    def stopping(self) -> bool:
        return False


def chosen(
    family: Family, samples: Any, rows: np.ndarray, places: np.ndarray, info: DatasetInfo, config: Any
) -> Feed:
    """Batches of the samples at `rows` of the split, which lie at `places` in `samples`."""

    def batch(job: Job) -> Any:
        own = job.indices
        return family.batch(samples, rows[own], info, config, job.generator, job.shrink_px, places[own])

    return lambda jobs: map(batch, jobs)


def run_cell(
    cell: Cell, config: ClassificationConfig, info: DatasetInfo, weights: Weights | None, rows: np.ndarray,
    places: np.ndarray, train: Arrays, val: Arrays,
) -> CellResult:  # fmt: skip
    """Train on the samples at `rows` of train, which lie at `places` in `train`, and validate."""
    family = started(FAMILY, weights if config.transfer.weights else None, caches(config))
    device = device_of(config)
    seen, held_out = (family.records(readonly_tensors(arrays)).to(device) for arrays in (train, val))
    feeds = Feeds(
        chosen(family, seen, rows, places, info, config),
        resident(family, held_out, info, config),
        len(held_out),
    )
    try:
        state = fit_from(
            feeds, family, config, info, Layout((len(rows),), 0), CellSession(device), lambda _step: None
        )
    except FloatingPointError as error:
        raise FloatingPointError(
            f"cell {cell.name}: {error}; start a new curve so, or without the mode {cell.mode}"
        ) from None
    metrics = state["metrics"]
    return CellResult(
        cell.mode, cell.shots, cell.seed, len(rows), state["step"], metrics["val_accuracy"],
        metrics["val_loss"], state["time_s"],
    )  # fmt: skip


def decode_piece(rows: pa.Table, info: DatasetInfo, config: ClassificationConfig) -> Arrays:
    return FAMILIES[FAMILY].decode(rows, info, config)


def decode_pictures(
    dataset: Dataset, config: ClassificationConfig, needed: np.ndarray, where: Place
) -> dict[Split, Arrays]:
    """The pictures at `needed` of train, rising, and all of val; raises ValueError if they exceed `train.data_gb`."""
    family = FAMILIES[FAMILY]
    sample = probe(family, dataset)
    decoded = family.decode(sample, dataset.info, config)
    wanted: dict[Split, np.ndarray] = {"train": needed, "val": np.arange(dataset.info.num_images("val"))}
    num = sum(map(len, wanted.values()))
    needed_gb = num * sum(array.nbytes for array in decoded.values()) / sample.num_rows / 1e9
    if needed_gb > config.train.data_gb:
        raise ValueError(
            f"the pictures of this learning curve take {needed_gb:.3g} GB of memory, and train.data_gb is "
            f"{config.train.data_gb:g}: raise it, or lower the shots or the seeds"
        )
    found: dict[Split, Arrays] = {}
    for split, rows in wanted.items():
        pieces = list(decode_pieces(dataset, split, rows, config, where))
        found[split] = join_arrays(pieces, family.empty(dataset.info, config))
    return found


def decode_pieces(
    dataset: Dataset, split: Split, rows: np.ndarray, config: ClassificationConfig, where: Place
) -> Iterator[Arrays]:
    """The samples at `rows`, rising, a few at a time; no more files are in memory at once than are being decoded."""
    reader = RowReader(dataset, split, FAMILIES[FAMILY].columns, cache_bytes=0)
    block_of = np.searchsorted(reader.ends, rows, side="right")
    pieces = [
        own[start : start + DECODE_ROWS]
        for own in np.split(
            rows, np.flatnonzero(np.diff(block_of)) + 1
        )  # else a piece would read many blocks
        for start in range(0, len(own), DECODE_ROWS)
    ]
    for first in range(0, len(pieces), where.num_parts):
        some = pieces[first : first + where.num_parts]
        calls = [(reader.take(piece), dataset.info, config) for piece in some]
        decoded = dict(where.each(decode_piece, calls, 1, 0.0))
        yield from (decoded[place] for place in sorted(decoded))


class Materials:
    """What cells are trained on, each made when the first cell asks for it: features of a stage, or pictures."""

    def __init__(self, dataset: Dataset, weights: Weights, needed: np.ndarray, where: Place) -> None:
        self.dataset, self.weights, self.needed, self.where = dataset, weights, needed, where
        self.made: dict[tuple[bool, int], tuple[Any, Any]] = {}

    def of(self, config: ClassificationConfig, rows: np.ndarray) -> tuple[np.ndarray, Any, Any]:
        """Where the samples at `rows` lie in train's arrays, and references to the arrays of train and of val."""
        cached = caches(config)
        key = (cached, config.transfer.num_stages if cached else 0)
        if key not in self.made:
            arrays = (
                cached_features(self.dataset, config, self.weights, self.where.compute, self.where.num_parts)
                if cached
                else decode_pictures(self.dataset, config, self.needed, self.where)
            )
            self.made[key] = self.where.share(arrays["train"]), self.where.share(arrays["val"])
        places = rows if cached else np.searchsorted(self.needed, rows)
        return places, *self.made[key]


def measure(
    base: ClassificationConfig,
    curve: CurveConfig,
    dataset: Dataset,
    weights: Weights,
    folder: Path,
    executor: Executor,
    on_progress: Callable[[int, int, CellResult | None], None],
) -> list[CellResult]:
    """Run all cells that have no result in `folder` yet; the results of all.

    `on_progress` hears how many are done, of how many, and the newest one.
    """
    for split in ("train", "val"):
        dataset.require(split)
    labels = dataset.table("train", ["label"])["label"].to_numpy()
    num_steps = steps_of(base, curve, dataset)
    cells = cells_of(curve, base.train.seed)
    results = {cell: found for cell in cells if (found := read_cell(folder, cell))}
    left = [cell for cell in cells if cell not in results]
    on_progress(len(results), len(cells), None)
    if not left:
        return [results[cell] for cell in cells]
    rows = {cell: choose_rows(labels, cell.shots, cell.seed) for cell in cells}
    configs = {cell: config_of(base, curve, cell, len(rows[cell]), num_steps) for cell in left}
    where = on_ray(base.train) if executor == "ray" else here()
    materials = Materials(dataset, weights, np.unique(np.concatenate([rows[cell] for cell in left])), where)
    shared = where.share(weights)

    def arguments(cell: Cell) -> tuple[Any, ...]:
        own = rows[cell]
        places, train, val = materials.of(configs[cell], own)
        return cell, configs[cell], of_rows(dataset.info, labels[own]), shared, own, places, train, val

    settings = base.train
    calls = [arguments(cell) for cell in left]
    for place, result in where.each(run_cell, calls, settings.cpus_per_worker, settings.gpus_per_worker):
        write_cell(folder, left[place], result)
        results[left[place]] = result
        on_progress(len(results), len(cells), result)
    return [results[cell] for cell in cells]


def cell_file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.json"


def read_cell(folder: Path, cell: Cell) -> CellResult | None:
    file = cell_file(folder, cell)
    return CellResult(**json.loads(file.read_text())) if file.is_file() else None


def write_cell(folder: Path, cell: Cell, result: CellResult) -> None:
    file = cell_file(folder, cell)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(asdict(result), indent=2) + "\n")
