"""What a style transfer leaves beside its picture: costs.png, a line a part of J."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tasks.figures import BLUE, GREY, ORANGE, VERMILLION, save_figure, title
from tasks.styleconfig import StyleCostConfig
from tasks.stylize import Step

CURVE_FILE = "costs.png"


def cost_figure(steps: Sequence[Step], cost: StyleCostConfig, what: str) -> Figure:
    """Each part of J as it counts, with its weight, against iterations; a grey line where a scale begins."""
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    at = [step.iteration + 1 for step in steps]
    parts = [
        ("J", [step.total for step in steps], GREY),
        (f"content × {cost.content_weight:g}", [cost.content_weight * step.content for step in steps], BLUE),
        (f"style × {cost.style_weight:g}", [cost.style_weight * step.style for step in steps], VERMILLION),
        (
            f"variation × {cost.variation_weight:g}",
            [cost.variation_weight * s.variation for s in steps],
            ORANGE,
        ),
    ]
    for name, values, colour in parts:
        if any(value > 0 for value in values):
            axes.plot(at, values, label=name, color=colour)
    for before, after in itertools.pairwise(steps):
        if before.longer_px != after.longer_px:
            axes.axvline(after.iteration + 1, color=GREY, linewidth=0.6)
    axes.set_yscale("log")
    axes.set_xlabel("iteration")
    axes.set_ylabel("cost, with its weight")
    axes.legend(frameon=False)
    title(figure, "Style transfer: the parts of J", what)
    return figure


def write_curve(folder: Path, steps: Sequence[Step], cost: StyleCostConfig, what: str) -> Path:
    """Write the figure into a run's folder; its file."""
    file = folder / CURVE_FILE
    save_figure(cost_figure(steps, cost, what), file)
    return file
