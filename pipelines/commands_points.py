"""What `./convoy predict` does with a network for landmarks."""

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.commands_predict import in_pieces
from pipelines.render import emit, table
from tasks.drawing import draw_points, write_drawn
from tasks.landmarkpredict import LandmarkPredictor
from tasks.modelfile import load_model


def predict_points(model: str, folder: Path, files: list[Path], draw: Path | None, as_json: bool) -> int:
    """The points in files, a row each; `draw` is a folder for the pictures with their points."""
    predictor = LandmarkPredictor(load_model(folder))
    rows = in_pieces(files, predictor.predict)
    names = predictor.card.classes
    predictions = [
        {
            "image": str(file),
            "visible": row["visible"],
            "error": row["error"],
            "points": points_of(row, names),
        }
        for file, row in zip(files, rows, strict=True)
    ]
    drawn = write_drawn(files, rows, draw, drawn_into) if draw is not None else None
    lines = [
        (
            row["image"],
            None if row["error"] else sum(row["visible"]),
            row["error"] or first_points(row["points"]),
        )
        for row in predictions
    ]
    document = {
        "model": model,
        "points": names,
        "predictions": predictions,
        **({"drawn": drawn} if drawn else {}),
    }
    columns = ("image", "visible", "the first of them, in pixels, or what is wrong")
    emit(document, [table(f"{len(names)} points", columns, lines)], as_json)
    return int(any(row["error"] for row in rows))


def points_of(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, list[float]] | None:
    """x and y of each point by its name; None for a picture that could not be read."""
    if row["error"] is not None:
        return None
    places = np.reshape(row["points_xy"], (-1, 2)).tolist()
    return dict(zip(names, places, strict=True))


def first_points(points: dict[str, list[float]]) -> str:
    """`nose 31.2, 40.1`, of three points."""
    return "; ".join(f"{name} {x:.1f}, {y:.1f}" for name, (x, y) in list(points.items())[:3])


def drawn_into(picture: np.ndarray, row: dict[str, Any], zoom: int) -> np.ndarray:
    """A picture, enlarged so many times, with the points of its row."""
    points = (np.reshape(row["points_xy"], (-1, 2)) + 0.5) * zoom - 0.5  # from the centre of the first pixel
    return draw_points(picture, points, np.array(row["visible"]))
