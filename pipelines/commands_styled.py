"""What `./convoy predict` does with a stylizer."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from pipelines.commands_predict import predict_files
from pipelines.imagefiles import targets_of
from pipelines.render import emit, table
from tasks.modelfile import load_model
from tasks.stylepictures import write_picture
from tasks.stylesources import read_styles
from tasks.stylizerpredict import StylizerPredictor


def predict_styled(
    model: str, folder: Path, files: list[Path], styles: Sequence[str], strength: float, out: Path | None, as_json: bool
) -> int:  # fmt: skip
    """Stylise files one after the other; `out` is a file for one of them, else a folder."""
    if out is None:
        raise ValueError("a stylizer makes pictures: give --out FILE.png (or .jpg), or --out FOLDER")
    targets = targets_of([file.stem for file in files], out)
    saved = load_model(folder)
    predictor = StylizerPredictor(saved, precision="auto")
    if styles or strength != 1:
        side_px = saved.card.members[0].arguments["style_px"]
        named, pictures = chosen(styles or saved.card.classes[:1], saved.card.classes, side_px)
        predictor.choose(named, pictures, strength)
    predictions, lines = [], []
    for file, target in zip(files, targets, strict=True):
        [row] = predict_files([file], predictor.predict)
        if row["error"] is None:
            write_picture(target, Image.open(io.BytesIO(row["picture"])))
        written = None if row["error"] else str(target)
        predictions.append({"image": str(file), "stylised": written, "error": row["error"]})
        lines.append((file, written or row["error"]))
    document = {"model": model, "styles": saved.card.classes, "predictions": predictions}
    emit(document, [table("", ("image", "stylised, or what is wrong"), lines)], as_json)
    return int(any(row["error"] for row in predictions))


def chosen(
    styles: Sequence[str], known: Sequence[str], side_px: int
) -> tuple[dict[str, float], list[tuple[Tensor, float]]]:
    """NAME, PICTURE, NAME=WEIGHT or PICTURE=WEIGHT: the model's own styles by name, and pictures with their weights."""
    named: dict[str, float] = {}
    pictures: list[tuple[Tensor, float]] = []
    for text in styles:
        name, weight = weighted(text, known)
        if name in known:
            named[name] = weight
            continue
        try:
            squares, _hashes = read_styles([("--style", name)], side_px)
        except FileNotFoundError:
            raise ValueError(
                f"--style {text}: neither a style of this model ({', '.join(known)}) nor a picture that is there"
            ) from None
        pictures.append((squares.float() / 255, weight))
    return named, pictures


def weighted(text: str, known: Sequence[str]) -> tuple[str, float]:
    """`name=0.7` as its name and weight; without one, 1. Raises ValueError for a known style's that is no number."""
    name, equals, number = text.rpartition("=")
    try:
        return (name, float(number)) if equals else (text, 1.0)
    except ValueError:
        if name in known:
            raise ValueError(
                f"--style {text}: the weight of {name} must be a number, as in {name}=0.7"
            ) from None
        return text, 1.0  # a file may be called so
