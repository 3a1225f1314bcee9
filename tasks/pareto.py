"""What accuracy costs: each model, each view and each ensemble by accuracy, images a second and memory.

Every model has been measured alone, a piece of the split at a time (tasks.evaluate), so ensembles of the first two,
three … models cost no further pass: their outputs are averaged, their times are summed, since one network is computed
after the other, and of their peaks the highest counts. Memory is that of the weights and of the forward passes.

A row lies on a Pareto front where no other one is as accurate and as fast (or as small), and better in one of them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from tasks.metrics import wilson_interval
from tasks.predict import Predictor
from tasks.settings import ViewName

MARKERS: dict[ViewName, str] = {
    "single": "o", "mirror": "D", "mirror_shift": "^", "five_crop": "p", "ten_crop": "s", "multi_scale": "P",
}  # fmt: skip
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # of single models, by what they are
TOGETHER, FRONT = "#D55E00", "#333333"

TableRows = tuple[str, Sequence[str], list[list[Any]]]  # title, columns, rows: as consoles show a table


@dataclass(frozen=True)
class Row:
    """One way to predict, and what it gave and cost."""

    model: str
    view: ViewName
    num_networks: int
    accuracy: float
    accuracy_low: float  # 95% interval, Wilson's
    accuracy_high: float
    images_per_s: float
    memory_mb: float  # MiB; NaN where peaks cannot be measured
    fast_front: bool = False
    small_front: bool = False


@dataclass
class Tally:
    """What one row has shown so far."""

    num_right: int = 0
    time_s: float = 0.0
    peak_mb: float = float("nan")

    def add(self, num_right: int, time_s: float, peak_mb: float) -> None:
        self.num_right += num_right
        self.time_s += time_s
        self.peak_mb = float(np.fmax(self.peak_mb, peak_mb))


class Comparison:
    """Tallies of every model alone and of the first n together, filled while a split is evaluated."""

    def __init__(self, predictors: Sequence[Predictor], views: Sequence[ViewName]) -> None:
        self.names = names_of(predictors)
        kinds = [kind_of(predictor) for predictor in predictors]
        self.kind_of_name = dict(zip(self.names, kinds, strict=True))
        self.networks = [len(predictor.members) for predictor in predictors]
        self.weights_mb = [weights_mb(predictor) for predictor in predictors]
        self.views, self.num_images = tuple(views), 0
        self.alone = {view: [Tally() for _ in predictors] for view in views}
        self.together = {view: [Tally() for _ in predictors] for view in views}
        self.sums: dict[ViewName, tuple[np.ndarray | float, float, float]] = {}

    def see(
        self, view: ViewName, place: int, probabilities: np.ndarray, labels: np.ndarray, time_s: float, peak_mb: float
    ) -> None:  # fmt: skip
        """Take what model `place` gave, (B, K), for a piece; models come in their order, views too."""
        if view == self.views[0] and place == 0:
            self.num_images += len(labels)
        before, spent_s, highest_mb = self.sums[view] if place else (0.0, 0.0, float("nan"))
        total = before + probabilities * self.networks[place]
        time_all_s, peak_all_mb = spent_s + time_s, float(np.fmax(highest_mb, peak_mb))
        self.sums[view] = total, time_all_s, peak_all_mb
        self.alone[view][place].add(num_right(probabilities, labels), time_s, peak_mb)
        self.together[view][place].add(num_right(total, labels), time_all_s, peak_all_mb)

    def rows(self) -> list[Row]:
        """Models alone, then the first two, three … together; each by every view."""
        found = []
        for view in self.views:
            for place, name in enumerate(self.names):
                found.append(self._row(name, view, [place], self.alone[view][place]))
            for place in range(1, len(self.names)):
                everyone = list(range(place + 1))
                found.append(self._row(f"{place + 1} together", view, everyone, self.together[view][place]))
        fast = front([(row.images_per_s, row.accuracy) for row in found])
        small = front([(-row.memory_mb, row.accuracy) for row in found])
        return [
            Row(**{**asdict(row), "fast_front": is_fast, "small_front": is_small})
            for row, is_fast, is_small in zip(found, fast, small, strict=True)
        ]

    def _row(self, name: str, view: ViewName, places: list[int], tally: Tally) -> Row:
        low, high = wilson_interval(tally.num_right, self.num_images)
        return Row(
            model=name,
            view=view,
            num_networks=sum(self.networks[place] for place in places),
            accuracy=tally.num_right / self.num_images,
            accuracy_low=low,
            accuracy_high=high,
            images_per_s=self.num_images / tally.time_s,
            memory_mb=sum(self.weights_mb[place] for place in places) + tally.peak_mb,
        )


def num_right(probabilities: np.ndarray, labels: np.ndarray) -> int:
    return int((probabilities.argmax(1) == labels).sum())


def kind_of(predictor: Predictor) -> str:
    """The architecture, or what an ensemble is made of."""
    kinds = dict.fromkeys(member.architecture for member in predictor.card.members)
    number = len(predictor.members)
    return f"{number} × {' + '.join(kinds)}" if number > 1 else next(iter(kinds))


def names_of(predictors: Sequence[Predictor]) -> list[str]:
    """Each model's kind, where several are of it with its place among them all, from 0 on as members' runs have it."""
    kinds = [kind_of(predictor) for predictor in predictors]
    return [f"{kind} #{place}" if kinds.count(kind) > 1 else kind for place, kind in enumerate(kinds)]


def weights_mb(predictor: Predictor) -> float:
    """Memory of the networks' parameters and statistics, MiB."""
    tensors = [tensor for member in predictor.members for tensor in member.state_dict().values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other one is at least as good as in both values, and better in one; more is better, NaN never."""
    return [
        not np.isnan(own).any()
        and not any(x >= own[0] and y >= own[1] and (x > own[0] or y > own[1]) for x, y in points)
        for own in points
    ]


def comparison_figure(rows: Sequence[Row], kinds: dict[str, str], what: str) -> Figure:
    """Accuracy against images a second, and against memory; the fronts are drawn, what lies on them is filled.

    `kinds` has the kind of each single model: those of one kind share a colour.
    """
    measured = [row for row in rows if not np.isnan(row.memory_mb)]
    figure = Figure(figsize=(12.5 if measured else 7, 5.6), layout="constrained")
    panels = figure.subplots(1, 2 if measured else 1, sharey=True, squeeze=False)[0]
    colours = {
        kind: COLOURS[place % len(COLOURS)] for place, kind in enumerate(dict.fromkeys(kinds.values()))
    }
    colour_of = {name: colours[kind] for name, kind in kinds.items()}
    speeds = [(row.images_per_s, row.accuracy, row.fast_front) for row in rows]
    draw_panel(
        panels[0], rows, colour_of, speeds, "pre", "images/s of cropping and networks (right is better)"
    )
    if measured:
        sizes = [(row.memory_mb, row.accuracy, row.small_front) for row in measured]
        draw_panel(
            panels[1],
            measured,
            colour_of,
            sizes,
            "post",
            "memory of weights and forward passes, MiB (left is better)",
        )
    panels[0].set_ylabel("accuracy")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    views = [view for view in MARKERS if any(row.view == view for row in rows)]
    handles = [Line2D([], [], marker=MARKERS[view], color=FRONT, linestyle="", label=view) for view in views]
    handles += [Line2D([], [], marker="o", color=c, linestyle="", label=kind) for kind, c in colours.items()]
    if any(row.model not in kinds for row in rows):
        label = "several together (number of models)"
        handles.append(Line2D([], [], marker="o", color=TOGETHER, linestyle="", label=label))
    handles.append(Line2D([], [], color=FRONT, linewidth=1, label="Pareto front, filled"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"What accuracy costs\n{what}", fontsize=11, parse_math=False)
    return figure


def draw_panel(
    axes: Axes,
    rows: Sequence[Row],
    colour_of: dict[str, str],
    points: Sequence[tuple[float, float, bool]],
    where: Literal["pre", "post"],
    xlabel: str,
) -> None:
    """One front: a staircase through what lies on it, over all the others."""
    on_front = sorted((x, y) for x, y, is_on in points if is_on)
    axes.step(*zip(*on_front, strict=True), where=where, color=FRONT, linewidth=1, zorder=1)
    for row, (x, y, is_on) in zip(rows, points, strict=True):
        colour = colour_of.get(row.model, TOGETHER)
        face = colour if is_on else "white"
        axes.plot(
            x, y, marker=MARKERS[row.view], color=colour, markerfacecolor=face, markersize=8 if is_on else 6,
            linestyle="", zorder=3 if is_on else 2,
        )  # fmt: skip
        if is_on and row.model not in colour_of:
            number = row.model.partition(" ")[0]
            axes.annotate(number, (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xscale("log")
    axes.margins(0.06, 0.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if num_labels(axes) < 2:  # costs that differ by less than 2.5 times
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(xlabel)
    axes.grid(color="#E9E9E9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def num_labels(axes: Axes) -> int:
    """How many labelled ticks of the cost lie in what is drawn."""
    low, high = axes.get_xlim()
    return sum(low <= place <= high for place in axes.xaxis.get_majorticklocs())


def table_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table, the most accurate first, and of equals the fastest."""
    return [asdict(row) for row in sorted(rows, key=lambda row: (-row.accuracy, -row.images_per_s))]


def shown_rows(comparison: Sequence[dict[str, Any]]) -> TableRows:
    """`table_rows` for a reader: models, views and ensembles by accuracy and cost; what no other beats is marked."""
    columns = ("model", "view", "networks", "accuracy", "low", "high", "images/s", "MiB", "Pareto front")
    rows = []
    for row in comparison:
        fronts = [
            name for name, is_on in (("fast", row["fast_front"]), ("small", row["small_front"])) if is_on
        ]
        numbers = [
            row[name] for name in ("accuracy", "accuracy_low", "accuracy_high", "images_per_s", "memory_mb")
        ]
        rows.append([row["model"], row["view"], row["num_networks"], *numbers, " and ".join(fronts)])
    return "What accuracy costs", columns, rows
