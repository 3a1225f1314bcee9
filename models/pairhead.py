"""Verification as a binary classification of pairs: logistic regression on how two embeddings differ.

The head of Taigman et al. 2014 (DeepFace, https://doi.org/10.1109/CVPR.2014.220), on embeddings that are computed once:
features are |f(a) - f(b)|, or the χ² similarity's terms (f(a) - f(b))² / (f(a) + f(b)). The latter is meant for
features that are not negative; for others the sum is of their magnitudes, which is the same where none is, and a term
of two zeros is zero. The loss is convex, so it is minimised to the end, by L-BFGS, without a rate or a number of steps
to choose.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PairFeatures = Literal["difference", "chi_squared"]
MOST_STEPS = 500
TOLERANCE = 1e-9


def pair_features(a: Tensor, b: Tensor, kind: PairFeatures) -> Tensor:
    """(N, D), (N, D) → (N, D), none negative, the same for (b, a)."""
    if kind == "difference":
        return (a - b).abs()
    total = a.abs() + b.abs()
    return torch.where(total > 0, (a - b).square() / torch.where(total > 0, total, 1.0), 0.0)


class PairHead(nn.Module):
    """Two embeddings (N, D) in, the logit of being one person (N,) out."""

    def __init__(self, dim: int, kind: PairFeatures) -> None:
        super().__init__()
        self.kind: PairFeatures = kind
        self.linear = nn.Linear(dim, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.linear(pair_features(a, b, self.kind))[:, 0]


def fit_pair_head(a: Tensor, b: Tensor, same: Tensor, kind: PairFeatures, decay: float) -> PairHead:
    """The head that minimises the mean cross-entropy plus decay / 2 · |w|²: (N, D), (N, D), (N,) bool.

    Raises as `fit_logistic`.
    """
    weight, bias = fit_logistic(pair_features(a.double(), b.double(), kind), same, decay)
    head = PairHead(len(weight), kind)
    with torch.no_grad():
        head.linear.weight.copy_(weight[None])
        head.linear.bias.copy_(bias)
    return head


def fit_logistic(features: Tensor, same: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Weights (F,) and bias () of the least mean cross-entropy plus decay / 2 · |w|²: (N, F) float64, (N,) bool.

    Raises ValueError where all pairs are of one kind, or `decay` is not positive: then there is no minimum.
    """
    if decay <= 0:
        raise ValueError(
            f"decay (={decay}) must be above 0: pairs that can be told apart have no best weights"
        )
    if not 0 < int(same.sum()) < len(same):
        raise ValueError(
            f"{int(same.sum())} of {len(same)} pairs are of one person; a head needs pairs of both kinds"
        )
    target = same.double()
    # the bias is the last
    weight = torch.zeros(features.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=MOST_STEPS, tolerance_grad=TOLERANCE, tolerance_change=TOLERANCE**2,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        optimizer.zero_grad()
        logits = features @ weight[:-1] + weight[-1]
        entropy = F.binary_cross_entropy_with_logits(logits, target)
        loss = entropy + decay / 2 * weight[:-1].square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return weight.detach()[:-1], weight.detach()[-1]
