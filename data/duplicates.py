"""Images that show the same picture: by their bytes, or nearly, by a perceptual hash and a second look.

The hash is a dHash (Krawetz 2013, http://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html)
in both directions: the grey image is reduced to 6×6 by overlapping triangles, so that a shift of a pixel or two
changes little, and each value is compared with its right and its lower neighbour: 60 bits. Arithmetic is on whole
numbers, so equal pixels give equal hashes on every machine.

Candidates are found without comparing all pairs: the bits lie in four pieces, and two hashes that differ in at
most 3 bits agree in one piece; in at most 7 (11), one piece differs in at most one (two) bits. Every candidate gets
a second look: the fine detail of the two thumbnails must correlate, and with more evidence than unrelated pictures
of the same class have in this dataset. So flat pictures, skies, handwritten digits and passport photographs, whose
hashes are near each other, are not lumped together.

Of CIFAR-10's 10,000 test images it finds 312 (3.1%) in train at a distance of 11 bits, 260 at 7, 134 at 3; of 308
such pairs looked at, about three were wrong (small pictures in wide frames). Barz and Denzler (2020,
https://arxiv.org/abs/1902.00423) report 3.3%, by a network's features and by hand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from math import ceil
from statistics import NormalDist

import numpy as np

from data.random import SampleGenerator

THUMB_PX = 32
MAX_DISTANCE = 11  # what the index finds without a gap: one piece of four then differs in at most two bits
_GRID = 6
_PIECE_BITS = 16
_NUM_PIECES = 4

_MIN_COARSE = 0.8  # correlation of the 8×8 block means
_WINDOW_PX = 5
_HALF_SLACK = 0.35  # at half the size the same correlation may be lower by this; on CIFAR-10 it loses none
_MIN_DETAIL = 0.6  # correlation of what a 5×5 mean leaves, at the best shift by two pixels
_MIN_EVIDENCE = 2.5  # standard errors, see `same_picture`
_MIN_CONTRAST = 1.5  # grey levels, root mean square of the same: below it detail is noise
_BLOCK_PAIRS = 1 << 21
_LOOK_PAIRS = 2048
_MAX_LOOKUPS = 2000  # pairs that share a piece of the hash, per image
_MAX_CANDIDATES = 20  # pairs that get a second look, per image
_SAMPLE_HASHES = 1 << 18
_SAMPLE_LOOKS = 4000
_MIN_CLASS_PAIRS = 1000


def perceptual_hashes(thumbs: np.ndarray) -> np.ndarray:
    """Hash grey thumbnails (N, 32, 32) uint8: (N,) uint64, of whose 64 bits every 16th is 0."""
    centres = (np.arange(_GRID) + 0.5) * THUMB_PX / _GRID - 0.5
    reach = THUMB_PX / _GRID
    weights = np.rint(1024 * np.clip(1 - np.abs(np.arange(THUMB_PX) - centres[:, None]) / reach, 0, None))
    sums = weights @ thumbs.astype(np.float64) @ weights.T  # (N, 6, 6), whole numbers below 2^53: exact
    scale = weights.sum(1)
    means = sums / (scale[:, None] * scale)
    rightward = (means[:, :, 1:] > means[:, :, :-1]).reshape(len(thumbs), -1)
    downward = (means[:, 1:] > means[:, :-1]).reshape(len(thumbs), -1)
    bits = np.concatenate([rightward, downward], 1)  # (N, 60)
    # each piece takes bits from all over
    pieces = bits.reshape(len(thumbs), -1, _NUM_PIECES).transpose(0, 2, 1)
    padded = np.pad(pieces, ((0, 0), (0, 0), (0, 1)))  # (N, 4, 16)
    return np.packbits(padded.reshape(len(thumbs), -1), axis=1, bitorder="little").view("<u8")[:, 0]


def hamming_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Number of differing bits of uint64 arrays."""
    return np.bitwise_count(a ^ b)


def near_pairs(
    hashes: np.ndarray, distance: int, others: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of index pairs (i, j) of hashes (N,) uint64 that differ in at most `distance` bits.

    Every such pair i ≠ j comes exactly once, in either order; beside `others` (M,) every pair of one of `hashes` and
    one of these, in that order. `distance` is at most `MAX_DISTANCE`. Memory is bounded by the block.
    """
    assert 0 <= distance <= MAX_DISTANCE
    radius = distance // _NUM_PIECES
    within, others = others is None, hashes if others is None else others
    keys = [_piece(hashes, piece) for piece in range(_NUM_PIECES)]
    other_keys = keys if within else [_piece(others, piece) for piece in range(_NUM_PIECES)]
    for piece in range(_NUM_PIECES):
        order = np.argsort(other_keys[piece], kind="stable")
        starts = np.searchsorted(other_keys[piece][order], np.arange((1 << _PIECE_BITS) + 1))
        lookups = _lookups(keys[piece], order, starts, radius)
        for rows, first, last in lookups if within else _lookups_across(keys[piece], starts, radius):
            for i, places in _expand(rows, first, last):
                j = order[places]
                near = np.flatnonzero(hamming_distance(hashes[i], others[j]) <= distance)
                i, j = i[near], j[near]
                new = np.ones(len(i), bool)  # not found by an earlier piece
                for key, other_key in zip(keys[:piece], other_keys[:piece], strict=True):
                    new &= hamming_distance(key[i], other_key[j]) > radius
                if new.any():
                    yield i[new], j[new]


def _piece(hashes: np.ndarray, piece: int) -> np.ndarray:
    return (hashes >> np.uint64(piece * _PIECE_BITS)).astype(np.int64) & ((1 << _PIECE_BITS) - 1)


def _lookups(
    keys: np.ndarray, order: np.ndarray, starts: np.ndarray, radius: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (rows, first, last): each row's partners are the places [first, last) of `order`.

    Keys that are equal come first, then those that differ in one bit, up to `radius` bits; of two rows only one
    looks for the other.
    """
    yield order, np.arange(1, len(order) + 1), starts[keys[order] + 1]
    for num_bits in range(1, radius + 1):
        for bits in combinations(range(_PIECE_BITS), num_bits):
            rows = np.flatnonzero(keys >> bits[0] & 1 == 0)
            wanted = keys[rows] ^ sum(1 << bit for bit in bits)
            yield rows, starts[wanted], starts[wanted + 1]


def _lookups_across(
    keys: np.ndarray, starts: np.ndarray, radius: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """As `_lookups`, for partners among others: every row looks for all of its own."""
    rows = np.arange(len(keys))
    for num_bits in range(radius + 1):
        for bits in combinations(range(_PIECE_BITS), num_bits):
            wanted = keys ^ sum(1 << bit for bit in bits)
            yield rows, starts[wanted], starts[wanted + 1]


def _expand(rows: np.ndarray, first: np.ndarray, last: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (row repeated, place) for each place in [first, last) of each row, in blocks of bounded size."""
    counts = last - first
    ends = np.cumsum(counts)
    start = 0
    while start < len(rows):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _BLOCK_PAIRS, side="right")))
        repeats = counts[start:stop]
        total = int(repeats.sum())
        if total:
            within = np.arange(total) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            yield np.repeat(rows[start:stop], repeats), np.repeat(first[start:stop], repeats) + within
        start = stop


def affordable_distance(hashes: np.ndarray, distance: int) -> int:
    """The greatest distance up to `distance` at which comparing stays in proportion to the number of images.

    Estimated on random pairs. Where all pictures look alike (handwriting), most pairs of hashes are near, and
    looking at each would take time in proportion to the square.
    """
    num = len(hashes)
    where = np.arange(_SAMPLE_HASHES)
    generator = SampleGenerator(seed=0, epoch=0)
    a, b = (hashes[generator.integers(where, name, num)] for name in ("hash a", "hash b"))
    apart = hamming_distance(a, b)
    pieces = np.stack([hamming_distance(_piece(a, k), _piece(b, k)) for k in range(_NUM_PIECES)])
    for allowed in range(distance, 0, -1):
        lookups = np.mean(pieces <= allowed // _NUM_PIECES) * _NUM_PIECES * num / 2
        candidates = np.mean(apart <= allowed) * num / 2
        if lookups <= _MAX_LOOKUPS and candidates <= _MAX_CANDIDATES:
            return allowed
    return 0


def independent_pixels(thumbs: np.ndarray) -> np.ndarray:
    """How many independent pixels the fine detail of thumbnails (N, 32, 32) uint8 amounts to: (N,) float32.

    The product of the shares of the picture and of its spectrum that the detail fills, of 1,024: a ship on a smooth
    sea fills little of the one, an enlarged digit little of the other. 0 for a flat picture.
    """
    detail = _detail(thumbs, _WINDOW_PX)
    energy = np.square(detail)
    spectrum = np.fft.rfft2(detail)
    power = spectrum.real**2 + spectrum.imag**2
    power[:, :, 1:-1] *= 2  # the half of the spectrum that rfft2 leaves out
    independent = _participation(energy) * _participation(power) / THUMB_PX**2
    clear = energy.mean((1, 2)) >= _MIN_CONTRAST**2
    return np.where(clear, independent, 0).astype(np.float32)


def _participation(energy: np.ndarray) -> np.ndarray:
    """The number of equal entries (N, H, W) that would be as unevenly distributed: (N,)."""
    return energy.sum((1, 2)) ** 2 / np.maximum((energy**2).sum((1, 2)), 1e-9)


@dataclass(frozen=True, slots=True)
class Pictures:
    """What comparing needs of N images; `describe` makes it."""

    thumbs: np.ndarray  # (N, 32, 32) uint8, grey
    # (N,) float32: fourth root of independent_pixels; the product of two is a √n
    root_independent: np.ndarray
    coarse: np.ndarray  # (N, 64) float32: 8×8 block means; products are correlations
    half: np.ndarray  # (N, 16, 16) float16: detail at half the size; products are correlations


def describe(thumbs: np.ndarray) -> Pictures:
    """Prepare thumbnails (N, 32, 32) uint8 for comparing."""
    blocks = _reduce(thumbs, 4).reshape(-1, 64)
    detail = _detail(_reduce(thumbs, 2), 3)
    return Pictures(
        thumbs=thumbs,
        root_independent=np.sqrt(np.sqrt(independent_pixels(thumbs))),
        coarse=_unit(blocks - blocks.mean(1, keepdims=True)),
        half=_unit(detail.reshape(len(detail), -1)).reshape(detail.shape).astype(np.float16),
    )


def take_pictures(pictures: Pictures, places: np.ndarray) -> Pictures:
    """Those at `places`, in that order."""
    return Pictures(*(getattr(pictures, field.name)[places] for field in fields(Pictures)))


def join_pictures(parts: Sequence[Pictures]) -> Pictures:
    """One after the other."""
    return Pictures(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Pictures))
    )


def same_picture(pictures: Pictures, i: np.ndarray, j: np.ndarray, min_evidence: float) -> np.ndarray:
    """Whether the images `i` and `j` (P,) show the same picture: (P,) bool.

    Their block means must correlate, and so must their fine detail (less a 5×5 mean), where one may be shifted by
    up to two pixels: re-encoded, slightly cropped, scaled or recoloured copies pass. The evidence is Fisher's z of
    that correlation in standard errors, artanh(r)·√n, with n the number of independent pixels.
    """
    scale = pictures.root_independent[i] * pictures.root_independent[j]
    needed = np.maximum(_MIN_DETAIL, np.tanh(min_evidence / np.maximum(scale, 1e-3)))
    same = (needed < 1) & (np.einsum("pk,pk->p", pictures.coarse[i], pictures.coarse[j]) >= _MIN_COARSE)
    half_i, half_j = (pictures.half[k[same]].astype(np.float32) for k in (i, j))
    same[same] = _best_product(half_i, half_j, 1) >= needed[same] - _HALF_SLACK
    detail_i, detail_j = (_detail(pictures.thumbs[k[same]], _WINDOW_PX) for k in (i, j))
    same[same] = _best_correlation(detail_i, detail_j, 2) >= needed[same]
    return same


def same_pairs(pictures: Pictures, i: np.ndarray, j: np.ndarray, min_evidence: float) -> np.ndarray:
    """As `same_picture`, of any number of pairs, in bounded memory."""
    starts = range(0, len(i), _LOOK_PAIRS)
    looks = [
        same_picture(pictures, i[start : start + _LOOK_PAIRS], j[start : start + _LOOK_PAIRS], min_evidence)
        for start in starts
    ]
    return np.concatenate(looks) if looks else np.zeros(0, bool)


def evidence_needed(pictures: Pictures, labels: np.ndarray) -> float:
    """The evidence that no two unrelated pictures of one class are likely to have: at least `_MIN_EVIDENCE`.

    Random pairs of one class tell how alike unrelated pictures are here; their upper quantiles (up to 2% of them
    may be real duplicates) are continued as a normal distribution to half a pair of the whole dataset, and rounded
    up, so that a few images more or less do not change it. `labels` (N,) are class indices.
    """
    counts = np.bincount(labels)
    num_pairs = int((counts * (counts - 1) // 2).sum())
    if num_pairs < _MIN_CLASS_PAIRS:
        return _MIN_EVIDENCE
    generator = SampleGenerator(seed=0, epoch=0)
    draws = np.arange(_SAMPLE_LOOKS)
    order = np.argsort(labels, kind="stable")
    first = np.cumsum(counts) - counts
    candidates = np.flatnonzero(counts[labels] > 1)
    a = candidates[generator.integers(draws, "image", len(candidates))]
    within = generator.uniform(draws, "partner")[:, 0] * counts[labels[a]]
    b = order[first[labels[a]] + within.astype(np.int64)]
    a, b = a[a != b], b[a != b]
    detail_a, detail_b = (_detail(pictures.thumbs[k], _WINDOW_PX) for k in (a, b))
    correlation = np.minimum(_best_correlation(detail_a, detail_b, 2), 0.9999)
    evidence = np.arctanh(correlation) * pictures.root_independent[a] * pictures.root_independent[b]
    normal = NormalDist()
    low, high = np.quantile(evidence, [0.90, 0.98])
    spread = (high - low) / (normal.inv_cdf(0.98) - normal.inv_cdf(0.90))
    limit = high + spread * (normal.inv_cdf(1 - 0.5 / num_pairs) - normal.inv_cdf(0.98))
    return max(_MIN_EVIDENCE, float(ceil(limit)))


def _reduce(thumbs: np.ndarray, factor: int) -> np.ndarray:
    size = THUMB_PX // factor
    return thumbs.reshape(-1, size, factor, size, factor).mean((2, 4), dtype=np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def _detail(pictures: np.ndarray, window: int) -> np.ndarray:
    """Pictures (P, S, S) less their mean over `window`×`window` pixels: float32."""
    pictures = pictures.astype(np.float32)
    size = pictures.shape[1]
    padded = np.pad(pictures, ((0, 0), (window // 2,) * 2, (window // 2,) * 2), mode="edge")
    rows = np.zeros_like(padded[:, :size])
    mean = np.zeros_like(pictures)
    for k in range(window):
        rows += padded[:, k : k + size]
    for k in range(window):
        mean += rows[:, :, k : k + size]
    return pictures - mean / window**2


def _best_correlation(a: np.ndarray, b: np.ndarray, max_shift_px: int) -> np.ndarray:
    """The highest correlation (P,) of pictures (P, S, S) of mean near 0, one shifted against the other."""
    best = np.full(len(a), -1.0, np.float32)
    for cut_a, cut_b in _shifts(a, b, max_shift_px):
        product = np.einsum("pyx,pyx->p", cut_a, cut_b)
        energy = np.einsum("pyx,pyx->p", cut_a, cut_a) * np.einsum("pyx,pyx->p", cut_b, cut_b)
        np.maximum(best, product / np.sqrt(np.maximum(energy, 1e-6)), out=best)
    return best


def _best_product(a: np.ndarray, b: np.ndarray, max_shift_px: int) -> np.ndarray:
    """As `_best_correlation`, of pictures that are unit vectors, without regard to what a shift cuts off."""
    best = np.full(len(a), -1.0, np.float32)
    for cut_a, cut_b in _shifts(a, b, max_shift_px):
        np.maximum(best, np.einsum("pyx,pyx->p", cut_a, cut_b), out=best)
    return best


def _shifts(a: np.ndarray, b: np.ndarray, max_shift_px: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    span = range(-max_shift_px, max_shift_px + 1)
    for dy in span:
        for dx in span:
            yield _cut(a, dy, dx), _cut(b, -dy, -dx)


def _cut(pictures: np.ndarray, dy: int, dx: int) -> np.ndarray:
    height, width = pictures.shape[1:]
    return pictures[:, max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]


def cluster(hashes: np.ndarray, pictures: Pictures, distance: int, min_evidence: float) -> np.ndarray:
    """Join images that show the same picture: (N,) int64, the least index in each one's cluster.

    Those whose `hashes` (N,) uint64 differ in at most `distance` bits are compared, see `affordable_distance` and
    `evidence_needed`. Union-find; a pair that is joined already is not compared again, so a thousand copies cost
    about a thousand comparisons.
    """
    parent = np.arange(len(hashes))
    for block_i, block_j in near_pairs(hashes, distance):
        for start in range(0, len(block_i), _LOOK_PAIRS):
            i, j = block_i[start : start + _LOOK_PAIRS], block_j[start : start + _LOOK_PAIRS]
            apart = roots(parent, i) != roots(parent, j)
            i, j = i[apart], j[apart]
            same = same_picture(pictures, i, j, min_evidence)
            join(parent, i[same], j[same])
    return roots(parent, parent)


def join(parent: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
    """Union in place; roots are always the least index of their set."""
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        a, b = _root(parent, a), _root(parent, b)
        parent[max(a, b)] = min(a, b)


def _root(parent: np.ndarray, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = int(parent[node])
    return node


def roots(parent: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The root of each of `nodes`."""
    found = parent[nodes]
    while not np.array_equal(above := parent[found], found):
        found = above
    return found


def join_groups(given: Sequence[str | None], cluster_ids: Sequence[str]) -> list[str]:
    """What must stay on one side of a split: images of one given group, of one cluster, or linked by any chain of both.

    Named by the least given group in it, else by its cluster.
    """
    first: dict[tuple[str, str], int] = {}
    parent = np.arange(len(cluster_ids))
    for i, (group, cluster_id) in enumerate(zip(given, cluster_ids, strict=True)):
        for key in [("cluster", cluster_id), *([("group", group)] if group else [])]:
            join(parent, np.array([first.setdefault(key, i)]), np.array([i]))
    tops = roots(parent, np.arange(len(parent))).tolist()
    names: dict[int, str] = {}
    for top, group in zip(tops, given, strict=True):
        if group:
            names[top] = min(names.get(top, group), group)
    return [names.get(top, cluster_id) for top, cluster_id in zip(tops, cluster_ids, strict=True)]
