"""Batches of P people with K pictures each: who is in them, on one worker and on several, and who is left out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.people import People, people_order
from data.random import SampleGenerator
from data.stream import Layout
from tasks.batches import BatchPlan, training_jobs
from tests.tiny import tiny_config

K = 4


def labels_of(counts: list[int]) -> np.ndarray:
    """So many pictures of each person, mixed."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)) * 3, counts))


def plan(
    counts: list[int], batch_size: int, world_size: int = 1, rank: int = 0, **changes: object
) -> BatchPlan:
    config = tiny_config(
        "faces", train__batch_size=batch_size, **{f"train__{k}": v for k, v in changes.items()}
    )
    layout = Layout((sum(counts),), 0, People(labels_of(counts), K))
    return BatchPlan.of(config.train, layout, rank, world_size)


counts = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@given(counts, st.integers(2, 5), st.integers(0, 3))
def test_a_batch_has_different_people_with_k_pictures_each(
    found: list[int], num_people: int, epoch: int
) -> None:
    labels = labels_of(found)
    if (np.array(found) > 1).sum() < num_people:
        return
    order = people_order(SampleGenerator(3, epoch), People(labels, K), 7, num_people)
    for batch in order.reshape(7, num_people, K):
        assert len(set(labels[batch[:, 0]])) == num_people
        for pictures in batch:
            assert len(set(labels[pictures])) == 1
            there = int((labels == labels[pictures[0]]).sum())
            assert there > 1 and len(set(pictures)) == min(there, K)


def test_everybody_with_two_pictures_is_seen_equally_often() -> None:
    found = [1, 2, 3, 8, 20, 2, 5, 1, 6, 9]  # eight with two pictures or more
    labels = labels_of(found)
    order = people_order(SampleGenerator(0, 0), People(labels, K), 20, 4)
    times = {label: int((labels[order] == label).sum()) // K for label in np.unique(labels)}
    assert times == {3 * i: 10 if count > 1 else 0 for i, count in enumerate(found)}


def test_a_person_of_many_pictures_shows_them_all_in_time() -> None:
    labels = labels_of([40, 4, 4, 4])
    seen: set[int] = set()
    for epoch in range(20):
        seen |= set(people_order(SampleGenerator(0, epoch), People(labels, K), 4, 2).tolist())
    assert seen == set(range(52))


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_have_people_of_their_own(world_size: int) -> None:
    found = [6] * 40
    labels = labels_of(found)
    whole = plan(found, 6 * K)
    for step in (0, 3, whole.steps_per_epoch + 1):
        parts = [plan(found, 6 * K, world_size, rank).indices(step) for rank in range(world_size)]
        assert sorted(np.concatenate(parts)) == sorted(whole.indices(step))
        for part in parts:
            own = labels[part].reshape(-1, K)
            assert (own == own[:, :1]).all() and len(set(own[:, 0])) == 6 // world_size
        assert len({label for part in parts for label in set(labels[part])}) == 6


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_one_workers_pictures_after_the_others_are_those_of_a_lone_one(world_size: int) -> None:
    found = [6] * 40
    lone = plan(found, 6 * K)
    for step in (0, lone.steps_per_epoch + 1):
        parts = [plan(found, 6 * K, world_size, rank).indices(step) for rank in range(world_size)]
        assert (np.concatenate(parts) == lone.indices(step)).all()


@given(counts, st.integers(1, 3), st.integers(2, 4), st.integers(1, 3))
def test_workers_have_equally_many_pictures_in_every_part_of_every_step(
    found: list[int], num_people: int, world_size: int, parts: int
) -> None:
    """They gather each other's embeddings, and an epoch's last, smaller batch would have other numbers."""
    batch_size = num_people * world_size * parts * K
    changes = {"num_workers": world_size, "accumulate_batches": parts}
    try:
        ranks = [plan(found, batch_size, world_size, rank, **changes) for rank in range(world_size)]
    except ValueError:
        return  # too few pictures, or people
    jobs = zip(*(training_jobs(rank, 0) for rank in ranks), strict=True)
    assert {len(job.indices) for step in jobs for job in step} == {ranks[0].batch_size // world_size // parts}


def test_parts_of_a_batch_have_people_of_their_own() -> None:
    found = [6] * 40
    parted = plan(found, 6 * K, accumulate_batches=3)
    labels = labels_of(found)
    jobs = list(training_jobs(parted, 0))
    assert len(jobs) == 3 * parted.num_steps
    assert all(len(set(labels[job.indices])) == 2 for job in jobs)


def test_a_step_is_a_function_of_seed_epoch_and_place() -> None:
    found = [5] * 30
    one, again, other = plan(found, 16), plan(found, 16), plan(found, 16, seed=1)
    for step in (0, 5, 2 * one.steps_per_epoch + 3):
        assert (one.indices(step) == again.indices(step)).all()
        assert (one.indices(step) != other.indices(step)).any()
    assert (one.indices(0) != one.indices(one.steps_per_epoch)).any()
    resumed = next(iter(training_jobs(one, 5)))
    assert (resumed.indices == one.indices(5)).all()


def test_too_few_people_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"batch_size \(=16\) takes 4 people of 4 pictures each, and train has 3"
    ):
        plan([9, 9, 9, 1, 1, 1], 16)
