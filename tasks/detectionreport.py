"""What an evaluation of a detector found, and the files it leaves behind."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.detectionmatches import Detections, Objects, match
from tasks.detectionmetrics import per_class_ap, summarise
from tasks.pareto import TableRows
from tasks.report import write_csv


@dataclass(frozen=True)
class Report:
    """An evaluation of one detector on one split."""

    metrics: dict[str, float]
    about: dict[str, Any]
    per_class: list[dict[str, Any]]

    def document(self) -> dict[str, Any]:
        """What a program reads of it, beside the metrics."""
        return {"per_class": self.per_class, "threshold_fitted_to": self.about["threshold_fitted_to"]}

    def tables(self, title: str) -> list[TableRows]:
        """What a person reads first."""
        columns = list(self.per_class[0])
        return [
            (title, ("metric", "value"), [[k, v] for k, v in self.metrics.items()]),
            ("By class", columns, [[row[c] for c in columns] for row in self.per_class]),
        ]

    def write(self, folder: Path) -> None:
        """Write it to `folder`, `metrics.json` last."""
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "per_class.csv", self.per_class)
        for name, values in (("about", self.about), ("metrics", self.metrics)):
            (folder / f"{name}.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def detection_report(
    objects: Objects,
    detections: Detections,
    ids: Sequence[str],
    classes: Sequence[str],
    threshold: float,
    about: dict[str, Any],
    picture_at: Callable[[int], np.ndarray],  # noqa: ARG001
) -> Report:
    """Judge what a detector found."""
    matches = match(objects, detections, num_images=len(ids), num_classes=len(classes))
    metrics = {name: value for name, value in summarise(matches).items() if not np.isnan(value)}
    metrics["threshold"] = threshold
    per_class = [
        {"class": name, "ap": None if np.isnan(ap) else float(ap)}
        for name, ap in zip(classes, per_class_ap(matches), strict=True)
    ]
    return Report(metrics, about, per_class)
