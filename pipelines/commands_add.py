"""`./convoy data add`: bring a dataset in."""

from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from data.address import Fetched
from data.counting import counted
from data.dataset import SPLITS, Dataset, FamilyName, Split, list_names, noun_of, one_of
from data.findings import Findings, Verdict, examine
from data.ingest import IngestConfig, IngestReport
from pipelines.commands_checks import findings_table
from pipelines.commands_data import count_tables, sizes
from pipelines.options import Changes, Json, quiet_stdout
from pipelines.parameters import parse_changes, section
from pipelines.refresh import bring
from pipelines.render import ConsoleReporter, cell, emit, pairs, table
from pipelines.reporting import progress_of
from tasks import versioning, versions
from tasks.paths import store

MAX_LISTED = 10  # of what was set aside
PHOTO_PX = 160  # of the shorter side in the middle: from here on the recipe for photographs is proposed


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

    Example: ./convoy data add https://example.org/photos.tar --sha256 HEX --name products
    Under a name that is taken it makes the next version, in which groups of images keep their side of the split.
    Ingesting the same source again gives the same bytes, and no new version.
    Example: ./convoy data add photos/ --name products

    Parameters
    ----------
    source
        A folder, a tar or zip archive of one, a CSV, or a built-in one. Classification: one folder for each class
        (with train/ and test/ above them, or not), or a CSV with the columns path and label; built in are
        sklearn:digits and skimage:lfw_subset. Detection: COCO JSON, Pascal VOC XML or YOLO text;
        sklearn:digit_scenes. Landmarks: .pts files or a CSV with path,x0,y0,...; convoy:face_points. Faces: one folder
        for each person, and lists of pairs; convoy:synthetic_faces. Style: pictures; skimage:photos. Signals: .ts,
        .npz, .csv, or one folder for each class of WAV, .npy, .npz, .csv. Volumes: .npz, or one folder for each class
        of .npy, .npz, .nii, .nii.gz. An archive may also be an https://, http://, s3:// or file:// URL. See
        docs/datasets.md.
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
    with quiet_stdout(as_json):
        try:
            found = bring(source, sha256, config, reporter)
            added = versions.add(
                found, name=name, family=family, config=config, licence=licence, fresh_splits=fresh_splits,
                subset=subset, progress=progress_of(reporter, "ingest", noun_of(family)), note=reporter.note,
                workers=workers,
            )  # fmt: skip
        finally:
            reporter.close()
    report, digest = added.report, added.digest
    checked = look_at(name, digest)
    document = {
        **report.model_dump(mode="json"), "dvc_digest": digest, "replaces": before,
        "version": added.version and added.version.number, "new_version": added.is_new,
        "findings": [finding.model_dump(mode="json") for finding in checked[0].findings] if checked else None,
    }  # fmt: skip
    views = [*version_views(added, before), *report_views(report, digest)]
    if checked:
        views += check_views(report, *checked)
    else:
        views.append(f"{name} was removed or replaced by another command before it could be checked")
    if before and digest not in before:
        views.insert(0, f"replaces {before}")
    if isinstance(found, Fetched) and sha256 is None and "#sha256=" not in source:
        views.append(
            f"--sha256 {found.sha256} is what came; give it next time: a changed file is then refused, and the same "
            "one is not fetched again"
        )
    emit(document, views, as_json)


def look_at(name: str, digest: str) -> tuple[Findings, Verdict] | None:
    """What the checks say of what was just added; None where another command has taken it away meanwhile."""
    try:
        return examine(Dataset.open(store() / name), ())
    except (OSError, ValueError):
        if versions.stands(name, digest):
            raise
        return None


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


def check_views(report: IngestReport, findings: Findings, verdict: Verdict) -> list[Table | str]:
    """What `data check` will say of what came in; and how to train on it, or why that would be refused."""
    views: list[Table | str] = [findings_table(findings, verdict)] if findings.findings else []
    views.append(
        f"what that means and what to do, with pictures: ./convoy data check {report.name} --html checks.html"
        if findings.findings
        else f"no check found anything; see what is in it: ./convoy data check {report.name} --html checks.html"
    )
    if verdict.stopped_by:
        names = ", ".join(finding.name for finding in verdict.stopped_by)
        return [*views, f"training will not start on it: {names}; look at them by the command above"]
    command = f"next: ./convoy train {report.family} --dataset {report.name}"
    photos = report.family == "classification" and min(report.width_px[1], report.height_px[1]) >= PHOTO_PX
    return [*views, command + (" --recipe photos" if photos else "")]


def replaced(name: str) -> str:
    """What stands under a name that is ingested again, "" if nothing."""
    if name not in list_names(store()):
        return ""
    info = Dataset.open(store() / name).info
    images = sum(info.num_images(split) for split in SPLITS)
    digest = versioning.digest(store() / name) or "untracked"
    amount = counted(images, one_of(info.family), noun_of(info.family))
    return (
        f"{name} ({digest}): {amount} of {counted(len(info.classes), 'class', 'classes')}, from {info.source}"
    )


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
        views.append(table("Set aside", (one_of(report.family), "reason"), rows))
    if len(report.set_aside) > MAX_LISTED:
        views.append(f"and {len(report.set_aside) - MAX_LISTED} more: {report.path}/report.json")
    return views


def listing(counts: dict[str, int]) -> str:
    """`12 hidden, 3 animated`; what has no image is left out."""
    return ", ".join(f"{cell(number)} {what}" for what, number in counts.items() if number)


def _num_boxes(num_boxes: dict[Split, dict[str, int]]) -> int:
    return sum(sum(classes.values()) for classes in num_boxes.values())
