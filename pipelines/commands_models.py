"""`./convoy evaluate`, `./convoy predict` and `./convoy models`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from rich.table import Table

from data import arrays
from data.dataset import NUM_AXES, Dataset, Split
from data.decode import EXTENSIONS
from models import classification, signals, volumes
from models.papers import paper_of
from pipelines.options import Json, quiet_stdout
from pipelines.parameters import AUTO, choose_recipe, recipes
from pipelines.render import ConsoleReporter, emit, pairs, table
from pipelines.reporting import Clock, Status
from tasks import modellist, registry, versioning
from tasks.card import ModelCard
from tasks.evaluate import Report
from tasks.evaluate import evaluate as evaluate_models
from tasks.modelfile import load_card
from tasks.pareto import table_rows
from tasks.paths import store
from tasks.predict import Predictor, load_predictor
from tasks.settings import EvaluateConfig, ViewName
from tasks.slices import Slice, mark
from tasks.versions import open_stored

IMAGE_SUFFIXES = frozenset(suffix for suffixes in EXTENSIONS.values() for suffix in suffixes)
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
PIECE_IMAGES = 256  # read and classified at a time: what is in memory does not grow with the folder
MAX_SLICES = 12  # shown; the files and --json have all
NUM_LIKELY = 3  # classes shown beside the most likely one

app = App(name="models", help="List and show registered models.")


def evaluate(
    model: str,
    /,
    *models: str,
    dataset: str | None = None,
    split: Split = "test",
    views: Annotated[list[ViewName] | None, Parameter(negative=(), consume_multiple=True)] = None,
    recipe: str = AUTO,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Test a model, or several together, on a dataset.

    Several models are an ensemble: their outputs are averaged, never their weights.
    Example: ./convoy evaluate models:/classifier@champion --views single ten_crop

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
        Ways to look at each image; otherwise those of the recipe.
    recipe
        The recipe whose `evaluate` section counts; otherwise the dataset's.
    out
        Folder to write the report to: metrics.json, tables, figures, predictions.
    """
    if out is not None:
        require_report_folder(out)
    called = (model, *models)
    folders = [registry.resolve_model(uri) for uri in called]
    card = load_card(folders[0])
    data = open_stored(dataset or card.dataset)
    notes = [note for folder in folders if (note := trained_on_another_version(load_card(folder), data))]
    if split == "val":
        notes.append(
            "temperatures are fitted on the validation split: its calibrated figures flatter the model"
        )
    config = evaluate_configuration(card, data.info.name, recipe, views)
    reporter = ConsoleReporter()
    with quiet_stdout(as_json):
        for note in notes:
            reporter.note(f"note: {note}")
        try:
            report = evaluate_models(
                folders, data, split=split, config=config, on_progress=hearer(reporter), called=called
            )
        finally:
            reporter.close()
        if out is not None:
            report.write(out)
    document = {
        "models": [str(folder) for folder in folders],
        "dataset": data.info.name,
        "split": split,
        "metrics": report.metrics,
        "temperature_fitted_to": report.about["temperature_fitted_to"],
        "comparison": table_rows(report.comparison.rows()),
        "slices": [asdict(each) for each in report.slices],
        "per_class": report.per_class,
        "notes": notes,
        "out": out,
    }
    emit(document, report_views(report, f"{data.info.name}, {split}"), as_json)


def require_report_folder(out: Path) -> None:
    """Raise ValueError, before the work, if a report cannot go there or would lie among other people's files."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "about.json").is_file():
        raise ValueError(f"--out {out} holds other files than a report; give a new folder")


def trained_on_another_version(card: ModelCard, data: Dataset) -> str:
    """A warning if the model knows another version of this dataset: its training pictures may be among those tested."""
    now = versioning.digest(store() / data.info.name)
    if card.dataset != data.info.name or not card.dataset_digest or card.dataset_digest == now:
        return ""
    return (
        f"{card.members[0].architecture} was trained on another version of {data.info.name} ({card.dataset_digest}, "
        f"now {now or 'untracked'}): pictures that it was trained on may be among those tested"
    )


def evaluate_configuration(
    card: ModelCard, dataset: str, recipe: str, views: list[ViewName] | None
) -> EvaluateConfig:
    """How to evaluate: the recipe's section, with the model's own view and the views asked for."""
    name = choose_recipe(card.family, dataset, recipe)
    values: dict[str, Any] = dict(recipes(card.family)[name]["evaluate"])
    values["registered_view"] = card.views
    if views is not None:
        values["views"] = list(dict.fromkeys(views))
    return EvaluateConfig.parse(values, f"{card.family}.{name}.evaluate")


def hearer(reporter: ConsoleReporter) -> Callable[[int, int], None]:
    """What evaluation tells its progress to."""
    clock = Clock()

    def hear(done: int, total: int) -> None:
        reporter.show(Status("evaluate", done, total, clock.rate(done)))

    return hear


def report_views(report: Report, title: str) -> list[Table]:
    """A report as tables: one line a view, two of calibration, one a class, and the worst slices."""
    basis = report.about["temperature_fitted_to"]
    return [
        table(f"{title}: the registered view is {report.registered_view}", *columns_of(report.views)),
        pareto_view(table_rows(report.comparison.rows())),
        table(f"Calibration, fitted to {basis}", *columns_of(report.calibration)),
        table("By class", *columns_of(report.per_class)),
        slices_view(report.slices),
    ]


def pareto_view(comparison: Sequence[dict[str, Any]]) -> Table:
    """Models, views and ensembles by accuracy and cost (tasks.pareto.table_rows); what no other beats is marked."""
    columns = ("model", "view", "networks", "accuracy", "low", "high", "images/s", "MiB", "Pareto front")
    rows = []
    for row in comparison:
        fronts = [
            name for name, is_on in (("fast", row["fast_front"]), ("small", row["small_front"])) if is_on
        ]
        numbers = [
            row[name] for name in ("accuracy", "accuracy_low", "accuracy_high", "images_per_s", "memory_mb")
        ]
        rows.append((row["model"], row["view"], row["num_networks"], *numbers, " and ".join(fronts)))
    return table("What accuracy costs", columns, rows)


def slices_view(slices: Sequence[Slice]) -> Table:
    """The worst slices."""
    left_out = f", the worst {MAX_SLICES} of {len(slices)}" if len(slices) > MAX_SLICES else ""
    rows = [
        (
            each.kind,
            each.name,
            each.num_images,
            each.accuracy,
            each.accuracy_low,
            each.accuracy_high,
            mark(each),
        )
        for each in slices[:MAX_SLICES]
    ]
    columns = ("kind", "slice", "images", "accuracy", "accuracy_low", "accuracy_high", "")
    return table(f"Slices{left_out}", columns, rows)


def columns_of(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Names of the columns, and the values of each row; not every row need have every column."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[row.get(name) for name in columns] for row in rows]


def predict(
    model: str,
    /,
    *images: Path,
    view: ViewName | None = None,
    as_json: Json = False,
) -> int:
    """Classify images, signals or volumes: files, or folders of them.

    Example: ./convoy predict models:/classifier-digits@champion photo.jpg more/
    An image that is not there or cannot be read is reported and the others are classified; the exit code is then 1.

    Parameters
    ----------
    model
        A registered model (models:/NAME@ALIAS, models:/NAME/VERSION), a run key, or a folder with a model.json.
    images
        Image files, and folders that are searched for them.
    view
        How to look at each image; otherwise the way that the model was registered with.
    """
    require_there(images)
    folder = registry.resolve_model(model)
    files = find_images(images, suffixes_of(load_card(folder).family))
    predictor = load_predictor(folder)
    rows = [
        row
        for start in range(0, len(files), PIECE_IMAGES)
        for row in predict_files(predictor, files[start : start + PIECE_IMAGES], view)
    ]
    classes = predictor.card.classes
    lines = []
    for file, row in zip(files, rows, strict=True):
        lines.append(
            (file, row["label"], row["confidence"], row["error"] or runners_up(classes, row["probabilities"]))
        )
    document = {
        "model": model,
        "classes": classes,
        "predictions": [{"image": str(file), **row} for file, row in zip(files, rows, strict=True)],
    }
    emit(document, [table("", ("image", "label", "confidence", "next, or what is wrong"), lines)], as_json)
    return int(any(row["error"] for row in rows))


def predict_files(predictor: Predictor, files: list[Path], view: ViewName | None) -> list[dict[str, Any]]:
    """A row for each file; one that the system cannot read gets its reason, like one that is no image."""
    contents: list[bytes] = []
    reasons: dict[int, str] = {}
    for i, file in enumerate(files):
        try:
            contents.append(file.read_bytes())
        except OSError as error:
            contents.append(b"")
            reasons[i] = f"cannot be read: {error.strerror or error}"
    rows = predictor.predict(contents, view).to_pylist()
    return [{**row, "error": reasons.get(i, row["error"])} for i, row in enumerate(rows)]


def suffixes_of(family: str) -> frozenset[str]:
    """How files are called that a model of this family takes; the last part alone of `.nii.gz`."""
    if family not in NUM_AXES:
        return IMAGE_SUFFIXES
    endings = (end for form in arrays.FORMATS[NUM_AXES[family]] for end in arrays.EXTENSIONS[form])
    return frozenset(Path(f"x{end}").suffix for end in endings)


def require_there(paths: tuple[Path, ...]) -> None:
    """Raise ValueError or FileNotFoundError where a person gave nothing, or nothing that is there."""
    if not paths:
        raise ValueError("predict needs images: give files or folders after the model")
    if not any(path.exists() for path in paths):
        pattern = " (nothing matches the pattern)" if set(str(paths[0])) & set("*?[") else ""
        raise FileNotFoundError(f"no file or folder {paths[0]}{pattern}")


def find_images(paths: tuple[Path, ...], suffixes: frozenset[str]) -> list[Path]:
    """Files as given, folders searched for what is called so; raises ValueError for a folder without any."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file()
            )
            if not found:
                raise ValueError(f"no images in the folder {path}; looked for {' '.join(sorted(suffixes))}")
            files += found
        else:
            files.append(path)
    return files


def runners_up(classes: tuple[str, ...], probabilities: list[float]) -> str:
    """The next likely classes: `dog 0.21, deer 0.03`."""
    ranked = sorted(zip(probabilities, classes, strict=True), reverse=True)[1 : 1 + NUM_LIKELY]
    return ", ".join(f"{name} {share:.2f}" for share, name in ranked if share >= 0.005)


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
    columns = ("name", "version", "aliases", "accuracy", "dataset", "created", "run_id")
    view = table("Registered models", columns, [[model[name] for name in columns] for model in models])
    empty = "no model is registered yet; make one with: ./convoy train classification --dataset NAME"
    emit({"models": models}, [view if models else empty], as_json)


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
    classes: int = 1000,
    channels: int = 3,
    png: Path | None = None,
    as_json: Json = False,
) -> None:
    """Show where a registered model came from and how good it is, or of a network of the catalogue its layers.

    Example: ./convoy models show vgg16 --input 224 --png vgg16.png

    Parameters
    ----------
    model
        models:/NAME@ALIAS, models:/NAME/VERSION, or a network for pictures: ./convoy models list --catalogue.
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
    if not model.startswith("models:/"):
        raise ValueError(
            f"no model {model!r}: give models:/NAME@ALIAS, or a network of {', '.join(classification.ARCHITECTURES)}"
        )
    values = modellist.show_model(model)
    emit(values, [pairs(model, values)], as_json)
