"""Batch-hard triplet loss, forward and backward, of 256 unit vectors of 512 dimensions: ours against
pytorch-metric-learning (https://kevinmusgrave.github.io/pytorch-metric-learning/), in turn; the same loss and gradient.

    benchmarks/peers.sh && PYTHONPATH=. .venv-peers/bin/python benchmarks/triplets.py

64 people with 4 pictures each; plain and squared distances; beside it semi-hard mining, whose miner there gives all
triplets inside the margin and ours one for each pair: no like for like, so only its time is shown. One thread; the
median of the rounds counts. Bar: batch-hard in at most half its time.
"""

from collections.abc import Callable

import torch
from pytorch_metric_learning import distances as peer_distances
from pytorch_metric_learning import losses, miners, reducers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import milliseconds
from models.triplets import Distance, Mining, mine, triplet_losses

ROUNDS, MARGIN = 51, 0.2
N, D, K = 256, 512, 4


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(N // K, D, generator=generator).repeat_interleave(K, 0)
    embeddings = F.normalize(people + 1.5 * torch.randn(N, D, generator=generator))
    return embeddings.requires_grad_(), torch.arange(N // K).repeat_interleave(K)


def peer(embeddings: Tensor, labels: Tensor, mining: Mining, kind: Distance) -> Callable[[], Tensor]:
    distance = peer_distances.LpDistance(normalize_embeddings=False, power=2 if kind == "squared" else 1)
    loss = losses.TripletMarginLoss(MARGIN, distance=distance, reducer=reducers.MeanReducer())
    miner = (
        miners.BatchHardMiner(distance=distance)
        if mining == "batch_hard"
        else miners.TripletMarginMiner(MARGIN, "semihard", distance=distance)
    )

    def step() -> Tensor:
        embeddings.grad = None
        value = loss(embeddings, labels, miner(embeddings, labels))
        value.backward()
        return value.detach()

    return step


def ours(embeddings: Tensor, labels: Tensor, mining: Mining, kind: Distance) -> Callable[[], Tensor]:
    pictures = torch.arange(N)

    def step() -> Tensor:
        embeddings.grad = None
        chosen = mine(embeddings.detach(), labels, pictures, mining)
        value = triplet_losses(embeddings, chosen, MARGIN, kind).mean()
        value.backward()
        return value.detach()

    return step


def main() -> None:
    torch.set_num_threads(1)
    embeddings, labels = batch()
    shown = Table("mining", "distance", "same loss", "same gradient", "theirs, ms", "ours, ms", "ratio")
    cases: list[tuple[Mining, Distance]] = [
        ("batch_hard", "plain"), ("batch_hard", "squared"), ("semi_hard", "squared"),
    ]  # fmt: skip
    for mining, kind in cases:
        theirs, mine_ = (make(embeddings, labels, mining, kind) for make in (peer, ours))
        values, gradients = [], []
        for step in (theirs, mine_):
            values.append(step())
            assert embeddings.grad is not None
            gradients.append(embeddings.grad.clone())
        same = [torch.allclose(*pair, rtol=1e-3, atol=1e-5) for pair in (values, gradients)]
        told = ["yes" if each else "no" for each in same] if mining == "batch_hard" else ["–", "–"]
        slow, fast = milliseconds(ROUNDS, theirs, mine_)
        shown.add_row(mining, kind, *told, f"{slow:.2f}", f"{fast:.2f}", f"{fast / slow:.2f}")
    Console().print(shown)


if __name__ == "__main__":
    main()
