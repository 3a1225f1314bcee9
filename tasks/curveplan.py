"""What a learning curve is made of: cells, each a mode, a number of pictures a class and a seed (see tasks.curve)."""

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from data.dataset import Split
from data.parameters import Parameters
from data.random import SampleGenerator

Mode = Literal["head", "stages", "all", "scratch"]
SPLITS: tuple[Split, ...] = ("train", "val")  # that a curve reads
WAIVED = ("no-test-split",)  # a check of what it does not


class CurveConfig(Parameters):
    """What a learning curve is made of."""

    shots: tuple[int, ...] = Field(
        min_length=1, description="training pictures a class; all of them where a class has fewer"
    )
    modes: tuple[Mode, ...] = Field(
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

    mode: Mode
    shots: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.mode}-{self.shots}-{self.seed}"


@dataclass(frozen=True)
class CellResult:
    """What a cell gave."""

    mode: Mode
    shots: int
    seed: int
    num_images: int
    num_steps: int
    accuracy: float  # on validation
    loss: float  # on validation, in nats
    time_s: float


def cells_of(curve: CurveConfig, seed: int) -> list[Cell]:
    """All cells, the quick ones first, from this seed on."""
    seeds = range(seed, seed + curve.num_seeds)
    modes, shots = dict.fromkeys(curve.modes), sorted(set(curve.shots))
    return [Cell(mode, num, each) for num, mode, each in itertools.product(shots, modes, seeds)]


def choose_rows(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Places of `shots` samples of each class, all where it has fewer, by chance: (M,) int64, rising.

    Those of fewer shots are among those of more. `labels` (N,).
    """
    draws = SampleGenerator(seed, 0).uniform(np.arange(len(labels)), "shots")[:, 0]
    order = np.argsort(draws, kind="stable")
    chosen = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))
