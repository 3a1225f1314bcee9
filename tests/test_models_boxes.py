"""Boxes: overlaps worked by hand, suppression equal to the naive greedy loop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.boxes import (
    BLOCK,
    area,
    by_falling_score,
    check_boxes,
    ciou,
    cxcywh_to_xyxy,
    diou,
    giou,
    iou,
    nms,
    share_inside,
    xyxy_to_cxcywh,
)
from tasks.detectionmatches import pair_iou


def box(*edges: float) -> Tensor:
    return torch.tensor(edges, dtype=torch.float64)


def naive_nms(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor | None = None) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i)):
        rivals = [j for j in kept if labels is None or labels[i] == labels[j]]
        low = torch.maximum(boxes[rivals, :2], boxes[i, :2])
        size = (torch.minimum(boxes[rivals, 2:], boxes[i, 2:]) - low).clamp(min=0)
        both = size[:, 0] * size[:, 1]
        overlap = both / (area(boxes[rivals]) + area(boxes[i]) - both)
        if not any(value > threshold for value in overlap.tolist()):
            kept.append(i)
    return kept


def clustered(seed: int, num: int, kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    objects = 1000 if kind == "sparse" else 7
    which = torch.randint(0, objects, (num,), generator=generator)
    centre = (torch.rand(objects, 2, generator=generator) * 500)[which]
    size = (torch.rand(objects, 2, generator=generator) * 80 + 5)[which]
    centre = centre + torch.randn(num, 2, generator=generator) * size * 0.15
    boxes = cxcywh_to_xyxy(torch.cat([centre, size], 1))
    scores = torch.rand(num, generator=generator)
    if kind == "grid":  # touching, duplicate and empty boxes, equal scores, IoU that equals the threshold
        boxes, scores = (boxes / 40).round() * 40, (scores * 8).round() / 8
    return boxes, scores


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(0, 4 * BLOCK),
    st.sampled_from(["clustered", "sparse", "grid"]),
    st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    st.sampled_from([0, 1, 5, 40]),
)
def test_nms_is_the_greedy_loop(seed: int, num: int, kind: str, threshold: float, num_classes: int) -> None:
    boxes, scores = clustered(seed, num, kind)
    labels = None
    if num_classes:
        labels = torch.randint(0, num_classes, (num,), generator=torch.Generator().manual_seed(seed))
    kept = nms(boxes, scores, threshold, labels=labels)
    assert kept.dtype == torch.int64
    assert kept.tolist() == naive_nms(boxes, scores, threshold, labels)
    above = [i for i in kept.tolist() if scores[i] >= 0.5]
    assert nms(boxes, scores, threshold, labels=labels, min_score=0.5).tolist() == above


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_of_other_precisions(dtype: torch.dtype) -> None:
    boxes, scores = clustered(0, 300, "clustered")
    boxes = boxes.to(dtype)
    wide = boxes if dtype == torch.float64 else boxes.float()
    assert nms(boxes, scores.to(dtype), 0.5).tolist() == naive_nms(wide, scores.to(dtype), 0.5)


def test_nms_keeps_the_first_of_equals_and_a_box_at_the_threshold() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 5], [10, 0, 20, 10]])
    assert nms(boxes, torch.ones(4), 0.5).tolist() == [0, 2, 3]  # IoU of box 2 is 0.5, box 3 touches
    assert nms(boxes, torch.ones(4), 0.49).tolist() == [0, 3]
    assert nms(boxes[:0], torch.ones(0), 0.5).tolist() == []


@settings(max_examples=60)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=40), st.booleans())
def test_scores_fall_and_equals_keep_their_order(scores: list[float], round_them: bool) -> None:
    """Below 0 too, and of both zeros."""
    given_scores = np.array([0.0, -0.0, *scores, 0.5, -0.0, 0.5], np.float32)
    if round_them:
        given_scores = np.round(np.clip(given_scores, -2, 2))
    order = by_falling_score(given_scores)
    assert order.tolist() == (-given_scores).argsort(kind="stable").tolist()
    wide = by_falling_score(given_scores.astype(np.float64))
    assert wide.tolist() == order.tolist()


def test_boxes_that_are_large_are_no_fault_and_infinite_ones_are() -> None:
    large = torch.tensor([[0.0, 0, 3e38, 3e38]] * 2)
    check_boxes(large)  # their sum is not finite
    check_boxes(torch.full((4, 4), 6e4, dtype=torch.float16))
    for edge in (math.inf, math.nan):
        large[1, 3] = edge
        with pytest.raises(ValueError, match=r"1 of 2 boxes .* the first is box 1"):
            check_boxes(large)
    large[1] = torch.tensor([-math.inf, 0, 1, 1])
    with pytest.raises(ValueError, match=r"1 of 2 boxes .* the first is box 1"):
        check_boxes(large)


def test_nms_says_what_is_wrong() -> None:
    good, ones = torch.tensor([[0.0, 0, 1, 1]] * 2), torch.ones(2)
    bad, swapped = good.clone(), good.clone()
    bad[1, 2] = math.nan
    swapped[1] = torch.tensor([5.0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"1 of 2 boxes .* the first is box 1"):
        nms(bad, ones, 0.5)
    with pytest.raises(ValueError, match=r"corners swapped; the first is box 1, \[5.0, 0.0, 1.0, 1.0\]"):
        nms(swapped, ones, 0.5)
    with pytest.raises(ValueError, match=r"must be \(N, 4\) floats"):
        nms(good.long(), ones, 0.5)
    with pytest.raises(ValueError, match="2 finite numbers"):
        nms(good, ones * math.nan, 0.5)
    with pytest.raises(ValueError, match="iou_threshold"):
        nms(good, ones, 1.5)
    with pytest.raises(ValueError, match="labels"):
        nms(good, ones, 0.5, labels=torch.zeros(3))


def test_overlaps_worked_by_hand() -> None:
    a, b = box(0, 0, 2, 2), box(1, 1, 3, 3)
    assert iou(a, b).item() == pytest.approx(1 / 7)
    assert giou(a, b).item() == pytest.approx(1 / 7 - 2 / 9)  # the hull has 9, the union 7
    assert diou(a, b).item() == pytest.approx(1 / 7 - 2 / 18)
    assert ciou(a, b).item() == pytest.approx(1 / 7 - 2 / 18)  # equal aspect ratios
    wide = box(0, 0, 4, 2)
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(2)) ** 2
    assert ciou(a, wide).item() == pytest.approx(0.5 - 1 / 20 - v**2 / (0.5 + v))
    apart = box(10, 0, 12, 2)
    assert iou(a, apart).item() == 0
    assert giou(a, apart).item() == pytest.approx(-16 / 24)
    for overlap in (iou, giou, diou, ciou):
        assert overlap(a, a).item() == 1
    assert iou(box(1, 1, 1, 1), box(1, 1, 1, 1)).item() == 0  # no area
    assert iou(torch.stack([a, b])[:, None], torch.stack([a, b, apart])).shape == (2, 3)


def test_the_share_inside_is_of_the_first_box() -> None:
    a, b = box(0, 0, 2, 2), box(1, 1, 5, 5)
    assert share_inside(a, b).item() == 1 / 4
    assert share_inside(b, a).item() == 1 / 16
    assert share_inside(a, box(2, 0, 4, 2)).item() == 0
    assert share_inside(box(1, 1, 1, 1), a).item() == 0  # no area
    crowd = torch.tensor([True, False])
    pairs = torch.stack([a, a]), torch.stack([b, b])
    expected = [1 / 4, 1 / 19]  # of a crowd the share, of another object the IoU
    assert pair_iou(*(each.numpy() for each in pairs), crowd.numpy()).tolist() == pytest.approx(expected)


def test_complete_iou_has_gradients_where_boxes_are_apart_equal_or_empty() -> None:
    others = torch.stack([box(5, 5, 7, 8), box(0, 0, 2, 2), box(1, 1, 1, 1)])
    boxes = torch.stack([box(0, 0, 2, 2), box(0, 0, 2, 2), box(0, 0, 2, 2)]).requires_grad_()
    for overlap in (giou, diou, ciou):
        (gradient,) = torch.autograd.grad((1 - overlap(boxes, others)).sum(), boxes)
        assert gradient.isfinite().all()
        assert gradient[0].abs().sum() > 0
    # what a detector says may have no extent, as well as what it is to find
    flat = torch.stack([box(1, 1, 1, 1), box(1, 1, 1, 3), box(1, 1, 3, 1)]).requires_grad_()
    for overlap in (iou, giou, diou, ciou):
        (gradient,) = torch.autograd.grad((1 - overlap(flat, others[:1])).sum(), flat)
        assert gradient.isfinite().all(), overlap
    assert torch.autograd.gradcheck(lambda x: giou(x, others[:1]), boxes[:1])
    assert torch.autograd.gradcheck(lambda x: diou(x, others[:1]), boxes[:1])


def test_formats_go_there_and_back() -> None:
    boxes = torch.from_numpy(
        np.random.default_rng(0).integers(0, 64, (20, 2, 2)).cumsum(1).reshape(20, 4) / 2
    )
    assert torch.equal(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    assert xyxy_to_cxcywh(box(0, 2, 4, 10)).tolist() == [2, 6, 4, 8]
    assert area(box(1, 2, 4, 10)).item() == 24
