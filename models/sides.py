"""What a network with side branches gives in training: the logits, those of the branches, and the branches' weights."""

from typing import NamedTuple

from torch import Tensor


class WithSides(NamedTuple):
    """`logits` and each of `sides` are (B, num_classes); the loss is main + Σ weight · side."""

    logits: Tensor
    sides: tuple[Tensor, ...]
    weights: tuple[float, ...]


# names of the modules that are side branches, in any network of the catalogue
MODULES = ("aux1", "aux2", "AuxLogits")


def is_side(name: str) -> bool:
    """Whether a tensor, by its name in a bare network's state dict, belongs to a side branch."""
    return name.startswith(tuple(f"{module}." for module in MODULES))
