"""How good a detector is on a split, by each way to look at its pictures; and the least score that it reports.

Pictures are decoded once for all views, a piece of the split at a time. What is found is judged in pixels of the
upright pictures, against the boxes that ingest kept. Figures of the registered view have no prefix.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from data.dataset import CROWD, DIFFICULT, Dataset, Split, read_rows
from data.decode import decode_image
from data.detection import flattened, lengths
from data.stream import RowReader
from tasks.detection import DetectionEvaluate, DetectionView
from tasks.detectionmatches import Detections, Objects, box_areas, match
from tasks.detectionmetrics import at_threshold, best_threshold, summarise, threshold_for_precision
from tasks.detectionpredict import DetectionPredictor
from tasks.detectionreport import Report, detection_report
from tasks.modelfile import load_card, load_model, write_card
from tasks.predict import default_device
from tasks.settings import Precision

PIECE_IMAGES = 64  # decoded at a time
COLUMNS = ("id", "image", "boxes_xyxy", "box_labels", "box_flags")
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class LeastScore:
    """The least score that a detector reports, and what it rests on."""

    score: float
    precision: float  # on the validation split, of what is reported
    recall: float
    basis: str

    @property
    def note(self) -> str:
        """One line of the log."""
        return f"least score {self.score:.3g}: precision {self.precision:.3f}, recall {self.recall:.3f} on {self.basis}"

    @property
    def metrics(self) -> dict[str, float]:
        """What a run's record keeps of it."""
        return {"threshold": self.score}


def open_detector(
    folder: Path, device: torch.device | None, precision: Precision, batch_size: int
) -> DetectionPredictor:
    """Read the detector in `folder`; raises FileNotFoundError or ValueError where there is none."""
    saved = load_model(folder)
    if saved.card.family != "detection":
        raise ValueError(f"{folder} is a model for {saved.card.family}; give a detector")
    return DetectionPredictor(saved, device, precision, batch_size)


def objects_of_split(dataset: Dataset, split: Split) -> tuple[Objects, list[str]]:
    """The true objects of a split, in pixels of the upright pictures, and the pictures' ids."""
    shards = [read_rows(shard, (*COLUMNS[:1], *COLUMNS[2:])) for shard in dataset.shards(split)]
    rows = pa.concat_tables(shards)
    boxes = flattened(rows["boxes_xyxy"], np.float64).reshape(-1, 4)
    flags = flattened(rows["box_flags"], np.uint8)
    objects = Objects(
        image=np.repeat(np.arange(rows.num_rows), lengths(rows["box_labels"])),
        boxes_xyxy=boxes,
        labels=flattened(rows["box_labels"], np.int64),
        crowd=(flags & CROWD) > 0,
        difficult=(flags & DIFFICULT) > 0,
        area=box_areas(boxes),
    )
    return objects, rows["id"].to_pylist()


def found_in(
    predictor: DetectionPredictor, dataset: Dataset, split: Split, views: Sequence[DetectionView], tell: Tell
) -> dict[DetectionView, tuple[Detections, float]]:
    """What each view finds in a split, whatever its score, and the seconds that it took without decoding."""
    num_images = dataset.info.num_images(split)
    reader = RowReader(dataset, split, ["image"], 0)
    parts: dict[DetectionView, list[Detections]] = {view: [] for view in views}
    seconds = dict.fromkeys(views, 0.0)
    done = 0
    for start in range(0, num_images, PIECE_IMAGES):
        places = np.arange(start, min(start + PIECE_IMAGES, num_images))
        squares, errors = predictor.decode(reader.take(places)["image"].to_pylist())
        assert not any(errors)
        for view in views:
            began = time.perf_counter()
            found = predictor.detect(squares, view)
            seconds[view] += time.perf_counter() - began
            parts[view].append(moved(found, start))
            done += len(places)
            tell(done, num_images * len(views))
    return {view: (joined(parts[view]), seconds[view]) for view in views}


def moved(found: Detections, start: int) -> Detections:
    """The same, of pictures that begin at place `start` of the split."""
    return Detections(
        image=found.image + start, boxes_xyxy=found.boxes_xyxy, labels=found.labels, scores=found.scores
    )


def joined(parts: Sequence[Detections]) -> Detections:
    """Detections of several pieces as one."""
    return Detections(
        image=np.concatenate([each.image for each in parts]),
        boxes_xyxy=np.concatenate([each.boxes_xyxy for each in parts]),
        labels=np.concatenate([each.labels for each in parts]),
        scores=np.concatenate([each.scores for each in parts]),
    )


def fit_threshold(
    folder: Path,
    dataset: Dataset,
    *,
    batch_size: int,
    device: torch.device | None = None,
    on_progress: Tell | None = None,
) -> LeastScore:
    """Choose the least score of the detector in `folder` on the validation split, and keep it in its card.

    It is the lowest one at which the share of right boxes (IoU 0.5) is what the card's thresholds ask for, else the one
    of the highest F1. A model that has one keeps it.
    """
    card = load_card(folder)
    if "score" in card.thresholds:
        return LeastScore(card.thresholds["score"], float("nan"), float("nan"), card.calibrated_on)
    predictor = open_detector(folder, device, "fp32", batch_size)
    wanted = card.thresholds["precision"]
    found = cut_on_validation(predictor, dataset, wanted, on_progress or (lambda done, total: None))
    thresholds = {**card.thresholds, "score": found.score}
    write_card(folder, card.model_copy(update={"thresholds": thresholds, "calibrated_on": found.basis}))
    return found


def cut_on_validation(
    predictor: DetectionPredictor, dataset: Dataset, wanted: float, tell: Tell
) -> LeastScore:
    """The least score by the validation split; the detector's own where that has no object."""
    own = predictor.finding.min_score
    num_images = dataset.info.num_images("val")
    if not num_images:
        return LeastScore(
            own, float("nan"), float("nan"), f"nothing: {dataset.info.name} has no validation pictures"
        )
    objects, _ids = objects_of_split(dataset, "val")
    if (objects.crowd | objects.difficult).all():
        return LeastScore(
            own, float("nan"), float("nan"), f"nothing: {dataset.info.name}'s val has no object to find"
        )
    found, _ = found_in(predictor, dataset, "val", [predictor.view], tell)[predictor.view]
    matches = match(objects, found, num_images=num_images, num_classes=len(dataset.info.classes))
    basis = f"{num_images:,} validation pictures of {dataset.info.name}, view {predictor.view}"
    if cut := threshold_for_precision(matches, wanted):
        return LeastScore(cut.score, cut.precision, cut.recall, basis)
    best = at_threshold(matches, best_threshold(matches))
    note = f"{basis}: no score has a precision of {wanted:g}, so the highest F1"
    return LeastScore(best.score, best.precision, best.recall, note)


def evaluate(
    folders: Sequence[Path],
    dataset: Dataset,
    *,
    split: Split = "test",
    config: DetectionEvaluate,
    device: torch.device | None = None,
    precision: Precision = "fp32",
    on_progress: Tell | None = None,
    called: Sequence[str] = (),
) -> Report:
    """Evaluate the detector in the one folder of `folders` on a split of `dataset`; every picture counts.

    Raises ValueError for several models, a split without pictures, or a detector whose classes are not the dataset's.
    """
    if len(folders) != 1:
        raise ValueError(f"{len(folders)} models were given; detectors are evaluated one at a time")
    predictor = open_detector(folders[0], device or default_device(), precision, config.batch_size)
    require_same_classes(called[0] if called else str(folders[0]), predictor, dataset)
    dataset.require(split)
    views = tuple(dict.fromkeys((*config.views, config.registered_view)))
    seen = found_in(predictor, dataset, split, views, on_progress or (lambda done, total: None))
    objects, ids = objects_of_split(dataset, split)
    num_images, registered = len(ids), config.registered_view
    others = {
        f"{view}.{name}": value
        for view, (found, seconds) in seen.items()
        for name, value in [
            *figures(objects, found, num_images, len(dataset.info.classes)).items(),
            ("images_per_s", num_images / seconds),
        ]
    }
    about: dict[str, str | int | float] = {
        "dataset": dataset.info.name,
        "dataset_source_sha256": dataset.info.source_sha256,
        "split": split,
        "registered_view": registered,
        "device": str(predictor.device),
        "precision": str(predictor.dtype).removeprefix("torch."),
        "batch_size": config.batch_size,
        "images_per_s": "wall clock of networks and suppression; without reading and decoding",
        "threshold_fitted_to": predictor.card.calibrated_on or "nothing",
    }
    reader = RowReader(dataset, split, ["image"], 0)

    def picture_at(place: int) -> np.ndarray:
        [blob] = reader.take(np.array([place]))["image"].to_pylist()
        return np.asarray(decode_image(blob, channels=3))

    report = detection_report(
        objects, seen[registered][0], ids, dataset.info.classes, predictor.least_score, about, picture_at,
        generator=np.random.default_rng(0), images_per_s=num_images / seen[registered][1],
    )  # fmt: skip
    return replace(report, metrics=report.metrics | others)


def figures(objects: Objects, found: Detections, num_images: int, num_classes: int) -> dict[str, float]:
    """AP and AP50 of a view, where the split has objects."""
    matches = match(objects, found, num_images=num_images, num_classes=num_classes)
    named = {name: value for name, value in summarise(matches).items() if name in ("ap", "ap50")}
    return {name: value for name, value in named.items() if not np.isnan(value)}


def require_same_classes(called: str, predictor: DetectionPredictor, dataset: Dataset) -> None:
    """Raise a ValueError unless the dataset is of boxes of the detector's classes, in the same order."""
    dataset.require_family("detection")
    if predictor.card.classes != dataset.info.classes:
        raise ValueError(
            f"the model {called} finds {', '.join(predictor.card.classes)}, and the dataset {dataset.info.name!r} has "
            f"{', '.join(dataset.info.classes)}: they must be the same classes in the same order; give a dataset of "
            f"the model's classes (it was trained on {predictor.card.dataset!r})"
        )
