"""What a learning curve is made of: its parameters, its cells, what each is trained on, and what they say together."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from data.dataset import Dataset, DatasetInfo
from data.parameters import Parameters
from data.random import SampleGenerator
from data.stream import layout_of
from tasks.batches import BatchPlan
from tasks.classification import ClassificationConfig, changing, without_chance
from tasks.settings import CurveMode


class CurveConfig(Parameters):
    """What a learning curve is made of."""

    shots: tuple[int, ...] = Field(
        min_length=1, description="training pictures a class; all of them where a class has fewer"
    )
    modes: tuple[CurveMode, ...] = Field(
        min_length=1,
        description="what is trained: head (on cached features), stages (and the head), all, or scratch (from chance)",
    )
    num_seeds: int = Field(ge=1, description="of pictures, initial weights and order: runs of each cell")
    num_steps: int = Field(ge=0, description="of every cell; 0: as many as the recipe takes on all of train")
    num_stages: int = Field(ge=1, description="trained stages before the head; read by mode stages only")

    @field_validator("shots")
    @classmethod
    def _some(cls, shots: tuple[int, ...]) -> tuple[int, ...]:
        if min(shots) < 1:
            raise ValueError("of each class there must be at least 1 picture")
        return shots


@dataclass(frozen=True)
class Cell:
    """One training run."""

    mode: CurveMode
    shots: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.mode}-{self.shots}-{self.seed}"


@dataclass(frozen=True)
class CellResult:
    """What a cell gave."""

    mode: CurveMode
    shots: int
    seed: int
    num_images: int
    num_steps: int
    accuracy: float  # on validation
    loss: float  # on validation, in nats
    time_s: float


@dataclass(frozen=True)
class Point:
    """The seeds of a mode at a number of pictures a class."""

    mode: CurveMode
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


def choose_rows(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Places of `shots` samples of each class, all where it has fewer, by chance: (M,) int64, rising.

    Those of fewer shots are among those of more. `labels` (N,).
    """
    draws = SampleGenerator(seed, 0).uniform(np.arange(len(labels)), "shots")[:, 0]
    order = np.argsort(draws, kind="stable")
    chosen = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def cells_of(curve: CurveConfig, seed: int) -> list[Cell]:
    """All cells, the quick ones first, from this seed on."""
    seeds = range(seed, seed + curve.num_seeds)
    modes, shots = dict.fromkeys(curve.modes), sorted(set(curve.shots))
    return [Cell(mode, num, each) for num, mode, each in itertools.product(shots, modes, seeds)]


def steps_of(base: ClassificationConfig, curve: CurveConfig, dataset: Dataset) -> int:
    """The optimizer steps of every cell."""
    return curve.num_steps or BatchPlan.of(base.train, layout_of(dataset, "train"), 0, 1).num_steps


def config_of(
    base: ClassificationConfig, curve: CurveConfig, cell: Cell, num_images: int, num_steps: int
) -> ClassificationConfig:
    """The parameters of a cell: the recipe's, but for what is trained, how long, and on how many pictures."""
    plain = not changing(base.augment) and not base.train.growth
    frozen: dict[CurveMode, dict[str, Any]] = {
        "head": {"mode": "head", "num_stages": 0, "cache_features": True},
        "stages": {"mode": "stages", "num_stages": curve.num_stages, "cache_features": plain},
        "all": {"mode": "all", "num_stages": 0, "cache_features": False},
        "scratch": {"mode": "all", "num_stages": 0, "cache_features": False, "weights": ""},
    }
    values = base.model_dump(mode="json")
    values["transfer"] |= frozen[cell.mode]
    values["train"] |= {
        "epochs": num_steps / (num_images // min(num_images, base.train.batch_size)),
        "seed": cell.seed, "num_workers": 1, "augment_workers": 0, "time_budget_s": 0.0, "patience": 0,
        "accumulate_batches": base.train.accumulate_batches if num_images >= base.train.batch_size else 1,
        "validate_every_epochs": 0, "checkpoint_every_steps": num_steps,
    }  # fmt: skip
    if cell.mode == "head":
        values["augment"] = without_chance(base.augment).model_dump(mode="json")
        values["train"]["growth"] = []
    return ClassificationConfig.parse(values, f"learning curve, {cell.mode}")


def of_rows(info: DatasetInfo, labels: np.ndarray) -> DatasetInfo:
    """The dataset as if it had these training pictures only; its channel statistics stay those of all."""
    counts = dict(zip(info.classes, np.bincount(labels, minlength=len(info.classes)).tolist(), strict=True))
    return info.model_copy(update={"counts": {**info.counts, "train": counts}})


def points_of(results: Sequence[CellResult]) -> list[Point]:
    """Seeds together, by shots and then by mode, in the order in which they came."""
    groups: dict[tuple[int, CurveMode], list[CellResult]] = {}
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
