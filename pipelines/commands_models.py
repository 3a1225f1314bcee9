"""`./convoy evaluate` and `./convoy models`."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

from data.dataset import Split
from data.parameters import did_you_mean
from models import classification, signals, volumes
from models.papers import paper_of
from pipelines.families import PIPELINES, load
from pipelines.options import Json, overlap_of, quiet_stdout
from pipelines.parameters import AUTO
from pipelines.render import ConsoleReporter, emit, pairs, table
from pipelines.scoring import evaluate_configuration, score_models
from tasks import ensemble, modellist, registry
from tasks.intervals import measured_on, with_intervals
from tasks.modelfile import load_card
from tasks.settings import ViewName
from tasks.versions import open_stored

CATALOGUES = {  # family → its networks, and the channels at which their sizes are told
    "classification": (classification.ARCHITECTURES, 3),
    "signals": (signals.ARCHITECTURES, 1),
    "volumes": (volumes.ARCHITECTURES, 1),
}
LEAST_SIDES: dict[str, Callable[[str], int]] = {  # family → side of the smallest input of a network
    "classification": classification.least_px,
    "signals": signals.least_length,
    "volumes": volumes.least_voxels,
}
# families whose predictors take several networks
COMBINED = ("classification", "detection", "signals", "volumes")
MAX_CLASSES = 12  # named of a model
SHOWN_CLASSES, SHOWN_CHANNELS = 1000, 3  # at which the layers of a network are shown

app = App(name="models", help="List and show registered models.")


def evaluate(
    model: str,
    /,
    *models: str,
    dataset: str | None = None,
    split: Split = "test",
    views: Annotated[list[ViewName] | None, Parameter(negative=(), consume_multiple=True)] = None,
    recipe: str = AUTO,
    tile: Annotated[bool, Parameter(negative=())] = False,
    overlap: float | None = None,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Test a model, or several together, on a dataset.

    Several models are an ensemble: their outputs are averaged, the boxes of detectors fused, never their weights.
    Example: ./convoy evaluate models:/classifier-products@champion --views single ten_crop

    Parameters
    ----------
    model
        A registered model (models:/NAME@ALIAS, models:/NAME/VERSION), a run key, or a folder with a model.json.
    models
        More members of an ensemble.
    dataset
        Name of an ingested dataset; otherwise the one that the model was trained on.
    split
        Which images.
    views
        Ways to look at each image; otherwise those of the recipe. Classifiers of pictures take all; detectors single,
        mirror, multi_scale; embedders of faces single, mirror; other models single.
    recipe
        The recipe whose `evaluate` section counts; otherwise the dataset's.
    tile
        Detectors: look at images that are larger than the network's input in tiles of its size.
    overlap
        With --tile: how much tiles overlap, as a share of their side (0.25).
    out
        Folder to write the report to: metrics.json, tables, figures, predictions.
    """
    tile_overlap = overlap_of(tile, overlap)
    if out is not None:
        require_report_folder(out)
    reporter = ConsoleReporter()
    with quiet_stdout(as_json):
        try:
            tested = score_models((model, *models), dataset, split, views, recipe, tile_overlap, reporter)
        finally:
            reporter.close()
        if out is not None:
            tested.report.write(out)
    document = {**tested.document(), **tested.report.document(), "out": out}
    view = tested.report.about["registered_view"]
    tables = tested.report.tables(measured_on(tested.dataset, split, view))
    written = [f"wrote {about_report(out)}"] if out else []
    emit(document, [*(table(*with_intervals(each)) for each in tables), *written], as_json)


def about_report(out: Path) -> str:
    """Where a report is to be looked at; one of a stylizer has no page."""
    page = out / "report.html"
    return f"{page}, with its tables and figures beside it" if page.is_file() else str(out)


def require_report_folder(out: Path) -> None:
    """Raise ValueError, before the work, if a report cannot go there or would lie among other people's files."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "about.json").is_file():
        raise ValueError(f"--out {out} holds other files than a report; give a new folder")


@app.command(name="list")
def list_models(*, catalogue: Annotated[bool, Parameter(negative=())] = False, as_json: Json = False) -> None:
    """List registered models, or with --catalogue the networks that a recipe may name.

    Parameters
    ----------
    catalogue
        The networks of models/: their sizes, the least input, the paper.
    """
    if catalogue:
        rows = [
            (family, name, count_parameters(family, name), LEAST_SIDES[family](name), paper_of(name))
            for family, (networks, _channels) in CATALOGUES.items()
            for name in networks
        ]
        keys = ("family", "name", "num_parameters", "least_side", "paper")
        document = {"catalogue": [dict(zip(keys, row, strict=True)) for row in rows]}
        title = "Networks, at 10 classes and 3 channels (signals and volumes: 1); sides in pixels, samples, voxels"
        emit(document, [table(title, ("family", "name", "parameters", "least side", "paper"), rows)], as_json)
        return
    models = modellist.list_models()
    columns = {"name": "name", "version": "version", "aliases": "aliases", "measure": "on test", "dataset": "dataset",
               "created": "created", "run_id": "run_id"}  # fmt: skip
    listed = [[model[name] for name in columns] for model in models]
    view = table("Registered models", tuple(columns.values()), listed)
    empty = "no model is registered yet; make one with: ./convoy train classification --dataset NAME"
    emit({"models": models}, [view if models else empty], as_json)


@app.command
def combine(model: str, /, *models: str, out: Path, as_json: Json = False) -> None:
    """Write several models as one: their outputs are averaged, the boxes of detectors fused, never their weights.

    What was fitted to the validation split for each, a temperature or a least score, is fitted for all together.
    Example: ./convoy models combine models:/detector-blood/1 models:/detector-blood/2 --out pair

    Parameters
    ----------
    model
        A registered model, a run key, or a folder with a model.json.
    models
        The others: of the same dataset, with the same input and view.
    out
        A new folder; predict and evaluate take it as a model.
    """
    if not models:
        raise ValueError("an ensemble needs at least two models: give the others after the first")
    called = (model, *models)
    folders = [registry.resolve_model(uri) for uri in called]
    first = load_card(folders[0])
    if first.family not in COMBINED:
        raise ValueError(
            f"{model} is a model for {first.family}; combined are models for {', '.join(COMBINED)}"
        )
    data = open_stored(first.dataset)
    # as many a pass as `evaluate` of the members takes: another number changes the last bits of what is fitted
    batch_size = evaluate_configuration(first, data.info.name, AUTO, None).batch_size
    with quiet_stdout(as_json):
        card = ensemble.combine(folders, out, called)
        fitted = load(PIPELINES[first.family].fit)(out, data, batch_size=batch_size)
    runs = [member.run for member in card.members]
    notes = ensemble.given_again(called, folders)
    document = {"model": out, "members": runs, "fitted": fitted.note, **fitted.metrics, "notes": notes}
    said = pairs(f"Wrote {out}", {"members": ", ".join(runs), "fitted": fitted.note})
    emit(document, [said, *(f"note: {note}" for note in notes)], as_json)


def count_parameters(family: str, name: str) -> int:
    """Parameters of a network of a catalogue at 10 classes; no memory is taken for them."""
    networks, channels = CATALOGUES[family]
    with torch.device("meta"):
        network = networks[name](num_classes=10, channels=channels)
    return sum(parameter.numel() for parameter in network.parameters())


@app.command(name="show")
def show_model(
    model: str,
    /,
    *,
    input_px: Annotated[int | None, Parameter(name="--input")] = None,
    classes: int = SHOWN_CLASSES,
    channels: int = SHOWN_CHANNELS,
    png: Path | None = None,
    as_json: Json = False,
) -> None:
    """Show where a registered model came from and how good it is, or of a network of the catalogue its layers.

    Example: ./convoy models show vgg16 --input 224 --png vgg16.png

    Parameters
    ----------
    model
        A registered model (models:/NAME@ALIAS, models:/NAME/VERSION), a run key, or a folder with a model.json; or a
        network for pictures: ./convoy models list --catalogue.
    input_px
        Of a network: side of its square input, in pixels; otherwise that of the pictures it was made for.
    classes
        Of a network: how many it tells apart.
    channels
        Of a network: of its input.
    png
        Of a network: draw the table into this file, too.
    """
    if model in classification.ARCHITECTURES:
        from pipelines.commands_networks import show_network  # only now: matplotlib takes half a second

        show_network(model, input_px, classes, channels, png, as_json)
        return
    try:
        values = modellist.show_model(model)
    except FileNotFoundError as error:
        networks = classification.ARCHITECTURES
        raise FileNotFoundError(
            f"{error}. Networks are {', '.join(networks)}{did_you_mean(model, networks)}"
        ) from None
    given = {
        "--input": input_px is not None,
        "--classes": classes != SHOWN_CLASSES,
        "--channels": channels != SHOWN_CHANNELS,
        "--png": png is not None,
    }
    if any(given.values()):
        names = ", ".join(name for name, is_given in given.items() if is_given)
        raise ValueError(
            f"only networks of the catalogue take {names}, and {model} is a trained model: leave it out"
        )
    emit(values, shown_model(values), as_json)


def shown_model(values: dict[str, Any]) -> list[Any]:
    """What is known of a model, for a person: what it is, where it came from, how good it was on the test split."""
    card, tags = values["card"], values.get("tags", {})
    kinds = Counter(member["architecture"] for member in card["members"])
    classes = card["classes"]
    more = ", …" if len(classes) > MAX_CLASSES else ""
    fitted = [f"temperature {card['temperature']:.4g}"] * (card["temperature"] != 1)
    fitted += [f"{name} {value:.4g}" for name, value in card["thresholds"].items()]
    code = tags.get("git.commit", "")[:12] + ", with changes" * (tags.get("git.dirty") == "true")
    named = {
        "version": values.get("version"),
        "aliases": ", ".join(values.get("aliases", [])),
        "family": card["family"],
        "networks": " + ".join(f"{num} × {kind}" if num > 1 else kind for kind, num in kinds.items()),
        "classes": f"{len(classes)}: {', '.join(classes[:MAX_CLASSES])}{more}" if classes else "",
        "input": ", ".join(f"{name} {value}" for name, value in card["preprocessing"].items()),
        "view": card["views"],
        "fitted": ", ".join(fitted),
        "fitted on": card["calibrated_on"],
        "began with": (card["initial_weights"] or {}).get("source"),
        "taught by": (card["taught_by"] or {}).get("source"),
        "dataset": f"{card['dataset']} {card['dataset_digest']}",
        "runs": ", ".join(dict.fromkeys(member["run"] for member in card["members"])),
        "code": code,
        "created": values.get("created"),
        "folder": values["folder"],
        "look at it": values.get("run_url"),
    }
    metrics = {name.removeprefix("test."): value for name, value in values.get("metrics", {}).items()
               if name.startswith("test.") and name.count(".") == 1}  # fmt: skip
    views: list[Any] = [pairs(values["uri"], {name: value for name, value in named.items() if value})]
    if metrics:
        views.append(table("On the test split", ("metric", "value"), list(metrics.items())))
    return [*views, "all metrics, parameters and tags: --json"]
