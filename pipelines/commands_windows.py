"""`./convoy detect-windows`: find what a classifier knows in a picture, by sliding windows."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from PIL import Image

from data.counting import counted
from data.decode import decode_image
from data.samples import read_photo
from pipelines.imagefiles import targets_of
from pipelines.options import Json
from pipelines.render import ConsoleReporter, emit, table
from pipelines.reporting import progress_of
from tasks import registry
from tasks.card import Preprocessing
from tasks.drawing import distinct
from tasks.intervals import with_intervals
from tasks.predict import load_predictor
from tasks.slidingwindow import Scan, Way, WindowScorer, detect, draw, write_crops
from tasks.stylepictures import write_picture
from tasks.versions import open_stored

ScoredSplit = Literal["val", "test"]
MAX_SHOWN = 20  # of what is found, the most probable; --json has all


def detect_windows(
    *photos: str,
    model: str,
    labels: Annotated[list[str], Parameter(name="--class", negative=(), consume_multiple=True)],
    dataset: str | None = None,
    split: ScoredSplit | None = None,
    windows: Annotated[list[int] | None, Parameter(negative=(), consume_multiple=True)] = None,
    stride: int = 0,
    score: float = 0.5,
    iou: float = 0.3,
    most: int = 0,
    agreeing: int = 1,
    way: Way = "convolutional",
    out: Path | None = None,
    crops: Path | None = None,
    as_json: Json = False,
) -> None:
    """Find a class in a picture by a classifier of crops: windows of several sizes, and the best where they overlap.

    With --dataset instead of pictures, what is found in all of a split is scored: AP, precision and recall.
    Example: ./convoy detect-windows skimage:astronaut --model out/faces/model --class face --out astronaut.png

    Parameters
    ----------
    photos
        Pictures, or photographs that scikit-image ships: skimage:astronaut, skimage:coffee.
    model
        A registered model (models:/NAME@ALIAS, models:/NAME/VERSION), a run key, or a folder with a model.json.
    labels
        Classes to look for, of those that the model knows.
    dataset
        Name of an ingested detection dataset that has these classes: score the windows on it.
    split
        With --dataset: which pictures; otherwise test.
    windows
        Sides of windows, in pixels of the picture; otherwise from the network's own to the shorter side, times 1.25.
    stride
        From one window to the next, in pixels of the picture scaled so that a window is as large as the network takes
        it: a multiple of the network's own stride, which 0 means; with --way crops any.
    score
        Least probability of what is shown.
    iou
        Of two boxes of one class that overlap by more, the less probable is left out.
    most
        Keep the best so many of each picture; 0: all.
    agreeing
        Of a box to be kept: how many windows, itself among them, must be as probable and overlap it by half or more.
    way
        convolutional: the network runs once over each scaled picture; crops: on each window by itself.
    out
        Draw the boxes into this picture (.png or .jpg), or into a folder: one where there are several pictures. With
        --dataset: folder to write the report to.
    crops
        Write what is found as pictures to train on into this folder: false alarms, for the class that they are of.
    """
    if bool(photos) == (dataset is not None):
        raise ValueError("detect-windows needs pictures, or --dataset NAME to be scored on, and not both")
    if dataset is None and split is not None:
        raise ValueError(f"--split (={split}) is of a dataset: give --dataset NAME")
    if dataset is not None and crops is not None:
        raise ValueError(f"--crops (={crops}) are cut out of pictures that are named, not of a dataset")
    predictor = load_predictor(registry.resolve_model(model), called=model)
    scorer = WindowScorer(predictor, way, stride)
    look = partial(
        detect, scorer, labels=labels, sizes=windows or (), least_score=score, iou=iou, most=most, agreeing=agreeing
    )  # fmt: skip
    if dataset is not None:
        score_windows(scorer, look, model, dataset, split or "test", labels, score, out, as_json)
        return
    preprocessing = predictor.card.preprocessing
    assert isinstance(preprocessing, Preprocessing)  # else there were no scorer
    names = distinct(Path(each).stem.replace(":", "-") for each in photos)
    targets: Sequence[Path | None] = [None] * len(photos) if out is None else targets_of(names, out)
    rows: list[tuple[Any, ...]] = []
    scans, files = [], []
    for photo, name, target in zip(photos, names, targets, strict=True):
        data = read_photo(photo)
        try:
            picture = decode_image(data, channels=preprocessing.channels)
            began = time.perf_counter()
            scan = look(picture)
        except ValueError as error:  # of several pictures, one may be too small for a window
            raise ValueError(f"{photo}: {error}") from None
        taken_s = time.perf_counter() - began
        scans.append({"photo": photo, "size": picture.size, "seconds": taken_s, **scan.document()})
        for each in scan.found:
            place = (*map(round, each.box_xyxy), each.window_px, each.num_agreeing)
            rows.append((photo, each.label, each.score, *place))
        if target is not None:
            write_picture(target, draw(decode_image(data, channels=3), scan, labels))
            files.append(target)
        if crops is not None:
            files += write_crops(crops, name, picture, scan, preprocessing)
    rows.sort(key=lambda row: -row[2])
    columns = ("picture", "class", "probability", "left", "top", "right", "bottom", "window px", "agreeing")
    looked = sum(scan["num_windows"] for scan in scans)
    seconds = sum(scan["seconds"] for scan in scans)
    told = [f"… and {len(rows) - MAX_SHOWN:,} less probable: --json"] * (len(rows) > MAX_SHOWN)
    told += [
        f"{len(rows)} found in {counted(looked, 'window')} of {counted(len(photos), 'picture')}, {seconds:.2f} s"
    ]
    told += [f"wrote {files[0]}" if len(files) == 1 else f"wrote {len(files)} pictures"] * bool(files)
    document = {"model": model, "way": way, "stride_px": scorer.stride_px, "pictures": scans, "files": files}
    emit(document, [table("", columns, rows[:MAX_SHOWN]) if rows else "", *told], as_json)


def score_windows(
    scorer: WindowScorer, look: Callable[[Image.Image], Scan], model: str, dataset: str, split: ScoredSplit,
    labels: Sequence[str], score: float, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Print, and write to `out`, how good the windows are on a split: as `./convoy evaluate` does of a detector."""
    # here, for with them comes matplotlib
    from pipelines.commands_models import about_report, require_report_folder
    from tasks.windowevaluate import evaluate_windows

    if out is not None:
        require_report_folder(out)
    reporter = ConsoleReporter()
    try:
        report = evaluate_windows(
            scorer, look, open_stored(dataset), split, labels, score, progress_of(reporter, "windows"), model
        )
    finally:
        reporter.close()
    if out is not None:
        report.write(out)
    document = {
        "model": model, "dataset": dataset, "split": split, "metrics": report.metrics, **report.document(), "out": out,
    }  # fmt: skip
    written = [f"wrote {about_report(out)}"] if out else []
    tables = report.tables(f"{dataset}, {split}, windows from {score:g} on")
    emit(document, [*(table(*with_intervals(each)) for each in tables), *written], as_json)
