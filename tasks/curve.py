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

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.dataset import Dataset, DatasetInfo
from data.files import write_whole
from data.stream import Layout, layout_of
from tasks.batches import BatchPlan
from tasks.classification import ClassificationConfig, changing, without_chance
from tasks.cluster import readonly_tensors
from tasks.curvedata import FAMILY, Arrays, Materials, chosen, here, on_ray
from tasks.curveplan import Cell, CellResult, CurveConfig, Mode, cells_of, choose_rows
from tasks.features import caches, device_of, started
from tasks.feed import Feeds, fit_from, resident
from tasks.loop import Progress
from tasks.train import Executor
from tasks.transfer import Weights


@dataclass(frozen=True)
class Point:
    """The seeds of a mode at a number of pictures a class."""

    mode: Mode
    shots: int
    num_images: int
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Sample standard deviation; NaN of one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else float("nan")


def steps_of(base: ClassificationConfig, curve: CurveConfig, dataset: Dataset) -> int:
    """The optimizer steps of every cell."""
    return curve.num_steps or BatchPlan.of(base.train, layout_of(dataset, "train"), 0, 1).num_steps


def config_of(
    base: ClassificationConfig, curve: CurveConfig, cell: Cell, num_images: int, num_steps: int
) -> ClassificationConfig:
    """The parameters of a cell: the recipe's, but for what is trained, how long, and on how many pictures."""
    plain = not changing(base.augment) and not base.train.growth
    frozen: dict[Mode, dict[str, Any]] = {
        "head": {"mode": "head", "num_stages": 0, "cache_features": True},
        "stages": {"mode": "stages", "num_stages": curve.num_stages, "cache_features": plain},
        "all": {"mode": "all", "num_stages": 0, "cache_features": False},
        "scratch": {"mode": "all", "num_stages": 0, "cache_features": False, "weights": ""},
    }
    values = base.model_dump(mode="json")
    values["transfer"] |= frozen[cell.mode]
    values["train"] |= {
        "epochs": num_steps / (num_images // min(num_images, base.train.batch_size)),
        "seed": cell.seed, "num_workers": 1, "min_workers": 0, "augment_workers": 0,
        "time_budget_s": 0.0, "patience": 0,
        "accumulate_batches": base.train.accumulate_batches if num_images >= base.train.batch_size else 1,
        "validate_every_epochs": 0, "checkpoint_every_steps": num_steps,
    }  # fmt: skip
    if cell.mode == "head":
        values["augment"] = without_chance(base.augment).model_dump(mode="json")
        values["train"]["growth"] = []
    return ClassificationConfig.parse(values, f"learning curve, {cell.mode}")


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


def measure(
    base: ClassificationConfig,
    curve: CurveConfig,
    dataset: Dataset,
    weights: Weights,
    folder: Path,
    executor: Executor,
    on_progress: Callable[[int, int, CellResult | None], None],
    on_features: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[CellResult]:
    """Run all cells that have no result in `folder` yet; the results of all.

    `on_progress` hears how many are done, of how many, and the newest one; `on_features` of how many of how many
    pictures there are cached features, where they are computed.
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
    needed = np.unique(np.concatenate([rows[cell] for cell in left]))
    materials = Materials(dataset, weights, needed, where, on_features)
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


def of_rows(info: DatasetInfo, labels: np.ndarray) -> DatasetInfo:
    """The dataset as if it had these training pictures only; its channel statistics stay those of all."""
    counts = dict(zip(info.classes, np.bincount(labels, minlength=len(info.classes)).tolist(), strict=True))
    return info.model_copy(update={"counts": {**info.counts, "train": counts}})


def cell_file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.json"


def read_cell(folder: Path, cell: Cell) -> CellResult | None:
    file = cell_file(folder, cell)
    return CellResult(**json.loads(file.read_text())) if file.is_file() else None


def write_cell(folder: Path, cell: Cell, result: CellResult) -> None:
    file = cell_file(folder, cell)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(asdict(result), indent=2) + "\n")


def points_of(results: Sequence[CellResult]) -> list[Point]:
    """Seeds together, by shots and then by mode, in the order in which they came."""
    groups: dict[tuple[int, Mode], list[CellResult]] = {}
    for result in results:
        groups.setdefault((result.shots, result.mode), []).append(result)
    return [
        Point(mode, shots, each[0].num_images, tuple(result.accuracy for result in each))
        for (shots, mode), each in groups.items()
    ]


def best_at(points: Sequence[Point], shots: int) -> Point:
    """The mode of the highest mean; of equal ones the first."""
    return max((point for point in points if point.shots == shots), key=lambda point: point.mean)


def scarce(info: DatasetInfo, shots: int) -> str:
    """A sentence on classes that have fewer than `shots` training pictures, or ""."""
    few = {name: num for name, num in info.counts["train"].items() if num < shots}
    if not few:
        return ""
    shown = ", ".join(f"{name} {num}" for name, num in itertools.islice(few.items(), 5))
    more = f" and {len(few) - 5} more" if len(few) > 5 else ""
    return f"fewer than {shots} training pictures: {shown}{more}; there all of them are used"
