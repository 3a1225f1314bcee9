"""What is computed from the errors of landmarks: normalised mean error, failures, the cumulative curve, visibility.

The error of a picture is the mean distance of its given points from where they were found, by the length that it is
normalised with (https://ibug.doc.ic.ac.uk/resources/300-W/). N pictures, P points.
"""

from typing import Literal

import numpy as np

NormaliseBy = Literal["auto", "eye_corners", "box", "side"]
FAILURES = (0.08, 0.1)  # errors from which a picture counts as failed
# up to which the area under the cumulative curve is taken, as a share of the most there can be
CURVE_END = 0.08
NUM_RESAMPLES = 2000


def lengths(
    points_xy: np.ndarray,
    given: np.ndarray,
    sizes_px: np.ndarray,
    by: NormaliseBy,
    eyes: tuple[int, int] | None,
) -> np.ndarray:
    """What errors of each picture are divided by, in pixels: (N,); NaN where it is not there, or nothing.

    `points_xy` (N, P, 2), `given` (N, P), `sizes_px` (N, 2). eye_corners: between the points `eyes`; box: diagonal of
    the box around the given points; side: the geometric mean of width and height.
    """
    if by == "side":
        return np.sqrt(sizes_px.astype(np.float64).prod(1))
    if by == "eye_corners":
        assert eyes is not None
        both = given[:, eyes].all(1)
        length = np.linalg.norm(points_xy[:, eyes[0]].astype(np.float64) - points_xy[:, eyes[1]], axis=1)
    else:
        low = np.where(given[:, :, None], points_xy, np.inf).min(1).astype(np.float64)
        high = np.where(given[:, :, None], points_xy, -np.inf).max(1).astype(np.float64)
        both = given.sum(1) > 1
        length = np.linalg.norm(np.where(both[:, None], high - low, 0), axis=1)
    return np.where(both & (length > 0), length, np.nan)


def point_errors(
    found_xy: np.ndarray, points_xy: np.ndarray, given: np.ndarray, length: np.ndarray
) -> np.ndarray:
    """Distances by the length of their picture, (N, P) float64; NaN of what is not given."""
    distance = np.linalg.norm(found_xy.astype(np.float64) - points_xy, axis=2)
    return np.where(given, distance / length[:, None], np.nan)


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean over what is not NaN; NaN where nothing is."""
    there = ~np.isnan(values)
    num = there.sum(axis)
    total = np.where(there, values, 0).sum(axis)
    return np.divide(total, num, out=np.full(num.shape, np.nan), where=num > 0)


def cumulative_curve(
    errors: np.ndarray, end: float = CURVE_END, num: int = 401
) -> tuple[np.ndarray, np.ndarray]:
    """Errors from 0 to `end`, and the share of pictures (of `errors` (N,), none NaN) at most so wrong."""
    at = np.linspace(0, end, num)
    return at, np.searchsorted(np.sort(errors), at, side="right") / len(errors)


def curve_area(errors: np.ndarray, end: float = CURVE_END) -> float:
    """Area under the cumulative curve up to `end`, as a share of the whole: exact, for the curve is of steps."""
    return float(np.clip(end - errors, 0, None).mean() / end)


def interval(errors: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap of the mean, over pictures."""
    generator, num = np.random.default_rng(seed), len(errors)
    means = [errors[generator.integers(0, num, num)].mean() for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def summarise(
    errors: np.ndarray, found_visible: np.ndarray, visible: np.ndarray, given: np.ndarray
) -> dict[str, float]:
    """The flat figures of a split: `errors` (N, P) of `point_errors`, the others (N, P) bool.

    `num_images`, `num_measured` (with an error), `nme`, its interval, `failures_at_0.08`, …, `auc_at_0.08`,
    `visibility_accuracy` over given points. Raises ValueError where no picture has an error.
    """
    own = nan_mean(errors, 1)
    own = own[~np.isnan(own)]
    if not len(own):
        raise ValueError(
            "no picture has points that an error could be measured by; set evaluate.normalise_by=side, or annotate "
            "some"
        )
    low, high = interval(own)
    metrics: dict[str, float] = {"num_images": len(errors), "num_measured": len(own)}
    metrics |= {"nme": float(own.mean()), "nme_low": low, "nme_high": high}
    metrics |= {f"failures_at_{limit:g}": float((own > limit).mean()) for limit in FAILURES}
    metrics[f"auc_at_{CURVE_END:g}"] = curve_area(own)
    metrics["visibility_accuracy"] = float((found_visible == visible)[given].mean())
    return metrics
