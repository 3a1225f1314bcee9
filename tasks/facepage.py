"""An evaluation of faces as one HTML file, to read without anything else: numbers, thresholds and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import page
from tasks.evaluationpage import evaluation_document, figures_of, particulars, shown, table_of
from tasks.faces import ACCURACY, far_of
from tasks.intervals import interval_of, metric_table
from tasks.page import escape

if TYPE_CHECKING:
    from tasks.facereport import Report

CAPTIONS = {
    "roc": "Verification",
    "distances": "Distances",
    "open_set": "Recognition, open set",
    "pairs": "Pairs that are judged most wrongly",
}
HEADLINE = {"auc": "AUC", "eer": "equal error rate", "accuracy": "accuracy", "rank1": "rank 1"}


def face_page(report: "Report", figures: Sequence[Path]) -> str:
    """The page, as HTML; `figures` are PNG files."""
    about = report.about
    _title, columns, rows = metric_table("", report.metrics)
    return evaluation_document(
        about,
        "",
        numbers(report),
        thresholds(report),
        f'<h2>Metrics</h2><p class="quiet">Intervals: {escape(about["intervals"])}</p>'
        + page.table(columns, [[shown(value) for value in row] for row in rows]),
        f"<h2>Views</h2><p>The registered one is {escape(about['registered_view'])}.</p>"
        + table_of(report.shared_views),
        figures_of(figures, CAPTIONS),
        worst_pairs(report),
        particulars(about),
    )


def numbers(report: "Report") -> list[tuple[str, str]]:
    """The headline: numbers, and what each is."""
    metrics = report.metrics
    fields = [(f"{len(report.same):,}", "pairs"), (f"{report.about['num_people']:,}", "people")]
    for name, text in HEADLINE.items():
        if name in metrics:
            interval = interval_of(metrics, name)
            fields.append((f"{metrics[name]:.4g}", f"{text}, 95% interval {interval}" if interval else text))
    return fields


def thresholds(report: "Report") -> str:
    """What was fitted on validation, to how much, and what it accepts of the pairs of this split."""
    if not report.thresholds:
        return "<h2>Thresholds</h2><p>None was fitted.</p>"
    distances = report.looks[0].distances
    rows = []
    for name, threshold in report.thresholds.items():
        shares = [f"{(distances[side] <= threshold).mean():.2%}" for side in (~report.same, report.same)]
        aim = "the highest accuracy" if name == ACCURACY else f"a false-accept rate of {far_of(name):g}"
        rows.append((name, aim, f"{threshold:.4g}", *shares))
    columns = (
        "",
        "fitted for",
        "squared distance, up to",
        "accepts, of pairs of two people",
        "of one person",
    )
    return (
        f"<h2>Thresholds</h2><p>Fitted to {escape(report.about['thresholds_of'])}. One that rests on few false accepts "
        "may accept several times its rate of other people. What each accepts here is of the pairs of this split.</p>"
        + page.table(columns, rows)
    )


def worst_pairs(report: "Report") -> str:
    """The pairs of the figure, by their names: those of one person that are farthest apart, of two that are nearest."""
    rows = [
        ("one person" if each.same else "two people", f"{each.distance:.4f}", *each.ids)
        for each in report.shown
    ]
    return page.table(("pair of", "squared distance", "", ""), rows)
