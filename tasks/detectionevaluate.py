"""How good a detector is on a split, by each way to look at its pictures; and the least score that it reports.

Pictures are decoded once for all views, a piece of the split at a time. What is found is judged in pixels of the
upright pictures, against the boxes that ingest kept. Figures of the registered view have no prefix. Of several models
the boxes are fused, each network counting the same, and the least score is chosen anew on the validation split.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.counting import counted
from data.dataset import CROWD, DIFFICULT, Dataset, Split
from data.decode import decode_image
from data.detection import flattened, lengths
from data.stream import RowReader
from tasks.detection import DetectionEvaluate, DetectionView
from tasks.detectionfigures import ROWS
from tasks.detectionjoin import fused, joined, moved
from tasks.detectionmatches import Detections, Objects, box_areas, match
from tasks.detectionmetrics import at_threshold, best_threshold, known_aps, threshold_for_precision
from tasks.detectionpredict import DetectionPredictor, Pictures
from tasks.detectionreport import Report, detection_report
from tasks.ensemble import require_same_classes
from tasks.modelfile import load_card, load_model, write_card
from tasks.predict import default_device, machine_of
from tasks.settings import Precision
from tasks.tested import tested

TOGETHER = "together"
# the least score where there is nothing to choose it by: the networks' own lets nearly all pass
PLAIN_SCORE = 0.5
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class LeastScore:
    """The least score that a detector reports, and what it rests on."""

    score: float
    precision: float  # on the validation split, of what is reported; NaN where it was not measured now
    recall: float
    basis: str

    @property
    def note(self) -> str:
        """One line of the log."""
        if math.isnan(self.precision):
            return f"least score {self.score:.3g}, chosen on {self.basis}"
        return f"least score {self.score:.3g}: precision {self.precision:.3f}, recall {self.recall:.3f} on {self.basis}"

    @property
    def metrics(self) -> dict[str, float]:
        """What a run's record keeps of it."""
        return {"threshold": self.score}


@dataclass
class Seen:
    """What one view finds in a split, whatever its score, and the seconds that it took without decoding."""

    together: Detections
    alone: list[Detections]  # of each model
    seconds: list[float]  # of each model; without the fusion of several
    total_s: float


def open_detector(
    folder: Path,
    device: torch.device | None,
    precision: Precision,
    batch_size: int,
    tile_overlap: float | None = None,
    called: str = "",
) -> DetectionPredictor:
    """Read the detector in `folder`, which a person `called` so where that is given.

    Raises FileNotFoundError or ValueError where there is none.
    """
    saved = load_model(folder)
    if saved.card.family != "detection":
        raise ValueError(f"{called or folder} is a model for {saved.card.family}; give a detector")
    return DetectionPredictor(saved, device, precision, batch_size, tile_overlap)


def objects_of_split(dataset: Dataset, split: Split) -> tuple[Objects, list[str]]:
    """The true objects of a split, in pixels of the upright pictures, and the pictures' ids."""
    rows = dataset.table(split, ["id", *dataset.info.target_names])
    boxes = flattened(rows["boxes_xyxy"], np.float64).reshape(-1, 4)
    flags = flattened(rows["box_flags"], np.uint8)
    objects = Objects(
        image=np.repeat(np.arange(rows.num_rows), lengths(rows["box_labels"])),
        boxes_xyxy=boxes,
        labels=flattened(rows["box_labels"], np.int64),
        crowd=(flags & CROWD) > 0,
        difficult=(flags & DIFFICULT) > 0,
        area=flattened(rows["box_areas"], np.float64) if dataset.info.box_areas else box_areas(boxes),
    )
    return objects, rows["id"].to_pylist()


def found_in(
    predictors: Sequence[DetectionPredictor],
    dataset: Dataset,
    split: Split,
    views: Sequence[DetectionView],
    tell: Tell,
) -> dict[DetectionView, Seen]:
    """What models, alone and together, find in a split by each view."""
    num_images = dataset.info.num_images(split)
    reader = RowReader(dataset, split, ["image"], 0)
    pieces: dict[DetectionView, list[Seen]] = {view: [] for view in views}
    done, step = 0, min(predictor.piece_images for predictor in predictors)
    for start in range(0, num_images, step):
        places = np.arange(start, min(start + step, num_images))
        blobs = reader.take(places)["image"].to_pylist()
        decoded = []
        for predictor in predictors:
            pictures, errors = predictor.decode(blobs)
            assert not any(errors)
            decoded.append(pictures)
        for view in views:
            pieces[view].append(look(predictors, decoded, view, start))
            done += len(places)
            tell(done, num_images * len(views))
    return {view: whole_split(pieces[view]) for view in views}


def look(
    predictors: Sequence[DetectionPredictor], decoded: Sequence[Pictures], view: DetectionView, start: int
) -> Seen:
    """A piece of a split, whose first picture is at place `start`, by one view."""
    num_classes = len(predictors[0].card.classes)
    networks: list[Detections] = []
    alone: list[Detections] = []
    seconds: list[float] = []
    began = time.perf_counter()
    for predictor, pictures in zip(predictors, decoded, strict=True):
        since = time.perf_counter()
        each = predictor.detect_each(pictures, view)
        alone.append(moved(fused(each, num_classes, predictor.nms_iou), start))
        seconds.append(time.perf_counter() - since)
        networks += each
    nms_iou = max(predictor.nms_iou for predictor in predictors)
    together = alone[0] if len(alone) == 1 else moved(fused(networks, num_classes, nms_iou), start)
    return Seen(together, alone, seconds, time.perf_counter() - began)


def whole_split(pieces: Sequence[Seen]) -> Seen:
    """The pieces of a split as one."""
    return Seen(
        joined([piece.together for piece in pieces]),
        [joined(parts) for parts in zip(*(piece.alone for piece in pieces), strict=True)],
        [sum(parts) for parts in zip(*(piece.seconds for piece in pieces), strict=True)],
        sum(piece.total_s for piece in pieces),
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

    It is the lowest one at which the share of right boxes (IoU 0.5) is what the card's thresholds ask for, and enough
    boxes are kept (`threshold_for_precision`); else the one of the highest F1, 1 where no box is right, and
    `PLAIN_SCORE` where that split has no object. A model that has one keeps it.
    """
    card = load_card(folder)
    if "score" in card.thresholds:
        return LeastScore(card.thresholds["score"], math.nan, math.nan, card.calibrated_on)
    predictor = open_detector(folder, device, "fp32", batch_size)
    wanted = card.thresholds["precision"]
    found = cut_on_validation(
        [predictor], dataset, predictor.view, wanted, on_progress or (lambda done, total: None)
    )
    thresholds = {**card.thresholds, "score": found.score}
    write_card(folder, card.model_copy(update={"thresholds": thresholds, "calibrated_on": found.basis}))
    return found


def cut_on_validation(
    predictors: Sequence[DetectionPredictor], dataset: Dataset, view: DetectionView, wanted: float, tell: Tell
) -> LeastScore:
    """The least score of models together by the validation split; `PLAIN_SCORE` where that has no object."""

    def plain(reason: str) -> LeastScore:
        own = max(predictor.min_score for predictor in predictors)
        return LeastScore(max(own, PLAIN_SCORE), math.nan, math.nan, f"nothing: {reason}")

    num_images = dataset.info.num_images("val")
    if not num_images:
        return plain(f"{dataset.info.name} has no validation pictures")
    objects, _ids = objects_of_split(dataset, "val")
    if (objects.crowd | objects.difficult).all():
        return plain(f"{dataset.info.name}'s val has no object to find")
    found = found_in(predictors, dataset, "val", [view], tell)[view].together
    matches = match(objects, found, num_images=num_images, num_classes=len(dataset.info.classes))
    basis = f"{counted(num_images, 'validation picture')} of {dataset.info.name}, view {view}"
    if cut := threshold_for_precision(matches, wanted):
        return LeastScore(cut.score, cut.precision, cut.recall, basis)
    best = at_threshold(matches, best_threshold(matches))
    why = (
        f"no least score that leaves enough boxes has a precision of {wanted:g}, so the highest F1"
        if best.recall
        else "no box is right there, so it reports none; predict --least-score shows what it finds"
    )
    return LeastScore(best.score, best.precision, best.recall, f"{basis}: {why}")


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
    tile_overlap: float | None = None,
) -> Report:
    """Evaluate the detector in `folders`, or several together, on a split of `dataset`; every picture counts.

    With a `tile_overlap`, large pictures are looked at in tiles (tasks.detectionpredict). Errors and the report name
    the models as they were `called`, by their folders otherwise. Raises ValueError for a split without pictures, or
    detectors whose classes are not the dataset's.
    """
    names = tuple(called) or tuple(str(folder) for folder in folders)
    device, registered = device or default_device(), config.registered_view
    predictors = [
        open_detector(folder, device, precision, config.batch_size, tile_overlap, name)
        for folder, name in zip(folders, names, strict=True)
    ]
    cards = [predictor.card for predictor in predictors]
    require_same_classes(names, cards, dataset.info)
    dataset.require(split)
    views = tuple(dict.fromkeys((*config.views, registered)))
    num_fitted = dataset.info.num_images("val") if len(predictors) > 1 else 0
    total = num_fitted + dataset.info.num_images(split) * len(views)
    tell = on_progress or (lambda done, total: None)
    cut = LeastScore(predictors[0].least_score, math.nan, math.nan, cards[0].calibrated_on or "nothing")
    if len(predictors) > 1:
        cut = cut_on_validation(
            predictors, dataset, registered, config.precision, lambda done, _: tell(done, total)
        )
    seen = found_in(predictors, dataset, split, views, lambda done, _: tell(num_fitted + done, total))
    objects, ids = objects_of_split(dataset, split)
    reader = RowReader(dataset, split, ["image"], 0)

    def picture_at(place: int) -> np.ndarray:
        [blob] = reader.take(np.array([place]))["image"].to_pylist()
        return np.asarray(decode_image(blob, channels=3))

    report = detection_report(
        objects, seen[registered].together, ids, dataset.info.classes, cut.score,
        {**tested(names, cards), **describe(dataset, split, config, predictors, cut.basis)}, picture_at,
        num_examples=config.num_worst // len(ROWS), generator=np.random.default_rng(0),
        images_per_s=len(ids) / seen[registered].total_s,
    )  # fmt: skip
    rows = compared(names, seen, objects, len(ids), len(dataset.info.classes))
    others = {
        f"{row['view']}.{name}": value
        for row in rows
        if row["model"] == TOGETHER or len(names) == 1
        for name, value in row.items()
        if name not in ("model", "view") and value is not None
    }
    return replace(report, metrics=report.metrics | others, members=tuple(rows) if len(names) > 1 else ())


def describe(
    dataset: Dataset,
    split: Split,
    config: DetectionEvaluate,
    predictors: Sequence[DetectionPredictor],
    basis: str,
) -> dict[str, str | int | float]:
    """What was measured, on what, and how: without it the numbers cannot be compared."""
    overlap = predictors[0].tile_overlap
    return {
        "dataset": dataset.info.name,
        "dataset_source_sha256": dataset.info.source_sha256,
        "split": split,
        "num_models": len(predictors),
        "num_networks": sum(len(predictor.networks) for predictor in predictors),
        "registered_view": config.registered_view,
        "tiles": "none"
        if overlap is None
        else f"of larger pictures, overlapping by {overlap:g} of their side",
        "device": machine_of(predictors[0].device),
        "precision": str(predictors[0].dtype).removeprefix("torch."),
        "batch_size": config.batch_size,
        "ap_interval": "bootstrap of pictures, 95%",
        "images_per_s": "wall clock of networks and suppression; without reading and decoding",
        "threshold_fitted_to": basis,
    }


def compared(
    names: Sequence[str], seen: dict[DetectionView, Seen], objects: Objects, num_images: int, num_classes: int
) -> list[dict[str, Any]]:
    """Each model alone, and several together, by each view: AP, AP50 and pictures a second; None where unknown."""
    rows = []
    for view, each in seen.items():
        models = [*zip(names, each.alone, each.seconds, strict=True)]
        if len(names) > 1:
            models.append((TOGETHER, each.together, each.total_s))
        for name, found, seconds in models:
            measured = known_aps(match(objects, found, num_images=num_images, num_classes=num_classes))
            aps = {"ap": measured.get("ap"), "ap50": measured.get("ap50")}
            rows.append({"model": name, "view": view, **aps, "images_per_s": num_images / seconds})
    return rows
