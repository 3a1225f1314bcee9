"""What the catalogues of all families share: a network is chosen, and made, by its name."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from data.parameters import Parameters, did_you_mean


class NetworkConfig(Parameters):
    """Which network: the base of every section `model` of a family that has a section `transfer`."""

    name: str

    @property
    def network(self) -> str:
        """The network whose weights it may start from."""
        return self.name


def make_network(catalogue: Mapping[str, Callable[..., nn.Module]], name: str, **arguments: Any) -> nn.Module:
    """A fresh network; raises ValueError for a name that the catalogue does not have, listing those it has."""
    if name not in catalogue:
        raise ValueError(
            f"model {name!r} is not in the catalogue; known: {', '.join(catalogue)}{did_you_mean(name, catalogue)}"
        )
    return catalogue[name](**arguments)
