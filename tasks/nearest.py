"""Exact nearest neighbours among unit vectors: a scan in 8 bits that can miss nothing, then float64.

Beside each float32 row lies a coarse one: its numbers as shares of its largest, in whole 127ths. The scan multiplies
coarse queries with coarse rows, a quarter of float32's bytes and exact in integers; how far each row and each query are
from their coarse ones is known, and bounds what that can change. Rows that might still be among the nearest, a few more
than were asked for, are compared in float64. Of equal likeness the first row comes first. The answers are those of a
float64 product over the whole float32 matrix; benchmarks/gallery.py compares them.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from tasks.matrix import LARGEST, Matrix, matrix_of

ROUNDING = 2.0**-18  # of what the scan adds up in float32, as a share of a likeness of 1; generous
LONGEST = 1.001  # a unit vector
QUERIES_AT_ONCE = 64
ROWS_AT_ONCE = 1 << 17  # of the scan: their likeness to 64 queries takes 32 MiB
NUMBERS_AT_ONCE = 1 << 19  # of that, 2 MiB, are made and halved while a cache holds them
# of a row of likeness, before its highest are looked for; more make larger classes to look into
MOST_HALVINGS = 4
CLASSES_PER_NEIGHBOUR = 16  # at the least, that are left after halving
RESCORED_AT_ONCE = 1 << 14  # pairs of query and row


def nearest(
    matrix: Matrix, queries: np.ndarray, k: int, missing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows of highest inner product with each query, and that product: (Q, k) int64, (Q, k) float64.

    Rows are unit vectors, queries (Q, D) float32 too; rows in `missing` (sorted int64) are passed over. Where fewer
    than k rows are left, that many columns are given.
    """
    k = min(k, len(matrix) - len(missing))
    rows = np.empty((len(queries), k), np.int64)
    likeness = np.empty((len(queries), k))
    if not k:
        return rows, likeness
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        found = _scan(matrix, queries[part], k, missing)
        rows[part], likeness[part] = _best(matrix.exact, queries[part], *found, k)
    return rows, likeness


def _scan(
    matrix: Matrix, queries: np.ndarray, k: int, missing: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of a query and a row that may be among its k nearest, and the most that their likeness can be.

    Three (C,): int64, int64, float32; sorted by query, the highest first.

    With coarse q' and x': |q·x - q'·x'| ≤ |q - q'| |x| + |q'| |x - x'| (Cauchy and Schwarz). What is compared is the
    likeness in steps of the query, so that a block is multiplied once, by its rows' steps.
    """
    asked = matrix_of(queries)
    asked_coarse = torch.from_numpy(asked.coarse)
    step, away = torch.from_numpy(asked.bounds).unbind(1)
    lowest = torch.full((len(queries),), -torch.inf)  # a true likeness that k rows are known to have
    best = torch.empty(len(queries), 0)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(matrix), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        coarse, bounds = torch.from_numpy(matrix.coarse[part]), torch.from_numpy(matrix.bounds[part])
        error = away * LONGEST + (away + LONGEST) * bounds[:, 1].max() + ROUNDING  # (Q,) of likeness
        gone = (
            missing[np.searchsorted(missing, start) : np.searchsorted(missing, start + len(coarse))] - start
        )
        likeness, halved, depth = _likeness(asked_coarse, coarse, bounds[:, 0], torch.from_numpy(gone), k)
        highest = halved.topk(min(k, halved.shape[1]), dim=1).values * step[:, None]
        best = torch.cat([best, highest - error[:, None]], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
        if best.shape[1] == k:
            lowest = best[:, -1]
        query, row, value = _above(likeness, halved, depth, (lowest - error) / step)
        found.append((query, row + start, value * step[query] + error[query]))
    query, row, most = (torch.cat(parts) for parts in zip(*found, strict=True))
    keep = most >= lowest[query]  # by the limit of the whole matrix
    of_query, candidates, bound = query[keep].numpy(), row[keep].numpy(), most[keep].numpy()
    order = np.lexsort([-bound, of_query])
    return of_query[order], candidates[order], bound[order]


def _likeness(
    queries: Tensor, rows: Tensor, steps: Tensor, gone: Tensor, k: int
) -> tuple[Tensor, Tensor, int]:
    """Inner products (Q, n) float32 of coarse queries and rows times the rows' steps; their `_halved`, its depth.

    Those of `gone` are -inf. The classes are those of all columns together.
    """
    likeness = torch.empty(len(queries), len(rows))
    at_once = max(1, NUMBERS_AT_ONCE // len(queries))
    steps = steps.contiguous()
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        torch.mul(_products(queries, rows[part]), steps[part], out=likeness[:, part])
    likeness[:, gone] = -torch.inf
    return likeness, *_halved(likeness, k)


def _products(queries: Tensor, rows: Tensor) -> Tensor:
    """Inner products of int8 (Q, D) and (n, D), exact: (Q, n), of whole numbers."""
    if rows.shape[1] > 1 and _multiplies_int8():  # of one column, torch 2.13 reads other memory
        return torch._int_mm(queries, rows.T)
    return queries.float() @ rows.float().T  # below 2^24 exact; 2,048 dimensions may round by 2^-24


@cache
def _multiplies_int8() -> bool:
    """Whether products of 8 bits are added up without saturation here: processors without VNNI may not."""
    worst = torch.full((64, 512), LARGEST, dtype=torch.int8)
    signs = torch.where(torch.arange(512) % 3 == 0, -1, 1).to(torch.int8)
    true = (worst * signs).double() @ worst.double().T
    return bool((torch._int_mm(worst * signs, worst.T) == true).all())


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
    query, place = (halved >= lowest[:, None]).nonzero(as_tuple=True)
    in_class = place < num_classes
    columns = place[in_class][:, None] + num_classes * torch.arange(depth)
    query_in = query[in_class][:, None].expand_as(columns)
    query = torch.cat([query_in.reshape(-1), query[~in_class]])
    column = torch.cat([columns.reshape(-1), place[~in_class] + num_classes * (depth - 1)])
    value = likeness[query, column]
    keep = (value >= lowest[query]) & (value > -torch.inf)
    return query[keep], column[keep], value[keep]


def _best(
    exact: np.ndarray,
    queries: np.ndarray,
    of_query: np.ndarray,
    candidates: np.ndarray,
    most: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of the candidates of each query, in float64.

    The k that promise most are compared first: what promises less than the worst of them need not be looked at.
    """
    starts = np.searchsorted(of_query, np.arange(len(queries)))
    rank = np.arange(len(candidates)) - starts[of_query]
    likeness = np.full(len(candidates), -np.inf)
    first = rank < k
    likeness[first] = _products64(exact, queries, of_query[first], candidates[first])
    worst = np.minimum.reduceat(np.where(first, likeness, np.inf), starts)
    rest = ~first & (most >= worst[of_query])
    likeness[rest] = _products64(exact, queries, of_query[rest], candidates[rest])
    order = np.lexsort([candidates, -likeness, of_query])
    chosen = order[starts[:, None] + np.arange(k)]
    return candidates[chosen], likeness[chosen]


def _products64(
    exact: np.ndarray, queries: np.ndarray, of_query: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """Inner products of pairs of a query and a row (C,) float64."""
    wide = queries.astype(np.float64)
    likeness = np.empty(len(candidates))
    for start in range(0, len(candidates), RESCORED_AT_ONCE):
        part = slice(start, start + RESCORED_AT_ONCE)
        rows = exact[candidates[part]].astype(np.float64)
        likeness[part] = np.einsum("cd,cd->c", rows, wide[of_query[part]])
    return likeness
