"""What an evaluation of landmarks found, and the files it leaves behind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from data.files import write_whole
from tasks.figures import BLUE, GREY, ORANGE, VERMILLION, save_figure, title
from tasks.landmarkmetrics import CURVE_END, FAILURES, cumulative_curve, nan_mean
from tasks.landmarkpage import landmark_page
from tasks.pareto import TableRows
from tasks.report import columns_of, write_csv, write_json

CELL_IN = 2.3  # side of a picture in the grid, in inches
MAX_ROWS = 20  # points that the console shows, the worst first; the files have all


@dataclass(frozen=True)
class Shown:
    """A picture of the grid."""

    kind: str  # best, median, worst
    place: int  # in the split
    picture: np.ndarray  # (h, w) or (h, w, 3) uint8, made smaller where it was large
    size_px: tuple[int, int]  # width and height before


@dataclass(frozen=True)
class Report:
    """An evaluation of one model on one split: N pictures, P points. Errors are shares of `about["normalised_by"]`."""

    metrics: dict[str, float]
    about: dict[str, str | int | float]
    names: tuple[str, ...]
    ids: list[str]
    points_xy: np.ndarray  # (N, P, 2) pixels of the upright picture, from the centre of the first
    given: np.ndarray  # (N, P) bool
    found_xy: np.ndarray
    found_visible: np.ndarray
    errors: np.ndarray  # (N, P); NaN where there is none
    shown: tuple[Shown, ...]

    @property
    def per_point(self) -> list[dict[str, Any]]:
        """One row a point: its name, mean error and how many pictures have one."""
        means, num = nan_mean(self.errors, 0), (~np.isnan(self.errors)).sum(0)
        return [
            {
                "point": name,
                "nme": None if np.isnan(means[i]) else float(means[i]),
                "num_measured": int(num[i]),
            }
            for i, name in enumerate(self.names)
        ]

    def document(self) -> dict[str, Any]:
        """What a program reads of it, beside the metrics."""
        return {"about": self.about, "per_point": self.per_point}

    def tables(self, heading: str) -> list[TableRows]:
        """What a person reads first: the figures, and the worst points."""
        rows = sorted(self.per_point, key=lambda row: -(row["nme"] or 0))[:MAX_ROWS]
        return [
            (heading, ("metric", "value"), [[name, value] for name, value in self.metrics.items()]),
            (f"By point, the worst first; shares of the {self.about['normalised_by']}", *columns_of(rows)),
        ]

    def write(self, folder: Path) -> None:
        """Write tables and figures to `folder`, `metrics.json` last: a folder that has it is whole.

        per_point.csv; predictions.parquet; cumulative.png, per_point.png, pictures.png; report.html, all of it to read;
        about.json.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").unlink(missing_ok=True)
        write_csv(folder / "per_point.csv", self.per_point)
        pq.write_table(self.predictions(), folder / "predictions.parquet")
        write_whole(folder / "report.html", landmark_page(self, self._write_figures(folder)))
        write_json(folder / "about.json", self.about)
        write_json(folder / "metrics.json.partial", self.metrics)
        (folder / "metrics.json.partial").replace(folder / "metrics.json")

    def _write_figures(self, folder: Path) -> list[Path]:
        """The files, in the order of the page."""
        what = f"{self.about['dataset']}, {self.about['split']} split, n = {len(self.ids):,}"
        figures = {
            "cumulative": curve_figure(self, what),
            "per_point": point_figure(self, what),
            "pictures": pictures_figure(self, what),
        }
        for name, figure in figures.items():
            save_figure(figure, folder / f"{name}.png")
        return [folder / f"{name}.png" for name in figures]

    def predictions(self) -> pa.Table:
        """One row a picture: id, the points found, which are visible, the picture's error (null where none)."""
        own = nan_mean(self.errors, 1)
        return pa.table(
            {
                "id": pa.array(self.ids, pa.string()),
                "points_xy": pa.array(list(self.found_xy.reshape(len(self.ids), -1)), pa.list_(pa.float32())),
                "visible": pa.array(self.found_visible.tolist(), pa.list_(pa.bool_())),
                "nme": pa.array(own, mask=np.isnan(own)),
            }
        )


def curve_figure(report: Report, what: str) -> Figure:
    """The share of pictures whose error is at most so large."""
    own = nan_mean(report.errors, 1)
    end = max(0.2, 2 * CURVE_END)
    at, share = cumulative_curve(own[~np.isnan(own)], end)
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(at, share, color=BLUE, linewidth=2)
    for limit, colour in zip(FAILURES, (ORANGE, VERMILLION), strict=True):
        failed = report.metrics[f"failures_at_{limit:g}"]
        axes.axvline(
            limit, color=colour, linestyle="--", linewidth=1.2, label=f"{failed:.1%} above {limit:g}"
        )
    axes.set(xlim=(0, end), ylim=(0, 1.01), ylabel="share of pictures at most so wrong")
    axes.set_xlabel(f"mean error, as a share of the {report.about['normalised_by']}")
    axes.grid(color="#E9E9E9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    title(figure, f"Cumulative errors: mean {report.metrics['nme']:.4f}", what)
    return figure


def point_figure(report: Report, what: str) -> Figure:
    """The mean error of each point, in their order."""
    means = nan_mean(report.errors, 0)
    P = len(means)
    figure = Figure(figsize=(max(6.0, 2 + 0.16 * P), 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(np.arange(P), np.nan_to_num(means), color=BLUE)
    axes.axhline(report.metrics["nme"], color=GREY, linestyle="--", linewidth=1, label="mean of the pictures")
    axes.set_xticks(np.arange(P), labels=report.names, fontsize=7, rotation=90, parse_math=False)
    axes.set(xlim=(-0.8, P - 0.2), xlabel="point", ylabel=f"share of the\n{report.about['normalised_by']}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    title(figure, "Mean error of each point", what)
    return figure


def pictures_figure(report: Report, what: str) -> Figure:
    """Pictures with their true points and those found, a row each of the best, the median and the worst."""
    kinds = list(dict.fromkeys(each.kind for each in report.shown))
    columns = max(1, len(report.shown) // max(1, len(kinds)))
    size = (max(5.5, CELL_IN * columns), 1.1 + (CELL_IN + 0.25) * max(1, len(kinds)))
    figure = Figure(figsize=size, layout="constrained")
    own = nan_mean(report.errors, 1)
    if report.shown:
        grid = figure.subplots(len(kinds), columns, squeeze=False)
        for axes, each in zip(grid.flat, report.shown, strict=True):
            given, (width, height) = report.given[each.place], each.size_px
            edges = (-0.5, width - 0.5, height - 0.5, -0.5)  # in pixels as they were, as points are
            axes.imshow(each.picture, cmap="gray", vmin=0, vmax=255, extent=edges)
            axes.scatter(*report.points_xy[each.place][given].T, s=7, color="white", edgecolors="black",
                         linewidths=0.5, label="true")  # fmt: skip
            axes.scatter(*report.found_xy[each.place][given].T, s=5, color=VERMILLION, label="found")
            axes.set_title(f"{each.kind}: {own[each.place]:.3f}", fontsize=8)
            axes.set(xlim=edges[:2], ylim=edges[2:])
            axes.set_axis_off()
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
                      frameon=False, markerscale=2)  # fmt: skip
    else:
        figure.add_subplot().set_axis_off()  # without any axes there is nothing to lay out, and matplotlib warns
    title(figure, "Best, median and worst pictures", what)
    return figure
