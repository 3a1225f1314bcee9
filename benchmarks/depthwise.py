"""What the gradients of depthwise convolutions cost, and a training step of the networks that have them, in bfloat16.

    PYTHONPATH=. .venv/bin/python benchmarks/depthwise.py

Each with torch's own gradients and with those of models/depthwise.py, in turn; the median of the rounds counts.
"""

import os
import sys
from collections.abc import Callable

from pipelines.environment import SETTINGS
from tasks.memory import ALLOCATOR

if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # glibc reads them at the start
    os.execve(sys.executable, [sys.executable, *sys.argv], {**SETTINGS, **os.environ, **ALLOCATOR})

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import milliseconds
from models import efficientnet_lite, mobilenet
from models.catalogue import make_network
from models.classification import ARCHITECTURES
from models.depthwise import input_gradient, weight_gradient

BATCH, ROUNDS = 64, 7
LAYERS = [(96, 48, 3, 2), (144, 24, 5, 2), (240, 12, 5, 1), (672, 6, 5, 1)]  # channels, side, kernel, stride
NETWORKS = [("efficientnet_lite0", 96), ("efficientnet_lite0", 224), ("mobilenet_v2", 96)]


def layer(channels: int, side: int, kernel: int, stride: int) -> list[str]:
    x = torch.randn(BATCH, channels, side, side, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, kernel, kernel, dtype=torch.bfloat16)
    padding = (kernel // 2, kernel // 2)
    gradient = torch.randn_like(F.conv2d(x, weight, None, stride, padding, 1, channels))

    def torchs(mask: list[bool]) -> Callable[[], object]:
        return lambda: torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], channels, mask
        )

    times = milliseconds(
        ROUNDS,
        lambda: F.conv2d(x, weight, None, stride, padding, 1, channels),
        torchs([True, False, False]),
        lambda: input_gradient(gradient, x, weight, stride, padding),
        torchs([False, True, False]),
        lambda: weight_gradient(gradient, x, weight, stride, padding),
    )
    return [f"{channels}x{side}x{side}, {kernel}x{kernel}, stride {stride}", *(f"{ms:.1f}" for ms in times)]


def network(name: str, px: int) -> list[str]:
    model = (
        make_network(ARCHITECTURES, name, num_classes=10, channels=3)
        .to(memory_format=torch.channels_last)
        .train()
    )
    x = torch.randn(BATCH, 3, px, px).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = model(x)
        F.cross_entropy(logits.float(), torch.zeros(BATCH, dtype=torch.long)).backward()

    def with_torchs() -> None:
        ours = efficientnet_lite.depthwise_conv2d, mobilenet.DepthwiseConv2d.forward
        efficientnet_lite.depthwise_conv2d = lambda x, weight, stride, padding: F.conv2d(
            x, weight, None, stride, padding, 1, len(weight)
        )
        mobilenet.DepthwiseConv2d.forward = nn.Conv2d.forward  # type: ignore[method-assign]
        try:
            step()
        finally:
            efficientnet_lite.depthwise_conv2d, mobilenet.DepthwiseConv2d.forward = ours  # type: ignore[method-assign]

    theirs, mine = milliseconds(ROUNDS, with_torchs, step)
    rate = [BATCH / ms * 1000 for ms in (theirs, mine)]
    return [f"{name}, {px} px", *(f"{value:.0f}" for value in rate), f"{theirs / mine:.2f}"]


def main() -> None:
    torch.manual_seed(0)
    layers = Table("layer, ms", "forward", "∂input, torch", "ours", "∂weight, torch", "ours")
    for shape in LAYERS:
        layers.add_row(*layer(*shape))
    networks = Table("training step, images/s", "torch's gradients", "ours", "ratio")
    for name, px in NETWORKS:
        networks.add_row(*network(name, px))
    for table in (layers, networks):
        Console().print(table)


if __name__ == "__main__":
    main()
