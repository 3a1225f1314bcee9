"""What an evaluation of faces found, and the files it leaves behind."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from data.files import write_whole
from tasks.facepage import face_page
from tasks.faces import ACCURACY, far_of
from tasks.figures import save_figure, title
from tasks.identification import OpenSetCurve
from tasks.pareto import TableRows
from tasks.report import columns_of, write_csv, write_json
from tasks.verification import OperatingPoint, roc
from tasks.verificationfigures import distances_figure, open_set_figure, roc_figure

SHOWN_FARS = (0.1, 0.01, 0.001)  # of the open set's curve
CELL_IN = 1.5  # side of a picture in the grid, in inches


@dataclass(frozen=True)
class Looked:
    """What one view gave: squared distances of the pairs (P,), and figures."""

    view: str
    distances: np.ndarray
    figures: dict[str, float]


@dataclass(frozen=True)
class Shown:
    """A pair of the grid."""

    same: bool
    distance: float
    ids: tuple[str, str]
    pictures: tuple[np.ndarray, ...]  # two of (H, W) or (H, W, 3) uint8


@dataclass(frozen=True)
class Report:
    """An evaluation of one embedder on P pairs of a split; the first of `looks` is by the registered view."""

    metrics: dict[str, float]
    about: dict[str, str | int | float]
    ids: list[str]
    places: np.ndarray  # (P, 2) into ids
    same: np.ndarray  # (P,) bool
    looks: tuple[Looked, ...]
    thresholds: dict[str, float]
    shown: tuple[Shown, ...]
    # of the curve: FARs, low and high TAR; None: few people
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    open_set: OpenSetCurve | None = None  # of recognition in one gallery; None: nobody to recognise

    @property
    def points(self) -> list[OperatingPoint]:
        """The fitted thresholds; what they did on the pairs of validation is not kept."""
        found = {far_of(name): value for name, value in self.thresholds.items() if name != ACCURACY}
        return [OperatingPoint(far, value, math.nan, math.nan, 0, 0) for far, value in found.items()]

    @property
    def per_view(self) -> list[dict[str, Any]]:
        """One row a view."""
        return [{"view": each.view, **each.figures} for each in self.looks]

    @property
    def shared_views(self) -> list[dict[str, Any]]:
        """The same with the figures that all views have."""
        names = [name for name in self.looks[0].figures if all(name in each.figures for each in self.looks)]
        return [{"view": each.view, **{name: each.figures[name] for name in names}} for each in self.looks]

    def document(self) -> dict[str, Any]:
        """What a program reads of it, beside the metrics."""
        return {"about": self.about, "per_view": self.per_view, "thresholds": self.thresholds}

    def tables(self, heading: str) -> list[TableRows]:
        """What a person reads first: the figures, and each view's."""
        rows = [[name, value] for name, value in self.metrics.items()]
        pairs = (
            f"{self.about['num_pairs']:,} pairs of {self.about['num_people']:,} people: {self.about['pairs']}"
        )
        return [
            (f"{heading}; {pairs}", ("metric", "value"), rows),
            ("By view", *columns_of(self.shared_views)),
        ]

    def write(self, folder: Path) -> None:
        """Write tables and figures to `folder`, `metrics.json` last: a folder that has it is whole.

        per_view.csv; pairs.parquet; roc.png, distances.png, pairs.png, and open_set.png of what can be recognised;
        report.html, all of it to read; about.json.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").unlink(missing_ok=True)
        write_csv(folder / "per_view.csv", self.shared_views)
        pq.write_table(self.pairs(), folder / "pairs.parquet")
        write_whole(folder / "report.html", face_page(self, self._write_figures(folder)))
        write_json(folder / "about.json", self.about)
        write_json(folder / "metrics.json.partial", self.metrics)
        (folder / "metrics.json.partial").replace(folder / "metrics.json")

    def _write_figures(self, folder: Path) -> list[Path]:
        """The files, in the order of the page."""
        what = f"{self.about['dataset']}, {self.about['split']} split, {len(self.same):,} pairs"
        distances, points = self.looks[0].distances, self.points
        figures = {
            "roc": roc_figure(roc(distances, self.same), what, points, self.band),
            "distances": distances_figure(distances, self.same, what, points),
        }
        (folder / "open_set.png").unlink(missing_ok=True)  # of an evaluation that was here before
        if self.open_set is not None:
            gallery = f"{self.about['dataset']}, {self.about['split']} split; first gallery, "
            gallery += f"{self.about['num_enrolled_open_set']} people enrolled by one picture"
            fars = [far for far in SHOWN_FARS if far * self.open_set.num_unknown >= 1]
            figures["open_set"] = open_set_figure(self.open_set, gallery, fars)
        figures["pairs"] = pairs_figure(self, what)
        for name, figure in figures.items():
            save_figure(figure, folder / f"{name}.png")
        return [folder / f"{name}.png" for name in figures]

    def pairs(self) -> pa.Table:
        """One row a pair: ids, whether they are of one person, and the squared distance by each view."""
        columns = {f"distance_{each.view}": pa.array(each.distances) for each in self.looks}
        ids = np.array(self.ids, object)
        return pa.table({
            "id_a": pa.array(ids[self.places[:, 0]], pa.string()),
            "id_b": pa.array(ids[self.places[:, 1]], pa.string()),
            "same": pa.array(self.same),
            **columns,
        })  # fmt: skip


def pairs_figure(report: Report, what: str) -> Figure:
    """Pairs of one person that are farthest apart, above; pairs of two that are nearest, below."""
    rows = [[each for each in report.shown if each.same == same] for same in (True, False)]
    columns = max(1, *(len(row) for row in rows))
    figure = Figure(
        figsize=(max(5.5, 2 * CELL_IN * columns + 0.4), 2 * (CELL_IN + 0.4) + 0.6), layout="constrained"
    )
    grid = figure.subplots(2, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, cells in zip(rows, grid, strict=True):
        for each, axes in zip(row, cells, strict=False):
            height = min(picture.shape[0] for picture in each.pictures)
            width = min(picture.shape[1] for picture in each.pictures)
            both = np.concatenate([picture[:height, :width] for picture in each.pictures], 1)
            axes.imshow(both, cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"{'one person' if each.same else 'two people'}: {each.distance:.2f}", fontsize=8)
    title(figure, "Pairs that are judged most wrongly, with their squared distances", what)
    return figure
