"""Recognition's rates against loops over probes, and values worked by hand."""

import numpy as np
import pytest

from tasks.identification import (
    dir_at_far,
    open_set_curve,
    rank,
    rank_rate,
    recognise,
    summarise,
    templates,
)
from tasks.personbootstrap import draw_people


def pictures(num_people: int, each: int, seed: int = 0, noise: float = 0.8) -> tuple[np.ndarray, list[str]]:
    generator = np.random.default_rng(seed)
    rows = np.repeat(generator.normal(size=(num_people, 12)), each, axis=0)
    rows = rows + noise * generator.normal(size=rows.shape)
    names = [f"p{i}" for i in np.repeat(np.arange(num_people), each)]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), names


def open_set() -> tuple[np.ndarray, list[str], np.ndarray, list[str]]:
    """Probes of 20 people, a gallery of the first 12, from one picture each."""
    rows, names = pictures(20, 5)
    enrolled = list(range(0, 60, 5))
    probes = [place for place in range(100) if place not in enrolled]
    return rows[probes], [names[i] for i in probes], rows[enrolled], [names[i] for i in enrolled]


def test_a_template_is_the_mean_made_unit_length():
    rows, names = pictures(3, 4)
    found, people = templates(rows, names)
    assert people == ["p0", "p1", "p2"]
    for k in range(3):
        mean = rows[4 * k : 4 * k + 4].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(found[k], mean / np.linalg.norm(mean), rtol=1e-6)
    single, _ = templates(rows[:1], names[:1])
    np.testing.assert_allclose(single, rows[:1], rtol=1e-6)


def test_pictures_that_cancel_out_are_refused():
    row = np.eye(1, 4, dtype=np.float32)
    with pytest.raises(ValueError, match="the pictures of 'ann' cancel out"):
        templates(np.concatenate([row, -row]), ["ann", "ann"])


def test_ranks_and_nearest_equal_the_loop():
    probes, probe_people, gallery, people = open_set()
    ranks = rank(probes, probe_people, gallery, people)
    for m, probe in enumerate(probes):
        distances = [float(((probe.astype(float) - row.astype(float)) ** 2).sum()) for row in gallery]
        order = sorted(range(len(people)), key=lambda k: (distances[k], k))
        assert ranks.nearest[m] == order[0]
        assert ranks.nearest_distance[m] == pytest.approx(distances[order[0]], abs=1e-6)
        if probe_people[m] in people:
            own = people.index(probe_people[m])
            assert ranks.own_rank[m] == order.index(own) + 1
            assert ranks.own_distance[m] == pytest.approx(distances[own], abs=1e-6)
        else:
            assert ranks.own_rank[m] == 0 and np.isnan(ranks.own_distance[m])


def test_of_equally_near_people_the_earlier_comes_first():
    gallery = np.eye(2, 3, dtype=np.float32)[[0, 0, 1]]
    ranks = rank(gallery[:1], ["b"], gallery, ["a", "b", "c"])
    assert ranks.own_rank.tolist() == [2] and ranks.nearest.tolist() == [0]


def test_rank_rates_count_known_people_alone():
    probes, probe_people, gallery, people = open_set()
    ranks = rank(probes, probe_people, gallery, people)
    known = [rank_ for rank_ in ranks.own_rank if rank_]
    assert len(known) == 48
    for k in (1, 3, 12):
        assert rank_rate(ranks, k) == pytest.approx(sum(rank_ <= k for rank_ in known) / 48)
    assert rank_rate(ranks, 12) == 1


@pytest.mark.parametrize("k", [1, 2])
def test_open_set_curve_equals_counting(k: int):
    probes, probe_people, gallery, people = open_set()
    ranks = rank(probes, probe_people, gallery, people)
    curve = open_set_curve(ranks, k)
    for threshold, far, found in zip(curve.thresholds, curve.far, curve.dir, strict=True):
        accepted = ranks.nearest_distance <= threshold
        assert far == pytest.approx(accepted[~ranks.known].mean())
        hits = [
            r <= k and d <= threshold for r, d in zip(ranks.own_rank, ranks.own_distance, strict=True) if r
        ]
        assert found == pytest.approx(np.mean(hits))


def test_detection_rate_at_a_false_accept_rate_is_the_best_that_keeps_it():
    ranks = rank(*open_set())
    curve = open_set_curve(ranks)
    for far in (0.05, 0.2, 1.0):
        found, threshold = dir_at_far(curve, far)
        kept = curve.far <= far
        assert (found, threshold) == (curve.dir[kept].max(), curve.thresholds[kept].max())
    with pytest.raises(ValueError, match=r"40 probes of unknown people show 0\.025 at the least"):
        dir_at_far(curve, 0.01)


def test_far_people_are_not_recognised():
    probes, probe_people, gallery, people = open_set()
    ranks = rank(probes, probe_people, gallery, people)
    threshold = float(np.median(ranks.nearest_distance))
    named = recognise(ranks, people, threshold)
    assert sum(name is None for name in named) == len(probes) // 2
    assert all(name in (None, people[place]) for name, place in zip(named, ranks.nearest, strict=True))
    assert recognise(ranks, people, -1.0) == [None] * len(probes)


def test_intervals_equal_repeating_the_probes_of_drawn_people():
    probes, probe_people, gallery, people = open_set()
    ranks = rank(probes, probe_people, gallery, people)
    figures = summarise(ranks, probe_people, [0.1, 0.01], [1, 3], seed=5, num_draws=9)
    assert "dir_at_far_1e-2" not in figures  # 40 strangers cannot show it
    names = sorted(set(probe_people))
    found = []
    for times in draw_people(len(names), 9, np.random.default_rng(5)):
        places = np.repeat(np.arange(len(probes)), [times[names.index(name)] for name in probe_people])
        drawn = rank(probes[places], [probe_people[i] for i in places], gallery, people)
        found.append((rank_rate(drawn, 1), rank_rate(drawn, 3), dir_at_far(open_set_curve(drawn), 0.1)[0]))
    expected = np.quantile(found, [0.025, 0.975], axis=0)
    for column, name in enumerate(["rank1", "rank3", "dir_at_far_1e-1"]):
        assert [figures[f"{name}_low"], figures[f"{name}_high"]] == pytest.approx(
            expected[:, column].tolist()
        )
        assert figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"]
