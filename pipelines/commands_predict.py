"""`./convoy predict`."""

from pathlib import Path
from typing import Any

from data import arrays
from data.dataset import NUM_AXES
from data.decode import EXTENSIONS
from pipelines.options import Json
from pipelines.render import emit, table
from tasks import registry
from tasks.modelfile import load_card
from tasks.predict import Predictor, load_predictor
from tasks.settings import ViewName

IMAGE_SUFFIXES = frozenset(suffix for suffixes in EXTENSIONS.values() for suffix in suffixes)
PIECE_IMAGES = 256  # read and classified at a time: what is in memory does not grow with the folder
NUM_LIKELY = 3  # classes shown beside the most likely one


def predict(
    model: str,
    /,
    *images: Path,
    view: ViewName | None = None,
    as_json: Json = False,
) -> int:
    """Classify images, signals or volumes: files, or folders of them.

    Example: ./convoy predict models:/classifier-digits@champion photo.jpg more/
    An image that is not there or cannot be read is reported and the others are classified; the exit code is then 1.

    Parameters
    ----------
    model
        A registered model (models:/NAME@ALIAS, models:/NAME/VERSION), a run key, or a folder with a model.json.
    images
        Image files, and folders that are searched for them.
    view
        How to look at each image; otherwise the way that the model was registered with.
    """
    require_there(images)
    folder = registry.resolve_model(model)
    files = find_images(images, suffixes_of(load_card(folder).family))
    predictor = load_predictor(folder)
    rows = [
        row
        for start in range(0, len(files), PIECE_IMAGES)
        for row in predict_files(predictor, files[start : start + PIECE_IMAGES], view)
    ]
    classes = predictor.card.classes
    lines = []
    for file, row in zip(files, rows, strict=True):
        lines.append(
            (file, row["label"], row["confidence"], row["error"] or runners_up(classes, row["probabilities"]))
        )
    document = {
        "model": model,
        "classes": classes,
        "predictions": [{"image": str(file), **row} for file, row in zip(files, rows, strict=True)],
    }
    emit(document, [table("", ("image", "label", "confidence", "next, or what is wrong"), lines)], as_json)
    return int(any(row["error"] for row in rows))


def predict_files(predictor: Predictor, files: list[Path], view: ViewName | None) -> list[dict[str, Any]]:
    """A row for each file; one that the system cannot read gets its reason, like one that is no image."""
    contents: list[bytes] = []
    reasons: dict[int, str] = {}
    for i, file in enumerate(files):
        try:
            contents.append(file.read_bytes())
        except OSError as error:
            contents.append(b"")
            reasons[i] = f"cannot be read: {error.strerror or error}"
    rows = predictor.predict(contents, view).to_pylist()
    return [{**row, "error": reasons.get(i, row["error"])} for i, row in enumerate(rows)]


def suffixes_of(family: str) -> frozenset[str]:
    """How files are called that a model of this family takes; the last part alone of `.nii.gz`."""
    if family not in NUM_AXES:
        return IMAGE_SUFFIXES
    endings = (end for form in arrays.FORMATS[NUM_AXES[family]] for end in arrays.EXTENSIONS[form])
    return frozenset(Path(f"x{end}").suffix for end in endings)


def require_there(paths: tuple[Path, ...]) -> None:
    """Raise ValueError or FileNotFoundError where a person gave nothing, or nothing that is there."""
    if not paths:
        raise ValueError("predict needs images: give files or folders after the model")
    if not any(path.exists() for path in paths):
        pattern = " (nothing matches the pattern)" if set(str(paths[0])) & set("*?[") else ""
        raise FileNotFoundError(f"no file or folder {paths[0]}{pattern}")


def find_images(paths: tuple[Path, ...], suffixes: frozenset[str]) -> list[Path]:
    """Files as given, folders searched for what is called so; raises ValueError for a folder without any."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file()
            )
            if not found:
                raise ValueError(f"no images in the folder {path}; looked for {' '.join(sorted(suffixes))}")
            files += found
        else:
            files.append(path)
    return files


def runners_up(classes: tuple[str, ...], probabilities: list[float]) -> str:
    """The next likely classes: `dog 0.21, deer 0.03`."""
    ranked = sorted(zip(probabilities, classes, strict=True), reverse=True)[1 : 1 + NUM_LIKELY]
    return ", ".join(f"{name} {share:.2f}" for share, name in ranked if share >= 0.005)
