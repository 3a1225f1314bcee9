"""Suppression of a detector's boxes, hard and soft, by hand."""

import math
from typing import Any

import pytest
import torch

from models.detector import DECAYS, Finding, Found, suppressed

# two boxes of one class that overlap by 1/2 (100 and 150 wide, 20 high), one apart, one of another class
BOXES = torch.tensor([[0.0, 0, 200, 20], [0, 0, 100, 20], [0, 100, 50, 120], [0, 0, 200, 20]])
SCORES, LABELS = torch.tensor([0.8, 0.6, 0.5, 0.7]), torch.tensor([0, 0, 0, 1])
IMAGE = torch.zeros(4, dtype=torch.int64)


def kept(**changes: Any) -> tuple[list[float], list[int]]:
    values: dict[str, Any] = {"suppression": "hard", "nms_iou": 0.4, "min_score": 0.01, "max_detections": 10}
    found = suppressed(Found(BOXES, SCORES, LABELS, IMAGE), 1, 2, Finding(**values | changes))
    return found.scores.tolist(), found.labels.tolist()


def test_hard_suppression_drops_what_soft_suppression_lowers() -> None:
    assert kept() == (pytest.approx([0.8, 0.7, 0.5]), [0, 1, 0])
    lowered = 0.6 * (1 - 0.5)
    assert kept(suppression="soft_linear") == (pytest.approx([0.8, 0.7, 0.5, lowered]), [0, 1, 0, 0])
    lowered = 0.6 * math.exp(-(0.5**2) / 0.5)
    assert kept(suppression="soft_gaussian") == (pytest.approx([0.8, 0.7, 0.5, lowered]), [0, 1, 0, 0])


@pytest.mark.parametrize("suppression", ["hard", "soft_linear"])
def test_boxes_that_overlap_by_less_than_nms_iou_keep_their_scores(suppression: str) -> None:
    assert kept(suppression=suppression, nms_iou=0.55)[0] == pytest.approx([0.8, 0.7, 0.6, 0.5])


@pytest.mark.parametrize("suppression", DECAYS)
def test_what_soft_suppression_lowers_below_the_least_score_is_left_out(suppression: str) -> None:
    assert kept(suppression=suppression, min_score=0.45)[0] == pytest.approx([0.8, 0.7, 0.5])


@pytest.mark.parametrize("suppression", ["hard", *DECAYS])
def test_pictures_do_not_suppress_each_other_and_have_their_own_best(suppression: str) -> None:
    double = Found(torch.cat([BOXES, BOXES]), torch.cat([SCORES, SCORES / 2]), torch.cat([LABELS, LABELS]),
                   torch.cat([IMAGE + 1, IMAGE]))  # fmt: skip
    finding = Finding(suppression=suppression, nms_iou=0.4, min_score=0.01, max_detections=2)
    found = suppressed(double, 2, 2, finding)
    assert found.image.tolist() == [0, 0, 1, 1]
    assert found.scores.tolist() == pytest.approx([0.4, 0.35, 0.8, 0.7])
