"""Boxes that may hold an object, without learning: selective search (Uijlings et al. 2013,
https://doi.org/10.1007/s11263-013-0620-5), which R-CNN and Fast R-CNN look at.

A picture is cut into small regions of one colour (Felzenszwalb and Huttenlocher 2004, by scikit-image), and the two
most similar neighbours become one until one is left; every region on the way gives its box. That is done in several
colour spaces, from several sizes of first regions, and by several measures, as the paper's "fast" edition. The boxes
of late merges come first, shuffled by fixed random numbers, so that a cut leaves a fair share of each hierarchy.

It differs from the paper in its texture, which is of differences of a smoothed picture in 8 directions, and in that the
channels of all colour spaces are scaled to [0, 1].
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from skimage.color import rgb2hsv, rgb2lab
from skimage.filters import gaussian
from skimage.segmentation import felzenszwalb

SCALES = (50.0, 100.0)  # of the first regions, and the least pixels of one
SIGMA = 0.8  # of the smoothing before, pixels
COLOUR_BINS, TEXTURE_BINS, DIRECTIONS = 25, 10, 8
MEASURES = ((1, 1, 1, 1), (0, 1, 1, 1))  # weights of colour, texture, size and fill


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (H, W, 3), each channel about in [0, 1]."""
    scaled: np.ndarray = (rgb2lab(rgb) + np.array([0, 128, 128])) / np.array([100, 255, 255])
    return scaled


SPACES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (rgb2hsv, lab)


@dataclass
class Regions:
    """Regions of a picture, of those that grow out of others too: rows of arrays of 2N - 1 places, N used at first."""

    sizes: np.ndarray  # pixels
    boxes_xyxy: np.ndarray  # int64 edges
    colours: np.ndarray  # (…, bins): shares of the region's values in each bin, summing to 1
    textures: np.ndarray  # likewise


def selective_search(
    picture: np.ndarray, most: int = 2000, least_side_px: int = 10, seed: int = 0
) -> np.ndarray:
    """(P, 4) float32 edges, the likeliest first, of a picture (H, W, C) uint8 with C of 1 or 3.

    No box comes twice, none has a side below `least_side_px`. The same picture gives the same boxes. Raises ValueError
    for anything else than such a picture.
    """
    if picture.ndim != 3 or picture.shape[2] not in (1, 3) or picture.dtype != np.uint8:
        raise ValueError(f"a picture is (H, W, 1 or 3) uint8, got {picture.shape} {picture.dtype}")
    rgb = np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))
    generator = np.random.default_rng(seed)
    boxes, ranks = [np.empty((0, 4), np.int64)], [np.empty(0)]
    for space in SPACES:
        values = np.clip(space(rgb), 0, 1)
        for scale in SCALES:
            labels = felzenszwalb(values, scale=scale, sigma=SIGMA, min_size=int(scale))
            regions, pairs = measure(values, labels)
            for weights in MEASURES:
                boxes.append(grow(regions, pairs, weights))
                # the last merge first, times a random number (section 4.4 of the paper)
                ranks.append(np.arange(len(boxes[-1]), 0, -1) * generator.random(len(boxes[-1])))
    found = np.concatenate(boxes)[np.concatenate(ranks).argsort(kind="stable")]
    _, first = np.unique(found, axis=0, return_index=True)
    found = found[np.sort(first)]
    seen = ((found[:, 2:] - found[:, :2]) >= least_side_px).all(1)
    return found[seen][:most].astype(np.float32)


def measure(values: np.ndarray, labels: np.ndarray) -> tuple[Regions, np.ndarray]:
    """The N first regions `labels` (H, W) of a picture (H, W, 3) in [0, 1], and which touch: (E, 2), lower first."""
    N = int(labels.max()) + 1
    flat = labels.ravel()
    sizes = np.bincount(flat, minlength=N)
    rows, columns = (index.ravel() for index in np.indices(labels.shape))
    boxes = np.zeros((N, 4), np.int64)
    boxes[:, :2] = max(labels.shape)
    for edge, at in enumerate((columns, rows)):
        np.minimum.at(boxes[:, edge], flat, at)
        np.maximum.at(boxes[:, 2 + edge], flat, at + 1)
    colours = _histograms([values[..., c] for c in range(3)], flat, N, COLOUR_BINS)
    slopes = []
    for c in range(3):
        dy, dx = np.gradient(gaussian(values[..., c], 1))
        for angle in np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS:
            slope = np.maximum(np.cos(angle) * dx + np.sin(angle) * dy, 0)
            slopes.append(slope / max(float(slope.max()), 1e-9))
    textures = _histograms(slopes, flat, N, TEXTURE_BINS)
    return Regions(sizes, boxes, colours, textures), touching(labels)


def _histograms(channels: Sequence[np.ndarray], labels: np.ndarray, num: int, bins: int) -> np.ndarray:
    """Of each region, the shares of its values in [0, 1] in bins of each channel: (num, channels · bins)."""
    counts = np.empty((num, len(channels) * bins))
    for c, channel in enumerate(channels):
        place = np.minimum((channel.ravel() * bins).astype(np.int64), bins - 1)
        counts[:, c * bins : (c + 1) * bins] = np.bincount(
            labels * bins + place, minlength=num * bins
        ).reshape(num, bins)
    shares: np.ndarray = counts / counts.sum(1, keepdims=True)
    return shares


def touching(labels: np.ndarray) -> np.ndarray:
    """Pairs of labels (E, 2), lower first, each once, that share an edge of a pixel."""
    sides = ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:]))
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in sides])
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(pairs, axis=0)


def grow(regions: Regions, pairs: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Boxes (2N - 1, 4) int64 of the N regions, then of each that two of them became, in the order of merging.

    Of equally similar pairs the one made first is merged first. Fewer, where regions do not all hang together.
    """
    N = len(regions.sizes)
    tree = Regions(
        *(
            np.concatenate([each, np.zeros((N - 1, *each.shape[1:]), each.dtype)])
            for each in (regions.sizes, regions.boxes_xyxy, regions.colours, regions.textures)
        )
    )
    total = int(regions.sizes.sum())
    neighbours: list[set[int]] = [set() for _ in range(2 * N - 1)]
    for a, b in pairs.tolist():
        neighbours[a].add(b)
        neighbours[b].add(a)
    likeness = similarity(tree, pairs[:, 0], pairs[:, 1], weights, total)
    queue = [
        (-s, i, a, b) for i, (s, (a, b)) in enumerate(zip(likeness.tolist(), pairs.tolist(), strict=True))
    ]
    heapq.heapify(queue)
    alive, made, number = [True] * N + [False] * (N - 1), N, len(queue)
    while queue:
        _, _, a, b = heapq.heappop(queue)
        if not (alive[a] and alive[b]):
            continue
        merge(tree, a, b, made)
        alive[a] = alive[b] = False
        alive[made] = True
        others = np.array(sorted((neighbours[a] | neighbours[b]) - {a, b}), np.int64)
        for other in others.tolist():
            neighbours[other] -= {a, b}
            neighbours[other].add(made)
        neighbours[made] = set(others.tolist())
        for s, other in zip(
            similarity(tree, others, made, weights, total).tolist(), others.tolist(), strict=True
        ):
            heapq.heappush(queue, (-s, number, other, made))
            number += 1
        made += 1
    return tree.boxes_xyxy[:made]


def merge(tree: Regions, a: int, b: int, new: int) -> None:
    """Write what `a` and `b` are together to the place `new`."""
    share = tree.sizes[a] / (tree.sizes[a] + tree.sizes[b])
    tree.sizes[new] = tree.sizes[a] + tree.sizes[b]
    for each in (tree.colours, tree.textures):
        each[new] = share * each[a] + (1 - share) * each[b]
    tree.boxes_xyxy[new, :2] = np.minimum(tree.boxes_xyxy[a, :2], tree.boxes_xyxy[b, :2])
    tree.boxes_xyxy[new, 2:] = np.maximum(tree.boxes_xyxy[a, 2:], tree.boxes_xyxy[b, 2:])


def similarity(
    tree: Regions, a: np.ndarray, b: np.ndarray | int, weights: Sequence[float], total: int
) -> np.ndarray:
    """How like regions `a` and `b` are, (n,), in [0, sum of the weights]: by the overlap of the histograms of colour
    and texture, by how small both are, and by how well they fill their common box (equations 2 to 6 of the paper);
    `total` are the pixels of the picture."""
    colour, texture, size, fill = weights
    together = tree.sizes[a] + tree.sizes[b]
    low = np.minimum(tree.boxes_xyxy[a, :2], tree.boxes_xyxy[b, :2])
    high = np.maximum(tree.boxes_xyxy[a, 2:], tree.boxes_xyxy[b, 2:])
    likeness = size * (1 - together / total) + fill * (1 - ((high - low).prod(1) - together) / total)
    for weight, each in ((colour, tree.colours), (texture, tree.textures)):
        if weight:
            likeness = likeness + weight * np.minimum(each[a], each[b]).sum(1)
    result: np.ndarray = likeness
    return result
