"""Losses of pairs and triplets: equal to loops over all of them, finite where embeddings are the same."""

import itertools
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.faces import Embedded, FaceLoss, contrastive_loss, face_loss
from models.triplets import (
    Distance,
    Mining,
    contrastive_losses,
    distances,
    mean_distance,
    mine,
    squared_distances,
    triplet_losses,
)

MARGIN = 0.3
LOSS = {"name": "triplet", "scale": 16.0, "margin": MARGIN, "distance": "squared", "mining": "semi_hard"}


def batch(num_people: int = 5, each: int = 4, dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors, people, and which picture each is: the last person's pictures are two, which come twice."""
    torch.manual_seed(seed)
    embeddings = F.normalize(torch.randn(num_people * each, dim, dtype=torch.float64))
    labels = torch.arange(num_people).repeat_interleave(each)
    pictures = torch.arange(num_people * each)
    pictures[-each // 2 :] = pictures[-each : -each // 2]
    embeddings[-each // 2 :] = embeddings[-each : -each // 2]
    order = torch.randperm(len(labels))
    return embeddings[order], labels[order], pictures[order]


def apart(a: Tensor, b: Tensor, kind: Distance) -> Tensor:
    squared = ((a - b) ** 2).sum()
    return squared if kind == "squared" else squared.sqrt()


def naive_triplets(
    embeddings: Tensor, labels: Tensor, pictures: Tensor, mining: Mining
) -> list[tuple[int, int, int]]:
    """By definition: loops over anchors, positives and negatives."""
    N = range(len(labels))
    found = []
    for a in N:
        positives = [p for p in N if labels[p] == labels[a] and pictures[p] != pictures[a]]
        negatives = [n for n in N if labels[n] != labels[a]]
        away = {i: float(apart(embeddings[a], embeddings[i], "squared")) for i in N}
        nearest = min(negatives, key=away.__getitem__)
        if mining == "batch_hard" and positives:
            found.append((a, max(positives, key=away.__getitem__), nearest))
        if mining == "semi_hard":
            for p in positives:
                farther = [n for n in negatives if away[n] > away[p]]
                chosen = (
                    min(farther, key=away.__getitem__) if farther else max(negatives, key=away.__getitem__)
                )
                found.append((a, p, chosen))
    return found


@pytest.mark.parametrize("kind", get_args(Distance))
@pytest.mark.parametrize("mining", ["semi_hard", "batch_hard"])
@pytest.mark.parametrize("seed", range(5))
def test_the_triplet_loss_is_that_of_loops(mining: Mining, kind: Distance, seed: int) -> None:
    embeddings, labels, pictures = batch(seed=seed)
    one, other = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    losses = triplet_losses(one, mine(one, labels, pictures, mining), MARGIN, kind)
    naive = torch.stack([
        (apart(other[a], other[p], kind) - apart(other[a], other[n], kind) + MARGIN).clamp(min=0)
        for a, p, n in naive_triplets(embeddings, labels, pictures, mining)
    ])  # fmt: skip
    # two equally far pictures may stand for each other: the picture that comes twice
    torch.testing.assert_close(losses.sort().values, naive.sort().values)
    losses.mean().backward()
    naive.mean().backward()
    twice = torch.zeros_like(pictures).scatter_add(0, pictures, torch.ones_like(pictures))[pictures] > 1
    torch.testing.assert_close(one.grad[~twice], other.grad[~twice])


def test_random_triplets_are_of_every_pair_and_any_other_person() -> None:
    embeddings, labels, pictures = batch()
    wanted = {
        (a, p)
        for a, p in itertools.permutations(range(len(labels)), 2)
        if labels[a] == labels[p] and pictures[a] != pictures[p]
    }
    seen: set[tuple[int, int]] = set()
    for _ in range(200):
        anchor, positive, negative = mine(embeddings, labels, pictures, "random")
        assert set(zip(anchor.tolist(), positive.tolist(), strict=True)) == wanted
        assert (labels[anchor] != labels[negative]).all()
        seen |= set(zip(anchor.tolist(), negative.tolist(), strict=True))
    assert seen == {(a, n) for a in range(len(labels)) for n in range(len(labels)) if labels[a] != labels[n]}


@pytest.mark.parametrize("mining", get_args(Mining))
def test_only_what_is_drawn_by_chance_has_to_be_agreed_upon(mining: Mining) -> None:
    embeddings, labels, pictures = batch()
    asked: list[Tensor] = []

    def agree(places: Tensor) -> Tensor:
        asked.append(places)
        return places.flip(0)

    found = mine(embeddings, labels, pictures, mining, agree)
    assert len(asked) == (mining == "random")
    assert mining != "random" or torch.equal(found.negative, asked[0].flip(0))


@pytest.mark.parametrize("mining", get_args(Mining))
def test_there_is_no_triplet_without_pairs_or_without_others(mining: Mining) -> None:
    embeddings = F.normalize(torch.randn(4, 3))
    for labels in (torch.arange(4), torch.zeros(4, dtype=torch.int64)):
        assert all(len(places) == 0 for places in mine(embeddings, labels, torch.arange(4), mining))
    loss, logged = face_loss(
        Embedded(embeddings.requires_grad_()), torch.arange(4), torch.arange(4), FaceLoss.parse(LOSS, "loss")
    )
    loss.backward()
    assert loss == 0 and logged["active"] == 0 and logged["collapsed"] == 0


def test_the_contrastive_loss_is_that_of_loops() -> None:
    torch.manual_seed(0)
    apart, same = torch.rand(50, dtype=torch.float64) * 2, torch.rand(50) < 0.5
    naive = [float(d) ** 2 if s else max(0.0, 1.2 - float(d)) ** 2 for d, s in zip(apart, same, strict=True)]
    torch.testing.assert_close(contrastive_losses(apart, same, 1.2), torch.tensor(naive, dtype=torch.float64))


def test_siamese_pairs_are_as_many_of_one_person_as_of_two() -> None:
    embeddings, labels, pictures = batch()
    torch.manual_seed(1)
    value, trivial, active = contrastive_loss(embeddings, labels, pictures, 1.0)
    torch.manual_seed(1)
    anchor, positive, negative = mine(embeddings, labels, pictures, "random")
    near = distances(embeddings[anchor], embeddings[positive], "plain")
    far = distances(embeddings[anchor], embeddings[negative], "plain")
    wanted = (near.square().mean() + (1 - far).clamp(min=0).square().mean()) / 2
    assert float(value) == pytest.approx(float(wanted)) and float(trivial) == 0.5 and 0 < float(active) <= 1


@pytest.mark.parametrize("kind", get_args(Distance))
def test_the_gradient_is_finite_where_embeddings_are_the_same(kind: Distance) -> None:
    point = F.normalize(torch.randn(8), dim=0).expand(12, 8).clone().requires_grad_()
    labels = torch.arange(4).repeat_interleave(3)
    for mining in get_args(Mining):
        for name in ("triplet", "contrastive"):
            config = FaceLoss.parse(LOSS | {"name": name, "mining": mining, "distance": kind}, "loss")
            loss, logged = face_loss(Embedded(point), labels, torch.arange(12), config)
            (gradient,) = torch.autograd.grad(loss, point)
            assert gradient.isfinite().all()
            # the trivial solution: no distances, the loss at the margin, no way out
            assert loss.item() == pytest.approx(MARGIN if name == "triplet" else MARGIN**2 / 2)
            assert logged["collapsed"] == 1 and float(logged["pair_distance"]) < 1e-2


def test_spread_embeddings_have_not_collapsed() -> None:
    embeddings, labels, pictures = batch(dim=64)
    for mining in get_args(Mining):
        _loss, logged = face_loss(
            Embedded(embeddings), labels, pictures, FaceLoss.parse(LOSS | {"mining": mining}, "loss")
        )
        assert logged["collapsed"] == 0


def test_distances_are_those_of_loops() -> None:
    embeddings, _labels, _pictures = batch()
    N = len(embeddings)
    naive = torch.stack([
        torch.stack([((embeddings[i] - embeddings[j]) ** 2).sum() for j in range(N)]) for i in range(N)
    ])  # fmt: skip
    torch.testing.assert_close(squared_distances(embeddings), naive)
    pairs = [float(naive[i, j]) ** 0.5 for i, j in itertools.combinations(range(N), 2)]
    assert float(mean_distance(embeddings)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    near = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1e-5]])  # lost by 2 - 2 cos in float32
    assert float(distances(*near, "plain")) == pytest.approx(1e-5)
