"""An evaluation as one HTML file, to read without anything else: numbers, tables and figures."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.counting import counted
from tasks import page
from tasks.page import escape
from tasks.slices import Slice, mark

if TYPE_CHECKING:
    from tasks.report import Report

CAPTIONS = {"pr": "Precision and recall", "per_class": "By class"}
MAX_SLICES, MAX_CLASSES = 60, 60  # rows of the tables; the files have all


def evaluation_page(report: "Report", figures: Sequence[Path]) -> str:
    """The page, as HTML; `figures` are PNG files."""
    about = report.about
    return evaluation_document(
        about,
        networks_of(about),
        numbers(report),
        f"<h2>Calibration</h2><p>The temperature was fitted to {escape(about['temperature_fitted_to'])}.</p>"
        + table_of(report.calibration),
        f"<h2>Views</h2><p>The registered one is {escape(report.registered_view)}; the others are not calibrated.</p>"
        + table_of(report.views),
        slices(report),
        f"<h2>Classes</h2>{first(len(report.per_class), MAX_CLASSES, 'in the order of F1, the lowest first')}"
        + table_of(sorted(report.per_class, key=lambda row: row["f1"])[:MAX_CLASSES]),
        figures_of(figures),
    )


def evaluation_document(
    about: dict[str, Any], networks: str, headline: Sequence[tuple[str, str]], *parts: str
) -> str:
    """An evaluation's page: on which pictures, of which models and `networks` ("": that goes without saying), how,
    and where.

    `about` is the report's, `headline` has numbers and what each is; `parts` are HTML.
    """
    title = f"Evaluation on {about['dataset']}, {about['split']}"
    view = f"view {about['registered_view']}, {about['precision']}, on {about['device']}"
    measured = f"{networks}, {view}" if networks else view
    heading = page.heading(title, f"{models_of(about)}; {measured}")
    return page.document(title, heading, page.headline(headline), *parts)


def models_of(about: dict[str, Any]) -> str:
    """The models as they were called, and the runs that trained them, where those are called otherwise."""
    models, runs = about["models"], about["runs"]
    return models if models == runs else f"{models}, trained by {runs}"


def networks_of(about: dict[str, Any]) -> str:
    """`1 network`, `3 networks`."""
    return counted(about["num_networks"], "network")


def particulars(about: dict[str, Any]) -> str:
    """All that is said of what was measured, on what, and how."""
    rows = [(key.replace("_", " "), str(value)) for key, value in about.items()]
    return f"<h2>What was measured</h2>{page.table(('', ''), rows)}"


def numbers(report: "Report") -> list[tuple[str, str]]:
    """The headline: numbers, and what each is."""
    metrics = report.metrics
    interval = f"{metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}"
    fields = [
        (f"{len(report.labels):,}", "images"),
        (f"{metrics['accuracy']:.2%}", f"accuracy, 95% interval {interval}"),
        (f"{metrics['macro_f1']:.4f}", "macro-F1"),
        (f"{metrics['ece_uncalibrated']:.4f} → {metrics['ece']:.4f}", "ECE, before and after calibration"),
        (f"{metrics['temperature']:.3g}", "temperature"),
    ]
    if "top5_accuracy" in metrics:
        fields.insert(2, (f"{metrics['top5_accuracy']:.2%}", "top-5 accuracy"))
    return fields


def slices(report: "Report") -> str:
    """Where it is worst."""
    found = report.slices
    rows = [
        (each.kind, each.name, each.num_images, f"{each.accuracy:.2%}", interval(each), mark(each))
        for each in found[:MAX_SLICES]
    ]
    columns = ("kind", "slice", "images", "accuracy", "95% interval", "")
    order = "in the order of the interval's upper end, the lowest first"
    return f"<h2>Slices</h2>{first(len(found), MAX_SLICES, order)}{page.table(columns, rows)}"


def interval(each: Slice) -> str:
    return f"{each.accuracy_low:.2%} to {each.accuracy_high:.2%}"


def first(num_rows: int, most: int, order: str) -> str:
    """What a table that may be cut shows."""
    return f'<p class="quiet">{f"{most} of {num_rows:,}, " if num_rows > most else ""}{escape(order)}</p>'


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same meaning by name; a number has four digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return page.table(columns, [[shown(row.get(column, "")) for column in columns] for row in rows])


def shown(value: Any) -> Any:
    return f"{value:,.4g}" if isinstance(value, float) else value


def figures_of(
    files: Sequence[Path], captions: Mapping[str, str] = CAPTIONS, notes: Mapping[str, str] = {}
) -> str:
    """PNG files below each other, each under its caption by `captions`, or its name, and what `notes` say of it."""
    named = [(captions.get(file.stem, file.stem.replace("_", " ").capitalize()), file) for file in files]
    said = {stem: f'<p class="quiet">{escape(note)}</p>' for stem, note in notes.items()}
    return "".join(f"<h2>{escape(name)}</h2>{said.get(file.stem, '')}{image(file)}" for name, file in named)


def image(file: Path) -> str:
    """A PNG file inside the page."""
    return png(file.read_bytes(), file.stem)


def png(data: bytes, name: str) -> str:
    """A PNG inside the page."""
    encoded = base64.b64encode(data).decode()
    return f'<img style="max-width:100%" alt="{escape(name)}" src="data:image/png;base64,{encoded}">'
