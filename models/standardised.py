"""The module that wraps a network for signals or volumes with its input normalisation."""

import torch
from torch import Tensor, nn


class Standardised(nn.Module):
    """A network of arrays (B, C, *axes) of any number of axes: values in, logits out.

    The channel statistics are buffers, so they travel inside the weights file and cannot be forgotten.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], num_axes: int
    ) -> None:
        super().__init__()
        self.net = net
        shape = (1, -1, *(1,) * num_axes)
        self.register_buffer("mean", torch.tensor(mean).view(shape))
        self.register_buffer("std", torch.tensor(std).view(shape))

    def forward(self, arrays: Tensor) -> Tensor:
        return self.net((arrays.float() - self.mean) / self.std)


def initialise(network: nn.Module) -> None:
    """He initialisation of convolutions by fan-out, ones and zeros for norms; dense layers keep torch's own."""
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
