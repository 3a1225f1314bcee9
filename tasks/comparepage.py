"""Trainings side by side, as one HTML file: what differs, how good each is, how they learned, and their pictures.

Curves are of the first seed of each training, and so are the pictures, which are those that its evaluation left.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tasks.compare import Group, early_ends
from tasks.evaluationpage import png, shown
from tasks.figures import save_figure
from tasks.page import COLOURS, document, escape, table
from tasks.runrecords import RunRecord, fetched, kept_files

HISTORY = "history/history.csv"
NO_CURVES = ("step", "num_steps", "epoch", "time_s", "images_per_s", "input_wait", "lr")
VALIDATED = "val_"
PICTURES = {
    "confusion.png": "Confusion", "worst_mistakes.png": "Most confident mistakes", "reliability.png": "Reliability",
}  # fmt: skip
COST_COLUMNS = ("training", "seed", "CPU s", "GPU s", "wall s", "waiting for input")
PANEL_IN = (4.6, 3.1)


@dataclass(frozen=True)
class Course:
    """How a run learned: each metric with the epochs that it was told at."""

    training: str
    curves: dict[str, tuple[list[float], list[float]]]


def compare_page(
    groups: Sequence[Group], parameters: dict[str, list[str]], documents: Sequence[dict[str, Any]],
    pairs: Sequence[dict[str, Any]], notes: Sequence[str],
) -> str:  # fmt: skip
    """The page; what the command prints is in it too."""
    names = [group.name for group in groups]
    ends = early_ends(documents)
    courses = [Course(group.name, read_curves(group.runs[0])) for group in groups]
    return document(
        f"Compare {', '.join(names)}",
        f"<h1>{escape(' and '.join(names))} compared</h1>",
        "".join(f'<p class="quiet">{escape(note)}</p>' for note in notes),
        "<h2>Trainings</h2>" + table(("training", "seeds", "runs"), about(documents)),
        "<h2>Ended early</h2>" + table(("training", "why"), list(zip(names, ends, strict=True)))
        if ends
        else "",
        "<h2>What differs</h2>"
        + table(("parameter", *names), [(key, *row) for key, row in parameters.items()]),
        "<h2>On the test split</h2>" + table(("metric", *names), metric_rows(documents)),
        *(difference(pair) for pair in pairs),
        "<h2>Cost</h2>" + table(COST_COLUMNS, cost_rows(documents)),
        f"<h2>How they learned</h2>{curves_figure(courses)}" if any(each.curves for each in courses) else "",
        pictures(groups),
    )


def about(documents: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [
        (each["training"], ", ".join(map(str, each["seeds"])), ", ".join(each["runs"])) for each in documents
    ]


def metric_rows(documents: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row a metric: the mean over the seeds, ± sd where there are several."""
    metrics = list(dict.fromkeys(name for each in documents for name in each["metrics"]))
    return [[name, *(spread(each["metrics"].get(name)) for each in documents)] for name in metrics]


def spread(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{row['mean']:.4g}" + (f" ± {row['sd']:.2g}" if row["sd"] is not None else "")


def difference(pair: dict[str, Any]) -> str:
    """How one training differs from the first on the same images."""
    head = f"<h2>{escape(pair['second'])} minus {escape(pair['first'])}</h2>"
    if "why_not" in pair:
        return f"{head}<p>{escape(pair['why_not'])}</p>"
    columns = ("metric", "difference", "images: low", "high", "seeds: low", "high")
    rows = [["–" if value is None else shown(value) for value in row.values()] for row in pair["metrics"]]
    text = f"On the same {pair['num_images']:,} images; intervals are 95%, paired bootstrap of the images."
    text += "".join(f" {note[0].upper()}{note[1:]}." for note in pair["notes"])
    if test := pair.get("mcnemar"):
        text += (
            f" McNemar's exact test of accuracy: {test['only_first']:,} images right only by {pair['first']}, "
            f"{test['only_second']:,} only by {pair['second']}, p = {test['p_value']:.3g}."
        )
    return f"{head}<p>{escape(text)}</p>{table(columns, rows)}"


def cost_rows(documents: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row a run."""
    return [
        [
            training["training"], str(each["seed"]),
            *(f"{each[name]:,.0f}" if name in each else "–" for name in ("cpu_s", "gpu_s", "wall_s")),
            "–" if each["input_wait"] is None else f"{each['input_wait']:.1%}",
        ]
        for training in documents
        for each in training["cost"]
    ]  # fmt: skip


def read_curves(record: RunRecord) -> dict[str, tuple[list[float], list[float]]]:
    """The course of a run's metrics, {} where MLflow does not have it."""
    if HISTORY not in kept_files(record.run_id, "history"):
        return {}
    with fetched(record.run_id, HISTORY) as path, path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name not in NO_CURVES]
    return {name: told(name, rows) for name in names}


def told(name: str, rows: list[dict[str, str]]) -> tuple[list[float], list[float]]:
    """Epochs and values of a metric; a validation stands in all rows until the next, and counts once."""
    there = [row for row in rows if row[name]]
    new = [
        row
        for before, row in zip([None, *there], there, strict=False)
        if before is None or not name.startswith(VALIDATED) or before[name] != row[name]
    ]
    return [float(row["epoch"]) for row in new], [float(row[name]) for row in new]


def curves_figure(courses: Sequence[Course]) -> str:
    """A panel a metric: in training dashed, in validation solid, a colour a training."""
    panels = list(dict.fromkeys(name.removeprefix(VALIDATED) for course in courses for name in course.curves))
    width = min(2, len(panels))
    height = -(-len(panels) // width)
    figure = Figure((PANEL_IN[0] * width, PANEL_IN[1] * height), layout="constrained")
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(height, width, i + 1)
        for course, colour in zip(courses, COLOURS * len(courses), strict=False):
            for name, style in ((panel, "--"), (f"{VALIDATED}{panel}", "-")):
                epochs, values = course.curves.get(name, ([], []))
                label = f"{course.training}, {'validation' if style == '-' else 'training'}"
                if values:
                    # one validation alone would be no line
                    axes.plot(
                        epochs,
                        values,
                        style,
                        color=colour,
                        label=label,
                        marker="o" if len(values) < 3 else "",
                    )
        axes.set_title(panel, fontsize=11, parse_math=False)
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    save_figure(figure, buffer)
    return png(buffer.getvalue(), "course of the metrics")


def pictures(groups: Sequence[Group]) -> str:
    """The figures that the evaluations left, those of one kind side by side."""
    kept = [kept_files(group.runs[0].run_id, "evaluation") for group in groups]
    parts = []
    for file, name in PICTURES.items():
        path = f"evaluation/{file}"
        having = [group for group, files in zip(groups, kept, strict=True) if path in files]
        if having:
            parts.append(
                f'<h2>{name}</h2><div class="charts">{"".join(one(group, path) for group in having)}</div>'
            )
    return "".join(parts)


def one(group: Group, path: str) -> str:
    """A picture of a training's first run under its name."""
    with fetched(group.runs[0].run_id, path) as file:
        body = png(file.read_bytes(), Path(path).stem)
    return f"<figure><figcaption>{escape(group.name)}</figcaption>{body}</figure>"
