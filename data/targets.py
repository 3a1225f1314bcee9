"""From what annotations say to target columns: checked against the images, now that their sizes are known.

Nothing is mended in silence: each kind of fault is counted, with examples. Boxes that reach over the edge are cut
there; those that lie outside, have no area, are not numbers, are of no listed class, or stand there twice are left out.
An image that is left with none of its boxes would be false background: it is `lost`, and ingest sets it aside.
Areas that a source gives (COCO's: of masks) stay as they are; in place of an unusable one stands its box's. Points stay
where they are.

Annotations are of the pixels as stored, as most tools have them, or of the upright image, as YOLO's reference reader
has them. Where an annotation gives the image's size and only one of the two fits, that one is meant.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.dataset import NUM_AXES, Split
from data.formats.listing import MAX_COORDINATE, Boxes, Pair, Points, RawItem
from data.measurement import Measured
from data.orientation import stored_size, turn_boxes, turn_xy

OTHER_SIZE = "annotations with another image size than the image"
NOT_FINITE = "boxes that are not numbers, left out"
UNKNOWN_CLASS = "boxes of no listed class, left out"
INVERTED = "boxes with corners swapped, left out"
EMPTY = "boxes without area, left out"
OUTSIDE = "boxes outside the image, left out"
CLIPPED = "boxes over the edge, cut there"
DUPLICATE = "boxes given twice, one left out"
BAD_AREA = "areas that are no numbers, not finite or below 0, the box's own taken"
POINT_OUTSIDE = "images with points outside"
POINT_MISSING = "images with points that are not given"
PAIR_UNUSABLE = "pairs with an image that was set aside, left out"
PAIR_TRAINED = "pairs with an image of the train split"
EDGE_TOLERANCE_PX = 0.01  # what six decimals of a share make of the edge
MAX_SHOWN = 24  # boxes of each fault that reports can show
_ROUNDING = 10  # decimals of a pixel: undoes the division and multiplication by the image's sides


LeftOut = tuple[str, float, float, float, float]  # why, and the corners, in pixels of the upright image


@dataclass(frozen=True, slots=True)
class Targets:
    """The checked targets of N images."""

    labels: np.ndarray  # (N,) int64: the class of each image; 0 where a family has none
    columns: dict[str, list[Any]]  # by the dataset's column names, N values each
    issues: dict[str, list[str]]  # what is wrong: ids of images, once for each fault
    left_out: dict[str, list["LeftOut"]] = field(default_factory=dict)  # by id: some of each kind, to show
    lost: dict[int, str] = field(default_factory=dict)  # by place: why an image that had boxes has none left

    def take(self, places: np.ndarray) -> "Targets":
        """Those of the images at `places`, in that order; what is wrong stays counted for all."""
        columns = {name: [values[i] for i in places] for name, values in self.columns.items()}
        return Targets(self.labels[places], columns, self.issues, self.left_out)


def check_targets(
    family: str, items: Sequence[RawItem], measured: Measured, classes: Sequence[str]
) -> Targets:
    """The target columns of these images, in their order."""
    if family == "detection":
        return _check_boxes(items, measured)
    if family == "landmarks":
        return _check_points(items, measured)
    number = {label: index for index, label in enumerate(classes)}
    labels = np.array([number[item.targets["label"]] for item in items], np.int64)
    columns: dict[str, list[Any]] = {"label": labels.tolist()}
    if family in NUM_AXES:
        facts = [fact for fact in measured.facts if fact is not None]
        columns["shape"] = [fact.shape for fact in facts]
        column = "rate_hz" if family == "signals" else "spacing_mm"
        columns[column] = [getattr(fact, column) for fact in facts]
    return Targets(labels, columns, {})


def _check_boxes(items: Sequence[RawItem], measured: Measured) -> Targets:
    found: list[Boxes] = [item.targets["boxes"] for item in items]
    image = np.repeat(np.arange(len(found)), [len(boxes.labels) for boxes in found])  # (M,)
    corners = np.concatenate([np.empty((0, 4)), *(boxes.boxes_xyxy for boxes in found)])  # (M, 4)
    labels = np.concatenate([np.empty(0, np.int64), *(boxes.labels for boxes in found)])
    flags = np.concatenate([np.empty(0, np.uint8), *(boxes.flags for boxes in found)])
    areas = np.concatenate(
        [np.empty(0), *(np.full(len(b.labels), np.nan) if b.areas is None else b.areas for b in found)]
    )
    given = np.nan_to_num(np.clip(corners, -MAX_COORDINATE, MAX_COORDINATE))
    issues: dict[str, list[str]] = defaultdict(list)
    keep = np.ones(len(image), bool)
    whys = np.full(len(image), "", object)  # of boxes that are left out
    shown: dict[int, str] = {}  # boxes to show among those left out, and why

    def leave_out(bad: np.ndarray, why: str) -> None:
        issues[why] += [items[i].id for i in image[keep & bad]]
        shown.update((box, why) for box in np.flatnonzero(keep & bad)[:MAX_SHOWN].tolist())
        whys[keep & bad] = why
        keep[bad] = False

    leave_out(~(np.abs(corners) <= MAX_COORDINATE).all(1), NOT_FINITE)  # NaN compares as false
    corners[~keep] = 0
    leave_out(labels < 0, UNKNOWN_CLASS)
    sides = corners[:, 2:] - corners[:, :2]
    leave_out((sides < 0).any(1), INVERTED)
    leave_out((sides == 0).any(1), EMPTY)
    corners[~keep] = 0
    corners = _to_upright(corners, image, items, measured, issues)
    size = np.stack([measured.width_px, measured.height_px] * 2, 1)[image]  # (M, 4)
    cut = np.clip(corners, 0, size)
    leave_out((cut[:, 2:] <= cut[:, :2]).any(1), OUTSIDE)
    issues[CLIPPED] += [
        items[i].id for i in image[keep & (np.abs(cut - corners).max(1, initial=0) > EDGE_TOLERANCE_PX)]
    ]
    boxes = cut.astype(np.float32)
    leave_out((boxes[:, 2:] <= boxes[:, :2]).any(1), EMPTY)  # thinner than float32 can tell
    leave_out(_repeated(image, boxes, labels, keep), DUPLICATE)
    own = (boxes[:, 2:].astype(np.float64) - boxes[:, :2]).prod(1)
    usable = (areas >= 0) & np.isfinite(areas)
    issues[BAD_AREA] += [items[i].id for i in image[keep & ~usable & ~np.isnan(areas)]]
    # one that is the box's, rounded as JSON has it, is not the object's own
    areas = np.where(usable & ~np.isclose(areas, own, rtol=1e-3), areas, own)
    left_out: dict[str, list[LeftOut]] = defaultdict(list)
    if shown:
        upright = _to_upright(given, image, items, measured, defaultdict(list))
        for box, why in sorted(shown.items()):
            x0, y0, x1, y1 = upright[box].round(2).tolist()
            left_out[items[image[box]].id].append((why, x0, y0, x1, y1))
    ends = np.cumsum(np.bincount(image[keep], minlength=len(found)))[:-1]
    columns = {
        "boxes_xyxy": [part.ravel().tolist() for part in np.split(boxes[keep], ends)],
        "box_labels": [part.tolist() for part in np.split(labels[keep], ends)],
        "box_flags": [part.tolist() for part in np.split(flags[keep], ends)],
    }
    if (areas != own)[keep].any():  # else the boxes say it
        columns["box_areas"] = [part.tolist() for part in np.split(areas[keep], ends)]
    return Targets(
        np.zeros(len(found), np.int64),
        columns,
        {why: where for why, where in issues.items() if where},
        dict(left_out),
        _left_with_none(image, keep, whys, len(found)),
    )


def _left_with_none(image: np.ndarray, keep: np.ndarray, whys: np.ndarray, num: int) -> dict[int, str]:
    """The places, among `num`, of images that had boxes and have none left, and why."""
    num_kept = np.bincount(image[keep], minlength=num)
    found: dict[int, dict[str, None]] = defaultdict(dict)
    for box in np.flatnonzero(num_kept[image] == 0):
        found[int(image[box])][whys[box].removesuffix(", left out")] = None
    return {place: f"none of its boxes can be used: {'; '.join(why)}" for place, why in found.items()}


def _to_upright(
    corners: np.ndarray,
    image: np.ndarray,
    items: Sequence[RawItem],
    measured: Measured,
    issues: dict[str, list[str]],
) -> np.ndarray:
    """Pixels of the upright image, from pixels or shares of whichever the annotation means."""
    orientation = np.ones(len(items), np.int64)
    stored = np.empty((len(items), 2), np.int64)
    relative = np.zeros(len(items), bool)
    for i, item in enumerate(items):
        boxes: Boxes = item.targets["boxes"]
        size, turn = (int(measured.width_px[i]), int(measured.height_px[i])), int(measured.orientation[i])
        if boxes.size not in (None, size, stored_size(size, turn)):
            issues[OTHER_SIZE].append(item.id)
        upright = boxes.upright or (boxes.size == size != stored_size(size, turn))
        orientation[i] = 1 if upright else turn
        stored[i] = size if upright else stored_size(size, turn)
        relative[i] = boxes.relative
    sides = stored[image].astype(np.float64)  # (M, 2)
    scaled = np.where(relative[image, None], np.round(corners * np.tile(sides, 2), _ROUNDING), corners)
    return turn_boxes(scaled, orientation[image], sides[:, 0], sides[:, 1])


def _repeated(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Which boxes stand there already, in the same image and of the same class: (M,) bool."""
    repeated = np.zeros(len(image), bool)
    places = np.flatnonzero(keep)
    rows = np.column_stack([image[places], labels[places], boxes[places].astype(np.float64)])
    _, first = np.unique(rows, axis=0, return_index=True)
    repeated[places] = True
    repeated[places[first]] = False
    return repeated


def _check_points(items: Sequence[RawItem], measured: Measured) -> Targets:
    issues: dict[str, list[str]] = defaultdict(list)
    columns: dict[str, list[Any]] = {"points_xy": [], "visible": []}
    for i, item in enumerate(items):
        points: Points = item.targets["points"]
        size, turn = (int(measured.width_px[i]), int(measured.height_px[i])), int(measured.orientation[i])
        width, height = (np.array(side - 1) for side in stored_size(size, turn))
        given = points.visible | (points.points_xy != 0).any(1)
        turned = turn_xy(points.points_xy, turn, width, height)
        turned[~given] = 0
        inside = (turned >= -0.5) & (turned <= np.array(size) - 0.5)
        if not inside[given].all():
            issues[POINT_OUTSIDE].append(item.id)
        if not given.all():
            issues[POINT_MISSING].append(item.id)
        columns["points_xy"].append(turned.astype(np.float32).ravel().tolist())
        columns["visible"].append(points.visible.tolist())
    return Targets(np.zeros(len(items), np.int64), columns, dict(issues))


def check_pairs(
    pairs: Sequence[Pair], items: Sequence[RawItem], splits: Sequence[Split]
) -> tuple[list[Pair], dict[str, list[str]]]:
    """The pairs of which both images are there, and what is wrong with pairs: which."""
    split_of = {item.id: split for item, split in zip(items, splits, strict=True)}
    kept: list[Pair] = []
    issues: dict[str, list[str]] = {PAIR_UNUSABLE: [], PAIR_TRAINED: []}
    for pair in pairs:
        sides = {split_of.get(id) for id in (pair.id_a, pair.id_b)}
        if None in sides:
            issues[PAIR_UNUSABLE].append(f"{pair.id_a}, {pair.id_b}")
            continue
        kept.append(pair)
        if "train" in sides:
            issues[PAIR_TRAINED].append(f"{pair.id_a}, {pair.id_b}")
    return kept, {what: where for what, where in issues.items() if where}
