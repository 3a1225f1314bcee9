"""Losses of pairs and triplets of embeddings: contrastive, and triplet with three ways of mining, all vectorised.

Contrastive: Hadsell et al. 2006, http://yann.lecun.com/exdb/publis/pdf/hadsell-chopra-lecun-06.pdf. Triplet with
semi-hard mining: Schroff et al. 2015 (FaceNet), https://arxiv.org/abs/1503.03832; batch-hard: Hermans et al. 2017,
https://arxiv.org/abs/1703.07737. What is mined needs no gradient, so it is found from one matrix of distances; the loss
then computes the few distances that were chosen from the differences themselves, which loses no digits where two
embeddings are nearly the same, and gives a gradient of the size of the embeddings.

All embeddings are of unit length. N: pictures of a batch, D: dimensions, T: chosen triplets or pairs.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Distance = Literal["squared", "plain"]
Mining = Literal["random", "semi_hard", "batch_hard"]


class Triplets(NamedTuple):
    """Places in the batch, (T,) int64 each; no negative and no positive of an anchor is the anchor's own picture."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


def distances(a: Tensor, b: Tensor, kind: Distance) -> Tensor:
    """Euclidean distances, or their squares, of vectors (…, D) and (…, D) → (…).

    The gradient of a plain distance is zero where it is zero, in place of the root's, which is infinite.
    """
    squared = (a - b).square().sum(-1)
    if kind == "squared":
        return squared
    apart = squared > 0
    return torch.where(apart, squared, 1.0).sqrt() * apart


@torch.no_grad()
def squared_distances(embeddings: Tensor) -> Tensor:
    """Of all pairs of unit vectors (N, D) → (N, N), in [0, 4]; precise to about 1e-6, without gradient."""
    return (2 - 2 * embeddings @ embeddings.T).clamp_(min=0)


def as_drawn(places: Tensor) -> Tensor:
    """What chance gave: nobody else has drawn."""
    return places


@torch.no_grad()
def mine(
    embeddings: Tensor,
    labels: Tensor,
    pictures: Tensor,
    mining: Mining,
    agree: Callable[[Tensor], Tensor] = as_drawn,
) -> Triplets:
    """Choose triplets of a batch: (N, D), (N,), (N,); none where nobody has two pictures, or there is one person.

    `pictures` say which picture each is: one that stands in the batch twice is no pair with itself. `agree` takes
    places (T,) that were drawn by chance, and gives those that all who mine this batch are to use.

    random: of each pair of one person, any picture of another; semi_hard: of each pair, the nearest that is farther
    than the positive, and where there is none, the farthest; batch_hard: of each anchor, the farthest positive and the
    nearest negative.
    """
    of_one = labels[:, None] == labels
    same = of_one & (pictures[:, None] != pictures)
    usable = ~of_one.all(1)  # somebody else is there
    if mining == "batch_hard":
        cosine = embeddings @ embeddings.T  # in order of distance, and two passes over the matrix fewer
        anchor = torch.nonzero(same.any(1) & usable)[:, 0]
        positive = torch.where(same, cosine, 2.0).argmin(1)
        negative = torch.where(of_one, -2.0, cosine).argmax(1)
        return Triplets(anchor, positive[anchor], negative[anchor])
    apart, other = squared_distances(embeddings), ~of_one
    anchor, positive = torch.nonzero(same & usable[:, None], as_tuple=True)
    if mining == "random":
        drawn = torch.rand(len(anchor), len(labels), device=labels.device)
        return Triplets(anchor, positive, agree(drawn.masked_fill(~other[anchor], -1.0).argmax(1)))
    rows = apart[anchor].masked_fill(~other[anchor], torch.nan)  # (T, N)
    farther = rows > apart[anchor, positive][:, None]  # false of what is no negative
    nearest = rows.masked_fill(~farther, torch.inf).argmin(1)
    farthest = rows.nan_to_num(nan=-1.0).argmax(1)
    return Triplets(anchor, positive, torch.where(farther.any(1), nearest, farthest))


def triplet_losses(embeddings: Tensor, triplets: Triplets, margin: float, kind: Distance) -> Tensor:
    """max(0, d(anchor, positive) - d(anchor, negative) + margin) of each: (N, D) → (T,)."""
    # the gradient of an embedding's look-up is several times as fast as that of an index
    anchor, positive, negative = (F.embedding(places, embeddings) for places in triplets)
    return F.relu(distances(anchor, positive, kind) - distances(anchor, negative, kind) + margin)


def contrastive_losses(apart: Tensor, same: Tensor, margin: float) -> Tensor:
    """d² of pairs of one person, max(0, margin - d)² of others: distances (T,), (T,) bool → (T,)."""
    return torch.where(same, apart.square(), F.relu(margin - apart).square())


@torch.no_grad()
def mean_distance(embeddings: Tensor) -> Tensor:
    """Mean plain distance of all pairs (N, D) → scalar; √2 for a batch spread over the sphere, 0 for one that has
    collapsed to a point."""
    N = len(embeddings)
    return squared_distances(embeddings).sqrt().sum() / max(1, N * (N - 1))
