"""`./convoy stylize`: a picture in the style of others, by optimisation."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pipelines.engines import start_engines
from pipelines.options import Changes, Json, quiet_stdout
from pipelines.parameters import AUTO, parse_changes
from pipelines.render import emit, pairs
from pipelines.runfolders import begun, run_folder
from pipelines.runner import call_flow

FLOW = "pipelines.stylize:stylize_picture"
DEMO = ("skimage:chelsea", "convoy:whirls")  # content and style


def stylize(
    content: str | None = None,
    /,
    *styles: str,
    recipe: str = AUTO,
    changes: Changes = None,
    weights: Annotated[list[float] | None, Parameter(consume_multiple=True, negative=())] = None,
    masks: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    grid: Annotated[bool, Parameter(negative=())] = False,
    ratios: Annotated[list[float] | None, Parameter(consume_multiple=True, negative=())] = None,
    depths: Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())] = None,
    seeds: Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())] = None,
    resume: str | None = None,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Render a picture in the style of others (Gatys). With no arguments, a cat in drawn whirls.

    Example: ./convoy stylize photo.jpg painting.jpg --out painted.png --set cost.style_weight=30

    Parameters
    ----------
    content
        A picture, or a photograph that scikit-image ships: skimage:chelsea, skimage:astronaut.
    styles
        One or more pictures whose textures and colours it gets; drawn ones are convoy:whirls, convoy:circles,
        convoy:stones, convoy:mosaic and convoy:strokes.
    recipe
        Which recipe of params.yaml, section stylize; auto: default.
    weights
        How much each style counts; otherwise all the same.
    masks
        A picture for each style, white on the content where the style is wanted.
    grid
        Render every ratio of weights with every choice of layers and every seed, in parallel, into one sheet.
    ratios
        Of a grid: β/α, style over content.
    depths
        Of a grid: how many of the style layers count, from the first on; 0: all.
    seeds
        Of a grid: seeds of the noise; they differ where the picture begins with some (--set noise=1).
    resume
        Key of a run that was stopped: go on with it, by its own parameters.
    out
        Where to write the picture: .png or .jpg.
    """
    nested = parse_changes(changes or [])
    varied = {
        name: v for name, v in (("ratios", ratios), ("depths", depths), ("seeds", seeds)) if v is not None
    }
    if varied and not grid:
        raise ValueError(f"--{', --'.join(varied)} are of a grid: give --grid too")
    if resume is not None and (content or recipe != AUTO or nested or weights or masks or grid):
        raise ValueError(
            "--resume goes on with the pictures and parameters of that run: give nothing else but --out"
        )
    if content is not None and not styles:
        raise ValueError(f"stylize needs a style after the content: stylize {content} STYLE")
    given: tuple[Any, ...] = (content, styles) if content is not None else (DEMO[0], DEMO[1:])
    if out is not None and out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--out (={out}) must end in .png, .jpg or .jpeg")
    if resume is not None:
        begun(run_folder(resume), "style transfer")  # first, for a key that is none needs no engines
    start_engines("ray" if grid else "in_process")
    if resume is None:
        require(given, weights or (), masks or (), recipe, nested, varied if grid else None)
    with quiet_stdout(as_json):
        summary = call_flow(
            FLOW, "" if resume else given[0], () if resume else given[1], weights or (), masks or (), recipe,
            nested or None, varied if grid else None, resume,
        )  # fmt: skip
        if out is not None:
            copy(Path(summary["picture"]), out)
            summary["out"] = str(out)
    emit(summary, [pairs("", shown(summary))], as_json)


def require(
    given: tuple[Any, ...], weights: Any, masks: Any, recipe: str, changes: dict[str, Any], grid: Any
) -> None:
    """Raise ValueError or OSError for what the flow would refuse too, but only when engines have started."""
    # Only now, for torch takes seconds.
    from pipelines.stylize import job_of
    from tasks.stylepictures import read_pictures

    job_of(given[0], given[1], weights, masks, recipe, changes, grid)
    read_pictures(given[0], given[1], weights, masks)


def copy(picture: Path, out: Path) -> None:
    """Write the picture in the format that the name asks for."""
    from PIL import Image

    from tasks.stylepictures import write_picture

    with Image.open(picture) as image:
        write_picture(out, image.convert("RGB"))


def shown(summary: dict[str, Any]) -> dict[str, Any]:
    """What was made of what, and where it lies."""
    costs = summary.get("costs", {})
    return {
        "picture": summary.get("out", summary["picture"]),
        "content": summary["content"],
        "styles": summary["styles"],
        "network": f"{summary['network']}, {summary['weights']}",
        **({"cells": summary["cells"]} if "cells" in summary else {}),
        **({f"{name} cost": value for name, value in costs.items()}),
        **({"iterations": summary["num_iterations"], "seconds": summary["render_s"]} if costs else {}),
        "folder": summary["folder"],
        "key": summary["key"],
        "look at it": summary["mlflow_url"],
    }
