"""Tiles: they cover the picture, and what lies on their borders comes out once, exact."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tasks.detectionmatches import Detections
from tasks.tiling import Tile, detect_in_tiles, found_twice, seen_elsewhere, starts_of, tiles_of


def in_crops(parts: Sequence[tuple[Sequence[Sequence[float]], Sequence[float], Sequence[int]]]) -> Detections:
    """Boxes, scores and labels of each crop."""
    return Detections(
        image=np.repeat(np.arange(len(parts)), [len(scores) for _, scores, _ in parts]),
        boxes_xyxy=np.array([box for boxes, _, _ in parts for box in boxes], float).reshape(-1, 4),
        scores=np.array([score for _, scores, _ in parts for score in scores], float),
        labels=np.array([label for *_, labels in parts for label in labels], np.int64),
    )


def bright(crops: list[np.ndarray]) -> Detections:
    """Finds bright rectangles exactly; the class is their brightness, and what is cut is as sure as what is whole."""
    parts = []
    for crop in crops:
        assert crop.dtype == np.uint8
        boxes, labels = [], []
        for value in sorted(set(crop[crop > 0].tolist())):
            areas, _ = ndimage.label(crop[:, :, 0] == value)
            found = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(areas)]
            boxes += found
            labels += [value] * len(found)
        parts.append((boxes, [0.9] * len(boxes), labels))
    return in_crops(parts)


def short(crops: list[np.ndarray]) -> Detections:
    """Finds them, too, but boxes of what the crop cuts end 2 or 3 px before its edge, and are surer than whole ones."""
    found = bright(crops)
    boxes, shapes = found.boxes_xyxy, np.array([crop.shape[:2] for crop in crops])[found.image]
    at_edge = boxes == np.stack([0 * shapes[:, 0], 0 * shapes[:, 0], shapes[:, 1], shapes[:, 0]], 1)
    gap = 2 + (boxes.sum(1, keepdims=True) % 2)
    pulled = boxes + at_edge * gap * [1, 1, -1, -1]
    fits = (pulled[:, 2:] > pulled[:, :2]).all(1)  # what is narrower is seen as it is
    scores = np.where(at_edge.any(1), 0.95, found.scores)
    return replace(found, boxes_xyxy=np.where(fits[:, None], pulled, boxes), scores=scores)


def scattered(
    rng: np.random.Generator,
    H: int,
    W: int,
    overlap: int,
    refuse: Callable[..., bool] = lambda *_edges: False,
) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """A picture (H, W, 3) of rectangles that do not touch, of two brightnesses, and their edges and brightness."""
    picture, rows = np.zeros((H, W, 3), np.uint8), []
    for _ in range(60):
        h, w = rng.integers(2, overlap - 2, 2).tolist()
        y, x = int(rng.integers(0, H - h)), int(rng.integers(0, W - w))
        if refuse(x, y, x + w, y + h):
            continue
        if not picture[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1].any():
            value = int(rng.choice([100, 200]))
            picture[y : y + h, x : x + w] = value
            rows.append((x, y, x + w, y + h, value))
    return picture, rows


def rows_of(found: Detections) -> list[tuple[float, ...]]:
    """Boxes with their labels, sorted."""
    boxes, labels = found.boxes_xyxy.tolist(), found.labels.tolist()
    return sorted((*box, label) for box, label in zip(boxes, labels, strict=True))


@settings(max_examples=60)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 90), st.integers(0, 60))
def test_tiles_cover_the_picture_and_overlap_as_asked(
    height: int, width: int, side: int, overlap: int
) -> None:
    if overlap >= side:
        return
    tiles = tiles_of(height, width, side, overlap)
    seen = np.zeros((height, width), int)
    for tile in tiles:
        seen[tile.y0 : tile.y1, tile.x0 : tile.x1] += 1
        assert (tile.x1 - tile.x0, tile.y1 - tile.y0) == (min(side, width), min(side, height))
    assert seen.min() >= 1
    for size in (height, width):
        starts = starts_of(size, side, overlap)
        assert all(b - a <= side - overlap for a, b in itertools.pairwise(starts))
        assert len(starts) == max(1, -(-(size - overlap) // (side - overlap)))  # no more than it takes


@settings(max_examples=60)
@given(st.integers(0, 100_000), st.sampled_from([(64, 24), (50, 20), (200, 30)]))
def test_objects_on_the_borders_of_tiles_come_out_once_and_exact(seed: int, sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    side, overlap = sizes
    H, W = rng.integers(30, 260, 2).tolist()
    picture, expected = scattered(rng, H, W, overlap)
    found = detect_in_tiles(picture, bright, side_px=side, overlap_px=overlap, nms_iou=0.5, batch_size=3)
    assert rows_of(found) == sorted(expected)


@settings(max_examples=60)
@given(st.integers(0, 100_000), st.sampled_from([(64, 24), (50, 20), (200, 30)]))
def test_boxes_that_end_short_of_the_edge_that_cuts_their_object_come_out_once(
    seed: int, sizes: tuple[int, int]
) -> None:
    """Their overlap with the whole box lies below any threshold of suppression where little of the object is seen."""
    rng = np.random.default_rng(seed)
    side, overlap = sizes
    H, W = rng.integers(side + 1, 260, 2).tolist()
    edges = [
        {edge for tile in tiles_of(H, W, side, overlap) for edge in tile[axis::2]} for axis in range(2)
    ]  # of x, of y
    # whole in its tile, though it touches the edge: `short` would take it for cut
    picture, expected = scattered(
        rng, H, W, overlap, lambda x0, y0, x1, y1: bool({x0, x1} & edges[0] or {y0, y1} & edges[1])
    )
    found = detect_in_tiles(picture, short, side_px=side, overlap_px=overlap, nms_iou=0.5, batch_size=3)
    assert rows_of(found) == sorted(expected)


LEFT, RIGHT = Tile(0, 0, 64, 64), Tile(32, 0, 96, 64)
WHOLE = (36.0, 6.0, 90.0, 60.0)  # found in the right tile; the left one shows it up to x = 64


@pytest.mark.parametrize(
    ("box", "gone"),
    [
        ((36, 6, 64, 60), True),  # what the left tile shows of it
        ((37, 8, 56, 58), True),  # 8 px short of 28: it overlaps that by more than half
        ((40, 8, 61, 24), True),  # by less, but it ends 3 px before the edge
        ((40, 20, 52, 32), False),  # another object in front of it
        ((20, 6, 64, 60), False),  # a third of it lies outside, a quarter of the next
        ((30, 2, 64, 64), False),
    ],
)
def test_a_part_goes_where_another_tile_shows_more_and_a_small_object_in_front_stays(
    box: tuple[float, ...], gone: bool
) -> None:

    def gone_of(scores: Sequence[float], labels: Sequence[int], of_tile: Sequence[int]) -> list[bool]:
        return seen_elsewhere(
            torch.tensor([box, WHOLE]), torch.tensor(scores), torch.tensor(labels), torch.tensor(of_tile),
            [LEFT, RIGHT], 0.5,
        ).tolist()  # fmt: skip

    assert gone_of([0.9, 0.5], [1, 1], [0, 1]) == [gone, False]
    assert gone_of([0.9, 0.4], [1, 1], [0, 1]) == [False, False]  # what is hardly seen takes nothing away
    assert gone_of([0.9, 0.9], [0, 1], [0, 1]) == [False, False]
    assert gone_of([0.9, 0.9], [1, 1], [1, 1]) == [False, False]  # found in one tile, both are objects


def test_of_what_two_tiles_found_the_better_stays_and_what_one_found_is_left_alone() -> None:
    """Soft suppression leaves boxes that overlap: those of one tile are its detector's business."""
    boxes = torch.tensor([[41.0, 10, 60, 30], [40, 10, 60, 30], [40, 10, 60, 30], [40, 10, 60, 29]])
    labels, of_tile = torch.tensor([1, 1, 0, 1]), torch.tensor([1, 0, 1, 0])
    gone = found_twice(boxes, labels, of_tile, [LEFT, RIGHT], 0.5)
    assert gone.tolist() == [False, True, False, True]
    alone = found_twice(boxes, labels, torch.zeros_like(of_tile), [LEFT, RIGHT], 0.5)
    assert not alone.any()


@pytest.mark.parametrize(("scores", "stays"), [((0.5, 0.6), 63.0), ((0.6, 0.5), 64.0), ((0.5, 0.5), 64.0)])
def test_of_one_object_that_two_tiles_show_whole_the_surer_box_stays_else_the_first(
    scores: tuple[float, float], stays: float
) -> None:
    # in the left tile and, of the same object, in the right one
    edges = ((32.0, 8, 64, 40), (0.0, 8, 31, 40))
    found = in_crops([([box], [score], [0]) for box, score in zip(edges, scores, strict=True)])
    picture = np.zeros((64, 96), np.uint8)
    left = detect_in_tiles(picture, lambda _crops: found, side_px=64, overlap_px=32, nms_iou=0.5)
    assert left.boxes_xyxy.tolist() == [[32, 8, stays, 40]]


def test_an_object_longer_than_the_overlap_is_not_lost() -> None:
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[10:20, 5:95] = 100
    found = detect_in_tiles(picture, bright, side_px=40, overlap_px=10, nms_iou=0.5)
    seen = np.zeros(100, bool)
    for x0, _, x1, _ in found.boxes_xyxy.astype(int).tolist():
        seen[x0:x1] = True
    assert np.flatnonzero(seen).tolist() == list(range(5, 95))


def test_an_empty_picture_holds_nothing_and_wrong_tiles_are_told() -> None:
    found = detect_in_tiles(np.zeros((70, 90, 3), np.uint8), bright, side_px=32, overlap_px=8, nms_iou=0.5)
    assert found.boxes_xyxy.shape == (0, 4) and len(found.scores) == len(found.labels) == 0
    with pytest.raises(ValueError, match=r"overlap_px \(=8\) must be from 0 to less than side_px \(=8\)"):
        tiles_of(10, 10, 8, 8)
    with pytest.raises(ValueError, match="a picture of 10x0 px"):
        tiles_of(0, 10, 8, 4)
