"""Exact nearest neighbours among unit vectors: a scan in bfloat16 that can miss nothing, then float64.

A float32 matrix is kept as two planes of 16 bits: `high`, each number rounded to bfloat16, and `low`, what that lacks,
so that both together are the float32 again, bit for bit. The scan multiplies queries with `high` alone, which is half
the bytes and several times the speed of float32; a bound on what rounding can change says which rows might still be
among the nearest, a few more than were asked for; these are compared in float64. Of equal likeness the first row comes
first. The answers are those of a float64 product over the whole float32 matrix; benchmarks/gallery.py compares them.
"""

import numpy as np
import torch
from torch import Tensor

ROUNDING = 2.0**-8  # of a number when it becomes bfloat16, as a share of it at the most
ACCUMULATION = 2.0**-13  # of a float32 sum of up to 2,048 products of unit vectors; generous
MAX_DIMS = 2048
QUERIES_AT_ONCE = 64
ROWS_AT_ONCE = 1 << 17  # of the scan: their likeness to 64 queries takes 16 MiB
MOST_HALVINGS = 6  # of a row of likeness, before its highest are looked for
CLASSES_PER_NEIGHBOUR = 16  # at the least, that are left after halving
RESCORED_AT_ONCE = 1 << 14  # pairs of query and row


def split_planes(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two planes of float32 (N, D): high uint16, the bits of bfloat16, rounded; low int16, what they lack."""
    bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    high = (bits + np.uint32(0x8000)) >> np.uint32(16)
    low = bits - (high << np.uint32(16))
    return high.astype(np.uint16), low.astype(np.uint16).view(np.int16)


def join_planes(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The float32 that `split_planes` was given."""
    bits = (high.astype(np.uint32) << np.uint32(16)) + low.astype(np.int32).view(np.uint32)
    return bits.view(np.float32)


def nearest(
    high: np.ndarray, low: np.ndarray, queries: np.ndarray, k: int, missing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows of highest inner product with each query, and that product: (Q, k) int64, (Q, k) float64.

    Planes (N, D) are those of unit vectors (see `split_planes`), queries (Q, D) float32 unit vectors; rows in
    `missing` (sorted int64) are passed over. Where fewer than k rows are left, that many columns are given.
    """
    k = min(k, len(high) - len(missing))
    rows = np.empty((len(queries), k), np.int64)
    likeness = np.empty((len(queries), k))
    if not k:
        return rows, likeness
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        of_query, candidates = _scan(high, queries[part], k, missing)
        rows[part], likeness[part] = _best(high, low, queries[part], of_query, candidates, k)
    return rows, likeness


def _scan(
    high: np.ndarray, queries: np.ndarray, k: int, missing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a query and a row that may be among its k nearest: two (C,) int64, sorted by query, then row."""
    exact = torch.from_numpy(np.ascontiguousarray(queries, np.float32))
    rounded = exact.bfloat16()
    # Cauchy and Schwarz: |q·x - q'x'| ≤ |q - q'| |x| + |q'| |x - x'|, and lengths are 1 but for a thousandth
    slack = (exact - rounded.float()).norm(dim=1) * 1.01 + ROUNDING * 1.01 + ACCUMULATION
    lowest = torch.full((len(queries),), -torch.inf)  # that the k-th best may have in the scan
    best = torch.empty(len(queries), 0)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(high), ROWS_AT_ONCE):
        block = torch.from_numpy(high[start : start + ROWS_AT_ONCE].view(np.int16)).view(torch.bfloat16)
        likeness = rounded @ block.T  # (Q, n) bfloat16
        gone = missing[np.searchsorted(missing, start) : np.searchsorted(missing, start + len(block))] - start
        likeness[:, torch.from_numpy(gone)] = -torch.inf
        halved, depth = _halved(likeness, k)
        best = torch.cat([best, halved.topk(min(k, halved.shape[1]), dim=1).values.float()], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
        if best.shape[1] == k:
            lowest = _lowest(best[:, -1], slack)
        query, row, value = _above(likeness, halved, depth, lowest)
        found.append((query, row + start, value))
    query, row, value = (torch.cat(parts) for parts in zip(*found, strict=True))
    # the k best of all candidates are k rows: a limit at least as high as that of the classes
    lowest = torch.maximum(lowest, _lowest(_kth(query, value, k, len(queries)), slack))
    keep = value >= lowest[query]
    of_query, candidates = query[keep].numpy(), row[keep].numpy()
    order = np.lexsort([candidates, of_query])
    return of_query[order], candidates[order]


def _lowest(kth: Tensor, slack: Tensor) -> Tensor:
    """What a row must have in the scan to be among the k nearest, whose k-th there is `kth`, in bfloat16 too.

    The true k-th best is at least kth - error, and a row's true likeness at most its own in the scan + error: the
    slack, and the rounding of the product itself, here with twice its share since the row's may be the larger.
    """
    return kth - 2 * (slack + 2 * ROUNDING * kth.abs() + 1e-4)


def _halved(likeness: Tensor, k: int) -> tuple[Tensor, int]:
    """Maxima of classes of columns (Q, C + rest), and their depth, the number of columns in each of the C.

    Class c is every C-th column from c; the rest, fewer columns than a class has, are classes of one.
    Halves are compared element by element, which takes a tenth of the time of a maximum over groups.
    """
    n = likeness.shape[1]
    halvings = 0
    while halvings < MOST_HALVINGS and n >> (halvings + 1) >= CLASSES_PER_NEIGHBOUR * k:
        halvings += 1
    num_classes = n >> halvings
    whole = likeness[:, : num_classes << halvings]
    for _ in range(halvings):
        half = whole.shape[1] // 2
        whole = torch.maximum(whole[:, :half], whole[:, half:])
    return torch.cat([whole, likeness[:, num_classes << halvings :]], dim=1), 1 << halvings


def _above(likeness: Tensor, halved: Tensor, depth: int, lowest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, column and likeness (float32) of all that reach `lowest` (Q,), each (C,)."""
    num_classes = likeness.shape[1] // depth
    query, place = (halved.float() >= lowest[:, None]).nonzero(as_tuple=True)
    in_class = place < num_classes
    columns = place[in_class][:, None] + num_classes * torch.arange(depth)
    query_in = query[in_class][:, None].expand_as(columns)
    query = torch.cat([query_in.reshape(-1), query[~in_class]])
    column = torch.cat([columns.reshape(-1), place[~in_class] + num_classes * (depth - 1)])
    value = likeness[query, column].float()
    keep = (value >= lowest[query]) & (value > -torch.inf)
    return query[keep], column[keep], value[keep]


def _kth(query: Tensor, value: Tensor, k: int, num_queries: int) -> Tensor:
    """The k-th highest value of each query (Q,); each has k or more."""
    order = np.lexsort([-value.numpy(), query.numpy()])
    starts = np.searchsorted(query.numpy()[order], np.arange(num_queries))
    return value[torch.from_numpy(order[starts + k - 1])]


def _best(
    high: np.ndarray,
    low: np.ndarray,
    queries: np.ndarray,
    of_query: np.ndarray,
    candidates: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of the candidates of each query, in float64."""
    wide = queries.astype(np.float64)
    likeness = np.empty(len(candidates))
    for start in range(0, len(candidates), RESCORED_AT_ONCE):
        part = slice(start, start + RESCORED_AT_ONCE)
        rows = join_planes(high[candidates[part]], low[candidates[part]]).astype(np.float64)
        likeness[part] = np.einsum("cd,cd->c", rows, wide[of_query[part]])
    order = np.lexsort([candidates, -likeness, of_query])
    starts = np.searchsorted(of_query, np.arange(len(queries)))
    chosen = order[starts[:, None] + np.arange(k)]
    return candidates[chosen], likeness[chosen]
