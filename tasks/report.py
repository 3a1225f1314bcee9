"""What an evaluation found, and the files it leaves behind."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.files import write_whole
from tasks.evaluationpage import evaluation_page
from tasks.figures import (
    confusion_figure,
    mistakes_figure,
    per_class_figure,
    reliability_figure,
    save_figure,
    slices_figure,
)
from tasks.labelerrors import LabelErrors, find_label_errors
from tasks.metrics import PerClass, Reliability, confusion_matrix, per_class, reliability
from tasks.pareto import Comparison, TableRows, comparison_figure, shown_rows, table_rows
from tasks.settings import ViewName
from tasks.slices import Slice, find_slices, mark

# in the order of the page
FIGURES = ("pareto", "reliability", "slices", "confusion", "per_class", "worst_mistakes")
MAX_SLICES = 12  # shown; the files and --json have all
SLICE_COLUMNS = tuple(field.name for field in fields(Slice))
SUSPECT_COLUMNS = ("id", "label", "suggested", "confidence", "own_confidence", "margin")


@dataclass(frozen=True)
class Report:
    """An evaluation of one model, or of an ensemble, on one split.

    `metrics` is flat: `<view>.<metric>` for each view, and `<metric>` for the registered view; shares and
    probabilities in [0, 1], `nll` in nats, `images_per_s`, `memory_mb` in MiB. `temperature` calibrates the registered
    view, and `nll_uncalibrated`, `brier_uncalibrated`, `ece_uncalibrated` are without it. All else is of that view.
    """

    metrics: dict[str, float]
    about: dict[str, str | int | float]  # what was measured, on what, and how
    view_names: tuple[ViewName, ...]
    registered_view: ViewName
    family: str
    classes: tuple[str, ...]
    rows: pa.Table  # N rows, in the order of the split, of the columns that slices are made of
    labels: np.ndarray  # (N,) int64
    probabilities: np.ndarray  # (N, K) float32
    uncalibrated: np.ndarray  # (N, K) float32: the probabilities at temperature 1
    comparison: Comparison  # each model and the first n together, by each view
    worst: np.ndarray  # (M,) int64: places of the most confident mistakes, the worst first
    worst_pictures: np.ndarray  # (M, C, S, S) uint8: what the network saw of them

    @property
    def ids(self) -> list[str]:
        """Of the N images."""
        return list(self.rows["id"].to_pylist())

    @cached_property
    def predicted(self) -> np.ndarray:
        """(N,) int64."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """(N,) float32: probability of the predicted class."""
        return self.probabilities.max(axis=1)

    @cached_property
    def confusion(self) -> np.ndarray:
        """(K, K) int64: rows are true classes, columns predicted ones."""
        return confusion_matrix(self.labels, self.predicted, len(self.classes))

    @cached_property
    def class_figures(self) -> PerClass:
        return per_class(self.confusion)

    @cached_property
    def reliability(self) -> Reliability:
        return reliability(self.probabilities, self.labels)

    @cached_property
    def reliability_uncalibrated(self) -> Reliability:
        return reliability(self.uncalibrated, self.labels)

    @cached_property
    def slices(self) -> list[Slice]:
        """By class, size, source and group, the worst first."""
        return find_slices(self.rows, self.family, self.classes, self.labels, self.predicted == self.labels)

    @property
    def calibration(self) -> list[dict[str, Any]]:
        """Two rows, before and after: temperature, NLL, Brier's score and ECE of the registered view."""
        names = ("nll", "brier", "ece")
        before = {name: self.metrics[f"{name}_uncalibrated"] for name in names}
        after = {name: self.metrics[name] for name in names}
        return [
            {"probabilities": "as the network gives them", "temperature": 1.0, **before},
            {"probabilities": "calibrated", "temperature": self.metrics["temperature"], **after},
        ]

    @cached_property
    def label_errors(self) -> LabelErrors:
        """Labels that are probably wrong, if the model was not trained on these pictures."""
        return find_label_errors(self.probabilities, self.labels)

    @property
    def suspects(self) -> list[dict[str, Any]]:
        """The pictures whose labels are probably wrong, the most suspect first: one row each."""
        found, ids = self.label_errors, self.ids
        return [
            {
                "id": ids[place],
                "label": self.classes[self.labels[place]],
                "suggested": self.classes[suggested],
                "confidence": float(self.probabilities[place, suggested]),
                "own_confidence": float(self.probabilities[place, self.labels[place]]),
                "margin": float(margin),
            }
            for place, suggested, margin in zip(found.suspects, found.suggested, found.margins, strict=True)
        ]

    @property
    def views(self) -> list[dict[str, Any]]:
        """The table of views: one row each, `view` and its metrics."""
        return [
            {"view": name} | {key.removeprefix(f"{name}."): value for key, value in self.metrics.items()
                              if key.startswith(f"{name}.")}
            for name in self.view_names
        ]  # fmt: skip

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """One row a class: class, precision, recall, f1, support (images of it), predicted (images taken for it)."""
        rows = self.class_figures
        return [
            {
                "class": name,
                "precision": float(rows.precision[i]),
                "recall": float(rows.recall[i]),
                "f1": float(rows.f1[i]),
                "support": int(rows.support[i]),
                "predicted": int(rows.predicted[i]),
            }
            for i, name in enumerate(self.classes)
        ]

    def document(self) -> dict[str, Any]:
        """What a program reads of it, beside the metrics."""
        return {
            "temperature_fitted_to": self.about["temperature_fitted_to"],
            "comparison": table_rows(self.comparison.rows()),
            "slices": [asdict(each) for each in self.slices],
            "per_class": self.per_class,
        }

    def tables(self, title: str) -> list[TableRows]:
        """What a person reads first: one line a view, two of calibration, one a class, and the worst slices."""
        return [
            (title, *columns_of(self.views)),
            shown_rows(table_rows(self.comparison.rows())),
            (f"Calibration, fitted to {self.about['temperature_fitted_to']}", *columns_of(self.calibration)),
            ("By class", *columns_of(self.per_class)),
            shown_slices(self.slices),
        ]

    def write(self, folder: Path) -> None:
        """Write tables and figures to `folder`, `metrics.json` last: a folder that has it is whole.

        views.csv, pareto.csv, per_class.csv, slices.csv, reliability.csv; confusion.csv has one row an image (actual,
        predicted), as DVC's confusion template takes it; predictions.parquet; label_errors.csv, labels that are
        probably wrong; a PNG for each figure; report.html, all of it to read; about.json says what was measured.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").unlink(missing_ok=True)
        self._write_tables(folder)
        self._write_figures(folder)
        write_whole(
            folder / "report.html", evaluation_page(self, [folder / f"{name}.png" for name in FIGURES])
        )
        write_json(folder / "about.json", self.about)
        write_json(folder / "metrics.json.partial", self.metrics)
        (folder / "metrics.json.partial").replace(folder / "metrics.json")

    def _write_tables(self, folder: Path) -> None:
        write_csv(folder / "views.csv", self.views)
        write_csv(folder / "pareto.csv", table_rows(self.comparison.rows()))
        write_csv(folder / "per_class.csv", self.per_class)
        write_csv(folder / "label_errors.csv", self.suspects, SUSPECT_COLUMNS)
        write_csv(folder / "slices.csv", [asdict(each) for each in self.slices], SLICE_COLUMNS)
        write_csv(folder / "reliability.csv", self._reliability_rows())
        names = np.array(self.classes, dtype=object)
        actual, predicted = names[self.labels], names[self.predicted]
        pairs = zip(actual, predicted, strict=True)
        write_csv(folder / "confusion.csv", [{"actual": a, "predicted": p} for a, p in pairs])
        table = pa.table(
            {
                "id": pa.array(self.ids, pa.string()),
                "group": pa.array(self.rows["group"].to_pylist(), pa.string()),
                "label": pa.array(actual, pa.string()),
                "predicted": pa.array(predicted, pa.string()),
                "confidence": self.confidence,
                "probabilities": pa.FixedSizeListArray.from_arrays(
                    pa.array(self.probabilities.ravel()), len(self.classes)
                ),
            }
        )
        pq.write_table(table, folder / "predictions.parquet")

    def _reliability_rows(self) -> list[dict[str, Any]]:
        """One row a bin, calibrated and uncalibrated."""
        now, before = self.reliability, self.reliability_uncalibrated
        columns = {
            "bin_low": now.low, "bin_high": now.high,
            "count": now.count, "accuracy": now.accuracy, "confidence": now.confidence,
            "count_uncalibrated": before.count, "accuracy_uncalibrated": before.accuracy,
            "confidence_uncalibrated": before.confidence,
        }  # fmt: skip
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _write_figures(self, folder: Path) -> None:
        what = f"{self.about['dataset']}, {self.about['split']} split, n = {len(self.labels):,}"
        accuracy = f"accuracy {self.metrics['accuracy']:.2%}, view {self.registered_view}"
        rows = self.comparison.rows()
        save_figure(comparison_figure(rows, self.comparison.kind_of_name, what), folder / "pareto.png")
        captions = [
            (self.classes[self.labels[i]], self.classes[self.predicted[i]], float(self.confidence[i]))
            for i in self.worst
        ]
        num_wrong = int((self.predicted != self.labels).sum())
        save_figure(
            confusion_figure(self.confusion, self.classes, f"{what}; {accuracy}"), folder / "confusion.png"
        )
        save_figure(per_class_figure(self.class_figures, self.classes, what), folder / "per_class.png")
        tables = {"at temperature 1": self.reliability_uncalibrated}
        if (temperature := self.metrics["temperature"]) != 1:
            tables[f"at temperature {temperature:.3g}"] = self.reliability
        save_figure(reliability_figure(tables, what), folder / "reliability.png")
        save_figure(slices_figure(self.slices, self.metrics["accuracy"], what), folder / "slices.png")
        save_figure(
            mistakes_figure(self.worst_pictures, captions, num_wrong, what), folder / "worst_mistakes.png"
        )


def columns_of(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Names of the columns, and the values of each row; not every row need have every column."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[row.get(name) for name in columns] for row in rows]


def shown_slices(slices: Sequence[Slice]) -> TableRows:
    """The worst slices."""
    left_out = f", the worst {MAX_SLICES} of {len(slices)}" if len(slices) > MAX_SLICES else ""
    rows = [
        [
            each.kind,
            each.name,
            each.num_images,
            each.accuracy,
            each.accuracy_low,
            each.accuracy_high,
            mark(each),
        ]
        for each in slices[:MAX_SLICES]
    ]
    columns = ("kind", "slice", "images", "accuracy", "accuracy_low", "accuracy_high", "")
    return f"Slices{left_out}", columns, rows


def write_csv(file: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> None:
    """`columns`, else those of the rows in the order of their first appearance; NaN becomes an empty cell."""
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Sorted, and never NaN."""
    file.write_text(json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n")
