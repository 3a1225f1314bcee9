"""Detections of several looks as one: by hand."""

import numpy as np
import pytest

from tasks.detectionjoin import by_picture, fused, joined, moved
from tasks.detectionmatches import Detections


def found(*rows: tuple[int, tuple[float, float, float, float], int, float]) -> Detections:
    """Of picture, box, label and score."""
    return Detections(
        image=np.array([row[0] for row in rows], np.int64),
        boxes_xyxy=np.array([row[1] for row in rows], float).reshape(-1, 4),
        labels=np.array([row[2] for row in rows], np.int64),
        scores=np.array([row[3] for row in rows], float),
    )


def test_two_looks_at_one_object_are_one_box_at_the_mean_of_their_scores() -> None:
    one = found((0, (0, 0, 10, 10), 1, 0.9), (1, (50, 50, 60, 60), 0, 0.8))
    other = found((0, (0, 0, 10, 12), 1, 0.3), (0, (0, 0, 10, 12), 0, 0.6))
    together = fused([one, other], 2, 0.6)
    assert together.image.tolist() == [0, 0, 1]
    assert together.labels.tolist() == [1, 0, 0]
    # the box is the mean by score: (0.9 · 10 + 0.3 · 12) / 1.2; what one look alone finds has half its score
    np.testing.assert_allclose(together.boxes_xyxy[0], (0, 0, 10, 10.5))
    assert together.scores.tolist() == pytest.approx([0.6, 0.3, 0.4])


def test_what_suppression_keeps_apart_is_not_merged() -> None:
    """Two objects of a class that overlap by 10/13, which both looks find."""
    one = found((0, (0, 0, 10, 10), 0, 0.9), (0, (0, 0, 10, 13), 0, 0.6))
    apart = fused([one, one], 1, 0.85)
    np.testing.assert_allclose(apart.boxes_xyxy, one.boxes_xyxy)
    assert apart.scores.tolist() == pytest.approx(one.scores.tolist())
    assert len(fused([one, one], 1, 0.6).scores) == 1


def test_the_order_of_looks_does_not_matter_and_one_look_is_itself() -> None:
    rng = np.random.default_rng(0)
    looks = []
    for _ in range(3):
        corner = rng.uniform(0, 40, (30, 2))
        boxes = np.hstack([corner, corner + rng.uniform(5, 20, (30, 2))])
        looks.append(
            Detections(
                image=rng.integers(0, 3, 30),
                boxes_xyxy=boxes,
                labels=rng.integers(0, 2, 30),
                scores=rng.random(30),
            )
        )
    assert fused(looks[:1], 2, 0.6) is looks[0]
    one, other = fused(looks, 2, 0.6), fused(looks[::-1], 2, 0.6)
    for name in ("image", "boxes_xyxy", "labels", "scores"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name))
    assert (np.diff(one.image) >= 0).all()
    assert all((np.diff(one.scores[one.image == image]) <= 0).all() for image in range(3))


def test_looks_that_find_nothing_are_nothing_together() -> None:
    assert len(fused([found(), found()], 3, 0.6).scores) == len(joined([]).scores) == 0
    halved = fused([found((4, (0, 0, 1, 1), 2, 0.8)), found()], 3, 0.6)
    assert (halved.image.tolist(), halved.labels.tolist(), halved.scores.tolist()) == ([4], [2], [0.4])


def test_pieces_follow_each_other_and_pictures_are_put_in_order() -> None:
    piece = found((0, (0, 0, 1, 1), 0, 0.5), (0, (1, 1, 2, 2), 1, 0.7))
    both = by_picture(joined([moved(piece, 5), piece]))
    assert both.image.tolist() == [0, 0, 5, 5] and both.labels.tolist() == [1, 0, 1, 0]
