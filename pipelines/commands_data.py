"""`./convoy data`: bring datasets in, and look at them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.table import Table

from data.address import Fetched, is_url
from data.dataset import SPLITS, Dataset, DatasetInfo, FamilyName, Split, list_names, noun_of
from data.export import export as export_dataset
from data.findings import examine
from data.ingest import IngestConfig, IngestReport
from pipelines.families import PIPELINES
from pipelines.options import Changes, Json, quiet_stdout
from pipelines.parameters import AUTO, parse_changes, section
from pipelines.render import ConsoleReporter, cell, emit, pairs, table
from pipelines.reporting import Clock, Status
from tasks import versioning, versions
from tasks.paths import downloads, store

MAX_LISTED = 10  # of the images that were set aside
PHOTO_PX = 160  # of the shorter side in the middle: from here on the recipe for photographs is proposed

Span = tuple[int, int, int]  # least, median, greatest

app = App(name="data", help="Ingest, list, show and check datasets.")
app.command(
    "pipelines.commands_checks:check", name="check",
    help="Say whether a dataset is what ingest wrote, and what is wrong with it.",
)  # fmt: skip
app.command(
    "pipelines.commands_labels:label_errors", name="label-errors",
    help="Find labels that are probably wrong, by what a model makes of the images.",
)  # fmt: skip
app.command(
    "pipelines.commands_remove:remove", name="remove", help="Remove a dataset; DVC's cache keeps its bytes."
)
for _name, _help in {
    "versions": "List the versions of a dataset.",
    "checkout": "Put a version of a dataset into its folder.",
    "diff": "Compare two versions of a dataset.",
    "remote": "Show or set where versions are pushed to.",
    "push": "Copy versions to the remote.",
    "pull": "Fetch datasets from the remote.",
}.items():
    app.command(f"pipelines.commands_versions:{_name}", name=_name, help=_help)


@app.command
def add(
    source: str,
    /,
    *,
    name: str,
    family: FamilyName = "classification",
    licence: str = "not stated",
    subset: str = "",
    fresh_splits: Annotated[bool, Parameter(name="--fresh-splits", negative=())] = False,
    sha256: str | None = None,
    workers: Annotated[int | None, Parameter(name="--workers")] = None,
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Ingest images: check every one, find duplicates, split, store, and record the version with DVC.

    Example: ./convoy data add photos/ --name products
    Example: ./convoy data add https://example.org/photos.tar --sha256 HEX --name products
    Under a name that is taken it makes the next version, in which groups of images keep their side of the split.
    Ingesting the same source again gives the same bytes, and no new version.

    Parameters
    ----------
    source
        A folder, a tar or zip archive of one, a CSV, or sklearn:digits. Classification: one folder for each class
        (with train/ and test/ above them, or not), or a CSV with the columns path and label. Detection: COCO JSON,
        Pascal VOC XML or YOLO text. Landmarks: .pts files or a CSV with path,x0,y0,... Faces: one folder for
        each person, and lists of pairs. Style: pictures. Signals: .ts, .npz, .csv, or one folder for each class of WAV,
        .npy, .npz, .csv. Volumes: .npz, or one folder for each class of .npy, .npz, .nii, .nii.gz. An
        archive may also be an https://, http://, s3:// or file:// URL. See docs/datasets.md.
    name
        What the dataset is called from now on: lower-case letters, digits, - and _.
    family
        What the dataset is for.
    licence
        Under which terms the images may be used; kept with the dataset.
    subset
        Of a source that holds several datasets, the folder that counts.
    fresh_splits
        Draw the splits anew, whatever stood where in earlier versions; results are then not comparable with theirs.
    sha256
        Checksum of the archive: another file is refused, and a URL that was fetched before is not fetched again.
    workers
        Processes that decode; otherwise one for each core.
    """
    config = section("ingest", IngestConfig, parse_changes(changes or []))
    before = replaced(name)
    reporter = ConsoleReporter()
    clock = Clock()

    def hear(done: int, total: int | None) -> None:
        reporter.show(Status("ingest", done, total, clock.rate(done)))

    with quiet_stdout(as_json):
        try:
            found = bring(source, sha256, config, reporter)
            added = versions.add(
                found, name=name, family=family, config=config, licence=licence, fresh_splits=fresh_splits,
                subset=subset, progress=hear, note=reporter.note, workers=workers,
            )  # fmt: skip
        finally:
            reporter.close()
    report, digest = added.report, added.digest
    document = {
        **report.model_dump(mode="json"), "dvc_digest": digest, "replaces": before,
        "version": added.version and added.version.number, "new_version": added.is_new,
    }  # fmt: skip
    views = [*version_views(added, before), *report_views(report, digest)]
    if before and digest not in before:
        views.insert(0, f"replaces {before}")
    if isinstance(found, Fetched) and sha256 is None and "#sha256=" not in source:
        views.append(
            f"--sha256 {found.sha256} is what came; give it next time: a changed file is then refused, and the same "
            "one is not fetched again"
        )
    emit(document, views, as_json)


def version_views(added: versions.Added, before: str) -> list[str]:
    """Which version this is, and what it did to the sides of earlier images."""
    name, version, report = added.report.name, added.version, added.report
    if version is None:
        return [
            f"{name} is made by a stage of dvc.yaml: dvc.lock is its version, and its splits are the source's"
        ]
    kept = []
    if added.kept:
        kept = [
            f"ATTENTION: {store() / name} held what no add had recorded, changed by hand say; it is kept as version "
            f"{added.kept.number}, and this add took its place; get it back: ./convoy data checkout {name} "
            f"{added.kept.number}"
        ]
    lost = [f"ATTENTION: {text}" for text in added.losses]
    if not added.is_new:
        old = ", which is checked out now" if added.kept or added.digest not in before else ""
        return [f"the same bytes as version {version.number}{old}: no new version", *kept, *lost]
    views = [f"version {version.number} of {name}", *kept, *lost]
    views += [f"ATTENTION: {text}" for text in versions.moves(report)]
    if report.known_images and not report.fresh_splits:
        stay = report.known_images - sum(moved.images for moved in report.moved)
        views.append(
            f"{stay:,} {noun_of(report.family)} of earlier versions keep their side; --fresh-splits would draw anew"
        )
    return views


def bring(source: str, sha256: str | None, config: IngestConfig, reporter: ConsoleReporter) -> str | Fetched:
    """A source that ingest can open: a URL's file is fetched, and a checksum is compared."""
    if sha256 is None and not is_url(source):
        return source
    from data.download import fetch  # only now: it takes a while to import, and most sources are local

    clock = Clock()
    first: list[int] = []

    def hear(done: int, total: int | None) -> None:
        if not first:
            first.append(done)  # what an earlier attempt left does not count as fast
        rate = clock.rate(done - first[0]) or 0.0
        text = f"MB, {rate / 1e6:,.1f} MB/s"
        reporter.show(Status("download", done // 10**6, total and total // 10**6, None, text))

    return fetch(source, downloads(), sha256=sha256, max_bytes=int(config.max_source_gb * 1e9), hear=hear)


def next_views(report: IngestReport) -> list[str]:
    """How to train on what came in, or why that would be refused."""
    if report.family not in PIPELINES:
        return []
    _findings, verdict = examine(Dataset.open(store() / report.name), ())
    if verdict.stopped_by:
        names = ", ".join(finding.name for finding in verdict.stopped_by)
        return [f"training will not start on it: {names}; look at them by the command above"]
    command = f"next: ./convoy train {report.family} --dataset {report.name}"
    photos = report.family == "classification" and min(report.width_px[1], report.height_px[1]) >= PHOTO_PX
    return [command + (" --recipe photos" if photos else "")]


def replaced(name: str) -> str:
    """What stands under a name that is ingested again, "" if nothing."""
    if name not in list_names(store()):
        return ""
    info = Dataset.open(store() / name).info
    images = sum(info.num_images(split) for split in SPLITS)
    digest = versioning.digest(store() / name) or "untracked"
    return f"{name} ({digest}): {images:,} {noun_of(info.family)} of {len(info.classes):,} classes, from {info.source}"


def report_views(report: IngestReport, digest: str) -> list[Table | str]:
    """What ingest found, for a person."""
    what = noun_of(report.family)
    values: dict[str, Any] = {
        "stored in": report.path,
        "source": report.source,
        "DVC digest": digest,
        what: f"{report.num_images:,}, {report.total_bytes / 1e6:,.1f} MB",
        **sizes(report.axes, report.width_px, report.height_px),
        "set aside": f"{len(report.set_aside):,} {what} that cannot be used",
        "ignored": listing(report.ignored) or "no file",
        "remarks": listing(report.oddities) or "none",
        "exact duplicates": report.exact_duplicates,
        "near-duplicates": f"{report.near_duplicate_images:,} {what} in {report.near_duplicate_clusters:,} clusters",
        **{f"{o.split} {what} also in {o.other}": o.images for o in report.overlaps},
        f"{what} under two labels": report.label_conflicts,
        **({"boxes": _num_boxes(report.num_boxes)} if report.num_boxes else {}),
        "to know": "; ".join(report.notes) or "nothing else",
        "took": f"{report.time_s:.1f} s, {report.images_per_s:,.0f} {what}/s",
    }
    views: list[Table | str] = [
        pairs(f"Dataset {report.name}", values),
        *count_tables(report.family, report.counts, report.num_boxes),
    ]
    if report.issues:
        issues = [(issue.count, issue.what, issue.examples[0]) for issue in report.issues]
        views.append(table("Annotations", ("number", "what", "for instance"), issues))
    if report.set_aside:
        rows = [(image.id, image.reason) for image in report.set_aside[:MAX_LISTED]]
        views.append(table("Set aside", (what.removesuffix("s"), "reason"), rows))
    if len(report.set_aside) > MAX_LISTED:
        views.append(f"and {len(report.set_aside) - MAX_LISTED} more: {report.path}/report.json")
    views.append(
        f"what is wrong with it, with pictures: ./convoy data check {report.name} --html checks.html"
    )
    return [*views, *next_views(report)]


def sizes(axes: tuple[Span, ...], width: Span, height: Span) -> dict[str, str]:
    """How large items are: pictures by width and height, signals by length, volumes by their three sides."""
    names = {0: ("width, px", "height, px"), 1: ("samples",), 3: ("side 0", "side 1", "side 2")}[len(axes)]
    spans = axes or (width, height)
    return {
        name: f"{low:,} to {high:,}, median {middle:,}"
        for name, (low, middle, high) in zip(names, spans, strict=True)
    }


def listing(counts: dict[str, int]) -> str:
    """`12 hidden, 3 animated`; what has no image is left out."""
    return ", ".join(f"{cell(number)} {what}" for what, number in counts.items() if number)


def _num_boxes(num_boxes: dict[Split, dict[str, int]]) -> int:
    return sum(sum(classes.values()) for classes in num_boxes.values())


def count_tables(family: str, counts: Any, num_boxes: Any) -> list[Table | str]:
    """Images by class and split, and boxes of detection; of faces only the sums: people come in thousands."""
    if family == "faces":
        counts = {
            split: {"with images": sum(map(bool, people.values())), "without": list(people.values()).count(0)}
            for split, people in counts.items()
        }
        return [counts_table(counts, "Identities", "identities")]
    return [
        counts_table(counts, noun_of(family).capitalize()),
        *([counts_table(num_boxes, "Boxes")] if num_boxes else []),
    ]


def counts_table(counts: Any, title: str, kind: str = "class") -> Table:
    """Numbers by class and split."""
    splits = [split for split in SPLITS if split in counts]
    names = list(dict.fromkeys(name for split in splits for name in counts[split]))
    rows = [[name, *(counts[split].get(name, 0) for split in splits)] for name in names]
    rows.append(["all", *(sum(counts[split].values()) for split in splits)])
    return table(title, [kind, *splits], rows)


@app.command(name="list")
def list_datasets(*, as_json: Json = False) -> None:
    """List the ingested datasets."""
    infos = [Dataset.open(store() / name).info for name in list_names(store())]
    rows = [summary_of(info) for info in infos]
    empty = f"no dataset in {store()} yet; ingest one with: ./convoy data add SOURCE --name NAME"
    columns = ("name", "family", "classes", "train", "val", "test", "dvc_digest")
    view = table("Datasets", columns, [[row[column] for column in columns] for row in rows])
    emit({"datasets": rows}, [view if rows else empty], as_json)


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
    info = Dataset.open(store() / name).info
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

    dataset = Dataset.open(store() / name)
    if dataset.info.family not in PIPELINES:
        known = ", ".join(PIPELINES)
        raise ValueError(f"dataset {name!r} is for {dataset.info.family}; a preview is drawn for: {known}")
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
    report = export_dataset(Dataset.open(store() / name), format, out)
    values: dict[str, Any] = {"written to": report.path}
    values |= {f"{split} images": number for split, number in report.images.items()}
    values["to know"] = "; ".join(report.notes) or "nothing else"
    emit(
        report.model_dump(mode="json"),
        [pairs(f"{report.name} as {format}", values)],
        as_json,
    )
