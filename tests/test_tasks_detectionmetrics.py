"""Detection's figures: equal to pycocotools, and to values worked by hand."""

import contextlib
import io
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.detectionmatches import Detections, Matches, Objects, box_areas, match
from tasks.detectionmetrics import (
    ap_interval,
    at_threshold,
    best_threshold,
    coco_figures,
    curve,
    resampled_ap,
    summarise,
    threshold_for_precision,
)

NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
NAMES += ["ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"]


def objects_of(
    *rows: tuple[int, int, tuple[float, ...]], crowd: tuple[int, ...] = (), difficult: tuple[int, ...] = ()
) -> Objects:
    """Image, class and box of each."""
    boxes = np.array([row[2] for row in rows], np.float64).reshape(-1, 4)
    places = np.arange(len(rows))
    return Objects(
        image=np.array([row[0] for row in rows], np.int64), labels=np.array([row[1] for row in rows], np.int64),
        boxes_xyxy=boxes, area=box_areas(boxes),
        crowd=np.isin(places, crowd), difficult=np.isin(places, difficult),
    )  # fmt: skip


def detections_of(*rows: tuple[int, int, float, tuple[float, ...]]) -> Detections:
    """Image, class, score and box of each."""
    return Detections(
        image=np.array([row[0] for row in rows], np.int64), labels=np.array([row[1] for row in rows], np.int64),
        scores=np.array([row[2] for row in rows], np.float64),
        boxes_xyxy=np.array([row[3] for row in rows], np.float64).reshape(-1, 4),
    )  # fmt: skip


def drawn(seed: int, num_images: int, num_classes: int, most: int) -> tuple[Objects, Detections]:
    """Boxes on a grid, so that overlaps tie and equal thresholds; scores of few values; crowds; empty images."""
    rng = np.random.default_rng(seed)
    number = rng.integers(0, 6, num_images) * rng.integers(0, 2, num_images)
    image = np.repeat(np.arange(num_images), number)
    corner = rng.integers(-1, 12, (len(image), 2)) * 8.0
    boxes = np.hstack([corner, corner + rng.integers(1, 16, (len(image), 2)) * 8])
    labels = rng.integers(0, num_classes, len(image))
    area = box_areas(boxes) * rng.choice([0.5, 1.0], len(image))
    objects = Objects(
        image=image, boxes_xyxy=boxes, labels=labels, area=area,
        crowd=rng.random(len(image)) < 0.2, difficult=np.zeros(len(image), bool),
    )  # fmt: skip
    count = rng.integers(0, most + 1, num_images)
    owner = np.repeat(np.arange(num_images), count)
    low = rng.integers(-1, 12, (len(owner), 2)) * 8.0
    guesses = np.hstack([low, low + rng.integers(1, 16, (len(owner), 2)) * 8])
    guessed = rng.integers(0, num_classes, len(owner))
    for i in range(len(owner) if len(image) else 0):  # most are moved objects of their image
        mine = np.flatnonzero(image == owner[i])
        if len(mine) and rng.random() < 0.8:
            j = rng.choice(mine)
            guesses[i], guessed[i] = boxes[j] + rng.choice([0, 0, 8], 4) * [-1, -1, 1, 1], labels[j]
    scores = rng.integers(0, 20, len(owner)) / 20
    shuffled = rng.permutation(len(owner))
    return objects, Detections(
        image=owner[shuffled], boxes_xyxy=guesses[shuffled], labels=guessed[shuffled], scores=scores[shuffled]
    )


def pycocotools(objects: Objects, detections: Detections, num_images: int, num_classes: int) -> COCOeval:
    def xywh(box: np.ndarray) -> list[float]:
        return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]

    truth, guesses = COCO(), COCO()
    truth.dataset = guesses.dataset = {
        "images": [{"id": i} for i in range(num_images)],
        "categories": [{"id": k} for k in range(num_classes)],
    }
    truth.dataset = truth.dataset | {"annotations": [
        {"id": i + 1, "image_id": int(objects.image[i]), "category_id": int(objects.labels[i]),
         "bbox": xywh(box), "area": float(objects.area[i]), "iscrowd": int(objects.crowd[i])}
        for i, box in enumerate(objects.boxes_xyxy)
    ]}  # fmt: skip
    guesses.dataset = guesses.dataset | {"annotations": [
        {"id": i + 1, "image_id": int(detections.image[i]), "category_id": int(detections.labels[i]),
         "bbox": xywh(box), "area": float(np.prod(box[2:] - box[:2])), "score": float(detections.scores[i])}
        for i, box in enumerate(detections.boxes_xyxy)
    ]}  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        guesses.createIndex()
        peer = COCOeval(truth, guesses, "bbox")
        peer.evaluate()
        peer.accumulate()
        peer.summarize()
    return peer


def or_nan(values: np.ndarray) -> np.ndarray:
    return np.where(values == -1, np.nan, values)


@settings(max_examples=60)
@given(st.integers(0, 100_000), st.integers(1, 12), st.integers(1, 4), st.sampled_from([0, 3, 15]))
def test_coco_figures_equal_pycocotools(seed: int, num_images: int, num_classes: int, most: int) -> None:
    objects, detections = drawn(seed, num_images, num_classes, most)
    check_equal(objects, detections, num_images, num_classes)


@pytest.mark.parametrize("seed", [0, 1])
def test_coco_figures_equal_pycocotools_past_100_detections(seed: int) -> None:
    objects, detections = drawn(seed, 4, 1, 400)
    assert check_equal(objects, detections, 4, 1).num_beyond == sum(
        max(0, n - 100) for n in np.bincount(detections.image, minlength=4)
    )


def check_equal(objects: Objects, detections: Detections, num_images: int, num_classes: int) -> Matches:
    matches = match(objects, detections, num_images=num_images, num_classes=num_classes)
    peer = pycocotools(objects, detections, num_images, num_classes)
    ours = summarise(matches)
    assert list(ours) == NAMES
    np.testing.assert_allclose(list(ours.values()), or_nan(np.array(peer.stats)), rtol=0, atol=1e-12)
    figures = coco_figures(matches)
    precision = or_nan(peer.eval["precision"][..., -1].mean(1))  # (T, K, A)
    np.testing.assert_allclose(figures.precision.transpose(1, 2, 0), precision, rtol=0, atol=1e-12)
    recall = or_nan(peer.eval["recall"])  # (T, K, A, M)
    np.testing.assert_allclose(figures.recall.transpose(2, 3, 1, 0), recall, rtol=0, atol=1e-12)
    return matches


Given = TypeVar("Given", Objects, Detections)
BOX, NEAR, FAR = (0, 0, 100, 100), (0, 0, 100, 60), (200, 200, 300, 300)


def ap(objects: Objects, detections: Detections, num_images: int = 2) -> float:
    return summarise(match(objects, detections, num_images=num_images, num_classes=1))["ap"]


def test_average_precision_worked_by_hand() -> None:
    one = objects_of((0, 0, BOX))
    assert ap(one, detections_of((0, 0, 0.9, BOX))) == pytest.approx(1)
    assert ap(one, detections_of((0, 0, 0.9, NEAR))) == pytest.approx(0.3)  # IoU 0.6: 0.5, 0.55, 0.6 of ten
    assert ap(one, detections_of((0, 0, 0.9, FAR), (0, 0, 0.8, BOX))) == pytest.approx(0.5)
    two = objects_of((0, 0, BOX), (0, 0, FAR))
    assert ap(two, detections_of((0, 0, 0.9, BOX))) == pytest.approx(51 / 101)  # recalls 0 to 0.5


def test_pictures_without_objects_hold_false_positives() -> None:
    one, right = objects_of((0, 0, BOX)), (0, 0, 0.8, BOX)
    assert ap(one, detections_of((1, 0, 0.9, BOX), right)) == pytest.approx(0.5)
    none = summarise(match(objects_of(), detections_of(right), num_images=2, num_classes=1))
    assert all(np.isnan(value) for value in none.values())


def test_crowds_take_any_number_and_difficult_objects_one() -> None:
    inside = [(0, 0, 0.9, (10, 10, 20, 20)), (0, 0, 0.8, (50, 50, 60, 60)), (0, 0, 0.7, FAR)]
    crowd = objects_of((0, 0, BOX), (0, 0, FAR), crowd=(0,))
    assert ap(crowd, detections_of(*inside)) == pytest.approx(1)
    difficult = objects_of((0, 0, BOX), (0, 0, FAR), difficult=(0,))
    assert ap(difficult, detections_of((0, 0, 0.9, BOX), (0, 0, 0.7, FAR))) == pytest.approx(1)
    twice = detections_of((0, 0, 0.9, BOX), (0, 0, 0.8, BOX), (0, 0, 0.7, FAR))
    assert ap(difficult, twice) == pytest.approx(0.5)


def test_objects_without_area_are_missed_and_boxes_over_the_border_are_taken_as_they_are() -> None:
    flat = (5, 5, 5, 5)
    objects = objects_of((0, 0, BOX), (0, 0, flat))
    assert ap(objects, detections_of((0, 0, 0.9, BOX), (0, 0, 0.8, flat))) == pytest.approx(51 / 101)
    outside = (-50, -50, 50, 50)
    assert ap(objects_of((0, 0, outside)), detections_of((0, 0, 0.5, outside))) == pytest.approx(1)


def test_what_is_no_detection_is_refused() -> None:
    one, good = objects_of((0, 0, BOX)), (0, 0, 0.5, BOX)
    for bad, message in [
        ((0, 0, 0.5, (10, 0, 5, 5)), "corners swapped"),
        ((0, 0, 0.5, (np.nan, 0, 5, 5)), "not finite"),
        ((0, 0, np.nan, BOX), "scores must be finite"),
        ((2, 0, 0.5, BOX), "images from 0 to 2"),
        ((0, 1, 0.5, BOX), "labels from 0 to 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ap(one, detections_of(good, bad))


def test_the_curve_and_its_best_threshold_worked_by_hand() -> None:
    objects = objects_of((0, 0, BOX), (1, 0, BOX), (1, 0, FAR))
    detections = detections_of((0, 0, 0.9, BOX), (0, 0, 0.6, FAR), (1, 0, 0.6, BOX), (1, 0, 0.2, BOX))
    matches = match(objects, detections, num_images=2, num_classes=1)
    points = curve(matches)
    assert points.scores.tolist() == [0.9, 0.6, 0.2]  # equal scores are kept or left together
    np.testing.assert_allclose(points.precision, [1, 2 / 3, 1 / 2])
    np.testing.assert_allclose(points.recall, [1 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(points.f1, [1 / 2, 2 / 3, 4 / 7])
    assert best_threshold(matches) == 0.6
    assert best_threshold(matches, label=0) == 0.6
    with pytest.raises(ValueError, match="is none of"):
        curve(matches, iou_threshold=0.42)


def copied(boxes: Given, images: np.ndarray) -> Given:
    """Those of `images`, which may name one several times, as images 0, 1, 2, ..."""
    rows = [np.flatnonzero(boxes.image == image) for image in images]
    columns = {name: part[np.concatenate(rows)] for name, part in vars(boxes).items()}
    return type(boxes)(**columns | {"image": np.repeat(np.arange(len(images)), [len(row) for row in rows])})


@pytest.mark.parametrize("seed", range(6))
def test_a_drawn_image_counts_as_often_as_it_is_drawn(seed: int) -> None:
    objects, detections = drawn(seed, 8, 3, 6)
    counts = np.random.default_rng(seed).multinomial(8, np.full(8, 1 / 8), 5)
    matches = match(objects, detections, num_images=8, num_classes=3)
    got = resampled_ap(matches, counts)
    for value, count in zip(got, counts, strict=True):
        images = np.repeat(np.arange(8), count)
        again = match(copied(objects, images), copied(detections, images), num_images=8, num_classes=3)
        np.testing.assert_allclose(value, summarise(again)["ap"], rtol=0, atol=1e-12)
    whole = resampled_ap(matches, np.ones((1, 8), np.int64))[0]
    np.testing.assert_allclose(whole, [summarise(matches)["ap"]], rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.nanmean(coco_figures(matches).precision[0]), whole, rtol=0, atol=1e-12)
    low, high = ap_interval(matches, np.random.default_rng(0), num_draws=120)
    every = resampled_ap(matches, np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), 120))
    expected = np.nanquantile(every, [0.025, 0.975])  # drawn at once
    assert [low, high] == pytest.approx(expected, abs=1e-12)
    assert low <= whole <= high


def test_of_objects_overlapped_alike_the_last_is_taken() -> None:
    objects = objects_of((0, 0, (0, 0, 80, 100)), (0, 0, (20, 0, 100, 100)))
    matches = match(objects, detections_of((0, 0, 0.9, BOX)), num_images=1, num_classes=1)
    assert matches.found[0, 0].tolist() == [1]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.5, 2 / 3, 0.9, 1.0]), st.sampled_from([None, 0, 1]))
def test_the_threshold_for_a_precision_is_the_lowest_that_reaches_it(
    seed: int, precision: float, label: int | None
) -> None:
    objects, detections = drawn(seed, 8, 2, 8)
    matches = match(objects, detections, num_images=8, num_classes=2)
    mine = ~matches.ignored[0, 0] & (label is None or matches.labels == label)
    positives = ~matches.object_ignored[0] & (label is None or matches.object_labels == label)
    if not positives.any():
        with pytest.raises(ValueError, match="there is no recall"):
            threshold_for_precision(matches, precision, label)
        return
    reaching = []
    for score in np.unique(matches.scores[mine]):  # really cut the table there
        kept = mine & (matches.scores >= score)
        right = (matches.found[0, 0, kept] >= 0).sum()
        if right / kept.sum() >= precision and kept.sum() >= min(10, positives.sum()):
            reaching.append((score, right / kept.sum(), right / positives.sum()))
    cut = threshold_for_precision(matches, precision, label)
    assert (cut and cut[:3]) == (reaching[0] if reaching else None)


def test_the_threshold_for_a_precision_worked_by_hand() -> None:
    objects = objects_of((0, 0, BOX), (1, 0, BOX))
    detections = detections_of((0, 0, 0.9, BOX), (0, 0, 0.6, FAR), (1, 0, 0.6, BOX), (1, 0, 0.2, FAR))
    matches = match(objects, detections, num_images=2, num_classes=2)
    assert threshold_for_precision(matches, 0.6) == (0.6, 2 / 3, 1, 0.8)  # both of 0.6 are kept
    assert threshold_for_precision(matches, 0.7) is None  # one box of 0.9, for two objects: chance
    wrong = match(objects, detections_of((0, 0, 0.9, FAR)), num_images=2, num_classes=1)
    assert threshold_for_precision(wrong, 0.01) is None
    assert threshold_for_precision(match(objects, detections_of(), num_images=2, num_classes=1), 0.5) is None
    assert at_threshold(wrong, 0.95) == (0.95, 0, 0, 0)
    with pytest.raises(ValueError, match=r"precision \(=0\) must be more than 0"):
        threshold_for_precision(matches, 0)


def test_a_precision_that_a_few_boxes_have_is_none() -> None:
    objects = objects_of(*((image, 0, BOX) for image in range(40)))
    lucky = [(image, 0, 0.9, BOX) for image in range(9)] + [(image, 0, 0.5, FAR) for image in range(40)]
    matches = match(objects, detections_of(*lucky), num_images=40, num_classes=1)
    assert threshold_for_precision(matches, 0.9) is None
    matches = match(objects, detections_of((9, 0, 0.8, BOX), *lucky), num_images=40, num_classes=1)
    assert threshold_for_precision(matches, 0.9) == (0.8, 1, 0.25, 0.4)


@pytest.mark.parametrize("seed", range(4))
def test_a_table_of_some_images_is_that_of_them_alone(seed: int) -> None:
    objects, detections = drawn(seed, 9, 3, 6)
    chosen = np.random.default_rng(seed).random(9) < 0.5
    part = match(objects, detections, num_images=9, num_classes=3).of_images(chosen)
    images = np.flatnonzero(chosen)
    alone = match(copied(objects, images), copied(detections, images), num_images=len(images), num_classes=3)
    np.testing.assert_array_equal(list(summarise(part).values()), list(summarise(alone).values()))


def test_a_table_of_one_range_of_areas_has_its_figures() -> None:
    objects, detections = drawn(3, 12, 2, 8)
    matches = match(objects, detections, num_images=12, num_classes=2)
    whole = summarise(matches)
    for name in ("small", "medium", "large"):
        np.testing.assert_array_equal(summarise(matches.of_area(name))["ap"], whole[f"ap_{name}"])
