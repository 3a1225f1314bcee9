"""Pascal VOC's average precision, from a match table by VOC's own rule.

The rule (Everingham et al. 2010, https://doi.org/10.1007/s11263-009-0275-4, and its development kit): the detections of
a class by falling score; each is tied to the object of its image that it overlaps most, of equals the first, and is
right if their IoU is *more* than 0.5 and the object is free. A taken object makes it wrong, though another were free.
`difficult` objects count neither way, nor do the detections tied to them, however many. VOC has no crowds: they are
taken as difficult. All detections count.

VOC's corners are pixels, both inside, so that a side is xmax - xmin + 1. Our boxes are edges, which ingestion makes of
them as x0 = xmin - 1, x1 = xmax: the pixel is in x1 - x0 already, and none is added here.
"""

from typing import NamedTuple

import numpy as np

from tasks.detectionmatches import (
    Detections,
    Matches,
    Objects,
    check_inputs,
    pair_iou,
    pairs_of_groups,
    rank_in_group,
)
from tasks.detectionmetrics import class_slices, envelope, interpolated, mean_of_known

IOU_THRESHOLD = 0.5
RECALLS_2007 = np.arange(11) / 10


class VocFigures(NamedTuple):
    """Average precision (K,) of each class, NaN without an object: as of VOC 2007, and from 2010 on."""

    voc07: np.ndarray  # the mean over 11 recalls of the highest precision from there on
    voc10: np.ndarray  # the area under that highest precision


def voc_match(objects: Objects, detections: Detections, *, num_images: int, num_classes: int) -> Matches:
    """The match table by VOC's rule, of one range of areas and one threshold; raises as `match` does."""
    check_inputs(objects, detections, num_images, num_classes)
    place = np.lexsort((detections.image, -detections.scores, detections.labels))
    image, labels = detections.image[place].astype(np.int64), detections.labels[place].astype(np.int64)
    group = labels * num_images + image
    mine, theirs = pairs_of_groups(group, objects.labels.astype(np.int64) * num_images + objects.image)
    no_crowd = np.zeros(len(theirs), bool)
    iou = pair_iou(detections.boxes_xyxy[place][mine], objects.boxes_xyxy[theirs], no_crowd)
    over = np.flatnonzero(iou > IOU_THRESHOLD)
    over = over[np.lexsort((theirs[over], -iou[over], mine[over]))]
    tied, first = np.unique(mine[over], return_index=True)  # the best of each, in the order of the table
    best = theirs[over[first]]
    ignored_objects = objects.difficult | objects.crowd
    free = np.zeros(len(tied), bool)
    free[np.unique(best, return_index=True)[1]] = True
    out = ignored_objects[best]
    found, ignored = np.full(len(place), -1), np.zeros(len(place), bool)
    found[tied[free | out]] = best[free | out]
    ignored[tied[out]] = True
    return Matches(
        num_images=num_images, num_classes=num_classes, num_beyond=0,
        iou_thresholds=np.array([IOU_THRESHOLD]), areas=("all",),
        place=place, image=image, labels=labels, scores=detections.scores[place], rank=rank_in_group(group),
        found=found[None, None], ignored=ignored[None, None],
        object_image=objects.image.astype(np.int64), object_labels=objects.labels.astype(np.int64),
        object_ignored=ignored_objects[None],
    )  # fmt: skip


def voc_figures(matches: Matches) -> VocFigures:
    """Both kinds of average precision, from a table of `voc_match`."""
    found, ignored = matches.found[0], matches.ignored[0]  # (1, N)
    right, wrong = (found >= 0) & ~ignored, (found < 0) & ~ignored
    positives = np.bincount(matches.object_labels[~matches.object_ignored[0]], minlength=matches.num_classes)
    figures = VocFigures(*(np.full(matches.num_classes, np.nan) for _ in range(2)))
    for k, part in class_slices(matches):
        if positives[k]:
            mine = right[:, part], wrong[:, part], float(positives[k])
            figures.voc07[k] = interpolated(*mine, RECALLS_2007)[0]
            figures.voc10[k] = (envelope(*mine)[0] * mine[0]).sum() / positives[k]
    return figures


def summarise_voc(matches: Matches) -> dict[str, float]:
    """The means over the classes that have objects; NaN where none has."""
    return {name: mean_of_known(values) for name, values in voc_figures(matches)._asdict().items()}
