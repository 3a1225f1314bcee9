"""What a network with side branches gives in training: the logits, those of the branches, and the branches' weights."""

from typing import NamedTuple

from torch import Tensor


class WithSides(NamedTuple):
    """`logits` and each of `sides` are (B, num_classes); the loss is main + Σ weight · side."""

    logits: Tensor
    sides: tuple[Tensor, ...]
    weights: tuple[float, ...]
