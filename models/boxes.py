"""Boxes: formats, areas, overlaps, and greedy non-maximum suppression.

Boxes are edges (x0, y0, x1, y1) in continuous pixels, as everywhere: a box has x1 - x0 of width, with no pixel added.
The overlaps broadcast: (N, 4) with (N, 4) are N pairs, (N, 1, 4) with (M, 4) are all N·M pairs. They are of torch alone
and differentiable. Suppression gives exactly what the greedy loop gives, see `nms`; speed: benchmarks/nms.py.
"""

import math

import numpy as np
import torch
from torch import Tensor

BLOCK = 96  # boxes that are compared with each other at once
SCRATCH = 1 << 15  # pairs that are compared at once: their intermediate values stay in the processor's cache


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Edges (…, 4) of boxes given as centre, width and height."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Centre, width and height (…, 4) of boxes given as edges."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def area(boxes_xyxy: Tensor) -> Tensor:
    """Square pixels of each box, (…)."""
    x0, y0, x1, y1 = boxes_xyxy.unbind(-1)
    return (x1 - x0) * (y1 - y0)


def iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union in [0, 1]; 0 of two boxes without area."""
    return _iou_and_union(a_xyxy, b_xyxy)[0]


def share_inside(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """How much of `a` lies in `b`, in [0, 1]: what stands for IoU where `b` is a crowd; 0 of an `a` without area."""
    return _intersection(a_xyxy, b_xyxy) / _positive(area(a_xyxy))


def giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1]: less the share of the hull that neither covers (Rezatofighi et al. 2019,
    https://arxiv.org/abs/1902.09630)."""
    overlap, union = _iou_and_union(a_xyxy, b_xyxy)
    width, height = _hull(a_xyxy, b_xyxy)
    hull = width * height
    return overlap - (hull - union) / _positive(hull)


def diou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Distance-IoU in [-1, 1]: less ρ²/c², the squared distance of the centres over the squared diagonal of the hull
    (Zheng et al. 2020, https://arxiv.org/abs/1911.08287)."""
    width, height = _hull(a_xyxy, b_xyxy)
    between = (a_xyxy[..., :2] + a_xyxy[..., 2:] - b_xyxy[..., :2] - b_xyxy[..., 2:]) / 2
    return iou(a_xyxy, b_xyxy) - (between**2).sum(-1) / _positive(width**2 + height**2)


def ciou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Complete IoU: distance-IoU less αv, where v in [0, 1] is how far the aspect ratios differ and the weight
    α = v / (1 - IoU + v) takes no gradient (Zheng et al. 2020, https://arxiv.org/abs/1911.08287, equations 8 to 11).

    A box of no height and no width has the angle of a flat one, 0.
    """
    v = 4 / math.pi**2 * (_angle(a_xyxy) - _angle(b_xyxy)) ** 2
    with torch.no_grad():
        alpha = v / _positive(1 - iou(a_xyxy, b_xyxy) + v)
    return diou(a_xyxy, b_xyxy) - alpha * v


def _angle(boxes_xyxy: Tensor) -> Tensor:
    """The arc tangent of width over height, in [0, π/2]; 0 of a box with neither, where atan2's gradient is NaN."""
    width, height = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).unbind(-1)
    return torch.atan2(width, torch.where((width == 0) & (height == 0), 1.0, height))


def _intersection(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    ax0, ay0, ax1, ay1 = a_xyxy.unbind(-1)
    bx0, by0, bx1, by1 = b_xyxy.unbind(-1)
    width = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp(min=0)
    height = (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp(min=0)
    return width * height


def _iou_and_union(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    intersection = _intersection(a_xyxy, b_xyxy)
    union = area(a_xyxy) + area(b_xyxy) - intersection
    return intersection / _positive(union), union


def _hull(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height of the smallest box around both."""
    low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    width, height = (torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - low).unbind(-1)
    return width, height


def _positive(values: Tensor) -> Tensor:
    """A divisor: where `values` is 0, so is what stands above it."""
    return values.clamp(min=torch.finfo(values.dtype).tiny)


def check_boxes(boxes_xyxy: Tensor) -> None:
    """Raise ValueError unless these are (N, 4) floats, finite, with x0 ≤ x1 and y0 ≤ y1."""
    if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4 or not boxes_xyxy.is_floating_point():
        raise ValueError(f"boxes {tuple(boxes_xyxy.shape)} of {boxes_xyxy.dtype} must be (N, 4) floats")
    ordered = boxes_xyxy[:, 2:] >= boxes_xyxy[:, :2]  # false of NaN
    if ordered.all() and math.isfinite(float(boxes_xyxy.sum())):  # a finite sum has finite parts
        return
    wrong = ~(ordered.all(1) & boxes_xyxy.isfinite().all(1))
    if wrong.any():
        first = int(wrong.int().argmax())
        raise ValueError(
            f"{int(wrong.sum())} of {len(boxes_xyxy)} boxes are not finite or have corners swapped; the first is "
            f"box {first}, {boxes_xyxy[first].tolist()}: a box is x0 ≤ x1, y0 ≤ y1"
        )


def check_scored_boxes(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor | None) -> None:
    """`check_boxes`, and raise ValueError unless there is a finite score, and a label, for each."""
    check_boxes(boxes_xyxy)
    fit = scores.shape == boxes_xyxy.shape[:1]
    if not fit or not (math.isfinite(float(scores.sum())) or scores.isfinite().all()):
        raise ValueError(f"scores {tuple(scores.shape)} must be {len(boxes_xyxy)} finite numbers, one a box")
    if labels is not None and labels.shape != scores.shape:
        raise ValueError(f"labels {tuple(labels.shape)} must be {len(boxes_xyxy)}, one a box")


def nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    labels: Tensor | None = None,
    min_score: float = -math.inf,
) -> Tensor:
    """Greedy non-maximum suppression: places (K,) int64 of the boxes kept, by falling score, of equals the first first.

    Each box kept suppresses those after it that overlap it by *more* than `iou_threshold`; with `labels` (N,) only
    those of its own class, so that `labels=None` is class-agnostic. To suppress in a batch at once, let a label stand
    for an image and a class. Boxes of a score below `min_score` are left out. IoU is computed in the boxes' precision
    (half as float32), as torchvision does it, on the CPU wherever they are. Raises ValueError for boxes or scores that
    are not finite, swapped corners, and a threshold outside [0, 1].
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold (={iou_threshold}) must lie in 0…1")
    check_scored_boxes(boxes_xyxy, scores, labels)
    chances = (scores.float() if scores.dtype.itemsize < 4 else scores).detach().cpu().numpy()
    if min_score == -math.inf:
        ranked = by_falling_score(chances)
    else:
        candidates = np.flatnonzero(chances >= min_score)
        ranked = candidates[by_falling_score(chances[candidates])]
    # by class, inside it by falling score: `by_class` are places in `ranked`, `ends` where the class of each box ends
    by_class, ends = np.arange(len(ranked)), np.full(len(ranked), len(ranked))
    if labels is not None:
        classes = labels.cpu().numpy()[ranked]
        by_class = classes.argsort(kind="stable")
        classes = classes[by_class]
        ends = np.searchsorted(classes, classes, side="right")
    boxes = boxes_xyxy.detach().cpu()
    boxes = boxes.float() if boxes.dtype.itemsize < 4 else boxes
    columns = np.empty((5, len(ranked)), boxes.numpy().dtype)  # edges and areas
    np.take(boxes.numpy().T, ranked[by_class], 1, out=columns[:4])
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # IoU of boxes without area: NaN
        columns[4] = (columns[2] - columns[0]) * (columns[3] - columns[1])
        kept = _greedy(columns, by_class, ends, iou_threshold)
    kept.sort()
    return torch.from_numpy(ranked[kept]).to(boxes_xyxy.device)


def by_falling_score(scores: np.ndarray) -> np.ndarray:
    """Places (N,) int64 of finite scores (N,), of equals the first first."""
    if scores.dtype != np.float32:
        return (-scores).argsort(kind="stable")
    # Score and place make one integer each: without equals any sort is stable, and numpy's default one is much faster.
    keys = (np.float32(0) - scores).view(np.int32).astype(np.int64)  # from 0: one zero for both
    keys ^= (keys >> 63) & 0x7FFFFFFF  # the bits of floats below 0 rise where these fall
    keys = np.sort((keys << 32) | np.arange(len(keys)))
    return keys & 0xFFFFFFFF


def _greedy(columns: np.ndarray, places: np.ndarray, ends: np.ndarray, iou_threshold: float) -> np.ndarray:
    """The greedy loop, `BLOCK` boxes at a time: which of `places` are kept. Overwrites `columns` and `places`.

    The next boxes are resolved among themselves, bit by bit; those kept then suppress what is left of the last one's
    class at once, and its survivors move up to the end of the class.
    """
    threshold = columns.dtype.type(iou_threshold)
    if float(threshold) > iou_threshold:  # the largest float that is not above it: the comparison stays exact
        threshold = np.nextafter(threshold, columns.dtype.type(-1))
    scratch = np.empty((3, max(SCRATCH, BLOCK**2)), columns.dtype)
    kept: list[np.ndarray] = []
    start = 0
    while start < len(places):
        block = slice(start, start + BLOCK)
        over = _overlapping(columns[:, block], columns[:, block], threshold, scratch)
        start = min(start + BLOCK, len(places))
        end = ends[start - 1]
        if ends[block.start] != end:
            over &= ends[block, None] == ends[None, block]
        mine = _resolve(over)
        kept.append(places[block][mine])
        if start < end:
            rows = columns[:, block][:, [i for i in mine if ends[block.start + i] == end]]
            left = start + np.flatnonzero(~_suppressed(rows, columns[:, start:end], threshold, scratch))
            start = end - len(left)
            columns[:, start:end], places[start:end] = columns.take(left, 1), places.take(left)
    return np.concatenate([np.empty(0, np.int64), *kept])


def _resolve(over: np.ndarray) -> list[int]:
    """Greedy in one block: `over` (n, n) bool says which suppresses which; rows as bits of one integer each."""
    packed = np.packbits(over, axis=1, bitorder="little")
    size, bits = packed.shape[1], packed.tobytes()
    alive, kept = (1 << len(over)) - 1, []
    while alive:
        i = (alive & -alive).bit_length() - 1  # the first that is left
        kept.append(i)
        alive &= ~(int.from_bytes(bits[i * size : (i + 1) * size], "little") | 1 << i)
    return kept


def _suppressed(
    rows: np.ndarray, columns: np.ndarray, threshold: np.floating, scratch: np.ndarray
) -> np.ndarray:
    """Which of `columns` (5, m) any of `rows` (5, n) suppresses: (m,) bool."""
    gone = np.empty(columns.shape[1], bool)
    step = max(SCRATCH // rows.shape[1], 1)
    for first in range(0, len(gone), step):
        part = slice(first, first + step)
        _overlapping(rows, columns[:, part], threshold, scratch).any(0, out=gone[part])
    return gone


def _overlapping(
    rows: np.ndarray, columns: np.ndarray, threshold: np.floating, scratch: np.ndarray
) -> np.ndarray:
    """IoU > threshold, (n, m) bool, of edges and areas (5, n) and (5, m).

    Only the width is clamped at 0: where the height alone is negative, so is the IoU, which then exceeds no threshold.
    """
    n, m = rows.shape[1], columns.shape[1]
    a, b, c = (part[: n * m].reshape(n, m) for part in scratch)
    rows = rows[:, :, None]
    np.minimum(rows[2], columns[2], out=a)
    np.maximum(rows[0], columns[0], out=b)
    a -= b
    np.maximum(a, 0, out=a)
    np.minimum(rows[3], columns[3], out=b)
    np.maximum(rows[1], columns[1], out=c)
    b -= c
    a *= b
    np.add(rows[4], columns[4], out=b)
    b -= a
    a /= b
    return a > threshold
