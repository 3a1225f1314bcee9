"""What a model's predictions look like as JSON: the same from `./convoy predict --json` and from `./convoy serve`."""

import base64
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from tasks.detectionpredict import DetectionPredictor
from tasks.facepredict import FacePredictor
from tasks.predictors import Answering

Row = dict[str, Any]


def document_of(
    model: str, predictor: Answering, names: Sequence[str], rows: Sequence[Row]
) -> dict[str, Any]:
    """The document of predictions: `rows` as the family's predictor gives them, `names` of their items."""
    rows = [{"image": name, **row} for name, row in zip(names, rows, strict=True)]
    return {"model": model, **DOCUMENTS.get(predictor.card.family, of_classes)(predictor, rows)}


def of_classes(predictor: Answering, rows: list[Row]) -> dict[str, Any]:
    """Classes' names stand once; `probabilities` are in their order."""
    return {"classes": predictor.card.classes, "predictions": rows}


def of_boxes(predictor: Answering, rows: list[Row]) -> dict[str, Any]:
    """Boxes, and the least score that they have."""
    least = cast(DetectionPredictor, predictor).least_score
    return {"classes": predictor.card.classes, "least_score": least, "predictions": rows}


def of_points(predictor: Answering, rows: list[Row]) -> dict[str, Any]:
    """Each point by its name."""
    names = predictor.card.classes
    named = [
        {
            "image": row["image"],
            "visible": row["visible"],
            "error": row["error"],
            "points": points_of(row, names),
        }
        for row in rows
    ]
    return {"points": names, "predictions": named}


def of_faces(predictor: Answering, rows: list[Row]) -> dict[str, Any]:
    """Embeddings, and how far apart they are."""
    return {
        "view": cast(FacePredictor, predictor).view,
        "thresholds": {name: value for name, value in predictor.card.thresholds.items() if value >= 0},
        "predictions": rows,
        "squared_distances": distances_of(rows),
    }


def of_pictures(predictor: Answering, rows: list[Row]) -> dict[str, Any]:
    """Rendered pictures, PNG in base64."""
    shown = [
        {
            **row,
            "picture": None if row["picture"] is None else base64.b64encode(row["picture"]).decode("ascii"),
        }
        for row in rows
    ]
    return {"styles": predictor.card.classes, "predictions": shown}


DOCUMENTS: dict[str, Callable[[Answering, list[Row]], dict[str, Any]]] = {
    "detection": of_boxes,
    "faces": of_faces,
    "landmarks": of_points,
    "style": of_pictures,
}


def points_of(row: Row, names: tuple[str, ...]) -> dict[str, list[float]] | None:
    """x and y of each point by its name; None for a picture that could not be read."""
    if row["error"] is not None:
        return None
    places = np.reshape(row["points_xy"], (-1, 2)).tolist()
    return dict(zip(names, places, strict=True))


def distances_of(rows: Sequence[Row]) -> list[list[float | None]]:
    """Of each row to each: squared distances of their embeddings, None where one could not be read."""
    good = [i for i, row in enumerate(rows) if row["error"] is None]
    apart: list[list[float | None]] = [[None] * len(rows) for _ in rows]
    embeddings = np.array([rows[i]["embedding"] for i in good]).reshape(len(good), -1)
    found = ((embeddings[:, None] - embeddings) ** 2).sum(2).tolist()
    for i, values in zip(good, found, strict=True):
        for j, value in zip(good, values, strict=True):
            apart[i][j] = value
    return apart
