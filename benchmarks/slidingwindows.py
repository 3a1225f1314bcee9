"""What convolutional sliding windows save: a VGG-like network over 640x480 in windows of 224 px, and others.

    PYTHONPATH=. .venv/bin/python benchmarks/slidingwindows.py

Each window alone, all as one batch, and the network once over the whole picture, in turn; the median of the rounds
counts. Beside the times, the largest difference of a probability between the ways: of the network as it is, whose
convolutions pad, and of the same without its paddings.
"""

import os
import sys

from pipelines.environment import SETTINGS
from tasks.memory import ALLOCATOR

if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # glibc reads them at the start
    os.execve(sys.executable, [sys.executable, *sys.argv], {**SETTINGS, **os.environ, **ALLOCATOR})

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.timing import milliseconds
from models.overfeat import OverFeatCourse
from models.resnet import ResNet
from models.slidingwindow import crops_of, fully_convolutional
from models.vgg import VGG

ROUNDS = 3
BAR = 20  # times as fast as crop by crop


def narrow_vgg() -> VGG:
    """VGG-11 with dense layers of 512 and a quarter of the filters: as small as crop by crop is bearable."""
    net = VGG(4, 3, depth=11, dense=512)
    channels = 3
    for place, module in enumerate(net.features):
        if isinstance(module, nn.Conv2d):
            width = module.out_channels // 4
            net.features[place] = nn.Conv2d(channels, width, 3, padding=1)
            channels = width
    net.classifier[0] = nn.Linear(channels * 49, 512)
    return net


def without_padding(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            module.padding = 0 if isinstance(module, nn.MaxPool2d) else (0, 0)
    return net


@torch.inference_mode()
def measure(name: str, net: nn.Module, window_px: int, height_px: int, width_px: int) -> list[str]:
    net.eval()
    whole = fully_convolutional(net, window_px)
    picture = torch.randn(1, 3, height_px, width_px)
    crops = crops_of(picture, window_px, whole.stride_px).flatten(0, 2)

    def together() -> Tensor:
        return whole(picture).softmax(1)[0].flatten(1).T

    def alone() -> Tensor:
        return torch.cat([net(crop[None]) for crop in crops]).softmax(1)

    apart = float((together() - alone()).abs().max())
    one, batch, convolved = milliseconds(ROUNDS, alone, lambda: net(crops).softmax(1), together)
    ratio = one / convolved
    return [
        f"{name}, {window_px} px in {width_px}x{height_px}", str(whole.stride_px), str(len(crops)),
        *(f"{ms:,.1f}" for ms in (one, batch, convolved)), f"{ratio:.1f}", f"{apart:.0e}",
    ]  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    columns = ("network, window", "stride", "windows", "crop by crop, ms", "one batch, ms", "convolutional, ms",
               "times as fast", "largest difference")  # fmt: skip
    table = Table(
        *columns, title=f"Sliding windows, {torch.get_num_threads()} threads, float32 (bar: {BAR} times)"
    )
    table.add_row(*measure("VGG-like", narrow_vgg(), 224, 480, 640))
    table.add_row(*measure("VGG-like, unpadded", without_padding(narrow_vgg()), 224, 480, 640))
    table.add_row(*measure("ResNet-18", ResNet(4, 3), 224, 480, 640))
    table.add_row(*measure("course's", OverFeatCourse(4, 3), 14, 28, 28))
    table.add_row(*measure("course's", OverFeatCourse(4, 3), 14, 96, 128))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
