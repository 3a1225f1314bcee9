"""`./convoy models show NETWORK`: the layer table of a network of the catalogue, as text, JSON or a picture."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from models.classification import ARCHITECTURES, arguments_of, least_px, usual_px
from models.receptive import LayerFields, receptive_fields
from models.summary import Layer, layer_table
from pipelines.render import emit, pairs, table

COLUMNS = (
    "layer",
    "kind",
    "filter",
    "stride",
    "padding",
    "activation",
    "sees",
    "size",
    "parameters",
    "multiplications",
)
ROW_IN, DPI = 0.21, 110


def show_network(
    name: str, px: int | None, classes: int, channels: int, png: Path | None, as_json: bool
) -> None:
    """Print the layer table of a network, and draw it where `png` names a file; a ValueError for numbers too small."""
    for option, value in (("--classes", classes), ("--channels", channels)):
        if value < 1:
            raise ValueError(f"{option} (={value}) must be at least 1")
    side = usual_px(name) if px is None else px
    if side < least_px(name):
        raise ValueError(
            f"--input (={side}) is too small for {name}: it takes pictures of at least {least_px(name)} px"
        )
    with torch.device("meta"):
        network = ARCHITECTURES[name](num_classes=classes, channels=channels, **arguments_of(name, side))
    layers = layer_table(network, (channels, side, side))
    fields = receptive_fields(network, (channels, side, side))
    totals: dict[str, Any] = {
        "layers": len(layers) - 1,
        "parameters": sum(layer.num_parameters for layer in layers),
        "multiplications": sum(layer.multiplications for layer in layers),
        "activation values": sum(layer.size for layer in layers),
    }
    title = f"{name}, {channels}x{side}x{side}, {classes} classes"
    if png:
        draw_table(title, layers, fields, totals).savefig(png, dpi=DPI)
    document = {
        "network": name, "input_px": side, "channels": channels, "classes": classes, "totals": totals,
        "layers": [asdict(layer) | {"size": layer.size, "field": field_of(layer, fields)} for layer in layers],
    }  # fmt: skip
    rows = [
        (*cells(each, fields)[:-3], each.size, each.num_parameters or "", each.multiplications or "")
        for each in layers
    ]
    shown = {key: f"{value:,}" for key, value in totals.items()}
    written = [f"wrote {png}"] if png else []
    emit(document, [table(title, COLUMNS, rows), pairs("Total", shown), *written], as_json)


def field_of(layer: Layer, fields: dict[str, LayerFields]) -> dict[str, Any] | None:
    """The receptive field of a layer's units by rows and columns; None: the whole picture, or the input itself."""
    found = fields[layer.name].widest if layer.name in fields else None
    return None if found is None else asdict(found)


def sees(layer: Layer, fields: dict[str, LayerFields]) -> str:
    """Side of the receptive field in pixels: of a square one number, else height and width."""
    if layer.name not in fields:
        return ""
    found = fields[layer.name].widest
    if found is None:
        return "all"
    height, width = found.rows.side, found.columns.side
    return str(height) if height == width else f"{height}x{width}"


def cells(layer: Layer, fields: dict[str, LayerFields]) -> tuple[str, ...]:
    """A row of the table as texts."""
    numbers = (layer.size, layer.num_parameters, layer.multiplications)
    shape = "x".join(map(str, layer.shape))
    sides = (layer.filter, layer.stride, layer.padding)
    return (
        layer.name,
        layer.kind,
        *sides,
        shape,
        sees(layer, fields),
        *(f"{number:,}" if number else "" for number in numbers),
    )


def draw_table(
    title: str, layers: list[Layer], fields: dict[str, LayerFields], totals: dict[str, Any]
) -> Figure:
    """The table as a picture."""
    rows = [cells(layer, fields) for layer in layers]
    numbers = (totals["activation values"], totals["parameters"], totals["multiplications"])
    rows.append(("total", "", "", "", "", "", "", *(f"{number:,}" for number in numbers)))
    figure = Figure(figsize=(12.5, ROW_IN * (len(rows) + 3)), layout="constrained")
    axes = figure.add_subplot()
    axes.axis("off")
    heading = axes.set_title(title, loc="left", fontsize=11)
    drawn = axes.table(
        rows, colLabels=COLUMNS, loc="upper left", cellLoc="right", colLoc="right", edges="horizontal"
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    drawn.auto_set_column_width(list(range(len(COLUMNS))))
    for (row, column), cell in drawn.get_celld().items():
        cell.set_height(1 / (len(rows) + 2))
        cell.set(linewidth=0.5, edgecolor="#999999")
        if column < 2:
            cell.set_text_props(ha="left")
        if row in (0, len(rows)):
            cell.set_text_props(weight="bold")
    figure.set_dpi(DPI)
    figure.draw_without_rendering()  # columns get the width of their texts, and the picture that of the columns
    figure.set_figwidth(drawn.get_window_extent().x1 / DPI + 0.2)
    figure.draw_without_rendering()
    first = (
        drawn[0, 0].get_text().get_window_extent().x0
    )  # the title stands above it, not above the axes' edge
    heading.set_x(axes.transAxes.inverted().transform((first, 0))[0])
    return figure
