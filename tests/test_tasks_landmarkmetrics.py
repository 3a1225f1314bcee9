"""Landmarks' figures: equal to naive loops, and to values worked by hand."""

import math

import numpy as np
import pytest

from tasks.landmarkmetrics import cumulative_curve, curve_area, interval, lengths, point_errors, summarise


def test_errors_worked_by_hand() -> None:
    points = np.array([[[0, 0], [30, 40], [0, 0]]], np.float32)
    given = np.array([[True, True, False]])
    found = np.array([[[3, 4], [30, 45], [99, 99]]], np.float32)
    assert lengths(points, given, np.array([[200, 50]]), "eye_corners", (0, 1)).tolist() == [50]
    assert lengths(points, given, np.array([[200, 50]]), "box", None).tolist() == [50]
    assert lengths(points, given, np.array([[200, 50]]), "side", None).tolist() == [100]
    assert np.isnan(lengths(points, given, np.array([[200, 50]]), "eye_corners", (0, 2))).all()
    errors = point_errors(found, points, given, np.array([50.0]))
    np.testing.assert_allclose(errors[0, :2], [0.1, 0.1], rtol=1e-12)
    assert np.isnan(errors[0, 2])
    visible = np.array([[True, False, True]])
    figures = summarise(errors, np.array([[True, True, False]]), visible, given)
    assert figures["nme"] == pytest.approx(0.1) and figures["failures_at_0.08"] == 1
    assert figures["visibility_accuracy"] == 0.5 and figures["auc_at_0.08"] == 0


def test_figures_equal_naive_loops() -> None:
    rng = np.random.default_rng(1)
    errors = rng.gamma(2, 0.03, (40, 5))
    errors[rng.random((40, 5)) < 0.2] = np.nan
    errors[7] = np.nan
    given = ~np.isnan(errors)
    figures = summarise(errors, given, given, given)
    own = []
    for row in errors:
        kept = [value for value in row if not math.isnan(value)]
        if kept:
            own.append(sum(kept) / len(kept))
    assert figures["num_images"] == 40 and figures["num_measured"] == len(own) < 40
    assert figures["nme"] == pytest.approx(sum(own) / len(own), rel=1e-12)
    for limit in (0.08, 0.1):
        assert figures[f"failures_at_{limit:g}"] == sum(value > limit for value in own) / len(own)
    assert figures["nme_low"] < figures["nme"] < figures["nme_high"]


def test_the_area_is_that_of_the_curve() -> None:
    errors = np.random.default_rng(2).gamma(2, 0.03, 50)
    at, share = cumulative_curve(errors, 0.08, 200_001)
    assert curve_area(errors) == pytest.approx(np.trapezoid(share, at) / 0.08, abs=1e-5)
    assert curve_area(np.zeros(3)) == 1 and curve_area(np.array([0.04])) == 0.5


def test_the_interval_is_near_the_normal_one() -> None:
    errors = np.random.default_rng(3).normal(0.06, 0.02, 1000)
    low, high = interval(errors)
    half = 1.96 * errors.std() / math.sqrt(1000)
    assert (low, high) == pytest.approx((errors.mean() - half, errors.mean() + half), abs=0.1 * half)


def test_nothing_to_measure_says_so() -> None:
    none = np.zeros((2, 3), bool)
    with pytest.raises(ValueError, match="no picture has points"):
        summarise(np.full((2, 3), np.nan), none, none, none)
