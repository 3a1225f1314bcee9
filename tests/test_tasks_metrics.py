"""Metrics: equal to scikit-learn and scipy, and to values worked by hand."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.metrics import (
    check_probabilities,
    confusion_matrix,
    exact_interval,
    negative_log_likelihood,
    per_class,
    reliability,
    summarise,
    top_k_accuracy,
    wilson_interval,
)


def sample(seed: int, num_samples: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that lean towards the true class, and labels that may leave classes out."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_samples)
    logits = rng.normal(size=(num_samples, num_classes)) * 2
    logits[np.arange(num_samples), labels] += 1.5
    exp = np.exp(logits)
    return (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32), labels


samples = st.builds(sample, st.integers(0, 10_000), st.integers(1, 80), st.integers(2, 12))


@settings(deadline=None)
@given(samples)
def test_classification_figures_equal_scikit_learns(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = drawn
    num_classes = probabilities.shape[1]
    predicted, classes = probabilities.argmax(axis=1), np.arange(num_classes)
    confusion = confusion_matrix(labels, predicted, num_classes)
    assert np.array_equal(confusion, sklearn.metrics.confusion_matrix(labels, predicted, labels=classes))
    rows = per_class(confusion)
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    for ours, theirs in [
        (rows.precision, precision),
        (rows.recall, recall),
        (rows.f1, f1),
        (rows.support, support),
    ]:
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    figures = summarise(probabilities, labels)
    assert figures["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert figures["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))
    rows_sum_to_one = probabilities.astype(np.float64)
    rows_sum_to_one /= rows_sum_to_one.sum(axis=1, keepdims=True)
    brier = sklearn.metrics.brier_score_loss(labels, rows_sum_to_one, labels=classes, scale_by_half=False)
    assert figures["brier"] == pytest.approx(brier, abs=1e-5)
    log_loss = sklearn.metrics.log_loss(labels, rows_sum_to_one, labels=classes)
    assert figures["nll"] == pytest.approx(log_loss, abs=1e-5)


@settings(deadline=None)
@given(samples)
def test_the_confusion_matrix_agrees_with_the_printed_accuracy(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = drawn
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    assert confusion.sum() == len(labels)
    assert np.trace(confusion) / confusion.sum() == summarise(probabilities, labels)["accuracy"]


@settings(deadline=None)
@given(samples, st.integers(1, 12))
def test_top_k_equals_scikit_learns_where_no_probabilities_tie(
    drawn: tuple[np.ndarray, np.ndarray], k: int
) -> None:
    probabilities, labels = drawn
    num_classes = probabilities.shape[1]
    if k >= num_classes or num_classes == 2:
        assert top_k_accuracy(probabilities, labels, num_classes) == 1
        return
    theirs = sklearn.metrics.top_k_accuracy_score(labels, probabilities, k=k, labels=np.arange(num_classes))
    assert top_k_accuracy(probabilities, labels, k) == pytest.approx(theirs)


def test_top_1_equals_accuracy_even_where_probabilities_tie() -> None:
    probabilities, labels = np.full((3, 4), 0.25), np.array([0, 1, 3])
    assert top_k_accuracy(probabilities, labels, 1) == pytest.approx(1 / 3)
    assert top_k_accuracy(probabilities, labels, 2) == pytest.approx(2 / 3)
    assert summarise(probabilities, labels)["accuracy"] == pytest.approx(1 / 3)


@settings(deadline=None)
@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_equals_scipys(counts: tuple[int, int]) -> None:
    num_right, num_samples = counts
    theirs = scipy.stats.binomtest(num_right, num_samples).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(num_right, num_samples)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= low <= num_right / num_samples <= high <= 1


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_exact_interval_equals_scipys(counts: tuple[int, int]) -> None:
    num_right, num_samples = counts
    theirs = scipy.stats.binomtest(num_right, num_samples).proportion_ci(0.95, method="exact")
    assert exact_interval(num_right, num_samples) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_wilson_interval_of_nine_in_ten() -> None:
    # by hand, z = 1.959964: (0.9 + 0.192073) / 1.384146 ± 1.959964 / 1.384146 · √(0.009 + 0.009604)
    assert wilson_interval(9, 10) == pytest.approx((0.59585, 0.98212), abs=1e-5)
    # the size of CIFAR-10's test split
    assert wilson_interval(9_400, 10_000) == pytest.approx((0.93517, 0.94449), abs=1e-5)


def test_calibration_error_of_a_table_worked_by_hand() -> None:
    # four at confidence 0.9, three of them right; two at 0.6, both right; one at 1.0, wrong
    first = np.array([0.9] * 4 + [0.6] * 2 + [1.0])
    probabilities = np.stack([first, 1 - first], axis=1)
    labels = np.array([0, 0, 0, 1, 0, 0, 1])
    table = reliability(probabilities, labels)
    expected = (4 * abs(3 / 4 - 0.9) + 2 * abs(1 - 0.6) + 1 * abs(0 - 1.0)) / 7
    assert table.expected_error == pytest.approx(expected)
    assert table.count.tolist() == [0] * 8 + [2] + [0] * 4 + [4, 1]
    assert table.accuracy[13] == pytest.approx(0.75)
    assert table.confidence[13] == pytest.approx(0.9)
    assert np.isnan(table.accuracy[0])


@settings(deadline=None)
@given(samples, st.integers(1, 20))
def test_calibration_error_equals_a_naive_loop_over_bins(
    drawn: tuple[np.ndarray, np.ndarray], num_bins: int
) -> None:
    probabilities, labels = drawn
    total = 0.0
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    for b in range(num_bins):
        inside = (top.astype(np.float64) * num_bins > b) & (top.astype(np.float64) * num_bins <= b + 1)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - top[inside].astype(np.float64).mean())
    table = reliability(probabilities, labels, num_bins)
    assert table.expected_error == pytest.approx(total, abs=1e-9)
    assert table.count.sum() == len(labels)


def test_a_perfect_predictor_has_no_error_of_any_kind() -> None:
    labels = np.arange(7)
    figures = summarise(np.eye(7), labels)
    assert figures["accuracy"] == figures["macro_f1"] == figures["top5_accuracy"] == 1
    assert figures["ece"] == figures["nll"] == 0
    assert figures["accuracy_high"] == 1 > figures["accuracy_low"]


def test_top_5_is_reported_from_six_classes_on() -> None:
    assert "top5_accuracy" not in summarise(np.eye(5), np.arange(5))
    assert "top5_accuracy" in summarise(np.eye(6), np.arange(6))


def test_a_probability_of_zero_for_the_true_class_costs_finitely_much() -> None:
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)
    assert negative_log_likelihood(probabilities, np.array([1, 0])) == pytest.approx(
        (87.33654 + np.log(2)) / 2, abs=1e-4
    )


def test_a_class_that_never_occurs_does_not_lower_macro_f1() -> None:
    rows = per_class(np.array([[2, 0, 0], [0, 2, 0], [0, 0, 0]]))
    assert rows.f1.tolist() == [1, 1, 0]
    assert rows.macro_f1 == 1


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (
            np.array([[0.5, 0.5], [np.nan, 0.5]]),
            [0, 1],
            "1 of 2 rows are no probabilities; the first is row 1",
        ),
        (np.array([[2.0, -1.0]]), [0], "no probabilities"),
        (np.array([[3.0, 1.0]]), [0], "sums to 4.0"),
        (np.array([[0.5, 0.5]]), [2], r"must lie in 0…1"),
        (np.array([[0.5, 0.5]]), [0, 1], r"must be \(N, K\) and \(N,\)"),
        (np.empty((0, 2)), [], "N ≥ 1"),
    ],
)
def test_what_is_no_probability_is_refused(
    probabilities: np.ndarray, labels: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_probabilities(probabilities, np.array(labels, dtype=np.int64))


def test_without_samples_every_figure_of_a_class_is_0() -> None:
    figures = per_class(np.zeros((2, 2), np.int64))
    assert figures.macro_f1 == 0
    assert figures.f1.tolist() == [0, 0]
