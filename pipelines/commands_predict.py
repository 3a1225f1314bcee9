"""`./convoy predict`."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from data.files import write_whole
from data.storage import cut_rows
from pipelines.families import Executor
from pipelines.imagefiles import find_images, require_there
from pipelines.options import Changes, Json, overlap_of
from pipelines.render import emit, table
from tasks import registry
from tasks.answers import document_of
from tasks.folders import suffixes_of
from tasks.modelfile import load_card, load_model
from tasks.predict import load_predictor
from tasks.settings import ViewName

# files read and predicted at a time: what is in memory does not grow with the folder
PIECE_IMAGES, PIECE_BYTES = 256, 64 << 20
NUM_LIKELY = 3  # classes shown beside the most likely one
LOOKED_AT_ONCE = ("landmarks", "style")  # families without views
# Options that not all models take: the families whose models do, and what these are called.
TAKEN_BY = {
    "--least-score": (("detection",), "models that find things"),
    "--draw": (("detection", "landmarks"), "models that find things"),
    "--coco": (("detection",), "models that find things"),
    "--tile": (("detection",), "models that find things"),
    "--liveness": (("faces",), "embedders of faces"),
    "--style": (("style",), "stylizers"),
    "--strength": (("style",), "stylizers"),
}


def predict(
    model: str,
    /,
    *images: str,
    view: ViewName | None = None,
    least_score: float | None = None,
    draw: Path | None = None,
    coco: Path | None = None,
    tile: Annotated[bool, Parameter(negative=())] = False,
    overlap: float | None = None,
    liveness: str | None = None,
    style: Annotated[list[str] | None, Parameter(negative=())] = None,
    strength: float | None = None,
    out: Path | None = None,
    executor: Executor = "ray",
    record: Annotated[bool, Parameter(negative=())] = False,
    changes: Changes = None,
    as_json: Json = False,
) -> int:
    """Classify images, signals or volumes, find objects or landmarks in images, embed faces, or stylise images.

    An image that is not there or cannot be read is reported and the others are predicted; the exit code is then 1.
    With --out a whole folder or bucket becomes one Parquet file, on Ray; a command that was stopped goes on:
    ./convoy predict models:/classifier-digits@champion s3://bucket/photos --out predictions.parquet
    Example: ./convoy predict models:/classifier-digits@champion photo.jpg more/

    Parameters
    ----------
    model
        A registered model (models:/NAME@ALIAS, models:/NAME/VERSION), a run key, or a folder with a model.json.
    images
        Image files, and folders that are searched for them; with --out one folder, or s3://BUCKET/PREFIX.
    view
        How to look at each image; otherwise the way that the model was registered with. Classifiers of pictures take
        all; detectors single, mirror, multi_scale; embedders of faces single, mirror; other models single.
    least_score
        Detectors: boxes below this score are left out; otherwise the one that was chosen on validation. What is below
        the recipe's evaluate.min_score is never found.
    draw
        Detectors and landmarks: a folder to write the images to, with what was found drawn; small ones are enlarged.
    coco
        Detectors: a file to write the boxes to, as COCO's results: image_id is the file as given, category_id 1 the
        first class, bbox x, y, width and height in pixels of the upright image.
    tile
        Detectors: look at images that are larger than the network's input in tiles of its size, so that nothing in
        them is made smaller.
    overlap
        With --tile: how much tiles overlap, as a share of their side (0.25); no less than the longest object.
    liveness
        Embedders of faces: a classifier of real faces and attacks, given as the model is; a picture that it judges a
        spoof is reported as one, and not embedded. The threshold is that of its card.
    style
        Stylizers: NAME of a style that the model knows, or NAME=WEIGHT, several times to mix them; otherwise the first.
        Of adain models a picture's file too.
    strength
        Stylizers of adain: how much of the style, 0 to 1.
    out
        A file to write the predictions to, which ends in .parquet: for more than a look. Stylizers: the file to write
        a picture to, or a folder for several.
    executor
        With --out: ray, or in_process.
    record
        Keep features of what can be read, and no picture, below recordings/, for ./convoy drift.
    changes
        With --out: a parameter of section `predict` of params.yaml, such as threads=2.
    """
    whole = out is not None and out.suffix == ".parquet"
    paths = tuple(Path(image) for image in images)
    if not whole:  # a bucket may be named otherwise
        require_there(paths)
    folder = registry.resolve_model(model)
    card = load_card(folder)
    options = {
        "--least-score": least_score, "--draw": draw, "--coco": coco, "--tile": tile or None, "--liveness": liveness,
        "--style": style, "--strength": strength,
    }  # fmt: skip
    require_taken(options, model, card.family)
    tile_overlap = overlap_of(tile, overlap)
    if out is not None and (whole or card.family != "style"):
        from pipelines.commands_batch import predict_into

        return predict_into(
            model, images, out, executor, record, changes, {"--view": view, **options}, as_json
        )
    if changes:
        raise ValueError("--set is for --out FILE.parquet: give it too")
    if draw is not None and draw.exists() and not draw.is_dir():
        raise ValueError(f"--draw {draw} is a file: give a folder")
    if coco is not None and coco.is_dir():
        raise ValueError(f"--coco {coco} is a folder: give a file")
    if card.family in LOOKED_AT_ONCE and view not in (None, "single"):
        raise ValueError(f"--view (={view}) must be single for {card.family}: a picture is looked at once")
    files = find_images(paths, suffixes_of(card.family))
    if record:
        from pipelines.commands_batch import record_files

        record_files(model, files)
    if card.family == "detection":
        return predict_boxes(model, folder, files, view, least_score, draw, coco, tile_overlap, as_json)
    if card.family == "style":
        from pipelines.commands_styled import predict_styled

        return predict_styled(
            model, folder, files, style or (), 1.0 if strength is None else strength, out, as_json
        )
    if card.family == "landmarks":
        from pipelines.commands_points import predict_points

        return predict_points(model, folder, files, draw, as_json)
    if card.family == "faces":
        from pipelines.commands_embed import predict_embeddings

        return predict_embeddings(model, folder, files, view, liveness, as_json)
    return predict_classes(model, folder, files, view, as_json)


def require_taken(options: dict[str, Any], model: str, family: str) -> None:
    """Raise ValueError for an option with a value that models of another family take."""
    for option, value in options.items():
        families, called = TAKEN_BY[option]
        if value is not None and family not in families:
            raise ValueError(f"{option} is for {called}, and {model} is for {family}: leave it out")


def predict_classes(model: str, folder: Path, files: list[Path], view: ViewName | None, as_json: bool) -> int:
    """What a classifier makes of files; see `predict`."""
    predictor = load_predictor(folder)
    classes = predictor.card.classes
    rows = in_pieces(files, lambda blobs: predictor.predict(blobs, view))
    lines = [
        (file, row["label"], row["confidence"], row["error"] or runners_up(classes, row["probabilities"]))
        for file, row in zip(files, rows, strict=True)
    ]
    document = document_of(model, predictor, [str(file) for file in files], rows)
    emit(document, [table("", ("image", "label", "confidence", "next, or what is wrong"), lines)], as_json)
    return int(any(row["error"] for row in rows))


def predict_boxes(
    model: str, folder: Path, files: list[Path], view: ViewName | None, least_score: float | None,
    draw: Path | None, coco: Path | None, tile_overlap: float | None, as_json: bool,
) -> int:  # fmt: skip
    """What a detector finds in files; see `predict`."""
    from tasks import detectionpredict as detection
    from tasks.drawing import write_drawn
    from tasks.views import view_named

    if least_score is not None and not 0 <= least_score <= 1:
        raise ValueError(f"--least-score (={least_score}) must lie in 0…1")
    predictor = detection.DetectionPredictor(load_model(folder), tile_overlap=tile_overlap)
    if least_score is not None:
        predictor.least_score = least_score
    name = None if view is None else view_named(view, detection.VIEWS)
    rows = in_pieces(files, lambda blobs: predictor.predict(blobs, name))
    classes = predictor.card.classes
    if draw is not None:
        drawn = write_drawn(files, rows, draw, detection.drawer(classes))
    if coco is not None:
        coco.parent.mkdir(parents=True, exist_ok=True)
        write_whole(coco, json.dumps(detection.coco_results([str(file) for file in files], rows, classes)))
    lines = [(file, None if row["error"] else len(row["labels"]), row["error"] or of_classes(row["labels"]))
             for file, row in zip(files, rows, strict=True)]  # fmt: skip
    document = {
        **document_of(model, predictor, [str(file) for file in files], rows),
        **({"drawn": drawn} if draw is not None else {}),
        **({"coco": coco} if coco is not None else {}),
    }
    title = f"Boxes of a score of {predictor.least_score:.3g} and more"
    looked = [row["labels"] for row in rows if not row["error"]]
    hint = ["none: --least-score shows boxes of a lower score"] if looked and not any(looked) else []
    emit(document, [table(title, ("image", "boxes", "of what, or what is wrong"), lines), *hint], as_json)
    return int(any(row["error"] for row in rows))


def of_classes(labels: list[str]) -> str:
    """`2 × cat, 1 × dog`: a class may be called 2."""
    return ", ".join(f"{num} × {label}" for label, num in Counter(labels).most_common())


def in_pieces(files: list[Path], predict: Callable[[list[bytes]], Any]) -> list[dict[str, Any]]:
    """A row for each file, a piece of them at a time."""
    sizes = [file.stat().st_size if file.is_file() else 0 for file in files]
    pieces = cut_rows(sizes, PIECE_IMAGES, PIECE_BYTES)
    return [row for start, stop in pieces for row in predict_files(files[start:stop], predict)]


def predict_files(files: list[Path], predict: Callable[[list[bytes]], Any]) -> list[dict[str, Any]]:
    """A row for each file; one that the system cannot read gets its reason, like one that is no image."""
    contents: list[bytes] = []
    reasons: dict[int, str] = {}
    for i, file in enumerate(files):
        try:
            contents.append(file.read_bytes())
        except OSError as error:
            contents.append(b"")
            reasons[i] = f"cannot be read: {error.strerror or error}"
    rows = predict(contents).to_pylist()
    return [{**row, "error": reasons.get(i, row["error"])} for i, row in enumerate(rows)]


def runners_up(classes: tuple[str, ...], probabilities: list[float]) -> str:
    """The next likely classes: `dog 0.21, deer 0.03`; of equals the first is the label, and not among them."""
    ranked = sorted(zip(probabilities, classes, strict=True), key=lambda pair: -pair[0])[1 : 1 + NUM_LIKELY]
    return ", ".join(f"{name} {share:.2f}" for share, name in ranked if share >= 0.005)
