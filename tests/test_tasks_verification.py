"""Verification's rates against loops over pairs, scikit-learn, and values worked by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tasks.personbootstrap import curve_band, draw_people, pair_intervals
from tasks.verification import (
    NOTHING,
    accuracy_at,
    all_distances,
    all_pairs,
    auc,
    best_threshold,
    equal_error,
    even_folds,
    far_name,
    fit_threshold,
    fold_accuracy,
    pair_distances,
    roc,
    summarise,
    supported_fars,
    tar_at_far,
)


def unit(num: int, dims: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num, dims))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def some_pairs(num: int = 400, seed: int = 0, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Distances and whether the pair is of one person; many distances are equal."""
    generator = np.random.default_rng(seed)
    same = generator.random(num) < 0.4
    distances = np.clip(generator.normal(np.where(same, 0.9, 1.6), 0.4), 0, 4)
    return np.round(distances, 2) if ties else distances, same


def naive_rates(distances: np.ndarray, same: np.ndarray, threshold: float) -> tuple[float, float]:
    far = sum(d <= threshold for d, s in zip(distances, same, strict=True) if not s) / (~same).sum()
    tar = sum(d <= threshold for d, s in zip(distances, same, strict=True) if s) / same.sum()
    return float(far), float(tar)


def test_distances_are_squared_lengths_of_differences():
    embeddings = unit(40)
    pairs = all_pairs(40)
    assert pairs.tolist() == [[i, j] for i in range(40) for j in range(i + 1, 40)]
    naive = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(embeddings[i], embeddings[j], strict=True))
        for i, j in pairs
    ]
    np.testing.assert_allclose(pair_distances(embeddings, pairs), naive, rtol=1e-12)
    np.testing.assert_allclose(all_distances(embeddings), naive, rtol=1e-12)


def test_vectors_that_are_not_of_unit_length_are_refused():
    embeddings = unit(5)
    embeddings[3] *= 1.01
    with pytest.raises(
        ValueError, match=r"1 of 5 embeddings have no unit length; the first is row 3, of length 1\.01"
    ):
        all_distances(embeddings)
    embeddings[3] = np.nan
    with pytest.raises(ValueError, match="row 3"):
        pair_distances(embeddings, all_pairs(5))


def test_roc_equals_counting_at_every_threshold():
    distances, same = some_pairs()
    curve = roc(distances, same)
    assert curve.thresholds.tolist() == [NOTHING, *np.unique(distances)]
    naive = [naive_rates(distances, same, threshold) for threshold in curve.thresholds]
    np.testing.assert_allclose(np.stack([curve.far, curve.tar], axis=1), naive, rtol=1e-12)


@pytest.mark.parametrize("ties", [True, False])
def test_auc_equals_scikit_learns(ties: bool):
    distances, same = some_pairs(ties=ties)
    assert auc(roc(distances, same)) == pytest.approx(roc_auc_score(same, -distances), abs=1e-12)


def test_equal_error_is_the_mean_of_both_rates_where_they_are_nearest():
    distances, same = some_pairs(seed=3)
    rates = [(*naive_rates(distances, same, t), t) for t in [NOTHING, *np.unique(distances)]]
    far, tar, threshold = min(rates, key=lambda rate: abs(rate[0] - (1 - rate[1])))
    assert equal_error(roc(distances, same)) == (pytest.approx((far + 1 - tar) / 2), threshold)


def test_rates_worked_by_hand():
    """One false accept among four, at 0.5: EER there is (1/4 + 1/4) / 2."""
    distances = np.array([0.1, 0.2, 0.4, 0.9, 0.5, 1.0, 1.1, 1.2])
    same = np.array([True] * 4 + [False] * 4)
    curve = roc(distances, same)
    assert equal_error(curve) == (0.25, 0.5)
    assert tar_at_far(curve, 0.25) == 1.0  # up to 0.9, past the one at 0.5
    assert fit_threshold(distances, same, 0.25).threshold == 0.9
    assert auc(curve) == 15 / 16
    assert best_threshold(distances, same) == pytest.approx(0.45)
    assert accuracy_at(distances, same, 0.45) == 7 / 8


def test_threshold_of_a_false_accept_rate_is_the_loosest_that_keeps_it():
    distances, same = some_pairs(seed=5)
    for far in (0.01, 0.05, 0.1, 0.5, 1.0):
        point = fit_threshold(distances, same, far)
        kept = [t for t in [NOTHING, *np.unique(distances)] if naive_rates(distances, same, t)[0] <= far]
        assert point.threshold == max(kept)
        assert (point.far, point.tar) == pytest.approx(naive_rates(distances, same, point.threshold))
        assert point.tar == tar_at_far(roc(distances, same), far)


def test_a_rate_that_the_pairs_cannot_show_is_refused():
    distances, same = some_pairs()
    num_different = int((~same).sum())
    with pytest.raises(
        ValueError, match=f"{num_different} pairs of two people cannot show a false-accept rate of 0.001"
    ):
        fit_threshold(distances, same, 1e-3)
    assert supported_fars([0.1, 0.01, 0.001], num_different) == [0.1, 0.01]
    assert set(summarise(distances, same, [0.1, 1e-3])) == {"auc", "eer", "tar_at_far_1e-1"}
    assert not fit_threshold(distances, same, 0.01).supported  # 2.4 false accepts
    assert fit_threshold(distances, same, 0.2).supported


def test_lfw_accuracy_equals_the_loop_over_folds_and_thresholds():
    distances, same = some_pairs(seed=7)
    folds = even_folds(same)
    accuracies = []
    for fold in range(10):
        train, test = folds != fold, folds == fold
        levels = [NOTHING, *np.unique(distances[train])]
        right = [((distances[train] <= t) == same[train]).sum() for t in levels]
        place = int(np.argmax(right))
        threshold = (
            levels[place] if place in (0, len(levels) - 1) else (levels[place] + levels[place + 1]) / 2
        )
        accuracies.append(((distances[test] <= threshold) == same[test]).mean())
    found = fold_accuracy(distances, same, folds)
    np.testing.assert_allclose(found.accuracies, accuracies)
    assert found.mean == pytest.approx(np.mean(accuracies))
    assert found.sd == pytest.approx(np.std(accuracies, ddof=1))
    assert found.standard_error == pytest.approx(np.std(accuracies, ddof=1) / 10**0.5)


def test_folds_of_lfws_list_are_its_blocks_of_300_and_300():
    same = np.tile(np.repeat([True, False], 300), 10)
    assert (even_folds(same) == np.repeat(np.arange(10), 600)).all()


def test_pairs_of_one_kind_have_no_rates():
    with pytest.raises(ValueError, match="3 pairs of one person and 0 of two"):
        roc(np.ones(3), np.ones(3, bool))


def test_a_rate_is_named_by_its_power():
    assert [far_name(far) for far in (0.1, 0.01, 0.001, 0.05, 1)] == ["1e-1", "1e-2", "1e-3", "5e-2", "1e0"]


def of_people(num_people: int = 30, each: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Distances of all pairs of pictures of people, and whose they are (P, 2)."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(num_people, 8))
    rows = np.repeat(centres, each, axis=0) + generator.normal(size=(num_people * each, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return all_distances(rows), np.repeat(np.arange(num_people), each)[all_pairs(len(rows))]


def test_drawing_people_equals_repeating_their_pairs():
    """Each pair as often as the product of its people's draws, one of a person as often as that one's."""
    distances, people = of_people(num_people=8, each=3)
    num_draws, seed, far = 7, 11, 0.1
    drawn = draw_people(8, num_draws, np.random.default_rng(seed))
    found = []
    for times in drawn:
        repeats = [times[a] if a == b else times[a] * times[b] for a, b in people]
        kept, same = np.repeat(distances, repeats), np.repeat(people[:, 0] == people[:, 1], repeats)
        curve = roc(kept, same)
        found.append((auc(curve), equal_error(curve)[0], tar_at_far(curve, far)))
    expected = np.quantile(found, [0.025, 0.975], axis=0).T
    intervals = pair_intervals(distances, people, [far], seed, num_draws)
    assert list(intervals) == ["auc", "eer", "tar_at_far_1e-1"]
    np.testing.assert_allclose(list(intervals.values()), expected, rtol=1e-12)
    low, high = curve_band(distances, people, np.array([far]), seed, num_draws)
    assert (low[0], high[0]) == pytest.approx(intervals["tar_at_far_1e-1"])


def test_intervals_over_people_cover_what_other_people_give():
    """The TAR of many sets of other people lies in the interval of one set about as often as it says."""
    truth = np.mean(
        [tar_at_far(roc(d, p[:, 0] == p[:, 1]), 0.1) for d, p in (of_people(seed=s) for s in range(200, 260))]
    )
    inside = 0
    for seed in range(40):
        distances, people = of_people(seed=seed)
        low, high = pair_intervals(distances, people, [0.1], seed=0, num_draws=200)["tar_at_far_1e-1"]
        inside += low <= truth <= high
    assert inside >= 33  # of 40 at 95%: fewer has a chance of one in 200


def test_few_people_give_no_interval():
    distances, people = of_people(num_people=3)
    with pytest.raises(ValueError, match="3 people give no interval"):
        pair_intervals(distances, people, [0.1], seed=0)
