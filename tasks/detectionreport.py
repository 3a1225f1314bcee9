"""What an evaluation of a detector found, and the files it leaves behind."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.files import write_whole
from tasks.detectionerrors import Judgement, judge
from tasks.detectionfigures import Example, examples_figure, examples_of, pr_figure
from tasks.detectionmatches import AREAS, Detections, Matches, Objects, coco_result, match
from tasks.detectionmetrics import Cut, ap_interval, at_threshold, coco_figures, summarise
from tasks.detectionpage import detection_page
from tasks.detectionvoc import summarise_voc, voc_figures, voc_match
from tasks.figures import confusion_figure, per_class_figure, save_figure
from tasks.metrics import PerClass, per_class
from tasks.pareto import TableRows
from tasks.report import columns_of, write_csv, write_json

BACKGROUND = "background"
FIGURES = ("examples", "pr", "confusion", "per_class")  # in the order of the page
VIEW_FIGURES = ("ap", "ap50", "images_per_s")
CROWDING = ((1, 1), (2, 4), (5, 9), (10, None))  # objects of a picture, from and to, by which slices are made
SLICE_COLUMNS = ("kind", "name", "num_images", "num_objects", "ap", "ap50", "precision", "recall", "f1")


@dataclass(frozen=True)
class Report:
    """An evaluation of one detector, or of several together, on one split.

    `metrics` is flat: COCO's twelve figures with the interval of AP, VOC's two, `ap.<class>` and `ap50.<class>`,
    precision, recall and F1 at `threshold` and IoU 0.5, and counts. A figure that nothing could be computed from
    (a class without an object) is left out and named in `about["not_measured"]`.
    """

    metrics: dict[str, float]
    about: dict[str, str | int | float]  # what was measured, on what, and how
    classes: tuple[str, ...]
    ids: tuple[str, ...]  # of the images
    threshold: float  # of the score, chosen on validation
    objects: Objects
    detections: Detections
    matches: Matches
    voc: Matches  # by VOC's rule
    judgement: Judgement
    examples: tuple[Example, ...]
    members: tuple[dict[str, Any], ...] = ()  # of several models, each alone and all together, by each view

    @cached_property
    def class_figures(self) -> PerClass:
        """Precision, recall and F1 at the threshold: those of the confusion matrix."""
        figures = vars(per_class(self.judgement.confusion))
        return PerClass(**{name: values[:-1] for name, values in figures.items()})

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """One row a class: its APs, and at the threshold precision, recall, F1, its objects and its detections."""
        precision, voc = coco_figures(self.matches).precision[0], voc_figures(self.voc)
        at_50, figures = self.matches.threshold_place(0.5), self.class_figures
        return [
            {
                "class": name, "ap": precision[:, k].mean(), "ap50": precision[at_50, k],
                "voc07": voc.voc07[k], "voc10": voc.voc10[k],
                "precision": figures.precision[k], "recall": figures.recall[k], "f1": figures.f1[k],
                "num_objects": int(figures.support[k]), "num_detections": int(figures.predicted[k]),
            }
            for k, name in enumerate(self.classes)
        ]  # fmt: skip

    @property
    def views(self) -> list[dict[str, Any]]:
        """One row a view: its APs, and pictures a second."""
        ending = ".images_per_s"
        names = sorted(name.removesuffix(ending) for name in self.metrics if name.endswith(ending))
        return [
            {"view": view, **{name: self.metrics.get(f"{view}.{name}") for name in VIEW_FIGURES}}
            for view in names
        ]

    @property
    def per_slice(self) -> list[dict[str, Any]]:
        """One row a slice: by the size of the objects, and by how many a picture has; none without a picture."""
        whole = self.matches
        counts = np.bincount(whole.object_image[~whole.object_ignored[0]], minlength=whole.num_images)
        parts = [("size", name, whole.of_area(name)) for name in AREAS if name != "all"]
        for low, high in CROWDING:
            chosen = (counts >= low) & (high is None or counts <= high)
            name = f"{low} or more" if high is None else str(low) if low == high else f"{low} to {high}"
            parts.append(("objects of a picture", name, whole.of_images(chosen)))
        return [slice_row(kind, name, part, self.threshold) for kind, name, part in parts if part.num_images]

    def document(self) -> dict[str, Any]:
        """What a program reads of it, beside the metrics."""
        return {
            "about": self.about,
            **({"members": list(self.members)} if self.members else {}),
            "per_class": without_nan(self.per_class),
            "slices": without_nan(self.per_slice),
        }

    def tables(self, title: str) -> list[TableRows]:
        """What a person reads first: how good it is by each view, at the threshold, by class and by slice."""
        metrics = self.metrics
        names = [name for name in metrics if "." not in name]
        members = (
            [("Each model alone, and together", *columns_of(list(self.members)))] if self.members else []
        )
        return [
            (title, ("metric", "value"), [[name, metrics[name]] for name in names]),
            *members,
            (f"By view; the registered one is {self.about['registered_view']}", *columns_of(self.views)),
            (
                f"By class; precision, recall, F1 at a score of {self.threshold:.3g}",
                *columns_of(without_nan(self.per_class)),
            ),
            ("Slices", *columns_of(without_nan(self.per_slice))),
        ]

    def write(self, folder: Path) -> None:
        """Write tables and figures to `folder`, `metrics.json` last: a folder that has it is whole.

        per_class.csv, slices.csv, confusion.csv (true class, predicted class, count), of several models members.csv;
        detections.json, as COCO's results are, with categories from 1 in the order of the classes; detections.parquet
        and objects.parquet, which are the match table too; a PNG for each figure; report.html, all of it to read;
        about.json says what was measured.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").unlink(missing_ok=True)
        write_csv(folder / "per_class.csv", self.per_class)
        write_csv(folder / "slices.csv", self.per_slice, SLICE_COLUMNS)
        (folder / "members.csv").unlink(missing_ok=True)  # of an evaluation that was here before
        if self.members:
            write_csv(folder / "members.csv", self.members)
        write_csv(folder / "confusion.csv", self._confusion_rows(), ("actual", "predicted", "count"))
        (folder / "detections.json").write_text(json.dumps(self.coco_results(), allow_nan=False))
        pq.write_table(self._detections_table(), folder / "detections.parquet")
        pq.write_table(self._objects_table(), folder / "objects.parquet")
        self._write_figures(folder)
        write_whole(
            folder / "report.html", detection_page(self, [folder / f"{name}.png" for name in FIGURES])
        )
        write_json(folder / "about.json", self.about)
        write_json(folder / "metrics.json.partial", self.metrics)
        (folder / "metrics.json.partial").replace(folder / "metrics.json")

    def coco_results(self) -> list[dict[str, Any]]:
        """The detections as COCO's results; image_id is the image's id."""
        found = self.detections
        columns = (found.image, found.labels, found.boxes_xyxy.astype(np.float64), found.scores)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [coco_result(self.ids[image], label, box, score) for image, label, box, score in rows]

    def _confusion_rows(self) -> list[dict[str, Any]]:
        names, confusion = (*self.classes, BACKGROUND), self.judgement.confusion
        return [
            {"actual": names[i], "predicted": names[j], "count": int(confusion[i, j])}
            for i, j in np.argwhere(confusion).tolist()
        ]

    def _boxes_table(self, given: Objects | Detections) -> dict[str, Any]:
        names = np.array(self.classes, dtype=object)
        edges = zip(("x0", "y0", "x1", "y1"), given.boxes_xyxy.T, strict=True)
        return {
            "id": pa.array([self.ids[i] for i in given.image.tolist()], pa.string()),
            "label": pa.array(names[given.labels], pa.string()),
            **{name: np.ascontiguousarray(values) for name, values in edges},
        }

    def _detections_table(self) -> pa.Table:
        """As they were given: `rank` in image and class, -1 past the most that count; `found` and `ignored` are those
        of the match table at each threshold of IoU; `verdict` at the score, "" below it."""
        table, N, T = self.matches, len(self.detections.scores), len(self.matches.iou_thresholds)
        rank, found, ignored = np.full(N, -1), np.full((N, T), -1), np.zeros((N, T), bool)
        rank[table.place], found[table.place], ignored[table.place] = (
            table.rank,
            table.found[0].T,
            table.ignored[0].T,
        )
        verdict = np.full(N, "", dtype=object)
        verdict[self.judgement.place] = self.judgement.verdicts
        return pa.table({
            **self._boxes_table(self.detections), "score": self.detections.scores, "rank": rank,
            "verdict": pa.array(verdict, pa.string()),
            "found": pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), T),
            "ignored": pa.FixedSizeListArray.from_arrays(pa.array(ignored.ravel()), T),
        })  # fmt: skip

    def _objects_table(self) -> pa.Table:
        """Each object, and what became of it at the score and IoU 0.5: hit, confused, missed or ignored."""
        judged = self.judgement
        chosen = [judged.object_ignored, judged.hit, judged.missed]
        verdict = np.select(chosen, ["ignored", "hit", "missed"], "confused").astype(object)
        return pa.table({
            **self._boxes_table(self.objects), "area": self.objects.area, "crowd": self.objects.crowd,
            "difficult": self.objects.difficult, "verdict": pa.array(verdict, pa.string()),
        })  # fmt: skip

    def _write_figures(self, folder: Path) -> None:
        what = f"{self.about['dataset']}, {self.about['split']} split, n = {len(self.ids):,}"
        cut = f"{what}; score ≥ {self.threshold:.3g}, IoU ≥ 0.5"
        names = [*self.classes, BACKGROUND]
        figures = {
            "pr": pr_figure(self.matches, self.classes, self.threshold, what),
            "confusion": confusion_figure(self.judgement.confusion, names, cut, "boxes"),
            "per_class": per_class_figure(self.class_figures, self.classes, cut, "objects"),
            "examples": examples_figure(self.examples, self.judgement, cut),
        }
        for name in FIGURES:
            save_figure(figures[name], folder / f"{name}.png")


def without_nan(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, with None for what is not a number."""
    return [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in rows]


def slice_row(kind: str, name: str, part: Matches, threshold: float) -> dict[str, Any]:
    """A row of `Report.per_slice`."""
    precision, cut = coco_figures(part).precision[0], cut_of(part, threshold)
    known = ~np.isnan(precision[0])
    at_50 = precision[part.threshold_place(0.5)]
    return {
        "kind": kind, "name": name, "num_images": part.num_images,
        "num_objects": int((~part.object_ignored[0]).sum()),
        "ap": precision[:, known].mean() if known.any() else np.nan,
        "ap50": at_50[known].mean() if known.any() else np.nan,
        "precision": cut.precision, "recall": cut.recall, "f1": cut.f1,
    }  # fmt: skip


def cut_of(matches: Matches, threshold: float) -> Cut:
    """What the threshold gives on all classes together: NaN where there is no object."""
    if matches.object_ignored[0].all():
        return Cut(threshold, np.nan, np.nan, np.nan)
    return at_threshold(matches, threshold)


def detection_report(
    objects: Objects,
    detections: Detections,
    ids: Sequence[str],
    classes: Sequence[str],
    threshold: float,
    about: dict[str, str | int | float],
    picture_at: Callable[[int], np.ndarray],
    *,
    num_examples: int,
    generator: np.random.Generator,
    images_per_s: float | None = None,
    num_draws: int = 1000,
) -> Report:
    """Judge the detections of a split: `threshold` was chosen on validation, `about` says what was measured
    (tasks.detectionevaluate).

    `picture_at` gives the image at a place as RGB (H, W, 3) uint8, of which `num_examples` hits, misses and false
    alarms each are cut, at most; the generator draws images for the interval of AP.
    Raises ValueError as `match` does.
    """
    matches = match(objects, detections, num_images=len(ids), num_classes=len(classes))
    voc = voc_match(objects, detections, num_images=len(ids), num_classes=len(classes))
    judged = judge(objects, detections, matches, threshold)
    figures, cut = coco_figures(matches).precision[0], cut_of(matches, threshold)
    there = not matches.object_ignored[0].all()
    low, high = ap_interval(matches, generator, num_draws) if there else (np.nan, np.nan)
    at_50 = matches.threshold_place(0.5)
    metrics = {
        **summarise(matches), "ap_low": low, "ap_high": high, **summarise_voc(voc),
        "threshold": threshold, "precision": cut.precision, "recall": cut.recall, "f1": cut.f1,
        **{f"ap.{name}": float(figures[:, k].mean()) for k, name in enumerate(classes)},
        **{f"ap50.{name}": float(figures[at_50, k]) for k, name in enumerate(classes)},
        "num_images": len(ids), "num_objects": int((~matches.object_ignored[0]).sum()),
        "num_ignored": int(matches.object_ignored[0].sum()), "num_beyond": matches.num_beyond,
    }  # fmt: skip
    if images_per_s is not None:
        metrics["images_per_s"] = images_per_s
    unknown = [name for name, value in metrics.items() if np.isnan(value)]
    return Report(
        metrics={name: value for name, value in metrics.items() if name not in unknown},
        about={**about, **({"not_measured": ", ".join(unknown)} if unknown else {})},
        classes=tuple(classes), ids=tuple(ids), threshold=threshold,
        objects=objects, detections=detections, matches=matches, voc=voc, judgement=judged,
        examples=tuple(examples_of(judged, objects, detections, classes, picture_at, num_examples)),
    )  # fmt: skip
