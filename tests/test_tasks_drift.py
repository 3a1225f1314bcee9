"""MMD against a double loop and hand-worked values; what its p-values are where nothing and where something differs."""

import itertools
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.drift import (
    Discrepancy,
    DriftConfig,
    Look,
    discrepancy,
    median_width,
    mmd2_of,
    squared_distances,
    twice_running,
)

CONFIG = DriftConfig(
    num_reference=100,
    num_recent=100,
    least_recent=10,
    permutations=99,
    p_below=0.01,
    effect_above=0.1,
    seed=0,
)


def naive_mmd2(x: np.ndarray, y: np.ndarray, width: float) -> float:
    """Gretton et al. 2012, equation 3, term by term."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-float(((a - b) ** 2).sum()) / (2 * width**2))

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    across = sum(k(a, b) for a in x for b in y)
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)


def naive_width(both: np.ndarray) -> float:
    return float(np.median([math.dist(a, b) for a, b in itertools.combinations(both, 2)]))


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=40)
def test_mmd_equals_the_double_loop(n: int, m: int, dims: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, dims)), generator.normal(size=(m, dims)) + 0.5
    found = discrepancy(x, y, permutations=3, seed=0)
    both = np.concatenate([x, y])
    assert found.width == pytest.approx(naive_width(both), rel=1e-9)
    assert found.mmd2 == pytest.approx(naive_mmd2(x, y, found.width), abs=1e-9)


def test_mmd_of_two_pairs_by_hand() -> None:
    """Two items at 0 and two at 1: within a side the kernel is 1, across it is exp(-1 / 2)."""
    squares = squared_distances(*[np.array([[0.0], [0.0], [1.0], [1.0]])] * 2)
    assert median_width(squares) == 1.0  # of the distances 0, 0, 1, 1, 1, 1
    [value] = mmd2_of(np.exp(-squares / 2), np.array([[True, True, False, False]]))
    assert value == pytest.approx(2 - 2 * math.exp(-0.5))


def test_each_division_is_judged_as_if_it_stood_alone() -> None:
    generator = np.random.default_rng(1)
    both = generator.normal(size=(11, 3))
    kernel = np.exp(-squared_distances(both, both) / 2)
    sides = np.stack([generator.permutation(np.arange(11) < 4) for _ in range(5)])
    together = mmd2_of(kernel, sides)
    for value, side in zip(together, sides, strict=True):
        assert value == pytest.approx(naive_mmd2(both[side], both[~side], 1.0))


@given(st.integers(0, 2**31), st.floats(-1e3, 1e3))
@settings(max_examples=20)
def test_neither_order_nor_place_matters(seed: int, shift: float) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(6, 2)), generator.normal(size=(8, 2)) * 2
    one, other = discrepancy(x, y, 3, 0), discrepancy(y + shift, x + shift, 3, 0)
    assert one.mmd2 == pytest.approx(other.mmd2, abs=1e-6)
    assert one.effect == pytest.approx(other.effect, abs=1e-3)


def test_p_values_of_one_distribution_are_uniform() -> None:
    generator = np.random.default_rng(7)
    found = [
        discrepancy(generator.normal(size=(25, 4)), generator.normal(size=(20, 4)), 99, seed).p
        for seed in range(200)
    ]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert sum(p <= 0.05 for p in found) <= stats.binom.ppf(0.999, 200, 0.05)
    assert min(found) >= 1 / 100


@pytest.mark.parametrize("change", ["mean", "spread", "correlation"])
def test_a_change_of_the_distribution_has_a_small_p_value(change: str) -> None:
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(300, 2)), generator.normal(size=(300, 2))
    if change == "mean":
        y += 1
    elif change == "spread":
        y *= 2
    else:
        y[:, 1] = y[:, 0]  # each coordinate alone is as before
    found = discrepancy(x, y, 199, 0)
    assert found.p == 1 / 200
    assert found.mmd2 > 0


def test_the_effect_grows_with_the_shift_and_not_with_the_number() -> None:
    generator = np.random.default_rng(5)
    effects = []
    for shift in (0.5, 1.0, 2.0, 50.0):
        small = discrepancy(generator.normal(size=(200, 3)), generator.normal(size=(200, 3)) + shift, 1, 0)
        large = discrepancy(generator.normal(size=(600, 3)), generator.normal(size=(600, 3)) + shift, 1, 0)
        assert small.effect == pytest.approx(large.effect, abs=0.08)
        effects.append(large.effect)
    assert effects == sorted(effects)
    assert effects[0] >= 0 and effects[-1] <= 1


def test_equal_items_are_no_drift() -> None:
    found = discrepancy(np.ones((5, 3)), np.ones((4, 3)), 19, 0)
    assert (found.p, found.effect, found.width) == (1.0, 0.0, 1.0)


def test_features_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="features of 3 numbers cannot be compared with a reference of 2"):
        discrepancy(np.ones((5, 2)), np.ones((4, 3)), 1, 0)


def test_drift_counts_when_two_looks_running_found_it() -> None:
    start = datetime(2026, 11, 26, tzinfo=UTC)
    strong = Discrepancy(mmd2=0.1, p=0.001, effect=0.2, width=1.0, num_reference=100, num_recent=100)

    def seen(hour: int, **changes: float) -> Look:
        begin = start + timedelta(hours=hour)
        return Look(
            begin + timedelta(minutes=59),
            "model",
            begin,
            begin + timedelta(minutes=30),
            replace(strong, **changes),
        )

    assert seen(0).drifted(CONFIG)
    assert twice_running([seen(0), seen(1)], CONFIG)
    assert twice_running([seen(0, p=0.5), seen(1), seen(2)], CONFIG)
    assert not twice_running([], CONFIG)
    assert not twice_running([seen(0)], CONFIG)
    assert not twice_running([seen(0), seen(1, p=0.01)], CONFIG)  # not below
    assert not twice_running([seen(0), seen(1, effect=0.1)], CONFIG)  # certain, and small
    assert not twice_running([seen(0), seen(1, p=0.5), seen(2)], CONFIG)  # not running
    assert not twice_running([seen(0), seen(0)], CONFIG)  # of the same predictions
    assert not twice_running([replace(seen(0), model_sha256="another"), seen(1)], CONFIG)
