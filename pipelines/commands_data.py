"""`./convoy data`: bring datasets in, and look at them."""

from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from data.checks import check as check_dataset
from data.dataset import SPLITS, Dataset, DatasetInfo, list_names
from data.ingest import IngestConfig, IngestReport, ingest
from pipelines.families import FamilyName
from pipelines.options import Changes, Json, quiet_stdout
from pipelines.parameters import parse_changes, section
from pipelines.render import ConsoleReporter, cell, emit, pairs, table
from pipelines.reporting import Clock, Status
from tasks import versioning
from tasks.paths import store

MAX_LISTED = 10  # of the images that were set aside

app = App(name="data", help="Ingest, list, show and check datasets.")


@app.command
def add(
    source: str,
    /,
    *,
    name: str,
    family: FamilyName = "classification",
    licence: str = "not stated",
    workers: Annotated[int | None, Parameter(name="--workers")] = None,
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Ingest images: check every one, find duplicates, split, store, and record the version with DVC.

    Example: ./convoy data add photos/ --name products
    Ingesting the same source again gives the same bytes.

    Parameters
    ----------
    source
        A folder with one folder for each class (with train/ and test/ above them, or not), a tar or zip archive
        of one, a CSV with the columns path and label, or sklearn:digits.
    name
        What the dataset is called from now on: lower-case letters, digits, - and _.
    family
        What the dataset is for.
    licence
        Under which terms the images may be used; kept with the dataset.
    workers
        Processes that decode; otherwise one for each core.
    """
    config = section("ingest", IngestConfig, parse_changes(changes or []))
    reporter = ConsoleReporter()
    clock = Clock()

    def hear(done: int, total: int | None) -> None:
        reporter.show(Status("ingest", done, total, clock.rate(done)))

    with quiet_stdout(as_json):
        try:
            report = ingest(
                source, name=name, family=family, store=store(), config=config, licence=licence,
                progress=hear, workers=workers,
            )  # fmt: skip
            digest = versioning.add(store() / name)
        finally:
            reporter.close()
    document = {**report.model_dump(mode="json"), "dvc_digest": digest}
    emit(document, report_views(report, digest), as_json)


def report_views(report: IngestReport, digest: str) -> list[Table | str]:
    """What ingest found, for a person."""
    low, middle, high = report.width_px
    values: dict[str, Any] = {
        "stored in": report.path,
        "DVC digest": digest,
        "images": f"{report.num_images:,}, {report.total_bytes / 1e6:,.1f} MB",
        "width": f"{low} to {high} px, median {middle}",
        "height": f"{report.height_px[0]} to {report.height_px[2]} px, median {report.height_px[1]}",
        "set aside": f"{len(report.set_aside):,} images that cannot be used",
        "ignored": listing(report.ignored) or "no file",
        "remarks": listing(report.oddities) or "none",
        "exact duplicates": report.exact_duplicates,
        "near-duplicates": f"{report.near_duplicate_images:,} images in {report.near_duplicate_clusters:,} clusters",
        "test images also in training": report.across_splits,
        "pictures under two labels": report.label_conflicts,
        "to know": "; ".join(report.notes) or "nothing else",
        "took": f"{report.time_s:.1f} s, {report.images_per_s:,.0f} images/s",
    }
    views: list[Table | str] = [pairs(f"Dataset {report.name}", values), counts_table(report.counts)]
    if report.set_aside:
        rows = [(image.id, image.reason) for image in report.set_aside[:MAX_LISTED]]
        views.append(table("Set aside", ("image", "reason"), rows))
    if len(report.set_aside) > MAX_LISTED:
        views.append(f"and {len(report.set_aside) - MAX_LISTED} more: {report.path}/report.json")
    return [*views, f"next: ./convoy train {report.family} --dataset {report.name}"]


def listing(counts: dict[str, int]) -> str:
    """`12 hidden, 3 animated`; what has no image is left out."""
    return ", ".join(f"{cell(number)} {what}" for what, number in counts.items() if number)


def counts_table(counts: Any) -> Table:
    """Images by class and split."""
    splits = [split for split in SPLITS if split in counts]
    names = list(dict.fromkeys(name for split in splits for name in counts[split]))
    rows = [[name, *(counts[split].get(name, 0) for split in splits)] for name in names]
    rows.append(["all", *(sum(counts[split].values()) for split in splits)])
    return table("Images", ["class", *splits], rows)


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
        "width, least median greatest": info.width_px,
        "height, least median greatest": info.height_px,
        "channel mean": [f"{value:.4f}" for value in info.channel_mean],
        "channel deviation": [f"{value:.4f}" for value in info.channel_std],
        "set aside": info.set_aside,
        "shards": len(info.shards),
    }
    document = {**info.model_dump(mode="json"), "dvc_digest": digest, "path": store() / name}
    emit(document, [pairs(f"Dataset {name}", values), counts_table(info.counts)], as_json)


@app.command
def check(name: str, /, *, as_json: Json = False) -> int:
    """Read every byte of a dataset and say whether it still is what ingest wrote; exit code 1 if not.

    Parameters
    ----------
    name
        Name of an ingested dataset; ./convoy data list shows them.
    """
    report = check_dataset(Dataset.open(store() / name))
    problems = [[problem] for problem in report.problems]
    fine = f"{name}: {report.num_images:,} images, all as ingest wrote them ({report.time_s:.1f} s)"
    view = table(f"{name}: {len(problems)} problems", ("problem",), problems)
    emit(report.model_dump(mode="json"), [view if problems else fine], as_json)
    return int(bool(problems))
