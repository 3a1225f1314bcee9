"""Statistics of seeds and of differences: equal to scipy's, and to values worked by hand."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import tasks.compare
from tasks.compare import (
    PAIRED,
    Group,
    Resampled,
    compare_pair,
    mcnemar,
    paired_differences,
    spread,
    welch,
)
from tasks.metrics import summarise
from tasks.runrecords import Predictions
from tests.test_tasks_metrics import sample

values = st.lists(st.floats(0, 1), min_size=2, max_size=6)


def test_three_seeds_by_hand() -> None:
    # sd of 0.90, 0.92, 0.94 is 0.02; t of 97.5% and two degrees is 4.302653: 4.302653 · 0.02 / √3 = 0.049683
    found = spread([0.90, 0.92, 0.94])
    assert (found.mean, found.sd) == pytest.approx((0.92, 0.02))
    assert (found.low, found.high) == pytest.approx((0.870317, 0.969683), abs=1e-6)


def test_one_seed_has_no_spread() -> None:
    found = spread([0.9])
    assert (found.mean, found.sd, found.low, found.high) == (0.9, None, None, None)


@given(values, values)
def test_welchs_interval_equals_scipys(first: list[float], second: list[float]) -> None:
    if min(np.std(first), np.std(second)) < 1e-6:
        return
    theirs = scipy.stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert welch(first, second) == pytest.approx((theirs.low, theirs.high), rel=1e-6, abs=1e-9)


def test_welch_needs_two_values_of_each_and_takes_equal_ones() -> None:
    assert welch([0.9], [0.8, 0.7]) is None
    assert welch([0.9, 0.9], [0.8, 0.8]) == pytest.approx((-0.1, -0.1))


def test_mcnemar_of_one_against_seven() -> None:
    # of eight images that one of them alone gets right, one or fewer: 2 · (1 + 8) / 256
    first = np.array([True] * 1 + [False] * 7 + [True] * 20)
    second = np.array([False] * 1 + [True] * 7 + [True] * 20)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (1, 7)
    assert found.p_value == pytest.approx(2 * 9 / 256)
    assert mcnemar(first, first).p_value == 1


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(2, 8))
def test_all_images_once_give_the_reports_metrics(seed: int, num_samples: int, num_classes: int) -> None:
    probabilities, labels = sample(seed, num_samples, num_classes)
    figures = summarise(probabilities, labels)
    found = Resampled(probabilities, labels).metrics(np.arange(num_samples))
    assert found.tolist() == pytest.approx([figures[name] for name in PAIRED], abs=1e-6)


def test_a_difference_is_of_means_over_seeds_and_its_interval_is_the_bootstraps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks.compare, "NUM_DRAWS", 1000)
    probabilities, labels = sample(0, 400, 5)
    worse = np.roll(probabilities, 1, axis=1)
    worse[:200] = probabilities[:200]
    mixed = probabilities.copy()
    mixed[300:] = worse[300:]
    first, second = [probabilities, mixed], [worse, mixed]
    alone = [str(i) for i in range(400)]
    found = {each.metric: each for each in paired_differences(first, second, labels, alone)}
    accuracies = [[summarise(each, labels)["accuracy"] for each in side] for side in (first, second)]
    difference = found["accuracy"]
    assert difference.difference == pytest.approx(np.mean(accuracies[1]) - np.mean(accuracies[0]))
    assert (difference.seeds_low, difference.seeds_high) == welch(*accuracies)
    right = [np.mean([each.argmax(1) == labels for each in side], axis=0) for side in (first, second)]
    error = np.std(right[1] - right[0]) / len(labels) ** 0.5
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_the_same_networks_do_not_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.compare, "NUM_DRAWS", 20)
    probabilities, labels = sample(1, 50, 4)
    for each in paired_differences([probabilities], [probabilities], labels, ["one group"] * 50):
        assert (each.difference, each.low, each.high) == (0, 0, 0)
        assert each.seeds_low is each.seeds_high is None


def test_copies_of_the_test_images_are_no_further_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of each narrow the interval to a third where they count alone, and not at all where they are a group."""
    monkeypatch.setattr(tasks.compare, "NUM_DRAWS", 600)
    probabilities, labels = sample(2, 150, 4)
    other = np.where(np.arange(150)[:, None] % 4 == 0, np.roll(probabilities, 1, axis=1), probabilities)

    def width(copies: int, grouped: bool) -> float:
        times = np.repeat(np.arange(150), copies)
        groups = [str(place if grouped else number) for number, place in enumerate(times.tolist())]
        found = paired_differences([probabilities[times]], [other[times]], labels[times], groups)
        return found[0].high - found[0].low

    once = width(1, grouped=False)
    assert width(9, grouped=True) == pytest.approx(once, rel=0.2)
    assert width(9, grouped=False) == pytest.approx(once / 3, rel=0.2)


def test_a_pair_says_how_many_images_share_a_group() -> None:
    probabilities, labels = sample(3, 4, 3)
    runs = [
        Predictions(list("abcd"), labels, probabilities, groups) for groups in (list("abcd"), list("xxcd"))
    ]
    one, other = Group("A", []), Group("B", [])
    assert compare_pair(one, other, runs[:1], runs[:1])["notes"] == []
    [note] = compare_pair(one, other, runs[1:], runs[1:])["notes"]
    assert note == "2 images share a group with others, and groups are drawn whole"
