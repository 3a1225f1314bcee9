"""Figures of an evaluation, drawn through matplotlib's objects: no global state, no display.

Colours are Okabe and Ito's, and the sequential map is cividis: both keep their order for colour-blind readers and in
grey print. Class names are shown as they are: a `$` in one starts no formula.
"""

import itertools
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO
from unicodedata import east_asian_width

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tasks.metrics import PerClass, Reliability
from tasks.slices import FEW, Slice

BLUE, ORANGE, VERMILLION, GREY = "#0072B2", "#E69F00", "#D55E00", "#666666"
DPI = 120
LETTERS_PER_INCH = 10  # of a title, at its font size
MAX_NAME = 22  # columns of text that a class name may take, a Chinese character two
MAX_COUNTS = 25  # classes up to which each cell of the confusion matrix shows its count
MAX_TICKS = 120  # classes up to which each row of the confusion matrix has its name
MAX_SLICES = 40  # worst slices that their figure shows
MAX_BARS = 100  # classes that the per-class figure shows
CELL_IN, CAPTION_IN = (2.0, 2.55), 0.55  # width and height of a mistake in inches, and of its caption
SHEET_CELLS = 128  # of a contact sheet, at most: matplotlib makes no picture of 65,536 px a side
NUM_CONFUSIONS = 20  # most frequent confusions, listed beside a matrix whose cells are too small to read

Caption = tuple[str, str, float]  # true class, predicted class, confidence


def save_figure(figure: Figure, file: Path | BinaryIO) -> None:
    """Write a PNG."""
    with warnings.catch_warnings():
        # a class name in a script that the font lacks is drawn as boxes: no reason to fail an evaluation
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        figure.savefig(file, dpi=DPI, format="png")


def save_sheets(folder: Path, stem: str, num_cells: int, sheet: Callable[[slice], Figure]) -> list[Path]:
    """Save contact sheets as STEM.png, and of more cells than fit into one STEM-2.png too, and so on; returns them.

    `sheet` draws some of the cells.
    """
    files = []
    for number, first in enumerate(range(0, num_cells, SHEET_CELLS), start=1):
        files.append(folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png"))
        save_figure(sheet(slice(first, first + SHEET_CELLS)), files[-1])
    return files


def title(figure: Figure, shown: str, what: str) -> None:
    """What is shown, and below it, of what; wrapped, since a figure of two classes is narrow."""
    num_columns = int(figure.get_figwidth() * LETTERS_PER_INCH)
    lines = [textwrap.fill(text, num_columns) for text in (shown, what)]
    figure.suptitle("\n".join(lines), fontsize=11, parse_math=False)


def short(name: str) -> str:
    """A class name that fits a label: one line, cut where it is long."""
    line = " ".join(name.split())
    widths = itertools.accumulate(2 if east_asian_width(letter) in "WF" else 1 for letter in line)
    num_fitting = sum(width <= MAX_NAME for width in widths)
    return line if num_fitting == len(line) else f"{line[: num_fitting - 1]}…"


def confusion_figure(
    confusion: np.ndarray, classes: Sequence[str], what: str, counted: str = "images"
) -> Figure:
    """The confusion matrix (K, K): colour is the share of the true class, numbers are what is `counted`."""
    K = len(classes)
    listed = K > MAX_COUNTS
    size_in = (22.0, 13.5) if listed else (5.2 + 0.42 * K, 4.2 + 0.42 * K)
    figure = Figure(figsize=size_in, layout="constrained")
    grid = figure.add_gridspec(1, 2 if listed else 1, width_ratios=[3, 1] if listed else [1])
    axes = figure.add_subplot(grid[0])
    support = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, support, out=np.zeros(confusion.shape), where=support > 0)
    # the square root lifts the few mistakes above the black of none
    image = axes.imshow(np.sqrt(share), cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, fraction=0.035, pad=0.015)
    shares = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)
    bar.set_ticks(np.sqrt(shares).tolist(), labels=[f"{s:.0%}" for s in shares])
    bar.set_label("share of the true class (colour by square root)")
    label_classes(axes, classes)
    if K <= MAX_COUNTS:
        write_counts(axes, confusion, share)
    axes.set(xlabel="predicted class", ylabel="true class")
    title(figure, "Confusion matrix", what)
    if listed:
        list_confusions(figure.add_subplot(grid[1]), confusion, classes, counted)
    return figure


def label_classes(axes: Axes, classes: Sequence[str]) -> None:
    """Name each row and column, or number some of them where there are too many."""
    K = len(classes)
    if K > MAX_TICKS:
        axes.tick_params(top=False, labeltop=False)
        return
    size = 10 if K <= 12 else 8 if K <= MAX_COUNTS else max(5.0, 8 - K / 40)
    names = [short(name) for name in classes]
    turned = 90 if K * max(map(len, names)) > 60 else 0
    axes.set_xticks(range(K), labels=names, rotation=turned, fontsize=size, parse_math=False)
    axes.set_yticks(range(K), labels=names, fontsize=size, parse_math=False)


def write_counts(axes: Axes, confusion: np.ndarray, share: np.ndarray) -> None:
    """The number of images in each cell that has any."""
    size = 9 if len(confusion) <= 12 else 7
    for row, column in np.argwhere(confusion):
        dark = share[row, column] < 0.3
        axes.text(
            column,
            row,
            f"{confusion[row, column]:,}",
            ha="center",
            va="center",
            fontsize=size,
            color="white" if dark else "black",
        )


def list_confusions(axes: Axes, confusion: np.ndarray, classes: Sequence[str], counted: str) -> None:
    """Bars of the most frequent confusions, by the share of the true class."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:NUM_CONFUSIONS]
    rows, columns = np.unravel_index(order[wrong.ravel()[order] > 0], wrong.shape)
    names = [f"{short(classes[i])} → {short(classes[j])}" for i, j in zip(rows, columns, strict=True)]
    counts = wrong[rows, columns]
    bars = axes.barh(range(len(names)), counts, color=VERMILLION, height=0.6)
    axes.bar_label(bars, labels=[f"{count:,}" for count in counts], padding=3, fontsize=9)
    axes.set_yticks(range(len(names)), labels=names, fontsize=9, parse_math=False)
    axes.set_ylim(NUM_CONFUSIONS - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Most frequent confusions (true → predicted, {counted})", fontsize=10)


def per_class_figure(figures: PerClass, classes: Sequence[str], what: str, counted: str = "images") -> Figure:
    """Precision and recall of each class, joined by a line, and F1 between them; lowest F1 first."""
    order = np.argsort(figures.f1, kind="stable")[:MAX_BARS]
    names = [f"{short(classes[i])} ({figures.support[i]:,})" for i in order]
    precision, recall, f1 = figures.precision[order], figures.recall[order], figures.f1[order]
    places = np.arange(len(order))
    figure = Figure(figsize=(8.5, 2.1 + 0.24 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    axes.hlines(places, precision, recall, color="#BBBBBB", linewidth=2.5, zorder=1)
    axes.scatter(precision, places, color=BLUE, marker="o", s=34, label="precision", zorder=3)
    axes.scatter(recall, places, color=ORANGE, marker="D", s=30, label="recall", zorder=3)
    axes.scatter(f1, places, color="black", marker="|", s=90, linewidth=1.8, label="F1", zorder=4)
    mean = f"macro-F1 {figures.macro_f1:.3f}"
    axes.axvline(figures.macro_f1, color=GREY, linewidth=1, linestyle="--", label=mean)
    axes.set_yticks(places, labels=names, fontsize=9, parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    lowest = float(min(precision.min(), recall.min()))
    axes.set_xlim(np.floor(lowest * 10 - 0.2) / 10 if lowest > 0.05 else -0.02, 1.015)
    axes.grid(axis="both", color="#E9E9E9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"share (in brackets: {counted} of the class)")
    left_out = f"the {len(order)} of lowest F1, of {len(classes)}"
    shown = left_out if len(order) < len(classes) else "lowest F1 first"
    title(figure, f"Precision and recall of classes, {shown}", what)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def reliability_figure(tables: Mapping[str, Reliability], what: str) -> Figure:
    """Accuracy against confidence by bins, and how many images each bin holds: by name, side by side."""
    figure = Figure(figsize=(0.8 + 5.6 * len(tables), 7.2), layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(w_pad=0.12)  # type: ignore[call-arg]  # between the ends of two axes' numbers
    grid = figure.subplots(2, len(tables), sharex=True, sharey="row", height_ratios=[3, 1], squeeze=False)
    for (name, table), (upper, lower) in zip(tables.items(), grid.T, strict=True):
        draw_bins(upper, lower, table)
        upper.set_title(f"{name}: ECE {table.expected_error:.4f}", fontsize=10)
    most = max(int(table.count.max()) for table in tables.values())
    grid[1, 0].set(ylim=(0, max(10, most * 5)), ylabel="images")
    grid[0, 0].set_ylabel("accuracy of the bin")
    grid[0, 0].legend(loc="upper left", frameon=False)
    [table, *_] = tables.values()
    title(figure, f"Calibration in {len(table.count)} bins", what)
    return figure


def draw_bins(upper: Axes, lower: Axes, table: Reliability) -> None:
    """One reliability diagram, and the images of its bins below."""
    width, middle = table.high - table.low, (table.low + table.high) / 2
    full = table.count > 0
    upper.bar(middle[full], table.accuracy[full], width[full] * 0.94, color=BLUE, label="accuracy")
    upper.vlines(
        table.confidence[full],
        table.accuracy[full],
        table.confidence[full],
        color=VERMILLION,
        linewidth=2.5,
        label="gap to the mean confidence",
    )
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="perfectly calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    bars = lower.bar(middle, table.count, width * 0.94, color=GREY)
    lower.bar_label(bars, labels=[f"{n:,}" if n else "" for n in table.count], fontsize=7, padding=1)
    lower.set_yscale("symlog", linthresh=1)
    lower.set_xlabel("confidence of the predicted class")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)


def slices_figure(slices: Sequence[Slice], accuracy: float, what: str) -> Figure:
    """Accuracy of the worst slices with their intervals, against that of the whole split."""
    shown = slices[:MAX_SLICES]
    figure = Figure(figsize=(8.5, 2.1 + 0.24 * max(4, len(shown))), layout="constrained")
    axes = figure.add_subplot()
    for place, each in enumerate(shown):
        colour = VERMILLION if each.below else GREY if each.few else BLUE
        axes.hlines(place, each.accuracy_low, each.accuracy_high, color=colour, linewidth=2.2)
        axes.plot(each.accuracy, place, marker="o", color=colour, markersize=5.5)
    axes.axvline(accuracy, color="black", linewidth=1, linestyle="--")
    names = [f"{each.kind}: {short(each.name)} ({each.num_images:,})" for each in shown]
    axes.set_yticks(range(len(shown)), labels=names, fontsize=9, parse_math=False)
    axes.set_ylim(max(4, len(shown)) - 0.4, -0.6)
    lowest = min([each.accuracy_low for each in shown] + [accuracy])
    axes.set_xlim(max(-0.02, np.floor(lowest * 10 - 0.2) / 10), 1.015)
    axes.grid(axis="x", color="#E9E9E9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("accuracy, 95% interval (in brackets: images)")
    left_out = (
        f", the worst {len(shown)} of {len(slices)}" if len(shown) < len(slices) else ", the worst first"
    )
    title(figure, f"Accuracy of slices{left_out}", what)
    figure.legend(
        handles=slice_legend(accuracy), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    return figure


def slice_legend(accuracy: float) -> list[Line2D]:
    """What the colours of slices mean."""
    colours = {"below all": VERMILLION, "not below all": BLUE, f"fewer than {FEW} images": GREY}
    dots = [Line2D([], [], color=colour, marker="o", label=name) for name, colour in colours.items()]
    return [*dots, Line2D([], [], color="black", linewidth=1, linestyle="--", label=f"all, {accuracy:.2%}")]


def mistakes_figure(pictures: np.ndarray, captions: Sequence[Caption], num_wrong: int, what: str) -> Figure:
    """The most confident mistakes: pictures (M, C, S, S) uint8 with true class → predicted class and confidence."""
    M = len(pictures)
    columns = min(6 if M <= 36 else 10, max(M, 1))
    rows = -(-M // columns)
    figure = Figure(figsize=(max(5.5, CELL_IN[0] * columns), 1 + CELL_IN[1] * rows), layout="constrained")
    if M == 0:
        title(figure, "No mistakes" if num_wrong == 0 else f"None of {num_wrong:,} mistakes", what)
        return figure
    title(figure, f"The {M} most confident of {num_wrong:,} mistakes: true class → predicted class", what)
    axes = figure.add_subplot()  # one for all: an Axes for each picture takes four times as long
    axes.set_axis_off()
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(place, columns)
        draw_mistake(axes, picture, caption, column * CELL_IN[0], row * CELL_IN[1])
    axes.set(xlim=(0, columns * CELL_IN[0]), ylim=(rows * CELL_IN[1], 0), aspect="equal")
    return figure


def draw_mistake(axes: Axes, picture: np.ndarray, caption: Caption, left: float, top: float) -> None:
    """One picture (C, S, S) with its caption above it, at a place in inches."""
    true, predicted, confidence = caption
    text = f"{short(true)}\n→ {short(predicted)}\n{confidence:.1%}"
    axes.text(
        left, top + CAPTION_IN - 0.04, text, fontsize=8.5, va="bottom", linespacing=1.25, parse_math=False
    )
    side = CELL_IN[0] - 0.12
    pixels = np.broadcast_to(picture.transpose(1, 2, 0), (*picture.shape[1:], 3))  # grey as RGB
    extent = (left, left + side, top + CAPTION_IN + side, top + CAPTION_IN)
    axes.imshow(pixels, extent=extent, interpolation="nearest")


def preview_figure(pictures: np.ndarray, names: Sequence[str], what: str, cell_in: float = 1.25) -> Figure:
    """Pictures (N, 1 + E, H, W, C) uint8: each row one of them, first as evaluation sees it, then in E epochs.

    `cell_in` is the side of each, in inches.
    """
    num_rows, num_columns, H, W, C = pictures.shape
    figure = Figure(figsize=(1.3 + cell_in * num_columns, 0.9 + (cell_in + 0.06) * num_rows))
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for row, name in enumerate(names):
        for column in range(num_columns):
            axes = grid[row, column]
            picture = pictures[row, column]
            axes.imshow(picture if C == 3 else picture[:, :, 0], cmap="gray", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title("as evaluated" if column == 0 else f"epoch {column - 1}", fontsize=8)
        grid[row, 0].set_ylabel(short(name), fontsize=8, parse_math=False)
    title = textwrap.fill(f"What training sees: {what}", int(13 * figure.get_figwidth()))
    figure.suptitle(title, fontsize=10, parse_math=False)
    room_in = 0.14 + 0.16 * (1 + title.count("\n"))
    figure.tight_layout(pad=0.4, rect=(0, 0, 1, 1 - room_in / figure.get_figheight()))
    return figure
