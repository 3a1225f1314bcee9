"""What a paired comparison of two models on the same samples says: intervals, exact tests, what could have been shown.

Champion and challenger answer the same samples, so what counts is where they differ. Differences are gains: positive
where the challenger is better, whichever way the metric runs. Samples of one group (a patient, near-duplicates) are
drawn together (a cluster bootstrap: Field and Welsh 2007, https://doi.org/10.1111/j.1467-9868.2007.00593.x).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import binom, binomtest


@dataclass(frozen=True)
class Tested:
    """One metric of both models."""

    name: str
    champion: float
    challenger: float
    gain: float
    low: float  # interval of the gain, at the confidence that is left for each of several metrics
    high: float
    p_value: float | None  # of the exact test; None where the interval decides
    better: bool
    worse: bool
    primary: bool  # a gain in it is a reason to promote
    margin: float  # a loss below it does not matter
    detectable: float  # the least gain that so many samples show with the asked-for power; NaN: none
    test: str

    @property
    def non_inferior(self) -> bool:
        """Whether a loss of the margin or more is ruled out."""
        return self.low > -self.margin


@dataclass(frozen=True)
class Guarded:
    """A part of the split on which a promotion must not lose."""

    kind: str
    name: str
    num_samples: int
    champion: float
    challenger: float
    gain: float
    low: float  # one-sided bound of the gain
    margin: float
    worse: bool  # shown, with a correction for the number of slices
    # whether so many samples can show that nothing is lost; fewer only object where harm is shown
    enough: bool

    @property
    def non_inferior(self) -> bool:
        return self.low > -self.margin


@dataclass(frozen=True)
class Paired:
    """All that was compared."""

    num_samples: int
    unit: str  # images, pairs
    metric: str  # of the slices
    same: bool  # both gave the same outputs for every sample
    metrics: tuple[Tested, ...]
    slices: tuple[Guarded, ...]
    notes: tuple[str, ...] = ()


def cluster_counts(groups: Sequence[str], num_draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of N samples is in a bootstrap sample, (N,) int64: groups are drawn, with all that they hold."""
    _names, codes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    num = int(codes.max()) + 1
    generator, shares = np.random.default_rng(seed), np.full(num, 1 / num)
    for _ in range(num_draws):
        yield generator.multinomial(num, shares)[codes]


def sharing(groups: Sequence[str]) -> int:
    """How many samples share their group with another one."""
    _names, counts = np.unique(np.asarray(groups, dtype=object).astype(str), return_counts=True)
    return int(counts[counts > 1].sum())


def group_notes(groups: Sequence[str], unit: str) -> tuple[str, ...]:
    """What a reader must know of samples that are drawn in groups; nothing where each has a group of its own."""
    shared = sharing(groups)
    return (f"{shared:,} {unit} share a group with others, and groups are drawn whole",) if shared else ()


def interval(draws: np.ndarray, alpha: float) -> tuple[float, float]:
    """The percentile interval of drawn gains that leaves `alpha` out; draws that could not be computed are left out."""
    known = draws[~np.isnan(draws)]
    if not len(known):
        return float("-inf"), float("inf")
    low, high = np.quantile(known, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def detectable_by_spread(draws: np.ndarray, alpha: float, power: float) -> float:
    """The least gain that is found with `power` by a two-sided test at `alpha`, by the spread of bootstrap draws.

    (z₁₋α/₂ + z_power) standard errors; NaN where nothing varies.
    """
    known = draws[~np.isnan(draws)]
    error = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * error if error else float("nan")


def mcnemar_power(num_samples: int, discordant: float, gain: float, alpha: float) -> float:
    """The chance that McNemar's exact two-sided test finds a gain in accuracy.

    `discordant`: the share of samples that only one model gets right; the challenger has (discordant + gain) / 2 of
    them. Exact: summed over how many discordant samples there may be, and how they fall.
    """
    if not 0 <= gain <= discordant <= 1:
        raise ValueError(f"gain (={gain}) and discordant (={discordant}) must be 0 ≤ gain ≤ discordant ≤ 1")
    if not discordant:
        return 0.0
    first, last = (int(binom.ppf(tail, num_samples, discordant)) for tail in (1e-9, 1 - 1e-9))
    m = np.arange(max(first, 1), last + 1)
    # the largest number of losses at which the test rejects: P(X ≤ k) ≤ α/2 for X ~ B(m, 1/2)
    most = binom.ppf(alpha / 2, m, 0.5).astype(np.int64)
    most -= binom.cdf(most, m, 0.5) > alpha / 2
    share = (discordant + gain) / (2 * discordant)
    found = binom.cdf(most, m, 1 - share) + binom.cdf(most, m, share)
    return float((binom.pmf(m, num_samples, discordant) * found).sum())


def detectable_by_mcnemar(num_samples: int, discordant: float, alpha: float, power: float) -> float:
    """The least gain in accuracy that McNemar's exact test finds with `power`, with so many discordant samples.

    A gain needs as many discordant samples itself, so a larger one comes with more of them. NaN: not even a challenger
    that is right wherever the champion is wrong would be found.
    """

    def found(gain: float) -> bool:
        return mcnemar_power(num_samples, max(discordant, gain), gain, alpha) >= power

    if not found(1.0):
        return float("nan")
    low, high = 0.0, 1.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def share_gain_bound(gains: int, losses: int, num_samples: int, alpha: float) -> float:
    """The one-sided lower bound of a difference between two paired shares, by Tango's score (1998).

    `gains`: samples that the challenger alone gets right. https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891
    ::AID-SIM780>3.0.CO;2-B. It has a width where the two never differ: -z² / (n + z²).
    """
    if not 0 <= gains + losses <= num_samples or not num_samples:
        raise ValueError(f"gains (={gains}) and losses (={losses}) must be of num_samples (={num_samples})")
    z, n = NormalDist().inv_cdf(1 - alpha), num_samples

    def score(delta: float) -> float:
        a, b = 2 * n, -gains - losses + (2 * n - gains + losses) * delta
        c = -losses * delta * (1 - delta)
        lost = (max(b * b - 4 * a * c, 0.0) ** 0.5 - b) / (2 * a)
        variance = n * (2 * lost + delta * (1 - delta))
        over = gains - losses - n * delta
        return over / variance**0.5 if variance > 0 else float("inf")

    low, high = -1.0, (gains - losses) / n
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > z else (low, middle)
    return low


@dataclass(frozen=True)
class Part:
    """A slice before it is judged: what both models make of it."""

    kind: str
    name: str
    num_samples: int
    champion: float
    challenger: float
    gain: float
    low: float  # one-sided bound at alpha
    p_value: float  # one-sided, of the hypothesis that the challenger is not worse


def guard(parts: Sequence[Part], alpha: float, margin: float, fewest: int) -> tuple[Guarded, ...]:
    """Slices judged: harm is shown with Holm's correction for all of them, that nothing is lost at `alpha` each."""
    harmed = holm([part.p_value for part in parts], alpha)
    return tuple(
        Guarded(
            part.kind, part.name, part.num_samples, part.champion, part.challenger, part.gain, part.low, margin,
            worse=worse, enough=part.num_samples >= fewest,
        )
        for part, worse in zip(parts, harmed, strict=True)
    )  # fmt: skip


def drawn_part(
    kind: str,
    name: str,
    num_samples: int,
    values: tuple[float, float],
    gains: np.ndarray,
    gain: float,
    alpha: float,
) -> Part | None:
    """A slice whose gain was drawn by a bootstrap; None where no draw could compute it."""
    known = gains[~np.isnan(gains)]
    if not len(known) or np.isnan(values).any():
        return None
    not_worse = (int((known >= 0).sum()) + 1) / (len(known) + 1)
    return Part(kind, name, num_samples, *values, gain, float(np.quantile(known, alpha)), not_worse)


def share_part(kind: str, name: str, first_right: np.ndarray, second_right: np.ndarray, alpha: float) -> Part:
    """A slice of which each model gets a share right: (n,) bool each."""
    n = len(first_right)
    gains, losses = int((second_right & ~first_right).sum()), int((first_right & ~second_right).sum())
    p_value = (
        float(binomtest(losses, gains + losses, alternative="greater").pvalue) if gains + losses else 1.0
    )
    return Part(
        kind, name, n, float(first_right.mean()), float(second_right.mean()), (gains - losses) / n,
        share_gain_bound(gains, losses, n, alpha), p_value,
    )  # fmt: skip


def mean_gains(gains: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of the gains (N,) in each draw: (D,); NaN gains are left out, a draw without any is NaN."""
    known = ~np.isnan(gains)
    weights = counts[:, known].astype(np.float64)
    total = weights.sum(1)
    return np.divide(weights @ gains[known], total, out=np.full(len(counts), np.nan), where=total > 0)


def mean_part(
    kind: str, name: str, first: np.ndarray, second: np.ndarray, counts: np.ndarray, alpha: float
) -> Part | None:
    """A slice by what less is better of, (N,) of both models, NaN outside; None where nothing is inside."""
    known = ~np.isnan(first)
    if not known.any():
        return None
    values = (float(first[known].mean()), float(second[known].mean()))
    gains = mean_gains(first - second, counts)
    return drawn_part(kind, name, int(known.sum()), values, gains, values[0] - values[1], alpha)


def weigh(
    name: str,
    values: tuple[float, float],
    draws: np.ndarray,
    *,
    primary: bool,
    margin: float,
    alpha: float,
    power: float,
    test: str,
    less_is_better: bool = False,
    exact: tuple[float, float] | None = None,
) -> Tested:
    """A metric judged by the draws of its gain (D,); `values` of champion and challenger.

    `exact`: p-value of an exact test, which must agree with the interval, and the gain that it detects. `alpha` is
    what is left for this metric.
    """
    champion, challenger = values
    gain = champion - challenger if less_is_better else challenger - champion
    low, high = interval(draws, alpha)
    p_value, detectable = exact or (None, detectable_by_spread(draws, alpha, power))
    sure = p_value is None or p_value <= alpha
    return Tested(
        name, champion, challenger, gain, low, high, p_value,
        better=low > 0 and sure, worse=high < 0 and sure,
        primary=primary, margin=margin, detectable=detectable, test=test,
    )  # fmt: skip


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which of several hypotheses fall at `alpha` for all of them together, by Holm (1979)."""
    order = np.argsort(p_values, kind="stable")
    fallen = [False] * len(p_values)
    for rank, place in enumerate(order.tolist()):
        if p_values[place] > alpha / (len(p_values) - rank):
            break
        fallen[place] = True
    return fallen
