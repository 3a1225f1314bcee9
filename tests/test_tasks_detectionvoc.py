"""VOC's average precision: equal to the development kit's loop, on its own inclusive corners."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.detectionmatches import Detections, Objects
from tasks.detectionmetrics import at_threshold, best_threshold, curve
from tasks.detectionvoc import summarise_voc, voc_figures, voc_match
from tests.test_tasks_detectionmetrics import BOX, FAR, NEAR, detections_of, drawn, objects_of


def devkit(objects: Objects, detections: Detections, label: int) -> tuple[float, float]:
    """As VOCevaldet.m and VOCap.m go, with more than 0.5: corners from 1, both inside, sides one pixel longer."""
    corners = [(b[0] + 1, b[1] + 1, b[2], b[3]) for b in objects.boxes_xyxy.tolist()]
    out = objects.difficult | objects.crowd
    positives = int(((objects.labels == label) & ~out).sum())
    mine = [i for i in range(len(detections.scores)) if detections.labels[i] == label]
    mine.sort(key=lambda i: (-detections.scores[i], detections.image[i]))
    used, tp, fp = set(), [0.0], [0.0]
    for i in mine:
        x0, y0, x1, y1 = detections.boxes_xyxy[i] + [1, 1, 0, 0]
        most, best = -np.inf, -1
        for j, (a0, b0, a1, b1) in enumerate(corners):
            if objects.labels[j] != label or objects.image[j] != detections.image[i]:
                continue
            w, h = min(x1, a1) - max(x0, a0) + 1, min(y1, b1) - max(y0, b0) + 1
            if w > 0 and h > 0:
                area = (x1 - x0 + 1) * (y1 - y0 + 1) + (a1 - a0 + 1) * (b1 - b0 + 1) - w * h
                if w * h / area > most:
                    most, best = w * h / area, j
        right = most > 0.5 and not out[best] and best not in used
        neither = most > 0.5 and out[best]
        used |= {best} if right else set()
        tp.append(tp[-1] + right)
        fp.append(fp[-1] + (not right and not neither))
    if not positives:
        return np.nan, np.nan
    rec, prec = np.array(tp[1:]) / positives, np.array(tp[1:]) / np.maximum(np.array(tp[1:]) + fp[1:], 1e-300)
    eleven = sum(max(prec[rec >= k / 10], default=0.0) for k in range(11)) / 11
    rec, prec = np.array([0, *rec, 1]), np.array([0, *prec, 0])
    for i in range(len(prec) - 2, -1, -1):
        prec[i] = max(prec[i], prec[i + 1])
    return eleven, float(sum((rec[i] - rec[i - 1]) * prec[i] for i in range(1, len(rec))))


@settings(max_examples=60)
@given(st.integers(0, 100_000), st.integers(1, 10), st.integers(1, 4), st.sampled_from([0, 3, 15]))
def test_average_precision_equals_the_development_kits(
    seed: int, num_images: int, num_classes: int, most: int
) -> None:
    objects, detections = drawn(seed, num_images, num_classes, most)
    figures = voc_figures(voc_match(objects, detections, num_images=num_images, num_classes=num_classes))
    expected = [devkit(objects, detections, k) for k in range(num_classes)]
    np.testing.assert_allclose(np.array(figures).T, expected, rtol=0, atol=1e-12)


def voc(objects: Objects, detections: Detections) -> dict[str, float]:
    return summarise_voc(voc_match(objects, detections, num_images=2, num_classes=1))


def test_average_precision_worked_by_hand() -> None:
    two = objects_of((0, 0, BOX), (1, 0, BOX))
    one_found = detections_of((0, 0, 0.9, BOX))
    assert voc(two, one_found) == pytest.approx({"voc07": 6 / 11, "voc10": 0.5})  # recalls 0, 0.1 … 0.5
    late = detections_of((0, 0, 0.9, BOX), (1, 0, 0.8, FAR), (1, 0, 0.7, BOX))
    assert voc(two, late) == pytest.approx({"voc07": (6 + 5 * 2 / 3) / 11, "voc10": (1 + 2 / 3) / 2})
    half = detections_of((0, 0, 0.9, (0, 0, 100, 50)))  # IoU 0.5: not more
    assert voc(objects_of((0, 0, BOX)), half) == {"voc07": 0, "voc10": 0}


def test_a_detection_stays_with_the_object_that_it_overlaps_most() -> None:
    objects = objects_of((0, 0, BOX), (0, 0, NEAR))
    twice = detections_of((0, 0, 0.9, BOX), (0, 0, 0.8, BOX))  # COCO gives the second one the other object
    matches = voc_match(objects, twice, num_images=1, num_classes=1)
    assert matches.found[0, 0].tolist() == [0, -1]
    assert matches.ignored[0, 0].tolist() == [False, False]


def test_difficult_objects_count_neither_way_however_often_they_are_found() -> None:
    objects = objects_of((0, 0, BOX), (0, 0, FAR), difficult=(0,))
    detections = detections_of((0, 0, 0.9, BOX), (0, 0, 0.8, BOX), (0, 0, 0.7, FAR))
    assert voc(objects, detections) == pytest.approx({"voc07": 1, "voc10": 1})


def test_without_objects_there_is_no_figure_and_without_detections_it_is_0() -> None:
    assert all(np.isnan(value) for value in voc(objects_of(), detections_of((0, 0, 0.9, BOX))).values())
    assert voc(objects_of((0, 0, BOX)), detections_of()) == {"voc07": 0, "voc10": 0}


def test_curve_and_threshold_read_from_vocs_table() -> None:
    objects = objects_of((0, 0, BOX), (1, 0, BOX))
    detections = detections_of((0, 0, 0.9, BOX), (1, 0, 0.4, FAR))
    matches = voc_match(objects, detections, num_images=2, num_classes=1)
    assert curve(matches).precision.tolist() == [1, 0.5]
    assert best_threshold(matches) == 0.9
    assert at_threshold(matches, 0.9) == (0.9, 1, 0.5, pytest.approx(2 / 3))
