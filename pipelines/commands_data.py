"""`./convoy data`: what it can do; and to list, show, preview and export datasets."""

from pathlib import Path
from typing import Any, Literal

from cyclopts import App
from rich.table import Table

from data.dataset import SPLITS, Dataset, DatasetInfo, list_names, noun_of
from data.export import export as export_dataset
from pipelines.options import Changes, Json
from pipelines.parameters import AUTO, parse_changes
from pipelines.render import cell, emit, pairs, table
from tasks import versioning
from tasks.paths import store
from tasks.versions import open_stored

Span = tuple[int, int, int]  # least, median, greatest

app = App(name="data", help="Ingest, list, show and check datasets.")
COMMANDS = {  # that are imported when they are called: where each is, and what it does
    "add": (
        "commands_add:add",
        "Ingest images: check every one, find duplicates, split, store, and record the version with DVC.",
    ),
    "check": ("commands_checks:check", "Say whether a dataset is what ingest wrote, and what is wrong with it."),
    "label-errors": (
        "commands_labels:label_errors",
        "Find labels that are probably wrong, by what a model makes of the images.",
    ),
    "remove": ("commands_remove:remove", "Remove a dataset; DVC's cache keeps its bytes."),
    "versions": ("commands_versions:versions", "List the versions of a dataset."),
    "checkout": ("commands_versions:checkout", "Put a version of a dataset into its folder."),
    "diff": ("commands_versions:diff", "Compare two versions of a dataset."),
    "remote": ("commands_versions:remote", "Show or set where versions are pushed to."),
    "push": ("commands_versions:push", "Copy versions to the remote."),
    "pull": ("commands_versions:pull", "Fetch datasets from the remote."),
    "watch": ("commands_watch:watch", "Tell Prefect's server of datasets that have changed."),
}  # fmt: skip
for _name, (_where, _help) in COMMANDS.items():
    app.command(f"pipelines.{_where}", name=_name, help=_help)


def sizes(axes: tuple[Span, ...], width: Span, height: Span) -> dict[str, str]:
    """How large items are: pictures by width and height, signals by length, volumes by their three sides."""
    names = {0: ("width, px", "height, px"), 1: ("samples",), 3: ("side 0", "side 1", "side 2")}[len(axes)]
    spans = axes or (width, height)
    return {
        name: f"{low:,} to {high:,}, median {middle:,}"
        for name, (low, middle, high) in zip(names, spans, strict=True)
    }


def count_tables(family: str, counts: Any, num_boxes: Any) -> list[Table | str]:
    """Images by class and split, and boxes of detection; of faces only the sums: people come in thousands."""
    if family == "faces":  # a split names the people of the others too, with no picture
        splits = [split for split in SPLITS if split in counts]
        rows = [
            ["people", *(sum(map(bool, counts[split].values())) for split in splits)],
            ["pictures", *(sum(counts[split].values()) for split in splits)],
        ]
        return [table("Identities", ["", *splits], rows)]
    return [
        counts_table(counts, noun_of(family).capitalize()),
        *([counts_table(num_boxes, "Boxes")] if num_boxes else []),
    ]


def counts_table(counts: Any, title: str) -> Table:
    """Numbers by class and split."""
    splits = [split for split in SPLITS if split in counts]
    names = list(dict.fromkeys(name for split in splits for name in counts[split]))
    rows = [[name, *(counts[split].get(name, 0) for split in splits)] for name in names]
    rows.append(["all", *(sum(counts[split].values()) for split in splits)])
    return table(title, ["class", *splits], rows)


@app.command(name="list")
def list_datasets(*, as_json: Json = False) -> None:
    """List the ingested datasets."""
    infos = [Dataset.open(store() / name).info for name in list_names(store())]
    rows = [summary_of(info) for info in infos]
    empty = f"no dataset in {store()} yet; ingest one with: ./convoy data add SOURCE --name NAME"
    columns = ("name", "family", "classes", "train", "val", "test", "dvc_digest")
    heads = (*columns[:-1], "DVC digest")
    view = table("Datasets", heads, [[row[column] for column in columns] for row in rows])
    here = {row["name"] for row in rows}
    absent = [name for name in versioning.recorded_below(store()) if name not in here]
    ways = {True: ".venv/bin/dvc repro makes it", False: "./convoy data pull NAME fetches one"}
    more = []
    for made, way in ways.items():
        names = [name for name in absent if bool(versioning.stage_of(store() / name)) == made]
        more += [f"recorded and not here: {', '.join(names)}; {way}"] if names else []
    emit({"datasets": rows, "not_here": absent}, [view if rows else empty, *more], as_json)


def summary_of(info: DatasetInfo) -> dict[str, Any]:
    """A dataset in one row."""
    images: dict[str, Any] = {split: info.num_images(split) for split in SPLITS}
    digest = versioning.digest(store() / info.name)
    return {
        "name": info.name,
        "family": info.family,
        "classes": len(info.classes),
        **images,
        "dvc_digest": digest,
    }


@app.command
def show(name: str, /, *, as_json: Json = False) -> None:
    """Show what a dataset is: classes, counts, sizes, source, licence.

    Parameters
    ----------
    name
        Name of an ingested dataset; ./convoy data list shows them.
    """
    info = open_stored(name).info
    digest = versioning.digest(store() / name)
    values = {
        "stored in": store() / name,
        "family": info.family,
        "DVC digest": digest or "not tracked",
        "source": info.source,
        "licence": info.licence,
        "channels": info.channels,
        **sizes(info.axes, info.width_px, info.height_px),
        **({"rate": f"{info.rate_hz:g} Hz"} if info.rate_hz else {}),
        **({"voxels": f"{cell(info.spacing_mm)} mm"} if info.spacing_mm else {}),
        "channel mean": [f"{value:.4f}" for value in info.channel_mean],
        "channel deviation": [f"{value:.4f}" for value in info.channel_std],
        "set aside": info.set_aside,
        "shards": len(info.shards),
        **({"points": len(info.points)} if info.points else {}),
        **({"beside the shards": ", ".join(info.files_sha256)} if info.files_sha256 else {}),
    }
    document = {**info.model_dump(mode="json"), "dvc_digest": digest, "path": store() / name}
    views = [pairs(f"Dataset {name}", values), *count_tables(info.family, info.counts, info.num_boxes)]
    emit(document, views, as_json)


@app.command
def preview(
    name: str,
    /,
    *,
    recipe: str = AUTO,
    changes: Changes = None,
    pictures: int = 8,
    epochs: int = 7,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Draw what training will see: some pictures as they are, and as each of the first epochs augments them.

    Example: ./convoy data preview products --set augment.rotation_deg=15

    Parameters
    ----------
    name
        Name of an ingested dataset; ./convoy data list shows them.
    recipe
        Which recipe of params.yaml; auto: the one called like the dataset, else `default`.
    pictures
        How many, from all over the training split.
    epochs
        How many columns of augmented pictures.
    out
        The PNG to write; otherwise preview-NAME.png here.
    """
    if pictures < 1 or epochs < 1:
        raise ValueError(f"--pictures (={pictures}) and --epochs (={epochs}) must be at least 1")
    # Only now: torch and matplotlib take seconds that the other commands need not wait for.
    from pipelines.configuration import configuration
    from tasks.figures import save_figure
    from tasks.preview import preview as draw

    dataset = open_stored(name)
    config = configuration(dataset.info.family, name, recipe, parse_changes(changes or []))
    file = out or Path(f"preview-{name}.png")
    save_figure(draw(dataset.info.family, config, dataset, num_pictures=pictures, num_epochs=epochs), file)
    emit({"dataset": name, "recipe": recipe, "file": file}, [f"wrote {file}"], as_json)


@app.command
def export(
    name: str,
    /,
    *,
    format: Literal["coco", "yolo", "folders"],
    out: Path,
    as_json: Json = False,
) -> None:
    """Write a dataset for other tools: the images byte for byte, with annotations in their format.

    Example: ./convoy data export blood --format coco --out blood-coco

    Parameters
    ----------
    name
        Name of an ingested dataset; ./convoy data list shows them.
    format
        coco or yolo for detection, folders for the other families.
    out
        A new folder.
    """
    report = export_dataset(open_stored(name), format, out)
    values: dict[str, Any] = {"written to": report.path}
    values |= {f"{split} images": number for split, number in report.images.items()}
    values["to know"] = "; ".join(report.notes) or "nothing else"
    emit(
        report.model_dump(mode="json"),
        [pairs(f"{report.name} as {format}", values)],
        as_json,
    )
