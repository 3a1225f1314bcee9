"""Softmax with a margin over the people of the train split: CosFace and ArcFace.

The logit of a person is the cosine between an embedding and the person's own unit vector, times a scale. For the true
person the angle has to win by a margin m: CosFace takes cos θ - m (Wang et al. 2018,
https://arxiv.org/abs/1801.09414), ArcFace cos(θ + m) (Deng et al. 2019, https://arxiv.org/abs/1801.07698).
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

MarginKind = Literal["cosface", "arcface"]
LEAST_SQUARED_SINE = 1e-12  # the root's gradient is infinite at zero


def cosface(cosine: Tensor, margin: float) -> Tensor:
    """cos θ - m."""
    return cosine - margin


def arcface(cosine: Tensor, margin: float) -> Tensor:
    """cos(θ + m), θ the angle of `cosine`; where θ + m passes π, cos θ - m·sin m, which keeps falling with θ.

    The second is that of the authors' code (https://github.com/deepinsight/insightface).
    """
    sine = (1 - cosine.square()).clamp(min=LEAST_SQUARED_SINE).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    return torch.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))


MARGINS = {"cosface": cosface, "arcface": arcface}


def margin_logits(cosines: Tensor, labels: Tensor, kind: MarginKind, scale: float, margin: float) -> Tensor:
    """Cosines (B, P) and the true people (B,) → logits (B, P)."""
    own = cosines.gather(1, labels[:, None])  # (B, 1)
    return scale * cosines.scatter(1, labels[:, None], MARGINS[kind](own, margin))


def margin_softmax(cosines: Tensor, labels: Tensor, kind: MarginKind, scale: float, margin: float) -> Tensor:
    """Mean cross-entropy in nats, in float32: (B, P), (B,) → scalar."""
    return F.cross_entropy(margin_logits(cosines.float(), labels, kind, scale, margin), labels)
