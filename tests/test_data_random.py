"""Draws belong to (seed, epoch, index, name) and to nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.random import SampleGenerator, splitmix64


def test_splitmix64_gives_the_published_sequence() -> None:
    """State 1234567: the reference outputs that Rosetta Code's SplitMix64 page lists."""
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * gamma) % 2**64 for i in range(5)], np.uint64)
    assert splitmix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_splitmix64_is_the_naive_one_with_python_integers() -> None:
    def naive(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    values = [0, 1, 2**63, 2**64 - 1, 123456789]
    assert splitmix64(np.array(values, np.uint64)).tolist() == [naive(x) for x in values]


@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 1000),
    indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
)
def test_a_draw_does_not_depend_on_its_neighbours(seed: int, epoch: int, indices: list[int]) -> None:
    generator = SampleGenerator(seed, epoch)
    together = generator.uniform(np.array(indices), "crop", 3)
    alone = np.concatenate([generator.uniform(np.array([index]), "crop", 3) for index in indices])
    assert np.array_equal(together, alone)
    assert together.min() >= 0
    assert together.max() < 1
    assert np.array_equal(together[:, :2], generator.uniform(np.array(indices), "crop", 2))


def test_seed_epoch_index_and_name_each_change_the_draw() -> None:
    where = np.arange(1000)
    base = SampleGenerator(0, 0).uniform(where, "crop")[:, 0]
    for other in (
        SampleGenerator(1, 0).uniform(where, "crop"),
        SampleGenerator(0, 1).uniform(where, "crop"),
        SampleGenerator(0, 0).uniform(where, "flip"),
        SampleGenerator(0, 0).uniform(where + 1000, "crop"),
        SampleGenerator(0, 0).uniform(where, "crop", 2)[:, 1:],
    ):
        assert abs(np.corrcoef(base, other[:, 0])[0, 1]) < 0.12  # 3.8 standard errors
        assert np.mean(base == other[:, 0]) == 0


def test_draws_are_uniform_and_independent_of_each_other() -> None:
    draws = SampleGenerator(7, 3).uniform(np.arange(20_000), "crop", 4)
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(draws.var() - 1 / 12) < 0.002
    counts = np.histogram(draws[:, 0], 100, (0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 160  # chi-squared of 99 degrees of freedom, p about 1e-4
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.03


@pytest.mark.parametrize("high", [1, 2, 7, 60_000])
def test_integers_fill_their_range(high: int) -> None:
    drawn = SampleGenerator(0, 0).integers(np.arange(200_000), "pick", high)
    assert drawn.dtype == np.int64
    assert drawn.min() == 0
    assert drawn.max() == high - 1 if high < 1000 else drawn.max() < high


@given(num=st.integers(0, 300), epoch=st.integers(0, 50))
def test_the_order_of_an_epoch_holds_each_sample_once(num: int, epoch: int) -> None:
    order = SampleGenerator(5, epoch).permutation(num)
    assert np.array_equal(np.sort(order), np.arange(num))
    assert np.array_equal(order, SampleGenerator(5, epoch).permutation(num))


def test_epochs_have_different_orders() -> None:
    orders = [SampleGenerator(5, epoch).permutation(500) for epoch in range(4)]
    for a in range(4):
        for b in range(a):
            assert np.mean(orders[a] == orders[b]) < 0.05
