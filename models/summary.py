"""The layer table of a network, as a first course draws it: filter, stride, padding, activation, parameters, products.

Shapes are found by one forward pass without numbers (torch's meta device), in evaluation mode, for a batch of one; side
branches of training are not in it. Multiplications are those of convolutions and dense layers: for each output value as
many as its filter has weights. Adding, pooling and normalising are not counted.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@dataclass(frozen=True)
class Layer:
    """A row: shapes without the batch, channels first; filter, stride and padding in pixels, "" where there is none."""

    name: str
    kind: str
    filter: str
    stride: str
    padding: str
    shape: tuple[int, ...]
    num_parameters: int
    multiplications: int

    @property
    def size(self) -> int:
        """Values of the activation."""
        return prod(self.shape)


def layer_table(network: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """The layers of a network on the meta device in the order in which they are called, for an input of `shape`.

    The first row is the input. Activations and dropout are left out, and what a network does by a function of its own
    (GoogLeNet's poolings, sums) has no row. Raises ValueError where the network cannot take such an input.
    """
    layers = [Layer("input", "input", "", "", "", shape, 0, 0)]
    names = {module: name for name, module in network.named_modules()}

    def record(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        num = sum(parameter.numel() for parameter in module.parameters())
        if num or isinstance(module, POOLS) or "Pool" in type(module).__name__:
            layers.append(_row(names[module], module, tuple(output.shape[1:]), num))

    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(record) for leaf in leaves]
    training = network.training
    try:
        network.eval()
        with torch.no_grad():
            network(torch.empty(1, *shape, device="meta"))
    except RuntimeError as error:
        raise ValueError(
            f"the network cannot take an input of {'x'.join(map(str, shape))}: {str(error).splitlines()[0]}"
        ) from None
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return layers


def _row(name: str, module: nn.Module, shape: tuple[int, ...], num_parameters: int) -> Layer:
    products = 0
    if isinstance(module, Conv):
        products = prod(shape) * prod(module.kernel_size) * module.in_channels // module.groups
    elif isinstance(module, nn.Linear):
        products = prod(shape) * module.in_features
    size, stride, padding = (_side(getattr(module, key, "")) for key in ("kernel_size", "stride", "padding"))
    return Layer(name, type(module).__name__, size, stride, padding, shape, num_parameters, products)


def _side(value: object) -> str:
    """A side in pixels: of a square one number, else one for each axis."""
    if isinstance(value, tuple):
        return str(value[0]) if len(set(value)) == 1 else "x".join(map(str, value))
    return str(value)
