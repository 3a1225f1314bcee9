"""Charts of HTML pages as inline SVG: bars by name, and histograms. No library, a few lines each, sharp at any size."""

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10

import numpy as np

from data.dataset import Split
from tasks.page import escape

WIDTH = 560  # of a chart, in its own units; the page scales it
ROW, NAME_WIDTH, VALUE_WIDTH = 20, 150, 64
PLOT_HEIGHT, LEFT, BOTTOM, TOP = 150, 52, 34, 10
SPLIT_COLOURS: dict[Split, str] = {"train": "#0072B2", "val": "#E69F00", "test": "#009E73"}
MAX_NAME = 22  # letters of a name
MAX_LETTERS = 56  # below a chart, in all


def figure(caption: str, body: str, note: str = "") -> str:
    """A chart under its caption."""
    below = f'<div class="quiet small">{escape(note)}</div>' if note else ""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{body}{below}</figure>"


def legend(names: Sequence[Split]) -> str:
    """The colours of splits."""
    entries = "&ensp;".join(
        f'<span style="color:{SPLIT_COLOURS[name]}">■</span> {escape(name)}' for name in names
    )
    return f'<div class="small">{entries}</div>'


def stacked_bars(rows: Sequence[tuple[str, Mapping[Split, int]]]) -> str:
    """One bar a name, its splits one after the other, and their sum at its end."""
    top = max([sum(parts.values()) for _, parts in rows] + [1])
    room = WIDTH - NAME_WIDTH - VALUE_WIDTH
    shapes = []
    for i, (name, parts) in enumerate(rows):
        y = i * ROW
        shapes.append(_text(NAME_WIDTH - 8, y + 14, _short(name), "end", name))
        x = float(NAME_WIDTH)
        for split, number in parts.items():
            width = number / top * room
            hint = f"<title>{escape(name)}, {split}: {number:,}</title>"
            place = f'x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{ROW - 6}"'
            shapes.append(f'<rect {place} fill="{SPLIT_COLOURS[split]}">{hint}</rect>')
            x += width
        shapes.append(_text(x + 6, y + 14, f"{sum(parts.values()):,}", "start"))
    return _svg(WIDTH, ROW * len(rows) + 4, shapes)


def columns(bars: Sequence[tuple[str, int]], xlabel: str, ylabel: str) -> str:
    """Upright bars with a name below each."""
    top = max([number for _, number in bars] + [1])
    step = (WIDTH - LEFT - 8) / max(1, len(bars))
    skip = _stride([name for name, _ in bars])
    shapes = _axis(top, ylabel)
    for i, (name, number) in enumerate(bars):
        height = number / top * PLOT_HEIGHT
        place = f'x="{LEFT + i * step + 1:.1f}" y="{TOP + PLOT_HEIGHT - height:.1f}" width="{step - 2:.1f}"'
        hint = f"<title>{escape(name)}: {number:,}</title>"
        shapes.append(f'<rect {place} height="{height:.1f}" fill="#0072B2">{hint}</rect>')
        if i % skip == 0:
            shapes.append(_text(LEFT + (i + 0.5) * step, TOP + PLOT_HEIGHT + 14, name, "middle"))
    shapes.append(
        _text((LEFT + WIDTH) / 2, TOP + PLOT_HEIGHT + BOTTOM - 4, xlabel, "middle", colour="#59636e")
    )
    return _svg(WIDTH, TOP + PLOT_HEIGHT + BOTTOM, shapes)


def histogram(values: np.ndarray, xlabel: str, ylabel: str, logarithmic: bool = False, bins: int = 24) -> str:
    """How often values (N,) lie in each of equal bins; with `logarithmic`, of equal ratio."""
    if not len(values):
        return '<p class="quiet">none</p>'
    low, high = float(values.min()), float(values.max())
    if low == high:
        return f'<p>all {len(values):,}: {low:.4g} <span class="quiet">({escape(xlabel)})</span></p>'
    edges = np.geomspace(low, high, bins + 1) if logarithmic else np.linspace(low, high, bins + 1)
    counts = np.histogram(values, edges)[0].tolist()
    for digits in range(2, 7):
        names = [_number(float(edge), digits) for edge in edges[:-1]]
        shown = names[:: _stride(names)]
        if len(set(shown)) == len(shown):
            break  # no name stands below two bars
    return columns(list(zip(names, counts, strict=True)), xlabel, ylabel)


def _stride(names: Sequence[str]) -> int:
    """Every which name below a chart has room."""
    return max(1, ceil(len(names) * max([len(name) for name in names] + [1]) / MAX_LETTERS))


def _number(value: float, digits: int) -> str:
    """At least two digits that say something, and all of a whole number: 0.021, 1.1, 480."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, digits - 1 - floor(log10(abs(value))))}f}"


def _axis(top: int, ylabel: str) -> list[str]:
    """Two lines with their numbers, and what they count."""
    shapes = []
    for share in (0.5, 1.0):
        y = TOP + PLOT_HEIGHT * (1 - share)
        shapes.append(f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y}" y2="{y}" stroke="#e3e8ed"/>')
        if top * share == int(top * share):
            shapes.append(_text(LEFT - 6, y + 4, f"{int(top * share):,}", "end", colour="#59636e"))
    y = TOP + PLOT_HEIGHT
    shapes.append(f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y}" y2="{y}" stroke="#8b949e"/>')
    turned = f'transform="rotate(-90 12 {TOP + PLOT_HEIGHT / 2})"'
    place = f'x="12" y="{TOP + PLOT_HEIGHT / 2}" {turned} text-anchor="middle" fill="#59636e"'
    shapes.append(f"<text {place}>{escape(ylabel)}</text>")
    return shapes


def _text(x: float, y: float, text: str, anchor: str, hint: str = "", colour: str = "#1b1f24") -> str:
    title = f"<title>{escape(hint)}</title>" if hint else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}{title}</text>'
    )


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= MAX_NAME else f"{line[: MAX_NAME - 1]}…"


def _svg(width: float, height: float, shapes: Sequence[str]) -> str:
    body = "".join(shapes)
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" font-size="12" font-family="inherit">{body}</svg>'
