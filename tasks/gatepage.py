"""The evidence of a gate: an HTML page with the figure of the gains for MLflow, a short one in Markdown for Prefect."""

import math
from collections.abc import Sequence
from typing import Any

from tasks.gate import Cost, GateConfig, Verdict, numbers, slice_standing, standing
from tasks.page import document, escape, table
from tasks.pairing import Guarded, Paired

MAX_SHOWN = 30  # slices in the figure; the table has all
ROW_PX, NAME_PX, PLOT_PX = 26, 270, 560
COLOURS = {"better": "#17612f", "worse": "#c5221f", "open": "#b06f00", "not worse": "#37424e"}
TextRows = tuple[tuple[str, ...], list[list[Any]]]
QUIET = "#8c959f"


def gate_page(
    about: dict[str, Any], paired: Paired, costs: tuple[Cost, Cost], verdict: Verdict, config: GateConfig
) -> str:
    """The page; `about` says what was compared: names and values, in their order."""
    kind = "go" if verdict.decision == "promote" else "stop"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    slices = sorted(paired.slices, key=lambda each: (not each.worse, not each.enough, each.low))
    return document(
        f"Gate: {about['model']}",
        f"<h1>May version {escape(about['challenger'])} replace version {escape(about['champion'])} of "
        f"{escape(about['model'])}?</h1>",
        f'<div class="verdict {kind}">{escape(verdict.sentence)}</div>',
        f"<h2>Why</h2><ul>{reasons}</ul>",
        f'<h2>Gains</h2><p class="quiet">Challenger minus champion, the better way to the right, on the same '
        f"{paired.num_samples:,} {paired.unit}. A line is the interval of a metric; of a slice it ends at "
        f"the lower bound, at confidence {1 - config.alpha:g}. The grey field is the margin: losses that do not "
        "matter.</p>" + figure(paired, slices[:MAX_SHOWN]),
        "<h2>Metrics</h2>" + table(*metric_rows(paired)),
        ("<h2>Slices</h2>" + table(*slice_rows(slices))) if slices else "",
        "<h2>Cost</h2>" + table(*cost_rows(costs)),
        "<h2>What was compared</h2>"
        + table(("", ""), [(name, numbers(value)) for name, value in about.items()]),
    )


def metric_rows(paired: Paired) -> TextRows:
    """The metrics as a table."""
    columns = (
        "metric",
        "champion",
        "challenger",
        "gain",
        "from",
        "to",
        "p",
        "margin",
        "detectable",
        "test",
        "",
    )
    return columns, [
        [
            test.name, share(test.champion), share(test.challenger), change(test.gain), change(test.low),
            change(test.high), numbers(test.p_value), f"{test.margin:g}", share(test.detectable), test.test,
            standing(test) + (", primary" if test.primary else ""),
        ]
        for test in paired.metrics
    ]  # fmt: skip


def slice_rows(slices: Sequence[Guarded]) -> TextRows:
    """Slices as a table."""
    columns = ("kind", "slice", "samples", "champion", "challenger", "gain", "at least", "margin", "")
    return columns, [
        [
            each.kind, each.name, each.num_samples, share(each.champion), share(each.challenger),
            change(each.gain), change(each.low), f"{each.margin:g}", slice_standing(each),
        ]
        for each in slices
    ]  # fmt: skip


def cost_rows(costs: tuple[Cost, Cost]) -> TextRows:
    """Costs as a table."""
    columns = ("model", "an answer, ms", "memory, MiB")
    names = ("champion", "challenger")
    return columns, [
        [
            name,
            f"{cost.latency_ms:.2f}",
            cost.unmeasured if cost.memory_mb is None else f"{cost.memory_mb:.1f}",
        ]
        for name, cost in zip(names, costs, strict=True)
    ]


def share(value: float) -> str:
    """A metric's value."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def change(value: float) -> str:
    """A gain, with its sign."""
    return f"{value:+.4f}"


def figure(paired: Paired, slices: Sequence[Guarded]) -> str:
    """Gains and their intervals as SVG, a line each."""
    rows = [
        (f"{test.name}, all", test.gain, test.low, test.high, test.margin, COLOURS[standing(test)])
        for test in paired.metrics
    ]
    rows += [
        (
            f"{each.kind} {each.name}, n = {each.num_samples:,}", each.gain, each.low, each.gain, each.margin,
            COLOURS.get(slice_standing(each), QUIET),
        )
        for each in slices
    ]  # fmt: skip
    finite = [abs(value) for _name, gain, low, high, margin, _ in rows for value in (gain, low, high, margin)
              if abs(value) < float("inf")]  # fmt: skip
    reach = 1.08 * max(finite, default=1.0)

    def x(value: float) -> float:
        return NAME_PX + PLOT_PX * (min(max(value, -reach), reach) + reach) / (2 * reach)

    height = ROW_PX * (len(rows) + 1)
    parts = []
    for i, (name, gain, low, high, margin, colour) in enumerate(rows):
        y = ROW_PX * i + ROW_PX / 2
        parts += [
            f'<rect x="{x(-margin):.1f}" y="{y - ROW_PX / 2 + 2:.1f}" width="{x(0) - x(-margin):.1f}" '
            f'height="{ROW_PX - 4}" fill="#eef1f4"/>',
            f'<text x="{NAME_PX - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name[:40])}</text>',
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" '
            'stroke-width="2"/>',
            f'<circle cx="{x(gain):.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{escape(name)}: {gain:+.4f}, '
            f"{low:+.4f} to {high:+.4f}</title></circle>",
        ]
    bottom = ROW_PX * len(rows)
    parts.append(f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{bottom}" stroke="#59636e"/>')
    for value in (-reach / 1.08, 0.0, reach / 1.08):
        parts.append(f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{value:+.3f}</text>')
    return (
        f'<svg viewBox="0 0 {NAME_PX + PLOT_PX + 40} {height}" style="width:100%;max-width:{NAME_PX + PLOT_PX + 40}px;'
        f'font-size:13px">{"".join(parts)}</svg>'
    )


def gate_markdown(about: dict[str, Any], paired: Paired, costs: tuple[Cost, Cost], verdict: Verdict) -> str:
    """The same, short, for Prefect's UI and for whoever is asked to approve."""
    reasons = "\n".join(f"- {markdown(reason)}" for reason in verdict.reasons)
    lines = [
        f"**{about['model']}: version {about['challenger']} against the champion, version {about['champion']}**",
        f"Verdict: **{verdict.decision}**",
        reasons,
        markdown_table(*metric_rows(paired)),
        markdown_table(*cost_rows(costs)),
        ", ".join(f"{name}: `{numbers(value)}`" for name, value in about.items()),
    ]
    return "\n\n".join(lines) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(markdown(cell) for cell in line) + " |" for line in lines)


def markdown(text: object) -> str:
    """A text without what would make a table or markup of it."""
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
