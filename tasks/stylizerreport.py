"""What an evaluation of a stylizer found, and the files it leaves behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from tasks.figures import BLUE, GREY, VERMILLION, save_figure, title
from tasks.pareto import TableRows
from tasks.report import columns_of, write_csv, write_json

# of the sheet: a picture's longer side, between them, the line above
CELL_PX, GAP_PX, CAPTION_PX = 224, 6, 18
PAPER, INK = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True)
class Rendered:
    """One picture in one style."""

    id: str
    style: str
    costs: dict[str, float]  # total, content, style, variation
    untouched: float  # J of the picture as it was
    untouched_style: float
    seconds: float
    pixels: int


@dataclass(frozen=True)
class Compared:
    """One picture that the optimisation rendered too; J, and seconds."""

    id: str
    style: str
    forward: float
    forward_s: float
    optimised_at_once: float  # the least within as many seconds as the network took
    optimised: float  # the least of all its time
    time_to_equal_s: float | None  # until it was as low as the network; None: never
    trace: tuple[tuple[float, float], ...]  # seconds, J
    # content, by the network, by optimisation: (H, W, 3) uint8
    pictures: tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Shown:
    """A row of the sheet: a picture, and what it is in each style, (H, W, 3) uint8 each."""

    id: str
    content: np.ndarray
    made: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Report:
    """An evaluation of one model on one split."""

    metrics: dict[str, float]
    about: dict[str, str | int | float]
    styles: tuple[tuple[str, np.ndarray], ...]  # name, and picture (P, P, 3) uint8
    rows: tuple[Rendered, ...]
    compared: tuple[Compared, ...]
    shown: tuple[Shown, ...]

    @property
    def per_style(self) -> list[dict[str, Any]]:
        """Mean costs of each style; `style` is the part of J, `name` the picture's."""
        found = []
        for name, _ in self.styles:
            own = [row for row in self.rows if row.style == name]
            means = {part: float(np.mean([row.costs[part] for row in own])) for part in own[0].costs}
            found.append({"name": name, **means, "untouched": float(np.mean([row.untouched for row in own]))})
        return found

    def document(self) -> dict[str, Any]:
        """What a program reads of it, beside the metrics."""
        return {"about": self.about, "per_style": self.per_style, "compared": self.comparisons()}

    def comparisons(self) -> list[dict[str, Any]]:
        """A row for each picture that the optimisation rendered too."""
        names = ("id", "style", "forward", "forward_s", "optimised_at_once", "optimised", "time_to_equal_s")
        return [{name: getattr(each, name) for name in names} for each in self.compared]

    def tables(self, heading: str) -> list[TableRows]:
        """What a person reads first: the figures, each style's, and the optimisation beside."""
        tables: list[TableRows] = [
            (heading, ("metric", "value"), [[name, value] for name, value in self.metrics.items()]),
            ("By style", *columns_of(self.per_style)),
        ]
        if self.compared:
            tables.append((f"J against {self.about['optimised']}", *columns_of(self.comparisons())))
        return tables

    def write(self, folder: Path) -> None:
        """Write tables and figures to `folder`, `metrics.json` last: a folder that has it is whole.

        pictures.csv, per_style.csv; sheet.png; compared.csv, compared.png, curves.png; about.json.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").unlink(missing_ok=True)
        write_csv(folder / "pictures.csv", [flat(row) for row in self.rows])
        write_csv(folder / "per_style.csv", self.per_style)
        rows = [[each.content, *each.made] for each in self.shown]
        sheet([("", None), *self.styles], rows).save(folder / "sheet.png")
        if self.compared:
            write_csv(folder / "compared.csv", self.comparisons())
            save_figure(curves_figure(self), folder / "curves.png")
            columns = [("content", None), ("one pass", None), (str(self.about["optimised"]), None)]
            sheet(columns, [each.pictures for each in self.compared]).save(folder / "compared.png")
        write_json(folder / "about.json", self.about)
        write_json(folder / "metrics.json.partial", self.metrics)
        (folder / "metrics.json.partial").replace(folder / "metrics.json")


def flat(row: Rendered) -> dict[str, Any]:
    return {
        "id": row.id, "name": row.style, **row.costs, "untouched": row.untouched, "seconds": row.seconds,
        "pixels": row.pixels,
    }  # fmt: skip


def sheet(
    columns: Sequence[tuple[str, np.ndarray | None]], rows: Sequence[Sequence[np.ndarray]]
) -> Image.Image:
    """Pictures in rows, each fitted to its cell; above each column its name, and its style."""
    top = CELL_PX + GAP_PX if any(picture is not None for _, picture in columns) else 0
    heights = [max(fitted(picture).height for picture in row) for row in rows]
    width = GAP_PX + len(columns) * (CELL_PX + GAP_PX)
    height = CAPTION_PX + GAP_PX + top + sum(heights) + GAP_PX * len(heights)
    whole = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(whole)
    for place, (name, picture) in enumerate(columns):
        x = GAP_PX + place * (CELL_PX + GAP_PX)
        draw.text((x, 4), name, INK)
        if picture is not None:
            whole.paste(fitted(picture), (x, CAPTION_PX + GAP_PX))
    y = CAPTION_PX + GAP_PX + top
    for row, tall in zip(rows, heights, strict=True):
        for place, picture in enumerate(row):
            whole.paste(fitted(picture), (GAP_PX + place * (CELL_PX + GAP_PX), y))
        y += tall + GAP_PX
    return whole


def fitted(pixels: np.ndarray) -> Image.Image:
    """A picture whose longer side is a cell's."""
    image = Image.fromarray(pixels)
    scale = CELL_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def curves_figure(report: Report) -> Figure:
    """J of the optimisation over time, a line a picture, and where one pass of the network stands."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for place, each in enumerate(report.compared):
        seconds, totals = np.array(each.trace).T
        axes.plot(seconds, totals, color=BLUE, linewidth=1, label="optimisation" if not place else None)
        axes.plot(
            each.forward_s, each.forward, "o", color=VERMILLION, label="one pass" if not place else None
        )
        axes.axhline(each.forward, color=GREY, linewidth=0.5, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="J")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    title(
        figure,
        "J of one pass and of the optimisation",
        f"{report.about['dataset']}, {report.about['split']} split",
    )
    return figure
