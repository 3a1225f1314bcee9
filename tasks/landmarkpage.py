"""An evaluation of landmarks as one HTML file, to read without anything else: numbers, tables and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import page
from tasks.evaluationpage import evaluation_document, figures_of, first, particulars, table_of
from tasks.intervals import interval_of, is_end
from tasks.landmarkmetrics import CURVE_END, FAILURES, nan_mean
from tasks.page import escape

if TYPE_CHECKING:
    from tasks.landmarkreport import Report

CAPTIONS = {
    "cumulative": "Cumulative errors",
    "per_point": "Error of each point",
    "pictures": "Best, median and worst pictures",
}
MAX_POINTS = 20  # rows of the table; the file has all


def landmark_page(report: "Report", figures: Sequence[Path]) -> str:
    """The page, as HTML; `figures` are PNG files."""
    about = report.about
    return evaluation_document(
        about,
        str(about["network"]),
        numbers(report),
        errors(report),
        f"<h2>Views</h2><p>The registered one is {escape(about['registered_view'])}.</p>"
        + table_of([view(report)]),
        figures_of(figures, CAPTIONS),
        pictures(report),
        points(report),
        particulars(about),
    )


def numbers(report: "Report") -> list[tuple[str, str]]:
    """The headline: numbers, and what each is."""
    metrics = report.metrics
    failures = [
        (f"{metrics[f'failures_at_{limit:g}']:.2%}", f"failures: pictures with an error above {limit:g}")
        for limit in FAILURES
    ]
    return [
        (f"{metrics['num_images']:,.0f}", "pictures"),
        (f"{metrics['nme']:.4f}", f"NME, 95% interval {interval_of(metrics, 'nme')}"),
        *failures,
        (f"{metrics[f'auc_at_{CURVE_END:g}']:.4f}", f"AUC of the cumulative curve up to {CURVE_END:g}"),
        (f"{metrics['visibility_accuracy']:.2%}", "accuracy of visibility"),
    ]


def errors(report: "Report") -> str:
    """What an error is here, and which pictures have none."""
    about, metrics = report.about, report.metrics
    missing = metrics["num_images"] - metrics["num_measured"]
    left_out = (
        f" {missing:,.0f} of {metrics['num_images']:,.0f} pictures have none, for want of the points that it takes."
        if missing
        else ""
    )
    return (
        f"<h2>Errors</h2><p>They are shares of the {escape(about['normalised_by'])}. A picture's error is the mean of "
        f"its given points, NME the mean of the pictures; its interval: {escape(about['nme_interval'])}. The AUC is "
        f"the area as a share of the most there can be.{left_out}</p>"
    )


def view(report: "Report") -> dict[str, Any]:
    """The row of the registered view, by which all was measured."""
    metrics = report.metrics
    nme = {"nme": metrics["nme"], "95% interval": interval_of(metrics, "nme")}
    rest = {
        name.replace("_", " "): value
        for name, value in metrics.items()
        if name not in nme and not name.startswith("num_") and not is_end(metrics, name)
    }
    return {"view": report.about["registered_view"], **nme, **rest}


def points(report: "Report") -> str:
    """The error of each point, in how many pictures it was measured."""
    rows = sorted(
        report.per_point, key=lambda row: (row["nme"] is None, -(row["nme"] or 0))
    )  # unmeasured last
    shown = [
        {
            "point": row["point"],
            "nme": "" if row["nme"] is None else row["nme"],
            "pictures": row["num_measured"],
        }
        for row in rows[:MAX_POINTS]
    ]
    order = "in the order of their mean error, the highest first"
    return f"<h2>Points</h2>{first(len(rows), MAX_POINTS, order)}{table_of(shown)}"


def pictures(report: "Report") -> str:
    """The pictures of the figure, by their names."""
    own = nan_mean(report.errors, 1)
    rows = [(each.kind, f"{own[each.place]:.4f}", report.ids[each.place]) for each in report.shown]
    return page.table(("", "error", "picture"), rows) if rows else ""
