"""Recognition of a split's people: its rates against a loop, its galleries, and its intervals."""

import numpy as np
import pytest

from tasks.facerecognition import asked_of, one_picture_each, recognition
from tests.test_tasks_identification import pictures


def faces(num_people: int, each: int, seed: int = 0, noise: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    rows, names = pictures(num_people, each, seed, noise)
    return rows, np.array([int(name[1:]) for name in names])


def test_each_person_is_enrolled_from_one_picture_that_is_not_asked_for():
    rows, labels = faces(6, 4)
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        one_each = one_picture_each(labels, generator)
        assert labels[one_each].tolist() == list(range(6))
        seen |= set(one_each.tolist())
        ranks, probes = asked_of(rows, labels, one_each[:3], True, generator)
        assert len(ranks.own_rank) == len(probes) == 9 + 12
        assert not set(probes.tolist()) & set(one_each[:3].tolist())
        assert ranks.known.sum() == 9 and (labels[probes[~ranks.known]] >= 3).all()
    assert len(seen) == 24  # every picture comes to be enrolled


def test_rank_one_equals_the_loop_over_all_enrolments():
    rows, labels = faces(2, 2, noise=1.5)
    apart = ((rows[:, None].astype(float) - rows) ** 2).sum(2)
    found = []
    for first in (0, 1):
        for second in (2, 3):
            others = [(place, first, second) for place in (0, 1) if place != first]
            others += [(place, second, first) for place in (2, 3) if place != second]
            found.append(np.mean([apart[place, own] < apart[place, other] for place, own, other in others]))
    measured = recognition(rows, labels, [0.1], seed=0, num_draws=10, num_galleries=2000)
    assert measured is not None and not measured.intervals  # two people give none
    assert measured.rates["rank1"] == pytest.approx(np.mean(found), abs=0.03)
    assert "dir_at_far_1e-1" not in measured.rates  # two probes of a stranger cannot show it


def test_people_who_lie_apart_are_all_recognised_and_no_stranger_is():
    rows, labels = faces(12, 5, noise=0.01)
    found = recognition(rows, labels, [0.1, 0.05, 0.001], seed=0, num_draws=50)
    assert found is not None and (found.num_enrolled, found.num_enrolled_open) == (12, 6)
    assert found.rates == {"rank1": 1, "rank5": 1, "dir_at_far_1e-1": 1, "dir_at_far_5e-2": 1}
    assert set(found.intervals.values()) == {1}
    assert (found.curve.num_known, found.curve.num_unknown) == (6 * 4, 6 * 5)


def test_intervals_hold_their_rates_and_shrink_with_people():
    widths = []
    for num_people in (20, 120):
        found = recognition(*faces(num_people, 4, noise=0.9), [0.1], seed=1, num_draws=200)
        assert found is not None
        for name, value in found.rates.items():
            assert found.intervals[f"{name}_low"] <= value <= found.intervals[f"{name}_high"]
        widths.append(found.intervals["dir_at_far_1e-1_high"] - found.intervals["dir_at_far_1e-1_low"])
    assert widths[1] < widths[0]


def test_who_has_one_picture_is_a_stranger_and_nobody_with_two_is_no_recognition():
    rows, labels = faces(10, 3)
    alone = labels.copy()
    alone[6:] = np.arange(100, 124)  # two people keep three pictures
    found = recognition(rows, alone, [0.1], seed=0, num_draws=20)
    assert found is not None and (found.num_enrolled, found.num_enrolled_open) == (2, 1)
    assert (found.curve.num_known, found.curve.num_unknown) == (2, 3 + 24)
    assert recognition(rows, np.arange(30), [0.1], seed=0, num_draws=20) is None
