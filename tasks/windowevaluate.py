"""How good sliding windows are on a split of a detection dataset: a detector's figures, from the one match table.

What is judged is what `./convoy detect-windows` says of each picture: AP, too, is of the windows from the asked score
on alone. Objects of classes that are not looked for count neither as found nor as missed.

    ./convoy detect-windows --dataset scenes --split val --model out/faces/model --class face --score 0.9 --out report
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from PIL import Image

from data.dataset import Dataset, Split
from data.decode import decode_image
from data.stream import RowReader
from tasks.detectionevaluate import objects_of_split
from tasks.detectionjoin import joined
from tasks.detectionmatches import Detections, Objects
from tasks.detectionreport import VIEW_FIGURES, Report, detection_report
from tasks.predict import machine_of
from tasks.slidingwindow import Scan, WindowScorer
from tasks.tested import tested

VIEW = "windows"  # as reports name the one way to look
NUM_EXAMPLES = 8  # hits, misses and false alarms each that a report shows


def evaluate_windows(
    scorer: WindowScorer,
    look: Callable[[Image.Image], Scan],
    dataset: Dataset,
    split: Split,
    labels: Sequence[str],
    least_score: float,
    on_progress: Callable[[int, int], None],
    called: str,
) -> Report:
    """Judge what `look` (tasks.slidingwindow.detect with this scorer) finds of `labels`, from `least_score` on.

    The report names the model as it was `called`. Raises ValueError for a dataset that is not of detection, a class
    that it lacks, a split without pictures, and a picture that windows do not fit, naming it.
    """
    dataset.require_family("detection")
    dataset.require(split)
    labels = list(dict.fromkeys(labels))
    objects, ids = objects_of_classes(dataset, split, labels)
    reader = RowReader(dataset, split, ["image"], cache_bytes=0)

    def picture_at(place: int, channels: Literal[1, 3] = 3) -> Image.Image:
        [blob] = reader.take(np.array([place]))["image"].to_pylist()
        return decode_image(blob, channels=channels)

    found, num_windows, seconds = [], 0, 0.0
    for place, id in enumerate(ids):
        picture = picture_at(place, scorer.channels)
        began = time.perf_counter()
        try:
            scan = look(picture)
        except ValueError as error:  # of several pictures, one may be too small for a window
            raise ValueError(f"{id}: {error}") from None
        seconds += time.perf_counter() - began
        num_windows += scan.num_windows
        found.append(detections_of(scan, labels, place))
        on_progress(place + 1, len(ids))
    about: dict[str, str | int | float] = {
        **tested([called], [scorer.predictor.card]),
        "dataset": dataset.info.name,
        "dataset_source_sha256": dataset.info.source_sha256,
        "split": split,
        "num_networks": len(scorer.classifiers),
        "registered_view": VIEW,
        "way": scorer.way,
        "stride_px": scorer.stride_px,
        "num_windows": num_windows,
        "device": machine_of(scorer.predictor.device),
        "precision": str(scorer.predictor.dtype).removeprefix("torch."),
        "ap_interval": "bootstrap of pictures, 95%",
        "images_per_s": "wall clock of networks and suppression; without reading and decoding",
        "threshold_fitted_to": "nothing, but asked for, and there are no boxes below it",
    }
    report = detection_report(
        objects, joined(found), ids, labels, least_score, about, lambda place: np.asarray(picture_at(place)),
        num_examples=NUM_EXAMPLES, generator=np.random.default_rng(0), images_per_s=len(ids) / seconds,
    )  # fmt: skip
    own = {f"{VIEW}.{name}": report.metrics[name] for name in VIEW_FIGURES if name in report.metrics}
    return replace(report, metrics=report.metrics | own)


def objects_of_classes(dataset: Dataset, split: Split, labels: Sequence[str]) -> tuple[Objects, list[str]]:
    """The objects of these classes alone, numbered in their order, and the ids of all pictures of the split.

    Raises ValueError for a class that the dataset does not have.
    """
    classes = dataset.info.classes
    unknown = [label for label in labels if label not in classes]
    if unknown:
        raise ValueError(
            f"class {', '.join(unknown)} is none of dataset {dataset.info.name!r}, which has {', '.join(classes)}"
        )
    objects, ids = objects_of_split(dataset, split)
    number = np.full(len(classes), -1)
    number[[classes.index(label) for label in labels]] = np.arange(len(labels))
    columns = vars(objects) | {"labels": number[objects.labels]}
    sought = columns["labels"] >= 0
    return Objects(**{name: values[sought] for name, values in columns.items()}), ids


def detections_of(scan: Scan, labels: Sequence[str], place: int) -> Detections:
    """What was found in the picture at `place`, as the match table takes it."""
    return Detections(
        image=np.full(len(scan.found), place),
        boxes_xyxy=np.array([each.box_xyxy for each in scan.found], np.float64).reshape(-1, 4),
        labels=np.array([labels.index(each.label) for each in scan.found], np.int64),
        scores=np.array([each.score for each in scan.found], np.float64),
    )
