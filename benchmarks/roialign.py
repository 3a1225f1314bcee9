"""Features of boxes: models/roialign.py against torchvision's C++ kernels, in turn, and how far apart they are.

    benchmarks/peers.sh && PYTHONPATH=. .venv-peers/bin/python benchmarks/roialign.py

512 boxes on two pictures of 640 x 640 pixels, 256 channels, cells of 7 x 7. One thread; the median counts.
"""

from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align, roi_pool

from benchmarks.timing import milliseconds
from models.roialign import levels_of, roi_max_pool
from models.roialign import roi_align as our_roi_align

ROUNDS, SIDE_PX, CHANNELS, NUM_BOXES, NUM_IMAGES = 5, 640, 256, 512, 2
STRIDES = (4, 8, 16, 32)


def row(
    name: str, maps: Sequence[Tensor], theirs: Callable[[], Tensor], ours: Callable[[], Tensor]
) -> list[str]:
    """Both ways forwards, and forwards and back."""

    def back(way: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(way().sum(), maps)

    apart = float((theirs() - ours()).detach().abs().max())
    times = milliseconds(ROUNDS, theirs, ours, lambda: back(theirs), lambda: back(ours))
    cells = [f"{time:,.0f}" for time in times]
    cells.insert(2, f"{times[1] / times[0]:.2f}")
    return [name, f"{apart:.0e}", *cells, f"{times[3] / times[2]:.2f}"]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ends = torch.rand(2, NUM_BOXES, 2) * SIDE_PX
    boxes = torch.cat([ends.amin(0), ends.amax(0)], 1)
    image = torch.arange(NUM_BOXES) * NUM_IMAGES // NUM_BOXES
    rois, parts = torch.cat([image[:, None], boxes], 1), list(boxes.split(NUM_BOXES // NUM_IMAGES))
    maps = [
        torch.randn(NUM_IMAGES, CHANNELS, SIDE_PX // s, SIDE_PX // s, requires_grad=True) for s in STRIDES
    ]
    pyramid = MultiScaleRoIAlign([str(i) for i in range(len(maps))], 7, 2)
    named = {str(i): each for i, each in enumerate(maps)}
    one = maps[2:3]  # stride 16
    level, first = levels_of(boxes, STRIDES), torch.zeros(NUM_BOXES, dtype=torch.int64)
    ways = {  # of torchvision, and ours
        "RoIAlign, four levels": (
            maps,
            lambda: pyramid(named, parts, [(SIDE_PX, SIDE_PX)] * NUM_IMAGES),
            lambda: our_roi_align(maps, boxes, image, level, STRIDES, 7),
        ),
        "RoIAlign, stride 16": (
            one,
            lambda: roi_align(one[0], rois, 7, 1 / 16, 2),
            lambda: our_roi_align(one, boxes, image, first, [16], 7),
        ),
        "max pooling, stride 16": (
            one,
            lambda: roi_pool(one[0], rois, 7, 1 / 16),
            lambda: roi_max_pool(one[0], boxes, image, 16, 7),
        ),
    }
    table = Table(
        "", "differ by", "torchvision, ms", "ours, ms", "ratio", "and back: torchvision, ms", "ours, ms", "ratio"
    )  # fmt: skip
    for name, way in ways.items():
        table.add_row(*row(name, *way))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
