"""Which place finds which object, against the rules written out as loops."""

import pytest
import torch
from torch import Tensor

from data.detection import Padded, Truths, pad
from models.assignment import by_midpoint, task_aligned
from models.boxes import iou


def grid(side: int, stride: int) -> Tensor:
    at = (torch.arange(side) + 0.5) * stride
    return torch.stack([at.repeat(side), at.repeat_interleave(side)], 1)


def random_truths(seed: int, num_images: int = 4, most: int = 6, side: float = 64) -> Padded:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, most + 1, (num_images,), generator=generator)
    num = int(counts.sum())
    corner = torch.rand(num, 2, generator=generator) * side * 0.8
    size = torch.rand(num, 2, generator=generator) * side * 0.5 + 2
    boxes = torch.cat([corner, (corner + size).clamp(max=side)], 1)
    labels = torch.randint(0, 3, (num,), generator=generator)
    ignored = torch.rand(num, generator=generator) < 0.2
    image = torch.repeat_interleave(torch.arange(num_images), counts)
    return pad(Truths(boxes, labels, image, ignored), num_images)


def aligned_by_loops(
    scores: Tensor, boxes: Tensor, centres: Tensor, truths: Padded, top: int, alpha: float, beta: float
) -> tuple[dict[tuple[int, int], int], set[tuple[int, int]], dict[tuple[int, int], float]]:
    """Owners of places, places that are no background, and scores to learn: TOOD's rule, object by object."""
    owners: dict[tuple[int, int], int] = {}
    excluded: set[tuple[int, int]] = set()
    metrics: dict[tuple[int, int, int], tuple[float, float]] = {}
    for b in range(len(scores)):
        for n in range(truths.taken.shape[1]):
            if not truths.taken[b, n]:
                continue
            x0, y0, x1, y1 = truths.boxes_xyxy[b, n].tolist()
            inside = [p for p, (x, y) in enumerate(centres.tolist()) if x0 < x < x1 and y0 < y < y1]
            if not inside:
                middle = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2])
                inside = [int((centres - middle).square().sum(1).argmin())]
            if truths.ignored[b, n]:
                excluded |= {(b, p) for p in inside}
                continue
            values = []
            for p in inside:
                overlap = float(iou(truths.boxes_xyxy[b, n], boxes[b, p]))
                score = float(scores[b, p, truths.labels[b, n]])
                values.append((max(score, 1e-9) ** alpha * max(overlap, 1e-9) ** beta, overlap, p))
            for metric, overlap, p in sorted(values, reverse=True)[:top]:
                metrics[b, p, n] = (metric, overlap)
    for b, p, n in metrics:
        rivals = [(metrics[key][1], -key[2]) for key in metrics if key[:2] == (b, p)]
        if (metrics[b, p, n][1], -n) == max(rivals):
            owners[b, p] = n
    wanted = {}
    for (b, p), n in owners.items():
        mine = [metrics[b, q, n] for (c, q), m in owners.items() if c == b and m == n]
        metric, _ = metrics[b, p, n]
        wanted[b, p] = metric / max(max(m for m, _ in mine), 1e-12) * max(o for _, o in mine)
    return owners, excluded - set(owners), wanted


@pytest.mark.parametrize("seed", range(12))
def test_task_aligned_assignment_is_the_loop(seed: int) -> None:
    truths, centres = random_truths(seed), torch.cat([grid(8, 8), grid(4, 16)])
    generator = torch.Generator().manual_seed(100 + seed)
    scores = torch.rand(4, len(centres), 3, generator=generator)
    reach = torch.rand(4, len(centres), 4, generator=generator) * 24 + 1
    boxes = torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], 2)
    found = task_aligned(scores, boxes, centres, truths, 5, 1.0, 6.0)
    owners, excluded, wanted = aligned_by_loops(scores, boxes, centres, truths, 5, 1.0, 6.0)
    assert {tuple(place) for place in found.positive.nonzero().tolist()} == set(owners)
    for (b, p), owner in owners.items():
        assert found.owner[b, p] == owner
        assert float(found.score[b, p]) == pytest.approx(wanted[b, p], rel=1e-4)
    neither = ~found.positive & ~found.negative
    assert {tuple(place) for place in neither.nonzero().tolist()} == excluded
    assert not found.score[~found.positive].any()


@pytest.mark.parametrize("ignored", [False, True])
def test_each_object_has_a_place_though_none_lies_in_it(ignored: bool) -> None:
    """Of one that is ignored, it is no background."""
    tiny = Truths(
        torch.tensor([[9.0, 9, 11, 11]]), torch.tensor([1]), torch.tensor([0]), torch.tensor([ignored])
    )
    centres = grid(4, 16)
    boxes = torch.cat([centres - 8, centres + 8], 1)[None]
    found = task_aligned(torch.full((1, 16, 3), 0.1), boxes, centres, pad(tiny, 1), 10, 1.0, 6.0)
    assert found.positive.nonzero().tolist() == ([] if ignored else [[0, 0]])
    assert found.negative.tolist() == [[False] + [True] * 15]


def test_an_object_that_no_box_touches_has_its_place_too() -> None:
    """The overlap to the sixth power is 0 in float32, at the object's place as at all others."""
    tiny = Truths(
        torch.tensor([[44.0, 44, 46, 46]]), torch.tensor([1]), torch.tensor([0]), torch.tensor([False])
    )
    centres = grid(4, 16)
    boxes = torch.cat([centres - 1, centres + 1], 1)[None]
    found = task_aligned(torch.full((1, 16, 3), 0.1), boxes, centres, pad(tiny, 1), 2, 1.0, 6.0)
    assert found.positive.nonzero().tolist() == [[0, 10]] and found.score[0, 10] == 0


def test_pictures_without_boxes_are_all_background() -> None:
    none = Truths(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0).bool())
    found = task_aligned(torch.rand(2, 16, 3), torch.rand(2, 16, 4), grid(4, 16), pad(none, 2), 10, 1.0, 6.0)
    assert found.negative.all() and not found.positive.any() and not found.score.any()


ANCHORS = torch.tensor([[8.0, 8], [24, 8], [32, 32], [16, 48]])  # two of stride 8, two of stride 16
STRIDES, SIDES = torch.tensor([8, 8, 16, 16]), torch.tensor([8, 8, 4, 4])


@pytest.mark.parametrize("seed", range(8))
def test_assignment_by_midpoint_is_the_loop(seed: int) -> None:
    truths = random_truths(seed)
    wanted: dict[tuple[int, int, int, int], int] = {}
    for b in range(4):
        for n in range(truths.taken.shape[1]):
            if not truths.taken[b, n] or truths.ignored[b, n]:
                continue
            x0, y0, x1, y1 = truths.boxes_xyxy[b, n].tolist()
            w, h = x1 - x0, y1 - y0
            shapes = [min(w, a) * min(h, c) for a, c in ANCHORS.tolist()]
            overlaps = [s / (w * h + a * c - s) for s, (a, c) in zip(shapes, ANCHORS.tolist(), strict=True)]
            best = overlaps.index(max(overlaps))
            stride = int(STRIDES[best])
            cell = (b, best, int((x0 + x1) / 2 // stride), int((y0 + y1) / 2 // stride))
            wanted.setdefault(cell, n)
    cells = by_midpoint(truths, ANCHORS, STRIDES, SIDES)
    keys = zip(*(each.tolist() for each in (cells.image, cells.anchor, cells.column, cells.row)), strict=True)
    assert dict(zip(keys, cells.owner.tolist(), strict=True)) == wanted


def test_a_middle_on_the_last_edge_lies_in_the_last_cell() -> None:
    corner = Truths(
        torch.tensor([[56.0, 56, 72, 72]]), torch.tensor([0]), torch.tensor([0]), torch.tensor([False])
    )
    cells = by_midpoint(pad(corner, 1), ANCHORS[:1], STRIDES[:1], SIDES[:1])
    assert (cells.column.tolist(), cells.row.tolist()) == ([7], [7])
