"""Whether what a model is asked about has drifted from what it was trained on: maximum mean discrepancy of features.

Gretton et al. 2012, "A kernel two-sample test", JMLR 13: the unbiased estimate of MMD² (equation 3) with a Gaussian
kernel whose width is the median distance of all pairs, and a p-value by permutation (section 5 has other bounds).

The effect is the root of half of MMD², which lies in 0…1 whatever the number of items: of a Gaussian kernel MMD² is at
most 2, where no item of one side is near any of the other. A p-value alone would call any difference drift, once there
are predictions enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from pydantic import Field

from data.parameters import Parameters


class DriftConfig(Parameters):
    """How drift is looked for, and what is called so: section `drift` of params.yaml."""

    num_reference: int = Field(ge=2, description="items of the model's dataset that are kept to compare with")
    num_recent: int = Field(ge=2, description="newest recorded predictions that are compared with them")
    least_recent: int = Field(ge=2, description="fewer than these are not judged")
    permutations: int = Field(ge=1, description="of the p-value, which is at least 1 / (permutations + 1)")
    p_below: float = Field(gt=0, le=1, description="drift has a p-value below this")
    effect_above: float = Field(ge=0, lt=1, description="and an effect above this")
    seed: int = Field(description="of the permutations")


@dataclass(frozen=True)
class Discrepancy:
    """How far apart two samples are."""

    mmd2: float  # the unbiased estimate, which may be below 0
    p: float
    effect: float  # 0 to 1
    width: float  # the kernel's
    num_reference: int
    num_recent: int


@dataclass(frozen=True)
class Look:
    """What one look at the recordings of a model found."""

    at: datetime
    model_sha256: str
    first: datetime  # of the predictions that were looked at
    last: datetime
    discrepancy: Discrepancy

    def drifted(self, config: DriftConfig) -> bool:
        """Whether this look alone found drift."""
        return self.discrepancy.p < config.p_below and self.discrepancy.effect > config.effect_above


def twice_running(looks: Sequence[Look], config: DriftConfig) -> bool:
    """Whether the two newest looks both found drift, of one model, at predictions that they do not share.

    `looks` in order of time. Of data that have not changed one look in a hundred has a p-value below 0.01. Both looks
    share their reference, so two running are not as rare as chance alone would have it.
    """
    if len(looks) < 2:
        return False
    before, now = looks[-2:]
    return (
        before.model_sha256 == now.model_sha256
        and before.last < now.first
        and before.drifted(config)
        and now.drifted(config)
    )


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of (N, D) to (M, D) float64: (N, M), not below 0."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * (a @ b.T)
    return np.maximum(squares, 0)


def median_width(squares: np.ndarray) -> float:
    """The median distance of all pairs, from their squared distances (N, N); 1 where half of the items are equal."""
    median = float(np.median(np.sqrt(squares[np.triu_indices(len(squares), 1)])))
    return median or 1.0


def mmd2_of(kernel: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Unbiased MMD² for each way to divide N items: `kernel` (N, N), `sides` (P, N) bool, True for the one side.

    All rows of `sides` have as many True as the first. Gretton et al. 2012, equation 3.
    """
    off = kernel - np.diag(np.diag(kernel))
    one = sides.astype(float)
    n = float(one[0].sum())
    m = one.shape[1] - n
    towards_one = one @ off  # (P, N)
    within_one = (towards_one * one).sum(1)
    across = (towards_one * (1 - one)).sum(1)
    within_other = off.sum() - within_one - 2 * across
    return within_one / (n * (n - 1)) + within_other / (m * (m - 1)) - 2 * across / (n * m)


def discrepancy(reference: np.ndarray, recent: np.ndarray, permutations: int, seed: int) -> Discrepancy:
    """Compare features (N, D) and (M, D), at least two of each; raises ValueError where D differs."""
    if reference.shape[1] != recent.shape[1]:
        raise ValueError(
            f"features of {recent.shape[1]} numbers cannot be compared with a reference of {reference.shape[1]}: "
            "they are of another network"
        )
    n, m = len(reference), len(recent)
    both = np.concatenate([reference, recent]).astype(np.float64)
    both -= both.mean(0)  # distances stay; their rounding is of the spread then, not of how far off it lies
    squares = squared_distances(both, both)
    width = median_width(squares)
    kernel = np.exp(-squares / (2 * width**2))
    generator = np.random.default_rng(seed)
    actual = np.arange(n + m) < n
    sides = np.stack([actual, *(generator.permutation(actual) for _ in range(permutations))])
    values = mmd2_of(kernel, sides)
    # rounding must not make one of equal values the greater
    as_far = int((values[1:] >= values[0] - 1e-12).sum())
    mmd2 = float(values[0])
    return Discrepancy(
        mmd2, (1 + as_far) / (1 + permutations), float(np.sqrt(max(mmd2, 0.0) / 2)), width, n, m
    )
