"""What units learn, to look at: contact sheets (PNG) of each layer, and one HTML page of all layers.

A unit is shown by the picture that was synthesised for it, then the nine patches of the dataset, strongest first, row
by row. On the page a pointer on a patch shows its picture's name, label and activation.
"""

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from data.files import write_whole
from models.receptive import LayerFields
from tasks import page
from tasks.figures import save_sheets, title
from tasks.page import Mark, escape
from tasks.unitstate import NUM_PATCHES
from tasks.unitviews import Patch

PATCH_PX, GAP_PX = 64, 3  # side of a shown patch, and what lies between two
BLOCK_PX = 3 * PATCH_PX + 2 * GAP_PX
LINE = 205  # grey level between patches, some of which are white
SHOWN_PX = 340  # of a block on the page: three fit beside each other
CELL_IN = 1.6  # of a sheet: side of a block
LONGEST = 56  # letters of a sheet's caption
SHEET_BLOCKS = 9  # of a sheet: blocks beside each other
APART = 0.15  # of a sheet: between two units of two networks each, in blocks


@dataclass(frozen=True)
class UnitView:
    """One unit of one network; `correlation` with the unit it stands beside, where it was chosen by that."""

    unit: int
    patches: tuple[Patch, ...]
    synthesised: np.ndarray | None  # (C, s, s) uint8
    correlation: float | None = None

    @property
    def is_dead(self) -> bool:
        """Whether it answers to no picture: all are 0 to it, as to a ReLU that is off.

        Not where all are below 0, as a rare class's logit is: they have an order.
        """
        return bool(self.patches) and all(patch.activation == 0 for patch in self.patches)

    @property
    def shown_patches(self) -> tuple[Patch, ...]:
        """None of a unit that answers to no picture: all are equal to it."""
        return () if self.is_dead else self.patches

    def labels(self) -> list[tuple[str, int]]:
        """Labels of its shown patches, the most frequent first."""
        return Counter(patch.label for patch in self.shown_patches).most_common()

    def caption(self) -> list[str]:
        """Its number and strongest activation, and what its patches are of."""
        beside = "" if self.correlation is None else f" (r = {self.correlation:.2f})"
        lines = [f"unit {self.unit}{beside}"]
        if self.is_dead:
            return [lines[0], "never above 0"]
        if self.patches:
            lines[0] += f", up to {self.patches[0].activation:.3g}"
            several = [f"{label} ×{num}" for label, num in self.labels()[:3]]
            lines.append(", ".join(several))
        return lines


@dataclass(frozen=True)
class LayerView:
    """The shown units of a layer: of each the networks' views, one or two."""

    name: str  # as a person gave it: of a stage, or of the module itself
    layer: LayerFields
    units: tuple[tuple[UnitView, ...], ...]

    @property
    def title(self) -> str:
        """`conv1 (features.2)`: its name, and the module's where that is another."""
        return self.name if self.name == self.layer.name else f"{self.name} ({self.layer.name})"


def field_text(layer: LayerFields) -> str:
    """`32 units of 14x14 places; each sees 16x16 px, 4 px apart, the first from -6 on`."""
    num = f"{len(layer.fields):,} units"
    places = f" of {layer.shape[1]}x{layer.shape[2]} places" if layer.has_places else ""
    field = layer.widest
    if field is None:
        return f"{num}{places}; each sees the whole picture"
    own = {each for each in layer.fields if each is not None and each.rows.side}
    upto = "up to " if len(own) > 1 else ""
    rows, columns = field.rows, field.columns
    apart = _both(rows.stride, columns.stride, "x")
    first = _both(rows.start, columns.start, ", ")
    return f"{num}{places}; each sees {upto}{rows.side}x{columns.side} px, {apart} px apart, the first from {first} on"


def together(text: str) -> str:
    """The same with spaces at which no line ends, but for those behind a comma or semicolon."""
    return re.sub(r"(?<![,;]) ", "\N{NO-BREAK SPACE}", text)


def _both(row: int, column: int, between: str) -> str:
    return str(row) if row == column else f"{row}{between}{column}"


def block(view: UnitView) -> np.ndarray:
    """A unit as one picture (h, w, 3) uint8: the synthesised one, then its patches three by three; either alone."""
    parts = []
    if view.synthesised is not None:
        parts.append(fitted(view.synthesised, BLOCK_PX))
    if view.patches:
        grid = np.full((BLOCK_PX, BLOCK_PX, 3), 255 if view.is_dead else LINE, np.uint8)
        for (top, left), patch in zip(corners(), view.shown_patches, strict=False):
            grid[top : top + PATCH_PX, left : left + PATCH_PX] = fitted(patch.pixels, PATCH_PX)
        parts.append(grid)
    gap = np.full((BLOCK_PX, 2 * GAP_PX, 3), 255, np.uint8)
    return np.concatenate([parts[0], *(piece for part in parts[1:] for piece in (gap, part))], 1)


def corners() -> list[tuple[int, int]]:
    """Top and left of each patch in its grid."""
    step = PATCH_PX + GAP_PX
    return [(step * (i // 3), step * (i % 3)) for i in range(NUM_PATCHES)]


def fitted(pixels: np.ndarray, side_px: int) -> np.ndarray:
    """A picture (C, h, w) uint8 in the middle of a grey square: pixel by pixel where it is enlarged."""
    array = pixels.transpose(1, 2, 0)
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).convert("RGB")
    scale = side_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (side_px, side_px), (225, 225, 225))
    square.paste(image.resize(size, way), ((side_px - size[0]) // 2, (side_px - size[1]) // 2))
    return np.asarray(square)


def sheet(view: LayerView, names: Sequence[str], what: str) -> Figure:
    """The contact sheet of a layer; `names` of the networks are shown where there are two."""
    blocks = [[block(each) for each in unit] for unit in view.units]
    each_in, num_beside = CELL_IN * blocks[0][0].shape[1] / BLOCK_PX, len(blocks[0])
    num_rows = -(-len(blocks) // max(1, int(SHEET_BLOCKS * CELL_IN / (each_in * num_beside))))
    num_columns = -(-len(blocks) // num_rows)
    widths = ([1.0] * num_beside + [APART if num_beside > 1 else 0.0]) * num_columns
    figure = Figure(
        figsize=(max(each_in * sum(widths) * 1.06, 4.5), num_rows * (CELL_IN + 0.5) + 0.8),
        layout="constrained",
    )
    grid = figure.add_gridspec(num_rows, len(widths), width_ratios=[max(width, 1e-3) for width in widths])
    for number, (unit, pictures) in enumerate(zip(view.units, blocks, strict=True)):
        row, column = divmod(number, num_columns)
        for place, (own, picture) in enumerate(zip(unit, pictures, strict=True)):
            cell = figure.add_subplot(grid[row, column * (num_beside + 1) + place])
            cell.axis("off")
            cell.imshow(picture, interpolation="lanczos")
            lines = [line[:LONGEST] for line in own.caption()]
            if len(unit) > 1:
                lines[0] = f"{names[place]}: {lines[0]}"
            cell.set_title("\n".join(lines), fontsize=7, loc="left", parse_math=False)
    title(figure, f"{view.title}: {together(field_text(view.layer))}", what)
    return figure


def write_sheets(folder: Path, view: LayerView, names: Sequence[str], what: str) -> list[Path]:
    """Write the contact sheets of a layer, PNGs called after it."""

    def drawn(part: slice) -> Figure:
        return sheet(LayerView(view.name, view.layer, view.units[part]), names, what)

    return save_sheets(folder, view.name, len(view.units), drawn)


def write_gallery(file: Path, views: Sequence[LayerView], names: Sequence[str], what: str) -> None:
    """Write the page of all layers."""
    links = " · ".join(f'<a href="#{escape(each.name)}">{escape(each.name)}</a>' for each in views)
    shown = [text for text, there in (
        ("on the left a picture that it answers strongly to, made by gradient ascent", _has(views, synthesised=True)),
        ("three by three the parts of pictures that it answers to most, the strongest first, each out of "
         "another picture; a pointer on one shows which", _has(views, synthesised=False)),
    ) if there]  # fmt: skip
    write_whole(file, page.document(
        f"Units: {what}",
        page.heading("What units see", what),
        f'<p>Of each unit: {escape("; ".join(shown))}.</p>',
        f"<p>{links}</p>" if len(views) > 1 else "",
        *(_section(view, names) for view in views),
    ))  # fmt: skip


def _has(views: Sequence[LayerView], synthesised: bool) -> bool:
    own = [each for view in views for unit in view.units for each in unit]
    return any((each.synthesised is not None) if synthesised else bool(each.patches) for each in own)


def _section(view: LayerView, names: Sequence[str]) -> str:
    tiles = []
    for unit in view.units:
        heads = names if len(unit) > 1 else [""]
        tiles.append(page.tile([_shown(own, head) for own, head in zip(unit, heads, strict=True)]))
    left_out = len(view.layer.fields) - len(view.units)
    more = f" ({left_out:,} more are not shown)" if left_out else ""
    return (
        f'<h2 id="{escape(view.name)}">{escape(view.title)}</h2>'
        f'<div class="quiet">{escape(field_text(view.layer) + more)}</div><div class="tiles">{"".join(tiles)}</div>'
    )


def _shown(view: UnitView, head: str) -> str:
    picture = block(view)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    offset = picture.shape[1] - BLOCK_PX
    marks = [
        Mark(left + offset, top, left + offset + PATCH_PX, top + PATCH_PX, patch_text(patch), "none")
        for (top, left), patch in zip(corners(), view.shown_patches, strict=False)
    ]
    caption = view.caption()
    size = (picture.shape[1], picture.shape[0])
    if head:
        caption[0] = f"{head}: {caption[0]}"
    return page.picture(
        buffer.getvalue(), caption, caption[0], marks, size, longest_px=min(SHOWN_PX, max(size))
    )


def patch_text(patch: Patch) -> str:
    """What a pointer on a patch shows."""
    return f"{patch.id}: {patch.label}, {patch.activation:.4g} at row {patch.row}, column {patch.column}"
