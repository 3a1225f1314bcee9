"""The statistics of a paired comparison, against simulation, closed forms and independent references."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from tasks.pairing import (
    cluster_counts,
    detectable_by_mcnemar,
    detectable_by_spread,
    guard,
    holm,
    interval,
    mcnemar_power,
    share_gain_bound,
    share_part,
    sharing,
    weigh,
)


def simulated_power(num_samples: int, discordant: float, gain: float, alpha: float, num: int) -> float:
    generator = np.random.default_rng(0)
    better = (discordant + gain) / 2
    found = 0
    for gains, losses, _same in generator.multinomial(
        num_samples, [better, discordant - better, 1 - discordant], num
    ).tolist():
        found += gains + losses > 0 and binomtest(gains, gains + losses).pvalue <= alpha
    return found / num


@pytest.mark.parametrize(
    ("num_samples", "discordant", "gain"), [(200, 0.1, 0.06), (1000, 0.05, 0.02), (60, 0.5, 0.0)]
)
def test_the_power_of_mcnemars_test_is_what_simulation_finds(
    num_samples: int, discordant: float, gain: float
) -> None:
    said = mcnemar_power(num_samples, discordant, gain, 0.05)
    assert simulated_power(num_samples, discordant, gain, 0.05, 2000) == pytest.approx(said, abs=0.035)


@pytest.mark.parametrize(
    ("num_samples", "discordant"), [(359, 0.03), (1000, 0.1), (10_000, 0.02), (359, 0.0)]
)
def test_the_detectable_gain_is_found_as_often_as_it_says(num_samples: int, discordant: float) -> None:
    gain = detectable_by_mcnemar(num_samples, discordant, 0.05, 0.8)
    share = max(discordant, gain)
    assert mcnemar_power(num_samples, share, gain, 0.05) == pytest.approx(0.8, abs=0.01)
    assert simulated_power(num_samples, share, gain, 0.05, 1000) == pytest.approx(0.8, abs=0.05)
    assert mcnemar_power(num_samples, max(discordant, 0.7 * gain), 0.7 * gain, 0.05) < 0.8


def test_too_few_samples_detect_nothing_and_more_detect_less() -> None:
    assert math.isnan(detectable_by_mcnemar(5, 0.2, 0.05, 0.8))
    gains = [detectable_by_mcnemar(n, 0.05, 0.05, 0.8) for n in (100, 1000, 10_000)]
    assert gains == sorted(gains, reverse=True)


def test_the_detectable_gain_of_a_bootstrap_is_found_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    num_samples, num_trials = 150, 400
    noise = generator.normal(0, 1, (num_trials, num_samples))
    picks = generator.multinomial(num_samples, np.full(num_samples, 1 / num_samples), 400) / num_samples
    gain = detectable_by_spread(picks @ noise[0], 0.05, 0.8)
    assert gain == pytest.approx((1.96 + 0.842) / num_samples**0.5, rel=0.15)
    exact = (NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)) / num_samples**0.5
    found = [interval(picks @ (each + exact), 0.05)[0] > 0 for each in noise]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("num_samples", [20, 52, 1000])
def test_the_bound_of_a_share_has_tangos_width_where_the_models_never_differ(num_samples: int) -> None:
    z = NormalDist().inv_cdf(0.95)
    bound = share_gain_bound(0, 0, num_samples, 0.05)
    assert bound == pytest.approx(-(z**2) / (num_samples + z**2), abs=1e-6)


def constrained_score(gains: int, losses: int, n: int, delta: float) -> float:
    """Tango's statistic with the nuisance share found by maximising the likelihood, not by his formula."""

    def minus_likelihood(lost: float) -> float:
        won, same = lost + delta, 1 - 2 * lost - delta
        return -(gains * math.log(won) + losses * math.log(lost) + (n - gains - losses) * math.log(same))

    low, high = max(0.0, -delta) + 1e-12, (1 - delta) / 2 - 1e-12
    lost = minimize_scalar(minus_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (gains - losses - n * delta) / (n * (2 * lost + delta * (1 - delta))) ** 0.5


@pytest.mark.parametrize(("gains", "losses", "n"), [(5, 3, 40), (1, 12, 100), (30, 2, 60)])
def test_the_bound_of_a_share_is_where_the_constrained_score_is_z(gains: int, losses: int, n: int) -> None:
    bound = share_gain_bound(gains, losses, n, 0.05)
    assert constrained_score(gains, losses, n, bound) == pytest.approx(NormalDist().inv_cdf(0.95), abs=1e-3)


def test_the_bound_of_a_share_lies_below_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    won, lost, n = 0.04, 0.06, 120
    draws = generator.multinomial(n, [won, lost, 1 - won - lost], 3000).tolist()
    below = [share_gain_bound(gains, losses, n, 0.05) <= won - lost for gains, losses, _ in draws]
    assert np.mean(below) == pytest.approx(0.95, abs=0.015)


def test_holm_by_hand() -> None:
    # 0.001 ≤ 0.05/4, 0.015 ≤ 0.05/3, 0.03 > 0.05/2: it and all larger ones stand
    assert holm([0.03, 0.001, 0.015, 0.04], 0.05) == [False, True, True, False]
    assert holm([], 0.05) == []


def test_groups_are_drawn_whole_and_as_many_as_there_are() -> None:
    groups = ["a", "a", "a", "b", "c", "c"]
    draws = np.array(list(cluster_counts(groups, 500, 0)))
    assert (draws[:, 0] == draws[:, 1]).all() and (draws[:, 0] == draws[:, 2]).all()
    assert (draws[:, [0, 3, 4]].sum(1) == 3).all()
    assert draws.mean(0) == pytest.approx(np.ones(6), abs=0.15)
    assert np.array_equal(draws, np.array(list(cluster_counts(groups, 500, 0))))
    assert sharing(groups) == 5


def test_a_draw_that_could_not_be_computed_is_left_out_and_no_draw_at_all_shows_nothing() -> None:
    assert interval(np.array([0.0, 1.0, np.nan, 2.0]), 0.0) == (0.0, 2.0)
    assert interval(np.array([np.nan]), 0.05) == (-math.inf, math.inf)


def test_a_small_slice_objects_only_to_harm_that_is_shown() -> None:
    same, harmed = np.ones(20, bool), np.zeros(20, bool)
    parts = [share_part("class", "cat", same, same, 0.05), share_part("class", "dog", same, harmed, 0.05)]
    cat, dog = guard(parts, 0.05, margin=0.05, fewest=100)
    assert not cat.enough and not cat.worse and not cat.non_inferior
    assert dog.worse and dog.gain == -1.0


def test_a_gain_counts_the_better_way_whichever_way_the_metric_runs() -> None:
    draws = np.linspace(0.01, 0.03, 50)
    rule = {"primary": True, "margin": 0.01, "alpha": 0.05, "power": 0.8, "test": "bootstrap"}
    error = weigh("ece", (0.05, 0.03), draws, less_is_better=True, **rule)
    assert error.gain == pytest.approx(0.02) and error.better and error.non_inferior
    unsure = weigh("accuracy", (0.90, 0.92), draws, exact=(0.2, 0.03), **rule)
    assert not unsure.better, "the exact test and the interval must agree"


@given(st.integers(1, 300), st.data())
def test_a_bound_never_lies_above_what_was_seen(n: int, data: st.DataObject) -> None:
    gains = data.draw(st.integers(0, n))
    losses = data.draw(st.integers(0, n - gains))
    bound = share_gain_bound(gains, losses, n, 0.05)
    assert -1 <= bound <= (gains - losses) / n
