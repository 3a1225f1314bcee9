"""Weighted boxes fusion: equal to the loop of its paper."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.fusion import Confidence, fuse
from tests.test_models_boxes import clustered
from tests.test_models_softnms import overlap

Row = tuple[float, list[float], float, int]  # weighted score, box, weight, model


def score_of(members: list[Row], weights: list[float], confidence: str) -> float:
    total, T, M = sum(row[0] for row in members), len(members), len(weights)
    models = {row[3] for row in members}
    of_boxes = sum(row[2] for row in members)
    return {
        "avg": total / T * min(T, M) / sum(weights),
        "overflow": total / T * T / sum(weights),
        "max": max(row[0] for row in members) / max(weights),
        "box_and_model_avg": total / of_boxes * sum(weights[m] for m in models) / sum(weights),
        "absent_model_aware_avg": total
        / (of_boxes + sum(w for m, w in enumerate(weights) if m not in models)),
    }[confidence]


def naive(
    boxes: Tensor, scores: Tensor, labels: Tensor, models: Tensor, weights: list[float], threshold: float,
    confidence: str, least: float,
) -> list[tuple[float, int, list[float]]]:  # fmt: skip
    made: list[tuple[float, int, list[float]]] = []
    for label in sorted(set(labels.tolist())):
        rows: list[Row] = [
            (score * weights[m], box, weights[m], m)
            for score, box, m, k in zip(
                scores.tolist(), boxes.tolist(), models.tolist(), labels.tolist(), strict=True
            )
            if k == label and score >= least
        ]
        clusters: list[list[Row]] = []
        fused: list[list[float]] = []
        for row in sorted(rows, key=lambda row: -row[0]):
            overlaps = [overlap(box, row[1]) for box in fused]
            if overlaps and max(overlaps) > threshold:
                at = overlaps.index(max(overlaps))
                clusters[at].append(row)
                total = sum(each[0] for each in clusters[at])
                if total > 0:
                    fused[at] = [sum(each[0] * each[1][c] for each in clusters[at]) / total for c in range(4)]
            else:
                clusters.append([row])
                fused.append(row[1])
        made += [
            (score_of(c, weights, confidence), label, box) for c, box in zip(clusters, fused, strict=True)
        ]
    return sorted(made, key=lambda each: -each[0])


@settings(max_examples=80)
@given(
    st.integers(0, 10_000), st.integers(0, 80), st.sampled_from(["clustered", "sparse", "grid"]),
    st.sampled_from(get_args(Confidence)), st.sampled_from([1, 5]), st.sampled_from([0.0, 0.55, 0.9]),
    st.sampled_from([[1.0], [1.0, 1.0, 1.0], [2.0, 0.5]]),
)  # fmt: skip
def test_fusion_is_the_papers_loop(
    seed: int, num: int, kind: str, confidence: Confidence, num_classes: int, threshold: float,
    weights: list[float],
) -> None:  # fmt: skip
    boxes, scores = clustered(seed, num, kind)
    boxes, scores = boxes.double(), scores.double()
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (num,), generator=generator)
    models = torch.randint(0, len(weights), (num,), generator=generator)
    fused = fuse(boxes, scores, labels, models, weights, threshold, confidence=confidence, min_score=0.1)
    expected = naive(boxes, scores, labels, models, weights, threshold, confidence, 0.1)
    assert fused.scores.tolist() == pytest.approx([row[0] for row in expected], rel=1e-9)

    def rounded(rows: list[tuple[float, int, list[float]]]) -> list[list[float]]:
        return sorted([round(row[0], 6), row[1], *(round(edge, 5) + 0.0 for edge in row[2])] for row in rows)

    got = zip(fused.scores.tolist(), fused.labels.tolist(), fused.boxes_xyxy.tolist(), strict=True)
    for one, other in zip(rounded(list(got)), rounded(expected), strict=True):
        assert one == pytest.approx(other, abs=2e-5)
    members = fused.members
    assert torch.equal(members < 0, scores < 0.1)
    assert sorted(set(members[members >= 0].tolist())) == list(range(len(fused.scores)))
    assert torch.equal(fused.labels[members[members >= 0]], labels[members >= 0])


A, B, AWAY = [0.0, 0, 10, 10], [0.0, 0, 10, 8], [50.0, 50, 60, 60]


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        ("avg", (0.9 * 2 + 0.3) / 2 * 2 / 3),
        ("overflow", (0.9 * 2 + 0.3) / 3),
        ("max", 0.9),
        ("box_and_model_avg", (0.9 * 2 + 0.3) / 3),
        ("absent_model_aware_avg", (0.9 * 2 + 0.3) / 3),
    ],
)
def test_fusion_worked_by_hand(confidence: Confidence, expected: float) -> None:
    """Weights 2 and 1: the box of 0.9 weighs 1.8, that of 0.3 weighs 0.3; one model alone saw what is away."""
    boxes, scores = torch.tensor([A, B, AWAY]), torch.tensor([0.9, 0.3, 0.6])
    fused = fuse(
        boxes, scores, torch.zeros(3).long(), torch.tensor([0, 1, 0]), [2, 1], 0.5, confidence=confidence
    )
    assert fused.members.tolist() == [0, 0, 1]
    torch.testing.assert_close(fused.boxes_xyxy, torch.tensor([[0, 0, 10, (1.8 * 10 + 0.3 * 8) / 2.1], AWAY]))
    assert fused.scores[0].item() == pytest.approx(expected)
    alone = {"max": 0.6, "overflow": 0.4, "box_and_model_avg": 0.4, "absent_model_aware_avg": 0.4, "avg": 0.4}
    assert fused.scores[1].item() == pytest.approx(alone[confidence])


def test_boxes_without_area_or_score_are_kept_as_they_are() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [5.0, 5, 5, 5], A, A])
    fused = fuse(
        boxes, torch.tensor([0.5, 0.5, 0, 0]), torch.zeros(4).long(), torch.tensor([0, 1, 0, 1]), [1, 1], 0.5
    )
    assert fused.boxes_xyxy.tolist() == [[5, 5, 5, 5], [5, 5, 5, 5], A]
    assert fused.scores.tolist() == [0.25, 0.25, 0]
    none = fuse(boxes[:0], torch.ones(0), torch.zeros(0).long(), torch.zeros(0).long(), [1], 0.5)
    assert none.boxes_xyxy.shape == (0, 4)


def test_fusion_says_what_is_wrong() -> None:
    zeros = torch.zeros(2).long()
    good = {
        "boxes_xyxy": torch.tensor([A, A]), "scores": torch.ones(2), "labels": zeros, "models": zeros,
        "weights": [1.0], "iou_threshold": 0.5,
    }  # fmt: skip
    for change, message in [
        ({"boxes_xyxy": torch.tensor([A, A]) * math.nan}, "not finite"),
        ({"scores": -torch.ones(2)}, "must not be negative"),
        ({"labels": torch.zeros(3)}, "labels"),
        ({"models": zeros + 1}, r"models from 1 to 1 must lie in 0…0"),
        ({"models": torch.zeros(2)}, "integers"),
        ({"weights": [0.0]}, "positive numbers"),
        ({"weights": []}, "positive numbers"),
        ({"iou_threshold": -0.1}, "iou_threshold"),
        ({"confidence": "mean"}, "must be one of avg, overflow"),
    ]:
        with pytest.raises(ValueError, match=message):
            fuse(**good | change)  # type: ignore[arg-type]
