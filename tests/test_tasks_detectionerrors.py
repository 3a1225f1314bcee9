"""What a detector gets wrong: everything is counted once, and agrees with precision and recall."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.detectionerrors import FALSE_ALARMS, best_hits, judge, largest_misses, worst_false_alarms
from tasks.detectionmatches import Matches, match
from tasks.detectionmetrics import at_threshold
from tasks.detectionvoc import voc_match
from tests.test_tasks_detectionmetrics import BOX, FAR, NEAR, detections_of, drawn, objects_of


@settings(max_examples=60)
@given(
    st.integers(0, 100_000),
    st.integers(1, 8),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.booleans(),
)
def test_every_object_and_every_kept_detection_is_counted_once(
    seed: int, num_images: int, num_classes: int, score: float, by_voc: bool
) -> None:
    objects, detections = drawn(seed, num_images, num_classes, 8)
    make = voc_match if by_voc else match
    matches: Matches = make(objects, detections, num_images=num_images, num_classes=num_classes)
    judged = judge(objects, detections, matches, score)
    K, confusion = num_classes, judged.confusion
    real = np.bincount(objects.labels[~objects.crowd], minlength=K)
    np.testing.assert_array_equal(confusion[:K].sum(1), real)
    kept = (matches.scores >= score) & ~matches.ignored[0, 0]
    np.testing.assert_array_equal(confusion[:, :K].sum(0), np.bincount(matches.labels[kept], minlength=K))
    assert confusion[K, K] == 0
    for k in np.flatnonzero(real):
        cut = at_threshold(matches, score, int(k))
        assert cut.recall == confusion[k, k] / real[k]
        assert cut.precision == confusion[k, k] / max(confusion[:, k].sum(), 1)
    used = judged.taken[judged.taken >= 0]
    assert len(used) == len(set(used.tolist()))
    counts = judged.counts
    assert sum(counts.values()) - counts["missed"] == (matches.scores >= score).sum()
    assert counts["hit"] == np.trace(confusion[:K, :K])
    assert counts["missed"] == confusion[:K, K].sum()
    assert sum(counts[kind] for kind in FALSE_ALARMS) == kept.sum() - counts["hit"]


def test_kinds_of_errors_worked_by_hand() -> None:
    objects = objects_of((0, 0, BOX), (0, 1, FAR), (1, 0, BOX), (1, 0, FAR), (2, 0, BOX), difficult=(4,))
    rows = [
        (0, 0, 0.95, BOX), (0, 0, 0.9, NEAR), (0, 0, 0.8, FAR), (1, 0, 0.7, (0, 0, 30, 100)),
        (1, 1, 0.6, (400, 400, 410, 410)), (2, 0, 0.5, BOX), (1, 0, 0.1, BOX),
    ]  # fmt: skip
    detections = detections_of(*rows)
    matches = match(objects, detections, num_images=3, num_classes=2)
    judged = judge(objects, detections, matches, 0.5)
    said = dict(zip(judged.place.tolist(), judged.verdicts.tolist(), strict=True))
    assert said == {
        0: "hit", 1: "duplicate", 2: "wrong class", 3: "poorly placed", 4: "background", 5: "ignored",
    }  # fmt: skip
    about = dict(zip(judged.place.tolist(), judged.overlapped.tolist(), strict=True))
    assert about == {0: 0, 1: 0, 2: 1, 3: 2, 4: -1, 5: 4}
    assert judged.confusion.tolist() == [[1, 0, 2], [1, 0, 0], [2, 1, 0]]
    assert judged.place[worst_false_alarms(judged, 3)].tolist() == [1, 2, 3]
    assert judged.place[best_hits(judged, 9)].tolist() == [0]
    assert largest_misses(judged, objects, 9).tolist() == [2, 3]
    assert largest_misses(judged, objects, 1).tolist() == [2]


def test_an_object_of_another_class_is_taken_by_the_surest_only() -> None:
    objects = objects_of((0, 0, BOX))
    detections = detections_of((0, 1, 0.6, BOX), (0, 2, 0.9, NEAR))
    judged = judge(objects, detections, match(objects, detections, num_images=1, num_classes=3), 0.0)
    assert judged.confusion.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert judged.verdicts.tolist() == ["wrong class", "wrong class"]


def test_without_objects_and_detections_nothing_is_counted() -> None:
    nothing = objects_of(), detections_of()
    judged = judge(*nothing, match(*nothing, num_images=1, num_classes=2), 0.5)
    assert judged.confusion.tolist() == [[0] * 3] * 3
    assert worst_false_alarms(judged, 5).tolist() == []
