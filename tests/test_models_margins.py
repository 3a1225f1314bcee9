"""Margin softmax: equal to the angles written out, and to a loop; finite at an angle of zero and of π."""

import math

import pytest
import torch
from torch.nn import functional as F

from models.margins import MarginKind, arcface, cosface, margin_softmax


def test_arcface_adds_to_the_angle() -> None:
    angle = torch.linspace(0.01, math.pi - 0.51, 50, dtype=torch.float64)
    torch.testing.assert_close(arcface(angle.cos(), 0.5), (angle + 0.5).cos())


def test_arcface_keeps_falling_where_the_angle_passes_pi() -> None:
    angle = torch.linspace(0, math.pi, 1000, dtype=torch.float64)
    logits = arcface(angle.cos(), 0.5)
    assert (logits.diff() < 0).all()
    assert float(logits[-1]) == pytest.approx(-1 - 0.5 * math.sin(0.5))


def test_cosface_takes_from_the_cosine() -> None:
    torch.testing.assert_close(cosface(torch.tensor([0.3, -1.0]), 0.4), torch.tensor([-0.1, -1.4]))


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_the_loss_is_that_of_a_loop(kind: MarginKind) -> None:
    torch.manual_seed(0)
    cosines = torch.rand(20, 7, dtype=torch.float64) * 2 - 1
    labels = torch.randint(0, 7, (20,))
    total = 0.0
    for row, label in zip(cosines.tolist(), labels.tolist(), strict=True):
        logits = []
        for place, cosine in enumerate(row):
            if place == label:
                angle = math.acos(cosine)
                turned = math.cos(angle + 0.5) if angle + 0.5 < math.pi else cosine - 0.5 * math.sin(0.5)
                cosine = cosine - 0.5 if kind == "cosface" else turned
            logits.append(30 * cosine)
        top = max(logits)
        total += top + math.log(sum(math.exp(logit - top) for logit in logits)) - logits[label]
    assert float(margin_softmax(cosines, labels, kind, 30.0, 0.5)) == pytest.approx(total / 20, rel=1e-5)


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_the_gradient_is_finite_where_an_embedding_is_its_persons_vector(kind: MarginKind) -> None:
    people = F.normalize(torch.randn(3, 4))
    raw = torch.cat([people, -people]).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    margin_softmax(F.normalize(raw) @ people.T, labels, kind, 64.0, 0.5).backward()
    assert raw.grad is not None and raw.grad.isfinite().all() and raw.grad.any()
