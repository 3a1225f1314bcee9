"""Which samples a training step sees, and batches of them: functions of (seed, epoch, index) alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyarrow import Table

from data.dataset import DatasetInfo
from data.people import people_order
from data.random import SampleGenerator
from data.stream import Layout, windowed_order
from tasks.families import Family
from tasks.settings import TrainConfig

WINDOW_SHARE = 0.4  # of the memory for pictures: what waits, encoded, in a streamed epoch


@dataclass(frozen=True)
class BatchPlan:
    """Which samples a step sees: a function of the step alone, so anybody can make any batch at any time."""

    num_samples: int
    batch_size: int
    num_steps: int
    seed: int
    rank: int
    world_size: int
    growth: tuple[tuple[int, float], ...]
    layout: Layout
    window: int  # samples that are mixed with each other
    num_parts: int = 1  # of a batch, computed one after the other

    @classmethod
    def of(cls, config: TrainConfig, layout: Layout, rank: int, world_size: int) -> "BatchPlan":
        """Raises ValueError for too few samples, or too few people for a batch of different ones.

        `world_size` is 1 or the configuration's `num_workers`.
        """
        num_samples = layout.num_rows
        parts = config.accumulate_batches
        each = world_size * parts * (layout.people.num_pictures if layout.people else 1)
        batch_size = min(config.batch_size, num_samples // each * each)
        if batch_size == 0:
            parted = f" times accumulate_batches (={parts})" if parts > 1 else ""
            raise ValueError(
                f"{num_samples} training images are too few for num_workers (={world_size}){parted}"
            )
        if layout.people and layout.people.most_people() < batch_size // layout.people.num_pictures:
            raise ValueError(
                f"train.batch_size (={batch_size}) takes {batch_size // layout.people.num_pictures} people of "
                f"{layout.people.num_pictures} pictures each, and train has {layout.people.most_people()} with two "
                "pictures or more: lower it"
            )
        num_steps = max(1, round(config.epochs * (num_samples // batch_size)))
        window = layout.rows_within(config.data_gb * 1e9 * WINDOW_SHARE)
        return cls(
            num_samples, batch_size, num_steps, config.seed, rank, world_size, config.growth, layout, window,
            parts,
        )  # fmt: skip

    @property
    def steps_per_epoch(self) -> int:
        """The last, smaller batch of an epoch is left out; the next epoch's order brings its samples back."""
        return self.num_samples // self.batch_size

    def indices(self, step: int, order: np.ndarray | None = None) -> np.ndarray:
        """This rank's samples of a step: (batch_size / world_size,) int64."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self.order(epoch) if order is None else order
        return order[place * self.batch_size + self.rank : (place + 1) * self.batch_size : self.world_size]

    def order(self, epoch: int) -> np.ndarray:
        people = self.layout.people
        if people:
            num_people = self.batch_size // people.num_pictures
            generator, num_batches = self.generator(epoch), self.steps_per_epoch
            return people_order(generator, people, num_batches, num_people, self.world_size)
        return windowed_order(self.generator(epoch), self.layout, self.window)

    def generator(self, epoch: int, done: float = 0.0) -> SampleGenerator:
        return SampleGenerator(self.seed, epoch, done)

    def shrink_px(self, done: float) -> int:
        """Side that pictures are shrunk to when this share of the training is over, in pixels; 0: none."""
        return next((px for px, share in self.growth if done < share), 0)


@dataclass(frozen=True)
class Job:
    """One batch to be made: which samples, and how; without a generator, as evaluation sees them."""

    indices: np.ndarray  # (B,) int64, into the split
    generator: SampleGenerator | None = None
    shrink_px: int = 0


def training_jobs(
    plan: BatchPlan, first_step: int, place_at: Callable[[int], float] = float
) -> Iterator[Job]:
    """A rank's batches from `first_step` to the end; of each step `num_parts`, of equal size.

    `place_at` says where in the schedule a step stands, in [0, num_steps], when its batch is ordered; under a time
    budget, which ends a run before its last step, that is later than the step itself.
    """
    epoch, order = -1, np.empty(0, np.int64)
    for step in range(first_step, plan.num_steps):
        if step // plan.steps_per_epoch != epoch:
            epoch = step // plan.steps_per_epoch
            order = plan.order(epoch)
        done = place_at(step) / plan.num_steps
        for part in np.split(plan.indices(step, order), plan.num_parts):
            yield Job(part, plan.generator(epoch, done), plan.shrink_px(done))


def plain_jobs(indices: np.ndarray, batch_size: int) -> Iterator[Job]:
    """These samples one batch after the other, as evaluation sees them."""
    for start in range(0, len(indices), batch_size):
        yield Job(indices[start : start + batch_size])


def batch_of(family: Family, samples: Any, job: Job, info: DatasetInfo, config: Any) -> Any:
    """A batch of a split whose samples are all there."""
    return family.batch(samples, job.indices, info, config, job.generator, job.shrink_px)


def batch_of_rows(family: Family, rows: Table, job: Job, info: DatasetInfo, config: Any) -> Any:
    """The same batch from nothing but the job's rows, still encoded."""
    arrays = family.decode(rows, info, config)
    samples = family.records({name: torch.from_numpy(array) for name, array in arrays.items()})
    places = np.arange(len(job.indices))
    return family.batch(samples, job.indices, info, config, job.generator, job.shrink_px, places)


def join_arrays(pieces: list[dict[str, np.ndarray]], empty: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Concatenate the pieces of a split; `empty` has the right shapes for a split without a shard."""
    return {name: np.concatenate([piece[name] for piece in pieces] or [empty[name]]) for name in empty}
