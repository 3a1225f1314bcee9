"""Soft-NMS: equal to the loop of its paper."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.softnms import Decay, soft_nms
from tests.test_models_boxes import clustered


def overlap(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def naive(
    boxes: Tensor,
    scores: Tensor,
    decay: str,
    labels: Tensor | None,
    threshold: float,
    sigma: float,
    least: float,
) -> list[tuple[int, float]]:
    rows, left, kept = boxes.double().tolist(), dict(enumerate(scores.double().tolist())), []
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        score = left.pop(best)
        if score < least:
            continue
        kept.append((best, score))
        for i in left:
            if labels is None or labels[i] == labels[best]:
                iou = overlap(rows[best], rows[i])
                if decay == "gaussian":
                    left[i] *= math.exp(-(iou**2) / sigma)
                elif iou > threshold:
                    left[i] *= 1 - iou
    return sorted(kept, key=lambda row: (-row[1], row[0]))


@settings(max_examples=60)
@given(
    st.integers(0, 10_000), st.integers(0, 80), st.sampled_from(["clustered", "sparse", "grid"]),
    st.sampled_from(["linear", "gaussian"]), st.sampled_from([0, 1, 5]), st.sampled_from([0.0, 0.3, 0.9]),
)  # fmt: skip
def test_soft_nms_is_the_papers_loop(
    seed: int, num: int, kind: str, decay: Decay, num_classes: int, threshold: float
) -> None:
    boxes, scores = clustered(seed, num, kind)
    boxes, scores = boxes.double(), scores.double()
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (num,), generator=generator) if num_classes else None
    places, lowered = soft_nms(
        boxes, scores, decay, labels=labels, iou_threshold=threshold, sigma=0.4, min_score=0.05
    )
    expected = dict(naive(boxes, scores, decay, labels, threshold, 0.4, 0.05))
    got = dict(zip(places.tolist(), lowered.tolist(), strict=True))
    assert got == pytest.approx(expected, rel=1e-12)
    assert lowered.tolist() == sorted(lowered.tolist(), reverse=True)


def test_soft_nms_worked_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10], [0, 0, 10, 10]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    places, lowered = soft_nms(boxes, scores, "linear")
    assert places.tolist() == [0, 2, 1]  # box 3 lies on box 0: 0.6 times 0
    torch.testing.assert_close(lowered, torch.tensor([0.9, 0.7, 0.4]))
    places, lowered = soft_nms(boxes[:2], scores[:2], "gaussian", sigma=0.5)
    torch.testing.assert_close(lowered, torch.tensor([0.9, 0.8 * math.exp(-0.5)]))
    # at it: stays
    assert soft_nms(boxes, scores, "linear", iou_threshold=0.5)[1][1].item() == pytest.approx(0.8)
    none = soft_nms(boxes[:0], scores[:0], "linear")
    assert [len(part) for part in none] == [0, 0]


def test_soft_nms_says_what_is_wrong() -> None:
    good, ones = torch.tensor([[0.0, 0, 1, 1]] * 2), torch.ones(2)
    for change, message in [
        ({"boxes_xyxy": good * math.nan}, "2 of 2 boxes are not finite"),
        ({"boxes_xyxy": -good}, "corners swapped"),
        ({"scores": ones * math.nan}, "2 finite numbers"),
        ({"scores": -ones}, "must not be negative"),
        ({"labels": torch.zeros(3)}, "labels"),
        ({"decay": "cubic"}, "must be linear or gaussian"),
        ({"iou_threshold": 1.5}, "iou_threshold"),
        ({"sigma": 0.0}, "sigma"),
    ]:
        given_values = {"boxes_xyxy": good, "scores": ones, "decay": "linear"} | change
        with pytest.raises(ValueError, match=message):
            soft_nms(**given_values)  # type: ignore[arg-type]
