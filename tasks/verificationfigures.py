"""Figures of verification and recognition: ROC, distances of pairs, and the open set."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tasks.figures import BLUE, GREY, ORANGE, VERMILLION, title
from tasks.identification import OpenSetCurve, dir_at_far
from tasks.verification import ENOUGH_ERRORS, OperatingPoint, Roc, auc, equal_error

NUM_BINS = 60
MARGIN = 1.5  # a log axis begins so far below one false accept: there is what is accepted without any
BESIDE = (8, -13)  # where a point's name stands: the curve, which never falls, is not there; in points
ROOM = 0.07  # below the lowest point, for its name, as a share of the axis
NUM_BAND = 60  # rates at which the interval is drawn


def band_fars(num_different: int) -> np.ndarray:
    """Rates (F,), rising evenly on a log axis, at which to ask tasks.personbootstrap.curve_band."""
    return np.geomspace(min(1.0, 1 / num_different), 1, NUM_BAND)


def roc_figure(
    curve: Roc,
    what: str,
    points: Sequence[OperatingPoint] = (),
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> Figure:
    """TAR against FAR on a log axis; `band` is FARs with the low and high TAR, `points` thresholds of validation.

    A point stands where its threshold falls on this curve, which is rarely at the FAR that it was fitted for.
    """
    figure = Figure(figsize=(8.5, 5.6), layout="constrained")
    axes = figure.add_subplot()
    if band is not None:
        fars, low, high = band
        axes.fill_between(
            fars, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95% interval, people drawn"
        )
    least = 1 / curve.num_different
    seen = curve.far > 0
    # up to the first false accept no rate is 0: the curve begins at the left edge with what it accepts before that
    before = curve.tar[~seen].max()
    axes.step(
        np.append(least / MARGIN, curve.far[seen]), np.append(before, curve.tar[seen]), where="post", color=BLUE,
        linewidth=1.8, label=f"ROC, AUC {auc(curve):.4f}",
    )  # fmt: skip
    rate, _ = equal_error(curve)
    axes.plot(
        rate, 1 - rate, "D", color=ORANGE, markeredgecolor="black", label=f"equal error {rate:.2%}", zorder=4
    )
    lowest = [before, *(band[1][:1] if band is not None else ())]
    for number, point in enumerate(points):
        place = int(np.searchsorted(curve.thresholds, point.threshold, side="right")) - 1
        at = (max(curve.far[place], least / MARGIN), curve.tar[place])
        lowest.append(curve.tar[place])
        axes.plot(
            *at, "o", color=VERMILLION, markeredgecolor="black", zorder=5, clip_on=False,
            label="thresholds fitted on validation" if not number else None,
        )  # fmt: skip
        none = "" if curve.far[place] else ": no false accept"
        axes.annotate(
            f"fitted for {point.stated_far:g}{none}", at, BESIDE, textcoords="offset points", fontsize=9,
        )  # fmt: skip
    _mark_support(axes, ENOUGH_ERRORS * least, "pairs of two people")
    axes.set(xscale="log", xlim=(least / MARGIN, 1), xlabel="false accepts: share of pairs of two people")
    axes.set_ylabel("true accepts: share of pairs of one person")
    _finish_rates(axes, float(min(lowest)))
    title(
        figure, f"Verification: {curve.num_same:,} pairs of one person, {curve.num_different:,} of two", what
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def distances_figure(
    distances: np.ndarray, same: np.ndarray, what: str, points: Sequence[OperatingPoint] = ()
) -> Figure:
    """How far pairs of one person and of two are apart, as shares of each kind, with the fitted thresholds."""
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    highest = 0.0
    edges = np.linspace(0, max(float(distances.max()), 1e-9), NUM_BINS + 1)
    for side, colour, name in ((same, BLUE, "one person"), (~same, ORANGE, "two people")):
        num = max(1, int(side.sum()))
        counts = np.histogram(distances[side], edges)[0] / num
        highest = max(highest, float(counts.max()))
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.45)
        axes.stairs(counts, edges, color=colour, linewidth=1.4, label=f"pairs of {name} ({side.sum():,})")
    for number, point in enumerate(sorted(points, key=lambda point: point.threshold)):
        axes.axvline(
            point.threshold, color=VERMILLION, linewidth=1.3, linestyle="--",
            label=None if number else "thresholds fitted on validation",
        )  # fmt: skip
        axes.annotate(
            f"FAR {point.stated_far:g}", (point.threshold, 0.98), (-4, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", rotation=90, ha="right", va="top", fontsize=9,
        )  # fmt: skip
    axes.set(xlabel="squared L2 distance of unit vectors", ylabel="share of the pairs of a kind")
    axes.set(xlim=(0, edges[-1]), ylim=(0, 1.3 * highest))  # with room for the names of thresholds
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.spines[["top", "right"]].set_visible(False)
    title(figure, "Distances of pairs: accepted left of a threshold", what)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def open_set_figure(curve: OpenSetCurve, what: str, fars: Sequence[float] = ()) -> Figure:
    """DIR at rank 1 against FAR on a log axis, with the rates at `fars`."""
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axes = figure.add_subplot()
    least = 1 / curve.num_unknown
    seen = curve.far > 0
    before = curve.dir[~seen].max()
    axes.step(
        np.append(least / MARGIN, curve.far[seen]), np.append(before, curve.dir[seen]), where="post", color=BLUE,
        linewidth=1.8, label="found and named right",
    )  # fmt: skip
    closed = float(curve.dir[-1])
    axes.axhline(
        closed, color=GREY, linewidth=1, linestyle="--", label=f"without a threshold: rank 1, {closed:.2%}"
    )
    for far in (far for far in fars if far >= least):
        rate, _ = dir_at_far(curve, far)
        axes.plot(far, rate, "o", color=VERMILLION, markeredgecolor="black", zorder=5, clip_on=False)
        axes.annotate(f"{rate:.1%} at {far:g}", (far, rate), BESIDE, textcoords="offset points", fontsize=9)
    _mark_support(axes, ENOUGH_ERRORS * least, "probes of strangers")
    axes.set(
        xscale="log",
        xlim=(least / MARGIN, 1),
        xlabel="false accepts: share of probes of people not in the gallery",
    )
    axes.set_ylabel("share of probes of people in the gallery")
    _finish_rates(axes, float(before))
    title(
        figure,
        f"Recognition, open set: {curve.num_known:,} probes of people in the gallery, {curve.num_unknown:,} of others",
        what,
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _mark_support(axes: Axes, far: float, of: str) -> None:
    """Shade the rates that rest on fewer than `ENOUGH_ERRORS` false accepts."""
    if far < 1:
        axes.axvspan(
            far / 1e6, far, color=GREY, alpha=0.10, linewidth=0, zorder=0,
            label=f"fewer than {ENOUGH_ERRORS} {of} accepted",
        )  # fmt: skip


def _finish_rates(axes: Axes, lowest: float) -> None:
    bottom, top = max(0.0, np.floor(lowest * 10 - 0.2) / 10), 1.008
    axes.set_ylim(bottom - ROOM * (top - bottom), top)
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.grid(color="#E9E9E9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
