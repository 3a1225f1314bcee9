"""A grid of style transfers: every ratio of weights, choice of layers and seed, rendered side by side on Ray.

A cell is one run of tasks.stylize with its own parameters. Its picture is a file in the grid's folder, and one that is
there is not rendered again. The contact sheet has a row a choice of layers and seed, a column a ratio.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from pydantic import Field, field_validator

from data.parameters import Parameters
from tasks import calls
from tasks.featurenet import StyleNet
from tasks.styleconfig import RANDOM, StylizeConfig
from tasks.stylepictures import Pictures, read_picture, to_image, write_picture
from tasks.stylize import RESULT, stylize

SHEET = "grid.png"
TILE_PX, LABEL_PX, GAP_PX = 256, 22, 6


class GridConfig(Parameters):
    """What is varied; all else is as the recipe has it."""

    ratios: tuple[float, ...] = Field(
        min_length=1, description="β/α, style over content, with α as the recipe's; a column each"
    )
    depths: tuple[int, ...] = Field(
        min_length=1, description="how many of the style layers count, from the first on; 0: all. A row each"
    )
    seeds: tuple[int, ...] = Field(min_length=1, description="seeds of the noise; a row each")
    threads: int = Field(
        ge=1, description="threads of each picture; as many are rendered at once as there are CPUs"
    )

    @field_validator("ratios", "depths", "seeds")
    @classmethod
    def _once_each(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values) or min(values) < 0:
            raise ValueError("each value may stand once, and none below 0")
        return values


@dataclass(frozen=True)
class Cell:
    """One picture of the grid."""

    ratio: float
    depth: int
    seed: int

    @property
    def name(self) -> str:
        return f"ratio-{self.ratio}-layers-{self.depth}-seed-{self.seed}"


def cells_of(grid: GridConfig, config: StylizeConfig) -> list[Cell]:
    """Row by row; raises ValueError for more layers than the recipe has, content that does not count, or seeds that
    decide nothing."""
    most = len(config.cost.style_layers)
    if max(grid.depths) > most:
        raise ValueError(
            f"depths (={max(grid.depths)}) must be at most {most}, the style layers of the recipe"
        )
    if len({depth or most for depth in grid.depths}) < len(grid.depths):
        raise ValueError(f"depths (={grid.depths}) name all {most} style layers twice: 0 is all")
    if not config.cost.content_weight:
        raise ValueError("ratios are of the content's weight: cost.content_weight must be above 0")
    if len(grid.seeds) > 1 and not config.noise and config.net.weights != RANDOM:
        raise ValueError(
            f"seeds (={grid.seeds}) are of the noise, and the picture begins without any: all rows would be the same. "
            "Give one seed, or set noise above 0"
        )
    rows = itertools.product(grid.depths, grid.seeds, grid.ratios)
    return [Cell(ratio, depth or most, seed) for depth, seed, ratio in rows]


def config_of(cell: Cell, config: StylizeConfig) -> StylizeConfig:
    """The recipe with a cell's own values."""
    values = config.model_dump(mode="json")
    values["cost"]["style_weight"] = cell.ratio * config.cost.content_weight
    values["cost"]["style_layers"] = values["cost"]["style_layers"][: cell.depth]
    return StylizeConfig.parse({**values, "seed": cell.seed, "picture_every": 0}, f"grid, {cell.name}")


def render(config: StylizeConfig, pictures: Pictures, source: StyleNet, folder: Path) -> dict[str, float]:
    """One cell, in whatever process: its final costs; the picture is a file in `folder`."""
    return stylize(config, pictures, source, folder).final


def render_grid(
    config: StylizeConfig,
    grid: GridConfig,
    pictures: Pictures,
    source: StyleNet,
    folder: Path,
    on_cell: Callable[[int, int, Cell | None], None],
) -> Path:
    """Render all cells that are not there yet, on Ray, and write the sheet; its file.

    The folder must be one that every node reaches. `on_cell` hears how many are done, of how many, and the newest.
    """
    cells = cells_of(grid, config)
    left = [cell for cell in cells if not (folder / cell.name / RESULT).is_file()]
    num_done = len(cells) - len(left)
    on_cell(num_done, len(cells), None)
    if left:
        shared = calls.share(pictures), calls.share(source)
        jobs = [(config_of(cell, config), *shared, folder / cell.name) for cell in left]
        for place, _final in calls.call_each(render, jobs, grid.threads, 0):
            num_done += 1
            on_cell(num_done, len(cells), left[place])
    sheet = contact_sheet(cells, grid, pictures, folder)
    write_picture(folder / SHEET, sheet)
    return folder / SHEET


def cell_label(cell: Cell) -> str:
    return f"style {cell.ratio:g}, {cell.depth} layers, seed {cell.seed}"  # the font has no Greek


def contact_sheet(cells: Sequence[Cell], grid: GridConfig, pictures: Pictures, folder: Path) -> Image.Image:
    """The cells in rows, under their ratios; content and styles stand before them."""
    given = [("content", to_image(pictures.content))]
    given += [(f"style {i + 1}", to_image(style.picture)) for i, style in enumerate(pictures.styles)]
    named = [(cell_label(cell), to_image(read_picture(folder / cell.name / RESULT))) for cell in cells]
    columns = len(grid.ratios)
    tiles = [named[start : start + columns] for start in range(0, len(named), columns)]
    first = tiles[0][0][1]
    tile = round(TILE_PX * first.width / max(first.size)), round(TILE_PX * first.height / max(first.size))
    rows = [given, *tiles]
    width = max(len(row) for row in rows) * (tile[0] + GAP_PX) + GAP_PX
    sheet = Image.new("RGB", (width, len(rows) * (tile[1] + LABEL_PX + GAP_PX) + GAP_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for i, row in enumerate(rows):
        for j, (name, image) in enumerate(row):
            left, top = GAP_PX + j * (tile[0] + GAP_PX), GAP_PX + i * (tile[1] + LABEL_PX + GAP_PX)
            draw.text((left, top + 2), name, fill="black", font=font)
            shown = ImageOps.contain(image, tile, Image.Resampling.LANCZOS)
            sheet.paste(shown, (left, top + LABEL_PX))
    return sheet
