"""`./convoy detect-windows`: find what a classifier knows in a picture, by sliding windows."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from data.decode import decode_image
from data.samples import read_photo
from pipelines.imagefiles import targets_of
from pipelines.options import Json
from pipelines.render import emit, table
from tasks import registry
from tasks.card import Preprocessing
from tasks.drawing import distinct
from tasks.predict import load_predictor
from tasks.slidingwindow import Way, WindowScorer, detect, draw, write_crops
from tasks.stylepictures import write_picture


def detect_windows(
    photo: str,
    /,
    *photos: str,
    model: str,
    labels: Annotated[list[str], Parameter(name="--class", negative=(), consume_multiple=True)],
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

    Example: ./convoy detect-windows skimage:astronaut --model out/faces/model --class face --out astronaut.png

    Parameters
    ----------
    photo
        A picture, or a photograph that scikit-image ships: skimage:astronaut, skimage:coffee.
    photos
        More of them.
    model
        A registered model (models:/NAME@ALIAS, models:/NAME/VERSION), a run key, or a folder with a model.json.
    labels
        Classes to look for, of those that the model knows.
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
        Draw the boxes into this picture (.png or .jpg), or into a folder: one where there are several pictures.
    crops
        Write what is found as pictures to train on into this folder: false alarms, for the class that they are of.
    """
    predictor = load_predictor(registry.resolve_model(model))
    scorer = WindowScorer(predictor, way, stride)
    preprocessing = predictor.card.preprocessing
    assert isinstance(preprocessing, Preprocessing)  # else there were no scorer
    every = (photo, *photos)
    names = distinct(Path(each).stem.replace(":", "-") for each in every)
    targets: Sequence[Path | None] = [None] * len(every) if out is None else targets_of(names, out)
    rows, scans, files = [], [], []
    for photo, name, target in zip(every, names, targets, strict=True):
        data = read_photo(photo)
        try:
            picture = decode_image(data, channels=preprocessing.channels)
            began = time.perf_counter()
            scan = detect(scorer, picture, labels, windows or (), score, iou, most, agreeing)
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
    columns = ("picture", "class", "probability", "left", "top", "right", "bottom", "window px", "agreeing")
    looked = sum(scan["num_windows"] for scan in scans)
    seconds = sum(scan["seconds"] for scan in scans)
    told = [
        f"{len(rows)} found in {looked:,} windows of {len(every)} picture{'s' * (len(every) > 1)}, {seconds:.2f} s"
    ]
    told += [f"wrote {files[0]}" if len(files) == 1 else f"wrote {len(files)} pictures"] * bool(files)
    document = {"model": model, "way": way, "stride_px": scorer.stride_px, "pictures": scans, "files": files}
    emit(document, [table("", columns, rows) if rows else "", *told], as_json)
