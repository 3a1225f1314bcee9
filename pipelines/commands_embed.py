"""What `./convoy predict` does with an embedder of faces."""

from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.commands_predict import in_pieces
from pipelines.render import emit, table
from tasks import registry
from tasks.answers import document_of
from tasks.facepredict import VIEWS, FacePredictor
from tasks.livenessmodel import answer_real, open_liveness
from tasks.modelfile import load_model
from tasks.views import view_named

MOST_COLUMNS = 8  # distances that the console shows


def predict_embeddings(
    model: str, folder: Path, files: list[Path], view: str | None, liveness: str | None, as_json: bool
) -> int:
    """The embeddings of files, and how far apart they are: squared distances, 0 to 4.

    `liveness` names a model that must judge a face real before it is embedded.
    """
    predictor = FacePredictor(load_model(folder))
    if view is not None:
        predictor.view = view_named(view, VIEWS)
    answer = predictor.predict
    check = None if liveness is None else open_liveness(registry.resolve_model(liveness), liveness)
    if check is not None:
        answer = partial(answer_real, check, predictor.predict)
    rows = in_pieces(files, answer)
    document = document_of(model, predictor, [str(file) for file in files], rows)
    if check is not None:
        document["liveness"] = {"model": liveness, "threshold": check.threshold}
    emit(document, views_of(files, rows, document), as_json)
    return int(any(row["error"] for row in rows))


def views_of(files: list[Path], rows: list[dict[str, Any]], document: dict[str, Any]) -> list[Table | str]:
    """The distances between faces, for a person; of one face, which has none, only whether it was embedded."""
    if len(files) == 1:
        told = rows[0]["error"] or (
            f"an embedding of {len(rows[0]['embedding'])} numbers, which --json shows; give two faces or more to see "
            "how far apart they are"
        )
        return [f"{files[0]}: {told}"]
    apart = document["squared_distances"]
    shown = range(min(len(files), MOST_COLUMNS))
    lines = [
        (i + 1, file, *(apart[i][j] for j in shown), row["error"])
        for i, (file, row) in enumerate(zip(files, rows, strict=True))
    ]
    told = ", ".join(f"{value:.3f} ({name})" for name, value in sorted(document["thresholds"].items()))
    title = f"Squared distances; one person up to {told}" if told else "Squared distances"
    return [table(title, ("", "image", *(f"to {j + 1}" for j in shown), "what is wrong"), lines)]
