"""`./convoy explain units` and `./convoy explain prediction`: what a network looks at; beside `explain MODEL`."""

import shutil
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from data.dataset import Split
from pipelines.commands_lineage import explain_model
from pipelines.engines import start_engines
from pipelines.families import Executor
from pipelines.options import Changes, Json, quiet_stdout
from pipelines.parameters import parse_changes
from pipelines.render import emit, pairs, table
from pipelines.runfolders import begun, run_folder
from pipelines.runner import call_flow

FLOW = "pipelines.explain:explain_units"
app = App(
    name="explain",
    help="Show where a model comes from, what its units see, and why it predicts what it does.",
)
app.default(explain_model)


@app.command
def units(
    model: str | None = None,
    /,
    *,
    layer: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    dataset: str | None = None,
    split: Split | None = None,
    unit: Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())] = None,
    show: int | None = None,
    against: str | None = None,
    no_synthesis: Annotated[bool, Parameter(negative=())] = False,
    network: str | None = None,
    px: Annotated[int | None, Parameter(name="--input")] = None,
    class_names: Path | None = None,
    changes: Changes = None,
    executor: Executor = "ray",
    resume: str | None = None,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Show the patches of a dataset that units answer to most, and pictures synthesised for them.

    What is not given is as params.yaml has it, section explain.
    Example: ./convoy explain units models:/classifier-digits@champion --layer conv1 conv2

    Parameters
    ----------
    model
        A trained classifier (models:/NAME@ALIAS, a run key, a folder), or bare weights: package:NAME, a file, a URL.
    layer
        Stages or modules of the network; a wrong name lists them.
    dataset
        Whose pictures are looked at, of family classification; otherwise the dataset that the model was trained on,
        where it is here. Without any, pictures are synthesised alone.
    split
        Which pictures; the test split where it is not given.
    unit
        Units to show, by their numbers; otherwise the first ones.
    show
        How many units of each layer to show; 0: all. The table has all of them anyway.
    against
        Another version of the model to show side by side: to each unit the one of its units that is most alike.
    no_synthesis
        Show patches alone.
    network
        Of bare weights: the network that they are of (./convoy models list --catalogue).
    px
        Of bare weights: side of the pictures that the network is shown.
    class_names
        A file with the names of the classes, one a line.
    executor
        Where to compute: on Ray, or inside this process.
    resume
        Key of a run that was stopped: go on with what was asked of it.
    out
        Folder to copy the gallery, the contact sheets and the table to.
    """
    nested = parse_changes(changes or [])
    if show is not None:
        nested["show"] = show
    if resume is not None and (
        model or layer or dataset or split or unit or against or no_synthesis or network or px is not None
        or class_names or nested
    ):  # fmt: skip
        raise ValueError(
            "--resume goes on with what was asked of that run: give nothing else but --out and --executor"
        )
    if resume is None and not (model and layer):
        raise ValueError(
            "explain units needs a model and --layer NAME …, as in ./convoy explain units models:/NAME@champion "
            "--layer conv1; or --resume KEY"
        )
    if resume is not None:
        begun(run_folder(resume), "look at units")  # first, for a key that is none needs no engines
    start_engines(executor)
    with quiet_stdout(as_json):
        summary = call_flow(
            FLOW, model or "", tuple(layer or ()), dataset=dataset, split=split or "test", units=tuple(unit or ()),
            against=against, synthesis=not no_synthesis, network=network, px=px, class_names=read_names(class_names),
            changes=nested or None, executor=executor, resume=resume,
        )  # fmt: skip
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for name in summary["files"]:
                shutil.copy2(Path(summary["folder"]) / name, out / name)
    emit(summary, [*layer_views(summary), pairs("", about(summary, out))], as_json)


def read_names(file: Path | None) -> tuple[str, ...]:
    """Names of classes, one a line; () where no file is given."""
    return tuple(file.read_text().splitlines()) if file else ()


def layer_views(summary: dict[str, Any]) -> list[Table | str]:
    """A line a shown unit, as far as pictures were looked at; otherwise only what each layer's units see."""
    views: list[Table | str] = []
    for layer in summary["layers"]:
        about_layer = f"{layer['title']}: {layer['text']}"
        if not summary["dataset"]:
            views.append(about_layer)
            continue
        lines = [
            (each["unit"], each["activation"], each["labels"] or None, *each.get("against", {}).values())
            for each in layer["units"]
        ]
        columns = ["unit", "strongest", "what its patches are of"]
        if summary["against"]:
            columns += ["most alike", "correlation"]
        views.append(table(about_layer, columns, lines))
    return views


def about(summary: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """What was looked at, and where it lies."""
    seen = f"{summary['dataset']}, {summary['split']}: {summary['num_images']:,} pictures"
    # The only note of a run without a dataset is that there is none: it was told at the beginning.
    notes = summary["notes"] if summary["dataset"] else []
    return {
        "patches": seen if summary["dataset"] else "none, without a dataset",
        "gallery": f"{out or summary['folder']}/units.html",
        **({"note": "; ".join(notes)} if notes else {}),
        "key": summary["key"],
        "look at it": summary["mlflow_url"],
    }


@app.command
def prediction(
    model: str,
    /,
    *images: Path,
    method: Annotated[str, Parameter(help="gradcam or occlusion.")] = "gradcam",
    layer: str | None = None,
    label: Annotated[str | None, Parameter(name="--class")] = None,
    window: int = 0,
    stride: int = 0,
    network: str | None = None,
    px: Annotated[int | None, Parameter(name="--input")] = None,
    class_names: Path | None = None,
    out: Path = Path("explained"),
    as_json: Json = False,
) -> int:
    """Show where in a picture a classifier finds what it predicts: files, or folders of them.

    A picture that cannot be read is reported and the others are explained; the exit code is then 1.
    Example: ./convoy explain prediction models:/classifier-products@champion photo.jpg --method occlusion

    Parameters
    ----------
    model
        A trained classifier (models:/NAME@ALIAS, a run key, a folder), or bare weights: package:NAME, a file, a URL.
    images
        Image files, and folders that are searched for them.
    layer
        Grad-CAM: the stage or module whose map is shown; otherwise the last one with places.
    label
        The class to explain; otherwise the most probable one of each picture.
    window
        Occlusion: side of the square that covers the picture, in pixels as the network sees it; 0: a quarter of it.
    stride
        Occlusion: pixels between two squares; 0: a quarter of one.
    network
        Of bare weights: the network that they are of (./convoy models list --catalogue).
    px
        Of bare weights: side of the pictures that the network is shown.
    class_names
        A file with the names of the classes, one a line.
    out
        Folder to write prediction.png and prediction.html to.
    """
    # Only now, for torch takes seconds that a wrong command line should not wait for.
    from pipelines.explanations import explain_pictures

    document = explain_pictures(
        model, images, method, layer, label, (window, stride), network, px, read_names(class_names), out
    )
    lines = [
        (row["image"], row["class"], row["probability"], row["error"] or row["strongest_at"])
        for row in document["explanations"]
    ]
    columns = (
        "image",
        "class",
        "probability",
        "strongest at x, y (px as the network sees it), or what is wrong",
    )
    emit(document, [table("", columns, lines), *(f"wrote {file}" for file in document["files"])], as_json)
    return int(any(row["error"] for row in document["explanations"]))
