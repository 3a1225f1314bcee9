"""Non-maximum suppression: models/boxes.py against torchvision's in C++, in turn; the same boxes are kept.

    benchmarks/peers.sh && PYTHONPATH=. .venv-peers/bin/python benchmarks/nms.py

Boxes are scattered around objects, as a detector's raw output is; "apart" are boxes of which most survive. One thread;
the median of the rounds counts.
"""

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.timing import milliseconds
from models.boxes import cxcywh_to_xyxy, nms

ROUNDS, THRESHOLD, SPREAD = 9, 0.5, 0.08
SETS = [  # boxes, objects, classes
    (1_000, 20, 1), (1_000, 50, 1), (5_000, 50, 1), (5_000, 100, 1), (20_000, 50, 1), (20_000, 200, 1),
    (1_000, 50, 80), (20_000, 200, 80),
]  # fmt: skip
APART = [(1_000, 0.2), (5_000, 0.1), (20_000, 0.05)]  # boxes, their side as a share of the clustered ones'


def scattered(num: int, objects: int, share: float = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(0, objects, (num,), generator=generator)
    centre = torch.rand(objects, 2, generator=generator)[which] * 640
    size = (torch.rand(objects, 2, generator=generator)[which] * 120 + 20) * share
    centre = centre + torch.randn(num, 2, generator=generator) * size * SPREAD
    size = size * (torch.randn(num, 2, generator=generator) * SPREAD).exp()
    return cxcywh_to_xyxy(torch.cat([centre, size], 1)), torch.rand(num, generator=generator)


def row(name: str, boxes: Tensor, scores: Tensor, num_classes: int) -> list[str]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, num_classes, scores.shape, generator=generator) if num_classes > 1 else None

    def theirs() -> Tensor:
        if labels is None:
            return torchvision.ops.nms(boxes, scores, THRESHOLD)
        return torchvision.ops.batched_nms(boxes, scores, labels, THRESHOLD)

    def ours() -> Tensor:
        return nms(boxes, scores, THRESHOLD, labels=labels)

    kept = ours()
    same = torch.equal(theirs().sort().values, kept.sort().values)  # of equal scores its order is not defined
    peer, mine = milliseconds(ROUNDS, theirs, ours)
    return [
        name,
        f"{len(kept):,}",
        "yes" if same else "no",
        f"{peer:.2f}",
        f"{mine:.2f}",
        f"{mine / peer:.2f}",
    ]


def main() -> None:
    torch.set_num_threads(1)
    table = Table("boxes", "kept", "same", "torchvision, ms", "ours, ms", "ratio")
    for num, objects, num_classes in SETS:
        name = f"{num:,} around {objects}" + (f", {num_classes} classes" if num_classes > 1 else "")
        table.add_row(*row(name, *scattered(num, objects), num_classes))
    for num, share in APART:
        table.add_row(*row(f"{num:,} apart", *scattered(num, num, share), 1))
    Console().print(table)


if __name__ == "__main__":
    main()
