"""What a search leaves: trials.csv (a row a trial), history.png (best so far), slices.png (a panel a parameter)."""

import csv
import json
import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tasks.figures import BLUE, GREY, ORANGE, VERMILLION, save_figure, short, title
from tasks.space import Choice, SearchMetric, Span, Value
from tasks.study import State, Study, Trial

# state → colour and mark; a failed trial has no value, and stands at the edge
LOOKS: dict[State, tuple[str, str]] = {
    "finished": (BLUE, "o"),
    "stopped early": (GREY, "."),
    "failed": (VERMILLION, "x"),
}
LABELS = {
    "finished": "finished",
    "stopped early": "stopped early, by its last validation",
    "failed": "failed, by its last validation",
}
NAMES = {"val_accuracy": "validation accuracy", "val_loss": "validation loss", "val_ap": "AP on validation"}
MARGIN = 0.04  # of a range, to either side
PANEL_IN, MAX_COLUMNS = (3.2, 3.0), 4
MIN_FINISHED = 5  # trials, for shares of the variance that say anything


def rows_of(study: Study) -> list[dict[str, Any]]:
    """Plain values of each trial."""
    return [
        {
            "trial": trial.number,
            "state": trial.state,
            "value": trial.value,
            "epochs": trial.epoch,
            "time_s": trial.time_s,
            "cpu_s": trial.cpu_s,
            "changes": trial.changes,
            "reason": trial.reason,
        }
        for trial in study.trials()
    ]


def write_search(folder: Path, study: Study, metric: SearchMetric, what: str) -> list[Path]:
    """Write the three files."""
    table, history, slices = (folder / name for name in ("trials.csv", "history.png", "slices.png"))
    columns = ["trial", "state", "value", "epochs", "time_s", "cpu_s", *study.space, "reason"]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows_of(study):
            changes = {key: text_of(value) for key, value in row.pop("changes").items()}
            writer.writerow({**row, **changes})
    save_figure(history_figure(study, metric, what), history)
    save_figure(slices_figure(study, metric, what), slices)
    return [table, history, slices]


def text_of(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def history_figure(study: Study, metric: SearchMetric, what: str) -> Figure:
    """Each trial's last value in the order of their beginnings, and the best finished one so far."""
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    trials = study.trials()
    scatter(axes, trials, [trial.number for trial in trials])
    steps: list[tuple[int, float]] = []
    for trial in trials:
        if trial.state == "finished" and trial.value is not None:
            better = not steps or (trial.value > steps[-1][1]) == study.maximize
            steps.append((trial.number, trial.value if better else steps[-1][1]))
    numbers, values = [number for number, _ in steps], [value for _, value in steps]
    axes.step(
        [*numbers, len(trials) - 1], [*values, *values[-1:]],
        where="post", color=ORANGE, linewidth=1.8, label="best finished", zorder=1,
    )  # fmt: skip
    axes.set(xlabel="trial", ylabel=NAMES[metric])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes, metric)
    title(figure, "Course of the search", what)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def slices_figure(study: Study, metric: SearchMetric, what: str) -> Figure:
    """The value against each parameter; a panel's title says how much of the variance the parameter explains."""
    trials = study.trials()
    finished = [trial for trial in trials if trial.state == "finished"]
    telling = len(finished) >= MIN_FINISHED and len({trial.value for trial in finished}) > 1
    shares = study.importances() if telling else {}
    num_columns = min(len(study.space), MAX_COLUMNS)
    num_rows = math.ceil(len(study.space) / num_columns)
    width = max(PANEL_IN[0] * num_columns, 5.0)
    figure = Figure(figsize=(width, PANEL_IN[1] * num_rows + 1.0), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).ravel()
    for axes, (key, values) in zip(panels, study.space.items(), strict=False):
        places = [place_of(values, trial.changes[key]) for trial in trials]
        scatter(axes, trials, places)
        mark_places(axes, values)
        share = f", {shares[key]:.0%}" if key in shares else ""
        axes.set_title(f"{key}{share}", fontsize=10, parse_math=False)
        finish(axes, metric)
    for row in range(num_rows):
        panels[row * num_columns].set_ylabel(NAMES[metric])
    for axes in panels[len(study.space) :]:
        axes.set_axis_off()
    explained = "; %: of the variance among finished trials" if shares else ""
    title(figure, f"Value by parameter{explained}", what)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def scatter(axes: Axes, trials: list[Trial], places: list[float]) -> None:
    """A mark a trial; those without a value at the lower edge."""
    for state, (colour, mark) in LOOKS.items():
        own = [
            (place, trial.value)
            for place, trial in zip(places, trials, strict=True)
            if trial.state == state and trial.value is not None
        ]
        if own:
            x, y = zip(*own, strict=True)
            axes.scatter(
                x,
                y,
                color=colour,
                marker=mark,
                s=36,
                label=LABELS[state],
                zorder=3 if state == "finished" else 2,
            )
    none = [places[i] for i, trial in enumerate(trials) if trial.value is None]
    if none:
        axes.scatter(
            none, [0.02] * len(none), transform=axes.get_xaxis_transform(),
            color=VERMILLION, marker="x", s=36, label="failed, or without a validation", zorder=3,
        )  # fmt: skip


def place_of(values: Span | Choice, value: Value) -> float:
    return float(values.options.index(value)) if isinstance(values, Choice) else float(value)


def mark_places(axes: Axes, values: Span | Choice) -> None:
    """Names of the options, or the scale of the range."""
    if isinstance(values, Choice):
        names = [short(text_of(option)) for option in values.options]
        turned = 90 if sum(map(len, names)) > 30 else 0
        axes.set_xticks(range(len(names)), labels=names, rotation=turned, parse_math=False)
        axes.set_xlim(-0.5, len(names) - 0.5)
        return
    if values.log:
        axes.set_xscale("log")
        beyond = (values.high / values.low) ** MARGIN
        axes.set_xlim(values.low / beyond, values.high * beyond)
    else:
        beyond = (values.high - values.low) * MARGIN
        axes.set_xlim(values.low - beyond, values.high + beyond)


def finish(axes: Axes, metric: SearchMetric) -> None:
    if metric == "val_accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.grid(color="#E9E9E9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
