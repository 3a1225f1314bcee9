"""`./convoy data label-errors`: labels that are probably wrong, once there is a model that was not trained on them."""

from pathlib import Path
from typing import Any

from rich.table import Table

from data.dataset import Split, noun_of
from pipelines.options import Json, quiet_stdout
from pipelines.parameters import AUTO
from pipelines.render import ConsoleReporter, emit, pairs, table
from pipelines.reporting import progress_of
from pipelines.scoring import evaluate_configuration, trained_on_another_version
from tasks import registry
from tasks.evaluate import Report, evaluate
from tasks.labelerrors import noisy_pairs, weakness
from tasks.labelpage import write_label_page
from tasks.modelfile import load_card
from tasks.report import SUSPECT_COLUMNS, write_csv
from tasks.versions import open_stored
from tasks.views import VIEWS, view_named

MAX_LISTED = 20


def label_errors(
    name: str,
    /,
    *,
    model: str,
    split: Split = "test",
    out: Path | None = None,
    html: Path | None = None,
    as_json: Json = False,
) -> None:
    """Find labels that are probably wrong, by what a model makes of the images (confident learning).

    The model must not have been trained on the images it judges: it would repeat their labels.
    Example: ./convoy data label-errors products --model models:/classifier-products@champion --html suspects.html

    Parameters
    ----------
    name
        Name of an ingested dataset; ./convoy data list shows them.
    model
        A registered model (models:/NAME@ALIAS, models:/NAME/VERSION), a run key, or a folder with a model.json.
    split
        Which images.
    out
        Write all suspects to this CSV file.
    html
        Write a page with the suspects' pictures to this file.
    """
    folder = registry.resolve_model(model)
    card, data = load_card(folder), open_stored(name)
    config = evaluate_configuration(card, name, AUTO, [view_named(card.views, VIEWS)])
    notes = [note] if (note := trained_on_another_version(card, data)) else []
    if split == "train" and card.dataset == name:
        notes.append(
            "the model was trained on these labels and repeats them: few errors are found so; look at test or val"
        )
    reporter = ConsoleReporter()
    with quiet_stdout(as_json):
        for note in notes:
            reporter.note(f"note: {note}")
        try:
            report = evaluate(
                [folder], data, split=split, config=config, called=[model],
                on_progress=progress_of(reporter, "evaluate"),
            )  # fmt: skip
        finally:
            reporter.close()
        if note := weakness(report.metrics["accuracy"]):
            notes.append(note)
            reporter.note(f"note: {note}")
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_csv(out, report.suspects, SUSPECT_COLUMNS)
        if html is not None:
            write_label_page(html, data, split, report, notes)
    document = document_of(report, name, split, model, notes, noun_of(data.info.family))
    emit(document, [*views(document), *(f"wrote {file}" for file in (out, html) if file)], as_json)


def document_of(
    report: Report, name: str, split: Split, model: str, notes: list[str], noun: str
) -> dict[str, Any]:
    """What was found, as plain values."""
    found = report.label_errors
    return {
        "dataset": name,
        "split": split,
        "model": model,
        "items": noun,
        "num_images": len(report.labels),
        "accuracy": report.metrics["accuracy"],
        "estimated_errors": found.estimated,
        "noise_rate": found.noise_rate,
        "pairs": [
            {"label": report.classes[given], "true": report.classes[true], "estimated": count, "share": share}
            for given, true, count, share in noisy_pairs(found)
        ],
        "suspects": report.suspects,
        "notes": notes,
    }


def views(document: dict[str, Any]) -> list[Table | str]:
    """What was found, for a person."""
    suspects = document["suspects"]
    values = {
        document["items"]: document["num_images"],
        "accuracy of the model": f"{document['accuracy']:.2%}",
        "wrong labels, estimated": f"{document['estimated_errors']:.1f} ({document['noise_rate']:.2%})",
        "suspects": len(suspects),
    }
    shown: list[Table | str] = [pairs(f"Labels of {document['dataset']}, {document['split']}", values)]
    if suspects:
        rows = [[row[column] for column in SUSPECT_COLUMNS] for row in suspects[:MAX_LISTED]]
        shown.append(table("The most suspect", SUSPECT_COLUMNS, rows))
    if len(suspects) > MAX_LISTED:
        shown.append(f"and {len(suspects) - MAX_LISTED} more: --out FILE.csv, --html FILE.html")
    return shown
