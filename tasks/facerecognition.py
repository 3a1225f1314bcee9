"""Recognition among a split's people, each enrolled from one picture: who is it, of those enrolled, or none of them?

Which picture is enrolled is drawn, and drawn again: a rate is the mean over `NUM_GALLERIES` galleries. Closed set: all
people with two pictures or more are enrolled, and their other pictures asked for. Open set: a half of these people,
drawn, is enrolled; the others, and whoever has one picture only, are strangers. An interval is of that mean: galleries
are held fixed while people of the probes are drawn (tasks.personbootstrap). Rates fall as a gallery grows, so its size
belongs to them. The rates are those of tasks.identification.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.identification import (
    OpenSetCurve,
    Ranks,
    dir_at_far,
    drawn_rates,
    open_set_curve,
    rank,
    rank_rate,
)
from tasks.personbootstrap import FEWEST_PEOPLE, draw_people, percentiles
from tasks.verification import far_name, supported_fars

NUM_GALLERIES = 10
MOST_PEOPLE = 2000  # of a gallery
MOST_PROBES = 10_000  # of a gallery's people; and of strangers
KS = (1, 5)  # ranks


@dataclass(frozen=True)
class Recognition:
    """Mean rates, with their intervals; how many people were enrolled; the open set's curve of the first gallery."""

    rates: dict[str, float]
    intervals: dict[str, float]  # `_low` and `_high` of each
    num_enrolled: int  # closed set
    num_enrolled_open: int
    curve: OpenSetCurve


@dataclass(frozen=True)
class Gallery:
    """What one gallery gave: rates, the same where other people are drawn (draws,), and the open set's curve."""

    rates: dict[str, float]
    drawn: dict[str, np.ndarray]
    curve: OpenSetCurve


def recognition(
    embeddings: np.ndarray,
    labels: np.ndarray,
    fars: Sequence[float],
    seed: int,
    num_draws: int,
    num_galleries: int = NUM_GALLERIES,
) -> Recognition | None:
    """`rank1`, `rank5` and `dir_at_far_…` of unit vectors (N, D) of people (N,); None where fewer than two people
    have two pictures. Intervals where the split has `FEWEST_PEOPLE` people or more.

    A rate that the strangers of some gallery cannot show is left out.
    """
    people, codes = np.unique(labels, return_inverse=True)
    able = np.flatnonzero(np.bincount(codes) > 1)
    if len(able) < 2:
        return None
    generator = np.random.default_rng(seed)
    several = len(people) >= FEWEST_PEOPLE
    times = draw_people(len(people), num_draws, generator) if several else np.empty((0, len(people)), int)
    galleries = [
        in_a_gallery(embeddings, codes, generator.permutation(able)[:MOST_PEOPLE], fars, times, generator)
        for _ in range(num_galleries)
    ]
    names = [name for name in galleries[0].rates if all(name in each.rates for each in galleries)]
    rates = {name: float(np.mean([each.rates[name] for each in galleries])) for name in names}
    intervals: dict[str, float] = {}
    for name in names if several else ():
        values = np.mean([each.drawn[name] for each in galleries], axis=0)
        intervals[f"{name}_low"], intervals[f"{name}_high"] = percentiles(values[np.isfinite(values)])
    num = min(len(able), MOST_PEOPLE)
    return Recognition(rates, intervals, num, num // 2, galleries[0].curve)


def in_a_gallery(
    embeddings: np.ndarray,
    codes: np.ndarray,
    who: np.ndarray,
    fars: Sequence[float],
    times: np.ndarray,
    generator: np.random.Generator,
) -> Gallery:
    """Ask for `who` (K,) among all of them, then for the first half of them beside strangers.

    `codes` (N,) of 0…P - 1 say who is on each row of embeddings (N, D), `times` (draws, P) how often each was drawn.
    """
    one_each = one_picture_each(codes, generator)[who]
    closed, probes = asked_of(embeddings, codes, one_each, False, generator)
    drawn = drawn_rates(closed, times[:, codes[probes]], (), KS)
    opened, probes = asked_of(embeddings, codes, one_each[: len(who) // 2], True, generator)
    curve = open_set_curve(opened)
    shown = supported_fars(fars, curve.num_unknown)
    drawn |= drawn_rates(opened, times[:, codes[probes]], shown, ())
    rates = {f"rank{k}": rank_rate(closed, k) for k in KS}
    rates |= {f"dir_at_far_{far_name(far)}": dir_at_far(curve, far)[0] for far in shown}
    return Gallery(rates, drawn, curve)


def one_picture_each(codes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A row of each person, drawn: codes (N,) of 0…P - 1 → (P,)."""
    order = generator.permutation(len(codes))
    return order[np.unique(codes[order], return_index=True)[1]]


def asked_of(
    embeddings: np.ndarray,
    codes: np.ndarray,
    enrolled: np.ndarray,
    strangers: bool,
    generator: np.random.Generator,
) -> tuple[Ranks, np.ndarray]:
    """What a gallery of the rows `enrolled` (K,) says of its people's other rows and, if asked, of `strangers`.

    Beside it the rows that were asked for, (M,).
    """
    known = np.isin(codes, codes[enrolled])
    asked = [np.setdiff1d(np.flatnonzero(known), enrolled), np.flatnonzero(~known & strangers)]
    probes = np.concatenate([generator.permutation(rows)[:MOST_PROBES] for rows in asked])
    ranks = rank(embeddings[probes], codes[probes].tolist(), embeddings[enrolled], codes[enrolled].tolist())
    return ranks, probes
