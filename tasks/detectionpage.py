"""An evaluation of a detector as one HTML file, to read without anything else: numbers, tables and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.evaluationpage import (
    MAX_CLASSES,
    evaluation_document,
    figures_of,
    first,
    networks_of,
    particulars,
    table_of,
)
from tasks.page import escape

if TYPE_CHECKING:
    from tasks.detectionreport import Report

SIZES = "small: up to 32² px of area, medium: up to 96², large: more"
NOTES = {
    "examples": "A false alarm of the kind “wrong class” overlaps an object of another class. Where another "
    "detection has taken that object, the confusion matrix has the false alarm in the row of background.",
}


def detection_page(report: "Report", figures: Sequence[Path]) -> str:
    """The page, as HTML; `figures` are PNG files."""
    about = report.about
    by_ap = sorted(report.per_class, key=lambda row: (row["ap"] != row["ap"], row["ap"]))  # NaN last
    return evaluation_document(
        about,
        networks_of(about),
        numbers(report),
        f"<h2>Least score</h2><p>Boxes of a score of {report.threshold:.3g} and more are reported: it was fitted to "
        f"{escape(about['threshold_fitted_to'])}. AP looks at all boxes that there are, precision, recall and F1 at "
        "the reported ones, at IoU 0.5.</p>",
        f"<h2>Models</h2>{table_of(report.members)}" if report.members else "",
        f"<h2>Views</h2><p>The registered one is {escape(about['registered_view'])}.</p>{table_of(report.views)}",
        f"<h2>Classes</h2>{first(len(by_ap), MAX_CLASSES, 'in the order of AP, the lowest first')}"
        + table_of([readable(row) for row in by_ap[:MAX_CLASSES]]),
        f'<h2>Slices</h2><p class="quiet">{SIZES}</p>{table_of([readable(row) for row in report.per_slice])}',
        figures_of(figures, notes=NOTES),
        particulars(about),
    )


def numbers(report: "Report") -> list[tuple[str, str]]:
    """The headline: numbers, and what each is; a figure that nothing could be computed from is left out."""
    metrics = report.metrics
    ignored = metrics["num_ignored"]
    beside = f"; {ignored:,.0f} more, crowds and difficult ones, are not to be found" if ignored else ""
    fields = [(f"{len(report.ids):,}", "images"), (f"{metrics['num_objects']:,.0f}", f"objects{beside}")]
    if "ap" in metrics:
        interval = f"{metrics['ap_low']:.3f} to {metrics['ap_high']:.3f}"
        fields.append((f"{metrics['ap']:.3f}", f"AP, 95% interval {interval}"))
    names = {"ap50": "AP at IoU 0.5", "precision": "precision", "recall": "recall", "f1": "F1"}
    return fields + [(f"{metrics[key]:.3f}", text) for key, text in names.items() if key in metrics]


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row with nothing in place of NaN, and words for names."""
    return {key.replace("num_", ""): "" if value != value else value for key, value in row.items()}
