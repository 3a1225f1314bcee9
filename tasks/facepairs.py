"""Pairs of pictures of a split's people, and how well distances tell them apart: what training watches."""

import numpy as np

from tasks.verification import accuracy_at, auc, best_threshold, pair_distances, roc

SCALE = 16.0  # of cosines, in the loss of naming a picture's person
BLOCK = 256  # pictures whose distances to all others are in memory at once
MOST_ASKED = 5000  # pictures whose person is to be named, evenly spread over the split


def pairs_of_people(labels: np.ndarray, most: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of places (P, 2), and which are of one person (P,): all of one person up to `most`, and as many of two.

    `labels` (N,) say who is on each picture. What is too many is drawn by `seed`; of two people no pair comes twice.
    """
    generator = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    counts = np.unique(labels, return_counts=True)[1]
    ones = np.concatenate([
        start + np.stack(np.triu_indices(count, 1), 1)
        for start, count in zip(np.cumsum(counts) - counts, counts, strict=True)
    ])  # fmt: skip
    ones = order[ones]
    if len(ones) > most:
        ones = ones[np.sort(generator.permutation(len(ones))[:most])]
    others = _drawn_of_two(labels, len(ones), generator)
    return np.concatenate([ones, others]), np.arange(len(ones) + len(others)) < len(ones)


def pairs_of_two(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Pairs of places (P, 2), each of two people: all that there are, or `most` of them, drawn by `seed`.

    `labels` (N,) say who is on each picture.
    """
    generator, N = np.random.default_rng(seed), len(labels)
    if 4 * most < N * (N - 1) // 2:
        return _drawn_of_two(labels, most, generator)
    pairs = np.stack(np.triu_indices(N, 1), 1)
    pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
    return pairs[np.sort(generator.permutation(len(pairs))[:most])]


def _drawn_of_two(labels: np.ndarray, num: int, generator: np.random.Generator) -> np.ndarray:
    """About `num` pairs of places, each of two people, none twice."""
    N = len(labels)
    drawn = generator.integers(0, N, (4 * num + 16, 2))
    drawn = np.sort(drawn[labels[drawn[:, 0]] != labels[drawn[:, 1]]], axis=1)
    return drawn[np.sort(np.unique(drawn @ np.array([N, 1]), return_index=True)[1])][:num]


def pair_figures(embeddings: np.ndarray, pairs: np.ndarray, same: np.ndarray) -> dict[str, float]:
    """`accuracy` at the threshold that is best for these very pairs, and `auc`, of unit vectors (N, D)."""
    distances = pair_distances(embeddings, pairs)
    return {
        "accuracy": accuracy_at(distances, same, best_threshold(distances, same)),
        "auc": auc(roc(distances, same)),
    }


def neighbour_loss(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats of naming the person of a picture by the others (Goldberger et al. 2004).

    Of picture i, picture j has the probability ∝ exp(SCALE · cos); its person that of all their pictures. Those who
    have one picture only are not asked for. https://proceedings.neurips.cc/paper/2004/hash/42fe880812925e520249e808937738d2
    """
    people, counts = np.unique(labels, return_counts=True)
    asked = np.flatnonzero(np.isin(labels, people[counts > 1]))
    asked = asked[:: -(-len(asked) // MOST_ASKED)]
    total = 0.0
    for start in range(0, len(asked), BLOCK):
        rows = asked[start : start + BLOCK]
        logits = SCALE * (embeddings[rows] @ embeddings.T).astype(np.float64)
        logits[np.arange(len(rows)), rows] = -np.inf
        own = np.where(labels[rows][:, None] == labels, logits, -np.inf)
        total += float((_log_sum(logits) - _log_sum(own)).sum())
    return total / len(asked)


def _log_sum(logits: np.ndarray) -> np.ndarray:
    top = logits.max(1, keepdims=True)
    return top[:, 0] + np.log(np.exp(logits - top).sum(1))
