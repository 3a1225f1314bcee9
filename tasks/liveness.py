"""How well real faces are told from presentation attacks, by ISO/IEC 30107-3.

A score in 0…1 says how real a face looks, and a face is accepted from the threshold on. APCER is the share of attacks
of one type that is accepted, and the figure for all is that of the worst type, not a mean: an attacker chooses. BPCER
is the share of real (bona fide) faces that is refused. ACER, the mean of the two, is no longer in the standard, but
in most papers. A threshold is fitted to validation faces, at a stated BPCER or APCER, never to the faces tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.metrics import wilson_interval

REAL = "real"  # the class of faces that are no attack
LIVENESS = "liveness"  # among a card's thresholds
MAX_BPCER = 0.05  # of the threshold that training fits


@dataclass(frozen=True)
class Share:
    """A share of faces, with its 95% interval."""

    wrong: int
    num: int

    @property
    def value(self) -> float:
        return self.wrong / self.num

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.wrong, self.num)


@dataclass(frozen=True)
class Liveness:
    """The figures at one threshold."""

    threshold: float
    apcer_by_type: dict[str, Share]
    bpcer: Share

    @property
    def worst_type(self) -> str:
        """The type of attack that is accepted most often; of equals the first by name."""
        return max(sorted(self.apcer_by_type), key=lambda kind: self.apcer_by_type[kind].value)

    @property
    def apcer(self) -> float:
        return self.apcer_by_type[self.worst_type].value

    @property
    def acer(self) -> float:
        return (self.apcer + self.bpcer.value) / 2


def judge(scores: np.ndarray, kinds: Sequence[str], threshold: float) -> Liveness:
    """The figures of faces with `scores` (N,), each `real` or of a type of attack, at a threshold.

    Raises ValueError without real faces, without attacks, or for scores that are no numbers.
    """
    of_kind = _by_kind(scores, kinds)
    real = of_kind.pop(REAL)
    return Liveness(
        threshold,
        {kind: Share(int((each >= threshold).sum()), len(each)) for kind, each in sorted(of_kind.items())},
        Share(int((real < threshold).sum()), len(real)),
    )


def threshold_at_bpcer(scores: np.ndarray, kinds: Sequence[str], bpcer: float) -> float:
    """The highest threshold that refuses at most this share of real faces: of such, it accepts the fewest attacks."""
    _check_share("bpcer", bpcer)
    real = np.sort(_by_kind(scores, kinds)[REAL])
    return float(real[_allowed(bpcer, len(real))])


def threshold_at_apcer(scores: np.ndarray, kinds: Sequence[str], apcer: float) -> float:
    """The lowest threshold that accepts at most this share of attacks of every type: of such, it refuses the fewest
    real faces. It may lie above 1, where attacks score 1."""
    _check_share("apcer", apcer)
    of_kind = _by_kind(scores, kinds)
    del of_kind[REAL]
    highest = [np.sort(each)[::-1][_allowed(apcer, len(each))] for each in of_kind.values()]
    return float(np.nextafter(max(highest), np.inf))


def _allowed(share: float, num: int) -> int:
    """How many of `num` may be wrong, not all; a share in decimals is meant as such: 0.29 of 100 are 29, not 28."""
    return min(int(np.floor(share * num + 1e-9)), num - 1)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"{name} (={share}) must lie in 0…1, below 1")


def _by_kind(scores: np.ndarray, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores (N,) float64 of each kind of face."""
    values, names = np.asarray(scores, np.float64), np.asarray(kinds)
    if values.ndim != 1 or values.shape != names.shape or not np.isfinite(values).all():
        raise ValueError(
            f"scores {values.shape} and kinds {names.shape} must be finite numbers, and one kind for each"
        )
    found = {str(kind): values[names == kind] for kind in np.unique(names)}
    if REAL not in found or len(found) < 2:
        raise ValueError(
            f"liveness needs faces called {REAL!r} and attacks beside them; the kinds here are: "
            f"{', '.join(sorted(found)) or 'none'}"
        )
    return found
