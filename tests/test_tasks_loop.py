"""The plan of batches, the meter, the averaged weights: what the loop rests on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from data.stream import Layout
from tasks.batches import BatchPlan, Job, training_jobs
from tasks.loop import Meter, validate_with
from tests.tiny import tiny_config


def plan(num_samples: int = 100, world_size: int = 1, rank: int = 0, **changes: object) -> BatchPlan:
    config = tiny_config("classification", **{f"train__{name}": value for name, value in changes.items()})
    return BatchPlan.of(config.train, Layout((num_samples,), 0), rank, world_size)


@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 5))
def test_an_epoch_shows_no_sample_twice(num_samples: int, batch_size: int, epoch: int) -> None:
    one = plan(num_samples, batch_size=batch_size)
    first = epoch * one.steps_per_epoch
    seen = np.concatenate([one.indices(first + i) for i in range(one.steps_per_epoch)])
    assert len(np.unique(seen)) == len(seen) == one.steps_per_epoch * one.batch_size
    assert seen.min() >= 0 and seen.max() < num_samples


@given(st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 20))
def test_workers_share_each_batch_without_overlap(world_size: int, step: int) -> None:
    whole = plan(batch_size=24).indices(step)
    parts = [plan(batch_size=24, world_size=world_size, rank=r).indices(step) for r in range(world_size)]
    assert sorted(np.concatenate(parts)) == sorted(whole)
    assert len({len(part) for part in parts}) == 1


def test_epochs_may_be_fractional() -> None:
    assert plan(100, batch_size=10, epochs=2.5).num_steps == 25


def test_a_dataset_smaller_than_the_batch_is_one_batch() -> None:
    small = plan(7, batch_size=64, epochs=3)
    assert (small.batch_size, small.num_steps) == (7, 3)


def test_pictures_grow_as_training_goes_on() -> None:
    train = tiny_config("classification").train.model_copy(
        update={"batch_size": 10, "epochs": 1.0, "growth": ((8, 0.4), (12, 0.7))}
    )
    small = BatchPlan.of(train, Layout((100,), 0), 0, 1)
    assert [small.shrink_px(step / 10) for step in range(10)] == [8] * 4 + [12] * 3 + [0] * 3


def shares_of(jobs: list[Job]) -> list[float]:
    assert all(job.generator for job in jobs)
    return [job.generator.done for job in jobs if job.generator]


def test_batches_know_how_much_of_the_training_is_done_by_steps_or_by_time() -> None:
    train = tiny_config("classification").train.model_copy(
        update={"batch_size": 10, "epochs": 0.5, "growth": ((8, 0.4), (12, 0.7)), "accumulate_batches": 2}
    )
    small = BatchPlan.of(train, Layout((100,), 0), 0, 1)
    jobs = list(training_jobs(small, 0))
    assert shares_of(jobs) == [0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8]
    assert [job.shrink_px for job in jobs] == [8] * 4 + [12] * 4 + [0] * 2
    places = iter([0.0, 2.5, 4.5])  # of five steps: the time is spent faster
    late = list(training_jobs(small, 2, lambda _: next(places)))
    assert shares_of(late) == [0, 0, 0.5, 0.5, 0.9, 0.9]
    assert [job.shrink_px for job in late] == [8, 8, 12, 12, 0, 0]


@pytest.mark.parametrize("growth", [[[8, 0.7], [12, 0.4]], [[0, 0.5]], [[8, 1.5]]])
def test_growth_out_of_order_is_refused(growth: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="shares must rise"):
        plan(growth=growth)


def test_batch_must_divide_over_workers() -> None:
    with pytest.raises(ValueError, match=r"batch_size \(=64\) must be divisible by num_workers \(=3\)"):
        plan(num_workers=3, batch_size=64)


def test_too_few_images_for_the_workers_is_said() -> None:
    with pytest.raises(ValueError, match=r"3 training images are too few for num_workers \(=4\)"):
        plan(3, world_size=4, batch_size=64)


def test_meter_gives_means_since_the_last_look() -> None:
    meter = Meter()
    for value in (1.0, 3.0):
        meter.add({"loss": torch.tensor(value)})
    assert meter.take()[0] == {"loss": 2.0}
    meter.add({"loss": torch.tensor(7.0)})
    assert meter.take()[0] == {"loss": 7.0}


def test_validation_sees_the_average_and_gives_the_weights_back() -> None:
    model = nn.Linear(1, 1)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    average = {name: torch.full_like(value, 5.0) for name, value in own.items()}
    metrics = validate_with(model, average, lambda m: {"weight": float(m.weight)})
    assert metrics == {"val_weight": 5.0}
    assert all(torch.equal(model.state_dict()[name], own[name]) for name in own) and model.training


def test_validation_that_draws_by_chance_changes_nothing_for_training() -> None:
    model = nn.Linear(1, 1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    validate_with(model, None, lambda _: {"drawn": float(torch.rand(5).sum())})
    assert torch.equal(torch.rand(3), expected)
