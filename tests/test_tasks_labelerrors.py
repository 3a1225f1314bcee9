"""Confident learning: worked by hand, on planted errors, and whatever the probabilities are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from tasks.labelerrors import (
    calibrate,
    class_thresholds,
    confident_joint,
    find_label_errors,
    noisy_pairs,
    normalised_margins,
    weakness,
)

FLIPPED = 0.05


def test_a_case_worked_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    first = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.4])
    probabilities = np.stack([first, 1 - first], 1)
    found = find_label_errors(probabilities, labels)
    assert found.thresholds == pytest.approx([0.6, 0.7])
    joint = confident_joint(probabilities, labels, found.thresholds)
    # the last reaches neither threshold, the last but one just its own
    assert joint.tolist() == [[2, 1], [0, 2]]
    assert found.joint.tolist() == [[2, 1], [0, 3]]
    assert (found.estimated, found.noise_rate) == (1.0, pytest.approx(1 / 6))
    assert (found.suspects.tolist(), found.suggested.tolist()) == ([2], [1])
    assert found.margins == pytest.approx([-0.8])
    assert noisy_pairs(found) == [(0, 1, 1.0, pytest.approx(1 / 3))]


def test_of_several_confident_classes_the_most_probable_counts() -> None:
    labels = np.array([0, 1, 2])
    probabilities = np.array([[0.3, 0.3, 0.4], [0.1, 0.5, 0.4], [0.3, 0.35, 0.35]])
    assert class_thresholds(probabilities, labels) == pytest.approx([0.3, 0.5, 0.35])
    joint = confident_joint(probabilities, labels, class_thresholds(probabilities, labels))
    assert joint.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 1]]


def test_a_class_without_pictures_takes_none_and_a_label_nobody_is_sure_of_is_right() -> None:
    labels = np.array([0, 0])
    probabilities = np.array([[0.1, 0.1, 0.8], [0.2, 0.1, 0.7]], np.float32)
    found = find_label_errors(probabilities, labels)
    assert np.isnan(found.thresholds[1:]).all()
    assert found.joint.tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert calibrate(np.zeros((2, 2), np.int64), np.array([0, 1, 1])).tolist() == [[1, 0], [0, 2]]
    assert len(found.suspects) == 0


def test_planted_errors_are_found_by_probabilities_from_outside_the_sample() -> None:
    digits = load_digits()
    generator = np.random.default_rng(0)
    true = digits.target.astype(np.int64)
    labels = true.copy()
    flipped = generator.choice(len(true), round(FLIPPED * len(true)), replace=False)
    labels[flipped] = (true[flipped] + generator.integers(1, 10, len(flipped))) % 10
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    model = KNeighborsClassifier(10)
    probabilities = cross_val_predict(model, digits.data, labels, cv=folds, method="predict_proba")
    found = find_label_errors(probabilities, labels)
    right = np.isin(found.suspects, flipped)
    precision, recall = right.mean(), right.sum() / len(flipped)
    assert precision > 0.85, f"precision {precision:.2f}, recall {recall:.2f}"
    assert recall > 0.7, f"precision {precision:.2f}, recall {recall:.2f}"
    assert np.mean(found.suggested[right] == true[found.suspects[right]]) > 0.9
    assert right[:20].mean() > 0.9  # the most suspect
    assert found.noise_rate == pytest.approx(FLIPPED, abs=0.03)


weights = st.floats(2**-6, 1, width=32)
cases = st.integers(1, 5).flatmap(
    lambda K: st.lists(
        st.tuples(st.integers(0, K - 1), st.lists(weights, min_size=K, max_size=K)), min_size=1, max_size=25
    )
)


def arrays_of(rows: list[tuple[int, list[float]]]) -> tuple[np.ndarray, np.ndarray]:
    weights = np.array([values for _, values in rows])
    return weights / weights.sum(1, keepdims=True), np.array([label for label, _ in rows])


@given(cases)
def test_whatever_the_probabilities_the_counts_add_up(rows: list[tuple[int, list[float]]]) -> None:
    probabilities, labels = arrays_of(rows)
    K = probabilities.shape[1]
    found = find_label_errors(probabilities, labels)
    np.testing.assert_allclose(found.joint.sum(1), np.bincount(labels, minlength=K))
    assert 0 <= found.noise_rate <= 1
    assert len(set(found.suspects.tolist())) == len(found.suspects) <= len(labels)
    assert (found.suggested == probabilities[found.suspects].argmax(1)).all()
    assert (found.suggested != labels[found.suspects]).all()
    assert (np.diff(found.margins) >= 0).all()
    assert (found.margins <= 0).all()
    assert (found.margins >= -1).all()


@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_pictures_does_not_matter(rows: list[tuple[int, list[float]]], random: object) -> None:
    probabilities, labels = arrays_of(rows)
    # apart by a little, so that no two pictures are tied for the last place
    probabilities = probabilities + np.arange(len(rows))[:, None] * 1e-9 * np.arange(
        1, probabilities.shape[1] + 1
    )
    order = np.array(random.sample(range(len(rows)), len(rows)))  # type: ignore[attr-defined]
    one, other = (
        find_label_errors(probabilities, labels),
        find_label_errors(probabilities[order], labels[order]),
    )
    np.testing.assert_allclose(one.joint, other.joint)
    assert sorted(one.suspects.tolist()) == sorted(order[other.suspects].tolist())


@given(cases)
def test_a_model_that_agrees_with_every_label_suspects_none(rows: list[tuple[int, list[float]]]) -> None:
    probabilities, _ = arrays_of(rows)
    labels = probabilities.argmax(1)
    assert len(find_label_errors(probabilities, labels).suspects) == 0


def test_margins_of_one_class_alone_and_of_two() -> None:
    assert normalised_margins(np.array([[0.2, 0.8]]), np.array([0])) == pytest.approx([-0.6])
    assert normalised_margins(np.array([[0.2, 0.8]]), np.array([1])) == pytest.approx([0.6])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(N, K\) and labels \(N,\), got \(2, 3\) and \(3,\)"):
        find_label_errors(np.ones((2, 3)), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="must be finite"):
        find_label_errors(np.full((1, 2), np.nan), np.zeros(1, np.int64))


@pytest.mark.parametrize(("accuracy", "one_in"), [(1.0, 0), (0.81, 0), (0.8, 6), (0.67, 10), (0.1, 27)])
def test_a_model_is_weak_where_labels_of_the_usual_noise_explain_few_of_its_disagreements(
    accuracy: float, one_in: int
) -> None:
    assert (
        (f"only one in {one_in} of these" in weakness(accuracy)) == bool(one_in) == bool(weakness(accuracy))
    )
