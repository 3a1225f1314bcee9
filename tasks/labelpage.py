"""Labels that are probably wrong as one HTML file: how many, between which classes, and the pictures."""

from pathlib import Path

from data.dataset import NUM_AXES, Dataset, Split, noun_of
from data.evidence import pictures_at
from data.files import write_whole
from tasks import page
from tasks.arrays import as_png
from tasks.labelerrors import noisy_pairs
from tasks.page import escape
from tasks.report import Report

MAX_TILES = 120
MAX_PAIRS = 30


def write_label_page(file: Path, dataset: Dataset, split: Split, report: Report, notes: list[str]) -> None:
    """Write the page of an evaluation on a split of the dataset."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, label_page(dataset, split, report, notes))


def label_page(dataset: Dataset, split: Split, report: Report, notes: list[str]) -> str:
    """The page, as HTML."""
    found = report.label_errors
    shown = found.suspects[:MAX_TILES].tolist()
    blobs = pictures_at(dataset, split, shown)
    if dataset.info.family in NUM_AXES:
        blobs = {place: as_png(blob, NUM_AXES[dataset.info.family]) for place, blob in blobs.items()}
    tiles = [
        page.tile([suspect_picture(row, blobs.get(place))])
        for place, row in zip(shown, report.suspects, strict=False)
    ]
    left_out = len(found.suspects) - len(shown)
    heading = (
        f"Suspects, the most suspect first{f' ({left_out:,} more are in the table)' if left_out else ''}"
    )
    name = f"{dataset.info.name}, {split}"
    return page.document(
        f"Labels of {name}",
        page.heading(f"Labels that are probably wrong: {name}", method(report)),
        "".join(f'<div class="verdict stop">{escape(note)}</div>' for note in notes),
        numbers(report, noun_of(dataset.info.family)),
        pairs_table(report, noun_of(dataset.info.family)),
        f'<h2>{escape(heading)}</h2><div class="tiles">{"".join(tiles)}</div>',
    )


def method(report: Report) -> str:
    """What the numbers rest on."""
    accuracy = report.metrics["accuracy"]
    return (
        f"Confident learning (Northcutt et al. 2021) on the probabilities of a model of accuracy {accuracy:.1%}, view "
        f"{report.registered_view}. A suspect is something to look at: a weak model suspects many that are right."
    )


def numbers(report: Report, noun: str) -> str:
    """The headline."""
    found = report.label_errors
    fields = [
        (f"{len(report.labels):,}", noun),
        (f"{found.estimated:,.0f}", "wrong labels, estimated"),
        (f"{found.noise_rate:.2%}", "of all, estimated"),
        (f"{len(found.suspects):,}", "suspects"),
    ]
    return page.headline(fields)


def pairs_table(report: Report, noun: str) -> str:
    """Which labels are mistaken for which."""
    pairs = noisy_pairs(report.label_errors)[:MAX_PAIRS]
    if not pairs:
        return "<p>No pair of classes is estimated to be mistaken for one another.</p>"
    rows = [
        (report.classes[given], report.classes[true], f"{count:.1f}", f"{share:.1%}")
        for given, true, count, share in pairs
    ]
    table = page.table(("labelled", "is rather", f"{noun}, estimated", "of those labelled so"), rows)
    return f"<h2>Between classes</h2>{table}"


def suspect_picture(row: dict[str, object], blob: bytes | None) -> str:
    """One suspect: its label, what it rather is, and its file."""
    lines = [
        f"{row['label']} ({row['own_confidence']:.1%})",
        f"→ {row['suggested']} ({row['confidence']:.1%})",
        str(row["id"]).rpartition("/")[2],
    ]
    return page.picture(blob, lines, str(row["id"]))
