"""Recognition: which of the people of a gallery is on a picture, or none of them.

K people of a gallery have a template each, M probes are embedded pictures; all are unit vectors, and likeness is their
inner product (distance = 2 - 2 · likeness). Closed set: every probe's person is in the gallery. Open set: some are not,
and a threshold says "not recognised" (Phillips, Grother and Micheals 2011, "Evaluation methods in face recognition",
https://doi.org/10.1007/978-0-85729-932-1_21).

Several pictures of a person become one template, the mean of their embeddings made unit length: a person has one
distance to a probe, however many pictures were enrolled, so that the false-accept rate which a threshold was fitted for
keeps its meaning. The best of several pictures has more chances for a false accept with each of them; docs/gallery.md
has the measurement.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.personbootstrap import NUM_DRAWS, draw_people, percentiles
from tasks.verification import NOTHING, check_unit, far_name, supported_fars

BLOCK_CELLS = 1 << 22  # probes × people whose likeness is in memory at once


@dataclass(frozen=True)
class Ranks:
    """What a gallery says of M probes, each (M,): the rank of the probe's own person (1 is first; 0 where the gallery
    does not know that one), the distance of the own person (NaN where unknown), the nearest person's place in the
    gallery and its distance."""

    own_rank: np.ndarray
    own_distance: np.ndarray
    nearest: np.ndarray
    nearest_distance: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """(M,) bool: whether the probe's person is in the gallery."""
        return self.own_rank > 0


def templates(embeddings: np.ndarray, people: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """One unit vector a person, (K, D) float32, and their names, in order of first appearance.

    Raises ValueError where pictures of one person cancel out.
    """
    check_unit(embeddings)
    if len(people) != len(embeddings):
        raise ValueError(f"{len(people)} names for {len(embeddings)} embeddings; each needs one")
    names = list(dict.fromkeys(people))
    codes = {name: code for code, name in enumerate(names)}
    sums = np.zeros((len(names), embeddings.shape[1]))
    np.add.at(sums, [codes[name] for name in people], embeddings.astype(np.float64))
    lengths = np.linalg.norm(sums, axis=1)
    if (lengths < 1e-6).any():
        raise ValueError(
            f"the pictures of {names[int(np.argmin(lengths))]!r} cancel out: they have no mean direction"
        )
    return (sums / lengths[:, None]).astype(np.float32), names


def rank(
    probes: np.ndarray,
    probe_people: Sequence[Hashable],
    gallery: np.ndarray,
    gallery_people: Sequence[Hashable],
) -> Ranks:
    """Compare probes (M, D) with templates (K, D); of equally near people the earlier in the gallery comes first."""
    check_unit(probes)
    check_unit(gallery)
    places = {name: place for place, name in enumerate(gallery_people)}
    if len(places) != len(gallery) or len(probe_people) != len(probes):
        raise ValueError(
            f"{len(places)} different people for {len(gallery)} templates, {len(probe_people)} names for "
            f"{len(probes)} probes; there must be one each"
        )
    M, K = len(probes), len(gallery)
    own = np.array([places.get(name, -1) for name in probe_people])
    own_rank, own_distance = np.zeros(M, np.int64), np.full(M, np.nan)
    nearest, nearest_distance = np.empty(M, np.int64), np.empty(M)
    wide = gallery.astype(np.float64).T
    step = max(1, BLOCK_CELLS // K)
    for start in range(0, M, step):
        likeness = probes[start : start + step].astype(np.float64) @ wide  # (m, K)
        rows = np.arange(start, start + len(likeness))
        nearest[rows] = likeness.argmax(axis=1)
        nearest_distance[rows] = 2 - 2 * likeness.max(axis=1)
        known = own[rows] >= 0
        mine = likeness[known, own[rows][known]][:, None]
        ahead = (likeness[known] > mine) | (
            (likeness[known] == mine) & (np.arange(K) < own[rows][known][:, None])
        )
        own_rank[rows[known]] = ahead.sum(axis=1) + 1
        own_distance[rows[known]] = 2 - 2 * mine[:, 0]
    return Ranks(own_rank, np.maximum(own_distance, 0), nearest, np.maximum(nearest_distance, 0))


def recognise(ranks: Ranks, people: Sequence[str], threshold: float) -> list[str | None]:
    """The name of each probe's nearest person, None ("not recognised") where that is farther than the threshold."""
    return [
        people[place] if distance <= threshold else None
        for place, distance in zip(ranks.nearest, ranks.nearest_distance, strict=True)
    ]


def rank_rate(ranks: Ranks, k: int = 1) -> float:
    """Closed set: share of the probes of known people whose own person is among the `k` nearest."""
    if not ranks.known.any():
        raise ValueError("no probe's person is in the gallery: there is nothing to recognise")
    return float((ranks.own_rank[ranks.known] <= k).mean())


@dataclass(frozen=True)
class OpenSetCurve:
    """Each (T,), the strictest threshold first, which accepts nothing: FAR is the share of probes of unknown people
    whose nearest person is accepted, DIR that of probes of known people whose own person is accepted and among the
    first `k`."""

    thresholds: np.ndarray
    far: np.ndarray
    dir: np.ndarray
    num_known: int
    num_unknown: int


def open_set_curve(ranks: Ranks, k: int = 1) -> OpenSetCurve:
    """Detection and identification rate against FAR, at every distance that occurs."""
    known = ranks.known
    num_known, num_unknown = int(known.sum()), int((~known).sum())
    if not num_known or not num_unknown:
        raise ValueError(
            f"{num_known} probes of people of the gallery and {num_unknown} of others: open-set rates need both"
        )
    found = np.sort(ranks.own_distance[known & (ranks.own_rank <= k)])
    strangers = np.sort(ranks.nearest_distance[~known])
    thresholds = np.append(NOTHING, np.unique(np.concatenate([found, strangers])))
    return OpenSetCurve(
        thresholds=thresholds,
        far=np.searchsorted(strangers, thresholds, side="right") / num_unknown,
        dir=np.searchsorted(found, thresholds, side="right") / num_known,
        num_known=num_known,
        num_unknown=num_unknown,
    )


def dir_at_far(curve: OpenSetCurve, far: float) -> tuple[float, float]:
    """DIR and the threshold where FAR is at most `far`, the loosest; raises ValueError where one stranger is more."""
    if not 0 < far <= 1 or far * curve.num_unknown < 1:
        raise ValueError(
            f"far (={far:g}) must lie in (0, 1], and {curve.num_unknown:,} probes of unknown people show "
            f"{1 / curve.num_unknown:.2g} at the least"
        )
    place = int(np.searchsorted(curve.far, far * (1 + 1e-12), side="right")) - 1
    return float(curve.dir[place]), float(curve.thresholds[place])


def summarise(
    ranks: Ranks,
    probe_people: Sequence[str],
    fars: Sequence[float],
    ks: Sequence[int],
    seed: int,
    num_draws: int = NUM_DRAWS,
) -> dict[str, float]:
    """`rank1` and the like, `dir_at_far_…` where probes of unknown people can show it, each with its interval.

    The gallery is held fixed; the people of probes are drawn, with all their pictures (see tasks.personbootstrap).
    """
    figures = {f"rank{k}": rank_rate(ranks, k) for k in ks}
    num_unknown = int((~ranks.known).sum())
    shown = supported_fars(fars, num_unknown) if num_unknown else []
    if shown:
        curve = open_set_curve(ranks)
        figures |= {f"dir_at_far_{far_name(far)}": dir_at_far(curve, far)[0] for far in shown}
    names, codes = np.unique(np.asarray(probe_people), return_inverse=True)
    weights = draw_people(len(names), num_draws, np.random.default_rng(seed))[:, codes]
    for name, values in drawn_rates(ranks, weights, shown, ks).items():
        low, high = percentiles(values[np.isfinite(values)])
        figures |= {f"{name}_low": low, f"{name}_high": high}
    return figures


def drawn_rates(
    ranks: Ranks, weights: np.ndarray, fars: Sequence[float], ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """`rank1` and the like, `dir_at_far_…`, each (draws,), where probe m counts weights[d, m] times in draw d.

    NaN where a draw has no probe of the kind that a rate is a share of.
    """
    known = weights[:, ranks.known].astype(np.float64)
    total = np.where(known.sum(axis=1) > 0, known.sum(axis=1), np.nan)
    found = {f"rank{k}": known @ (ranks.own_rank[ranks.known] <= k) / total for k in ks}
    if not fars:
        return found
    order = np.argsort(ranks.nearest_distance[~ranks.known], kind="stable")
    distances = np.append(ranks.nearest_distance[~ranks.known][order], np.inf)
    passed = np.cumsum(weights[:, ~ranks.known][:, order].astype(np.float64), axis=1)
    total[passed[:, -1] == 0] = np.nan
    first = ranks.own_rank[ranks.known] == 1
    for far in fars:
        allowed = (passed <= far * passed[:, -1:] * (1 + 1e-12)).sum(axis=1)
        limit = distances[allowed]  # of the first stranger too many: what is nearer is accepted
        hits = known * first * (ranks.own_distance[ranks.known] < limit[:, None])
        found[f"dir_at_far_{far_name(far)}"] = hits.sum(axis=1) / total
    return found
