"""What a learning curve leaves: cells.csv (a row a run), curve.json (all of it), curve.png (a line a mode)."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from data.files import write_whole
from tasks.curve import Point, best_at
from tasks.curveplan import CellResult, Mode
from tasks.figures import BLUE, GREY, ORANGE, VERMILLION, save_figure, title

# mode → its name in a figure, its colour and mark
LOOKS: dict[Mode, tuple[str, str, str]] = {
    "head": ("head, on cached features", BLUE, "o"),
    "stages": ("last stages and head", ORANGE, "D"),
    "all": ("everything", VERMILLION, "s"),
    "scratch": ("everything, from scratch", GREY, "x"),
}
# of a decade: between the marks of modes at one place, so that their bars do not hide each other
SPREAD = 0.03


def rows_of(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Plain values of each point, and whether it is the best of its number of pictures."""
    return [
        {
            "mode": point.mode,
            "shots": point.shots,
            "num_images": point.num_images,
            "accuracy": point.mean,
            "deviation": None if math.isnan(point.deviation) else point.deviation,
            "num_seeds": len(point.accuracies),
            "best": point is best_at(points, point.shots),
        }
        for point in points
    ]


def curve_figure(points: Sequence[Point], what: str) -> Figure:
    """Validation accuracy against pictures a class, a line a mode; bars are a standard deviation of seeds each way."""
    figure = Figure(figsize=(7.6, 5.2), layout="constrained")
    axes = figure.add_subplot()
    modes = list(dict.fromkeys(point.mode for point in points))
    shots = sorted({point.shots for point in points})
    for i, mode in enumerate(modes):
        own = [point for point in points if point.mode == mode]
        aside = 10 ** (SPREAD * (i - (len(modes) - 1) / 2))
        name, colour, mark = LOOKS[mode]
        axes.errorbar(
            [point.shots * aside for point in own],
            [point.mean for point in own],
            yerr=[0.0 if math.isnan(point.deviation) else point.deviation for point in own],
            label=name, color=colour, marker=mark, markersize=6, linewidth=1.8, elinewidth=1.1, capsize=3,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(shots, labels=[f"{num:,}" for num in shots])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set(xlabel="training pictures a class", ylabel="validation accuracy")
    axes.grid(color="#E9E9E9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    title(figure, "Learning curves of transfer learning", what)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def write_curve(
    folder: Path, results: Sequence[CellResult], points: Sequence[Point], about: dict[str, Any], what: str
) -> list[Path]:
    """Write the three files; `about` says what was measured, and how."""
    table, document, picture = (folder / name for name in ("cells.csv", "curve.json", "curve.png"))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(CellResult)])
    writer.writeheader()
    writer.writerows(asdict(result) for result in results)
    write_whole(table, text.getvalue())
    values = {"about": about, "points": rows_of(points), "cells": [asdict(result) for result in results]}
    write_whole(document, json.dumps(values, indent=2) + "\n")
    save_figure(curve_figure(points, what), picture)
    return [table, document, picture]
