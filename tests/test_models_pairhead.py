"""The binary head: scikit-learn's logistic regression on the same features, and the features by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from models.pairhead import PairFeatures, fit_pair_head, pair_features


def test_features_are_those_of_the_hand() -> None:
    a, b = torch.tensor([[0.6, 0.0, -0.8]]), torch.tensor([[0.2, 0.0, 0.4]])
    assert pair_features(a, b, "difference").tolist() == [pytest.approx([0.4, 0, 1.2])]
    assert pair_features(a, b, "chi_squared").tolist() == [pytest.approx([0.16 / 0.8, 0, 1.44 / 1.2])]


@pytest.mark.parametrize("kind", ["difference", "chi_squared"])
def test_features_do_not_mind_the_order_and_have_finite_gradients(kind: PairFeatures) -> None:
    a, b = F.normalize(torch.randn(5, 4)), F.normalize(torch.randn(5, 4))
    a[0] = b[0]
    a[1, 2] = b[1, 2] = 0
    assert torch.equal(pair_features(a, b, kind), pair_features(b, a, kind))
    a.requires_grad_()
    pair_features(a, b, kind).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["difference", "chi_squared"])
def test_the_head_is_scikit_learns(kind: PairFeatures) -> None:
    torch.manual_seed(0)
    people = F.normalize(torch.randn(30, 6))
    who, other = torch.randint(0, 30, (2, 400))
    same = torch.rand(400) < 0.5
    a = F.normalize(people[who] + 0.2 * torch.randn(400, 6))
    b = F.normalize(people[torch.where(same, who, other)] + 0.2 * torch.randn(400, 6))
    head = fit_pair_head(a, b, same, kind, decay=0.01)
    peer = LogisticRegression(C=1 / (0.01 * 400), tol=1e-10, max_iter=10_000)
    peer.fit(pair_features(a.double(), b.double(), kind).numpy(), same.numpy())
    np.testing.assert_allclose(head.linear.weight.detach().numpy(), peer.coef_, atol=2e-4)
    np.testing.assert_allclose(head.linear.bias.detach().numpy(), peer.intercept_, atol=2e-4)
    right = ((head(a, b) > 0) == same).float().mean()
    assert right > 0.8


def test_pairs_of_one_kind_are_refused() -> None:
    a = torch.rand(4, 3)
    with pytest.raises(ValueError, match="4 of 4 pairs are of one person"):
        fit_pair_head(a, a, torch.ones(4, dtype=torch.bool), "difference", 0.1)
    with pytest.raises(ValueError, match="decay"):
        fit_pair_head(a, a, torch.tensor([True, False, True, False]), "difference", 0.0)
