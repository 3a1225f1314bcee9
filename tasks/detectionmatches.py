"""Which detection finds which object: the one match table that every figure of a detector is computed from.

COCO's rules, as pycocotools has them (https://github.com/cocodataset/cocoapi): in each image and class, the detections
by falling score, of equals the first first, at most the `max_detections` best; each takes the object still free that it
overlaps most, of equals the last, if their IoU reaches the threshold; an ignored object only if no other is left to it.
Crowds are ignored, are never used up, and their overlap is the share of the detection that lies in them. Detections
that take an ignored object, or that take none and lie outside the range of areas, count neither way.

Nothing is left out in silence:
- a detection on an image without objects is a false positive;
- an object without area overlaps nothing, so it is missed; a detection without area is a false positive. (pycocotools
  divides 0 by 0 between two of these and lets them match.)
- boxes over the border of their image are taken as they are;
- `difficult` objects are ignored as crowds are, but each takes one detection only;
- detections past `max_detections` are counted in `num_beyond`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = {  # square pixels, both ends included: what has exactly 32² is small and medium
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
MAX_DETECTIONS = 100  # of a class in an image
NEARLY_ONE = 1 - 1e-10  # pycocotools asks for no more overlap than this


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The M true objects of a split. `area` in square pixels decides the range of areas; COCO's is of the mask."""

    image: np.ndarray  # (M,) place of the image, from 0
    boxes_xyxy: np.ndarray  # (M, 4) edges, pixels
    labels: np.ndarray  # (M,) class, from 0
    crowd: np.ndarray  # (M,) bool
    difficult: np.ndarray  # (M,) bool
    area: np.ndarray  # (M,)


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The N detections of all images of a split, in any order."""

    image: np.ndarray  # (N,) place of the image, from 0
    boxes_xyxy: np.ndarray  # (N, 4) edges, pixels
    labels: np.ndarray  # (N,) class, from 0
    scores: np.ndarray  # (N,)


def coco_result(id: str, label: int, box_xyxy: Sequence[float], score: float) -> dict[str, Any]:
    """A detection in the image `id`, as COCO's results have it: `category_id` is 1 for the first class."""
    x0, y0, x1, y1 = box_xyxy
    return {"image_id": id, "category_id": label + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}


@dataclass(frozen=True, kw_only=True)
class Matches:
    """N detections by class, in it by falling score; A ranges of areas, T thresholds of IoU, M objects.

    Of equal scores, the lower image comes first, then the order given.
    """

    num_images: int
    num_classes: int
    num_beyond: int  # detections past `max_detections`, which are not in the table
    iou_thresholds: np.ndarray  # (T,)
    areas: tuple[str, ...]  # names of the A ranges
    place: np.ndarray  # (N,) int64 into the detections as they were given
    image: np.ndarray  # (N,) int64
    labels: np.ndarray  # (N,) int64
    scores: np.ndarray  # (N,)
    rank: np.ndarray  # (N,) int64: from 0, in its image and class
    found: np.ndarray  # (A, T, N) int64: the object that it takes, -1 for none
    ignored: np.ndarray  # (A, T, N) bool: counts neither way
    object_image: np.ndarray  # (M,) int64
    object_labels: np.ndarray  # (M,) int64
    object_ignored: np.ndarray  # (A, M) bool

    def threshold_place(self, iou_threshold: float) -> int:
        """Where a threshold of IoU stands in the table; raises ValueError for one that does not."""
        here = np.flatnonzero(np.isclose(self.iou_thresholds, iou_threshold))
        if not len(here):
            raise ValueError(
                f"iou_threshold (={iou_threshold}) is none of {self.iou_thresholds.round(4).tolist()}"
            )
        return int(here[0])

    def of_area(self, name: str) -> "Matches":
        """The table of one range of areas alone."""
        a = self.areas.index(name)
        return replace(
            self, areas=(name,), found=self.found[[a]], ignored=self.ignored[[a]],
            object_ignored=self.object_ignored[[a]],
        )  # fmt: skip

    def of_images(self, chosen: np.ndarray) -> "Matches":
        """The table of the images where `chosen` (num_images,) bool is set alone; images keep their places."""
        mine, objects = chosen[self.image], chosen[self.object_image]
        moved = np.append(objects.cumsum() - 1, -1)  # of none, -1: none
        return replace(
            self, num_images=int(chosen.sum()),
            place=self.place[mine], image=self.image[mine], labels=self.labels[mine], scores=self.scores[mine],
            rank=self.rank[mine], found=moved[self.found[:, :, mine]], ignored=self.ignored[:, :, mine],
            object_image=self.object_image[objects], object_labels=self.object_labels[objects],
            object_ignored=self.object_ignored[:, objects],
        )  # fmt: skip


def check_inputs(objects: Objects, detections: Detections, num_images: int, num_classes: int) -> None:
    """Raise ValueError for boxes that are none, and places of images and classes that there are not."""
    for name, given in (("objects", objects), ("detections", detections)):
        boxes, size = given.boxes_xyxy, len(given.image)
        if boxes.shape != (size, 4) or any(len(part) != size for part in vars(given).values()):
            raise ValueError(f"{name}: boxes {boxes.shape} and {size} images must be of one length")
        for what, values, limit in (
            ("images", given.image, num_images),
            ("labels", given.labels, num_classes),
        ):
            if size and (values.min() < 0 or values.max() >= limit):
                raise ValueError(
                    f"{name}: {what} from {values.min()} to {values.max()} must lie in 0…{limit - 1}"
                )
        wrong = ~(np.isfinite(boxes).all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1))
        if wrong.any():
            first = int(wrong.argmax())
            raise ValueError(
                f"{name}: {wrong.sum()} of {size} boxes are not finite or have corners swapped; the first is "
                f"{boxes[first].tolist()} of image {given.image[first]}"
            )
    if not np.isfinite(detections.scores).all():
        raise ValueError("detections: scores must be finite: has the training diverged?")


def box_areas(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Square pixels (N,), in float64."""
    boxes = boxes_xyxy.astype(np.float64)
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def pair_iou(a_xyxy: np.ndarray, b_xyxy: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU (P,) of pairs in float64, 0 where undefined; where `b` is a `crowd`, the share of `a` that lies in it."""
    a, b = a_xyxy.astype(np.float64), b_xyxy.astype(np.float64)
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    both = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0)
    area_a = box_areas(a)
    union = np.where(crowd, area_a, area_a + box_areas(b) - both)
    return np.divide(both, union, out=np.zeros(len(both)), where=both > 0)


def pairs_of_groups(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of places of equal number in `left` and `right`, as two arrays: by `left`, then by `right`."""
    order = right.argsort(kind="stable")
    first = np.searchsorted(right[order], left, side="left")
    count = np.searchsorted(right[order], left, side="right") - first
    a = np.repeat(np.arange(len(left)), count)
    offset = np.arange(len(a)) - np.repeat(count.cumsum() - count, count)
    return a, order[first[a] + offset]


def rank_in_group(group: np.ndarray) -> np.ndarray:
    """Of each place, how many before it are of the same group."""
    order = group.argsort(kind="stable")
    sorted_group = group[order]
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.searchsorted(sorted_group, sorted_group, side="left")
    return rank


def match(
    objects: Objects,
    detections: Detections,
    *,
    num_images: int,
    num_classes: int,
    iou_thresholds: np.ndarray = IOU_THRESHOLDS,
    max_detections: int = MAX_DETECTIONS,
) -> Matches:
    """The match table of a split; raises ValueError for what `check_inputs` does not let through."""
    check_inputs(objects, detections, num_images, num_classes)
    place = np.lexsort((detections.image, -detections.scores, detections.labels))
    rank = rank_in_group(detections.labels[place] * num_images + detections.image[place])
    num_beyond = int((rank >= max_detections).sum())
    place, rank = place[rank < max_detections], rank[rank < max_detections]
    image, labels = detections.image[place].astype(np.int64), detections.labels[place].astype(np.int64)
    boxes = detections.boxes_xyxy[place]
    group = labels * num_images + image
    by_group, by_object = pairs_of_groups(group, objects.labels.astype(np.int64) * num_images + objects.image)
    iou = pair_iou(boxes[by_group], objects.boxes_xyxy[by_object], objects.crowd[by_object])
    near = iou >= min(iou_thresholds.min(), NEARLY_ONE)
    by_group, by_object, iou = by_group[near], by_object[near], iou[near]
    low, high = np.array(list(AREAS.values())).T[:, :, None]
    object_ignored = objects.crowd | objects.difficult | (objects.area < low) | (objects.area > high)
    found = np.stack(
        [
            _assign(group, by_group, by_object, iou, objects.crowd, out, iou_thresholds)
            for out in object_ignored
        ]
    )
    outside = (box_areas(boxes) < low) | (box_areas(boxes) > high)  # (A, N)
    taken_ignored = np.stack(
        [np.append(out, False)[which] for out, which in zip(object_ignored, found, strict=True)]
    )
    return Matches(
        num_images=num_images, num_classes=num_classes, num_beyond=num_beyond,
        iou_thresholds=iou_thresholds, areas=tuple(AREAS),
        place=place, image=image, labels=labels, scores=detections.scores[place], rank=rank,
        found=found, ignored=taken_ignored | ((found < 0) & outside[:, None]),
        object_image=objects.image.astype(np.int64), object_labels=objects.labels.astype(np.int64),
        object_ignored=object_ignored,
    )  # fmt: skip


def _assign(
    group: np.ndarray,
    by_detection: np.ndarray,
    by_object: np.ndarray,
    iou: np.ndarray,
    crowd: np.ndarray,
    ignored: np.ndarray,
    iou_thresholds: np.ndarray,
) -> np.ndarray:
    """Which object each detection takes, (T, N), from the pairs that overlap; all images step by step at once.

    Step k takes the k-th detection of every image and class among those that overlap anything.
    """
    found = np.full((len(iou_thresholds), len(group)), -1)
    free = np.ones((len(iou_thresholds), len(crowd)), bool)
    # in the order of preference, so that the last that may be taken is the best
    order = np.lexsort((by_object, iou, ~ignored[by_object], by_detection))
    by_detection, by_object, iou = by_detection[order], by_object[order], iou[order]
    # of the places of detections, which are by falling score, the steps
    rivals = np.unique(by_detection)
    step = np.zeros(len(group), np.int64)
    step[rivals] = rank_in_group(group[rivals])
    order = step[by_detection].argsort(kind="stable")
    ends = np.bincount(step[by_detection]).cumsum() if len(order) else np.empty(0, np.int64)
    reaches = iou >= np.minimum(iou_thresholds, NEARLY_ONE)[:, None]  # (T, P)
    for pairs in np.split(order, ends[:-1]) if len(order) else []:
        first = np.flatnonzero(np.diff(by_detection[pairs], prepend=-1))
        may = reaches[:, pairs] & free[:, by_object[pairs]]
        best = np.maximum.reduceat(np.where(may, np.arange(len(pairs)), -1), first, axis=1)
        t, which = np.nonzero(best >= 0)
        taken = by_object[pairs[best[t, which]]]
        found[t, by_detection[pairs[first[which]]]] = taken
        free[t, taken] = crowd[taken]
    return found
