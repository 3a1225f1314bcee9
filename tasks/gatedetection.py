"""Detectors against each other: AP by a paired bootstrap of images, each drawn image counted as often as it is drawn.

Both detectors see the same draws. Slices by class and by the size of objects; where images come from several folders,
by source. A slice's samples are its objects.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from data.dataset import Dataset, Split
from tasks.detectionmatches import Matches
from tasks.detectionmetrics import (
    DRAWS_AT_ONCE,
    coco_figures,
    mean_of_known,
    resampled_ap,
    resampled_class_aps,
)
from tasks.detectionreport import Report
from tasks.gate import GateConfig, metric_alphas
from tasks.pairing import Paired, Part, cluster_counts, drawn_part, group_notes, guard, weigh
from tasks.slices import places_of, source_of

METRICS = ("ap", "ap50")


def pair(champion: Report, challenger: Report, dataset: Dataset, split: Split, config: GateConfig) -> Paired:
    """What the two reports, of one split of `dataset`, say together.

    Raises ValueError where they are of other images, or there is no object to find.
    """
    both = (champion.matches, challenger.matches)
    if champion.ids != challenger.ids or not np.array_equal(both[0].object_labels, both[1].object_labels):
        raise ValueError(
            f"the two models were not looked at on the same {split} images of {dataset.info.name}"
        )
    if both[0].object_ignored[0].all():
        raise ValueError(
            f"the {split} split of {dataset.info.name} has no object to find: nothing can be compared"
        )
    rules = config.rules(dataset.info.family)
    groups = dataset.table(split, ["group"])["group"].to_pylist()
    counts = np.array(list(cluster_counts(groups, config.num_draws, config.seed)))
    metrics = []
    for name, alpha in metric_alphas(rules.metrics, METRICS, config).items():
        sides = both if name == "ap" else (at_iou(both[0], 0.5), at_iou(both[1], 0.5))
        rule = rules.metrics[name]
        metrics.append(
            weigh(
                name, (whole_ap(sides[0]), whole_ap(sides[1])), ap_gains(sides, counts),
                primary=rule.primary, margin=rule.margin, alpha=alpha, power=config.power,
                test="paired bootstrap of images",
            )
        )  # fmt: skip
    notes = group_notes(groups, "images")
    parts = slice_parts(both, champion, counts, config.alpha)
    return Paired(
        num_samples=len(champion.ids), unit="images", metric="AP", same=same_boxes(champion, challenger),
        metrics=tuple(metrics), slices=guard(parts, config.alpha, rules.slice_margin, rules.slice_fewest),
        notes=notes,
    )  # fmt: skip


def at_iou(matches: Matches, iou: float) -> Matches:
    """The table of one threshold of IoU alone."""
    t = matches.threshold_place(iou)
    return replace(
        matches, iou_thresholds=matches.iou_thresholds[[t]], found=matches.found[:, [t]],
        ignored=matches.ignored[:, [t]],
    )  # fmt: skip


def whole_ap(matches: Matches) -> float:
    """AP over all images."""
    return mean_of_known(coco_figures(matches).precision[0].mean(0))


def ap_gains(sides: tuple[Matches, Matches], counts: np.ndarray) -> np.ndarray:
    """AP of the challenger minus the champion's in each draw: (D,)."""
    champion, challenger = (in_parts(resampled_ap, side, counts) for side in sides)
    return np.asarray(challenger - champion)


def in_parts(
    resample: Callable[[Matches, np.ndarray], np.ndarray], side: Matches, counts: np.ndarray
) -> np.ndarray:
    """`resample` of all draws, a few at a time, which bounds the memory."""
    starts = range(0, len(counts), DRAWS_AT_ONCE)
    return np.concatenate([resample(side, counts[start : start + DRAWS_AT_ONCE]) for start in starts])


def slice_parts(
    both: tuple[Matches, Matches], champion: Report, counts: np.ndarray, alpha: float
) -> list[Part]:
    """The slices by class, size of the objects, and source of the images."""
    parts = []
    first, second = (in_parts(resampled_class_aps, side, counts) for side in both)
    values = [coco_figures(side).precision[0].mean(0) for side in both]
    objects = np.bincount(both[0].object_labels[~both[0].object_ignored[0]], minlength=both[0].num_classes)
    for k, name in enumerate(champion.classes):
        pair_of = (float(values[0][k]), float(values[1][k]))
        parts.append(
            drawn_part("class", name, int(objects[k]), pair_of, second[:, k] - first[:, k],
                       pair_of[1] - pair_of[0], alpha)
        )  # fmt: skip
    named = [
        ("size", name, tuple(side.of_area(name) for side in both)) for name in both[0].areas if name != "all"
    ]
    sources = places_of([source_of(id, "") for id in champion.ids])
    for name, members in sources.items() if len(sources) > 1 else ():
        chosen = np.zeros(both[0].num_images, bool)
        chosen[members] = True
        named.append(("source", name, tuple(side.of_images(chosen) for side in both)))
    for kind, name, (one, other) in named:
        num_objects = int((~one.object_ignored[0]).sum())
        if num_objects:
            pair_of = (whole_ap(one), whole_ap(other))
            gains = ap_gains((one, other), counts)
            parts.append(drawn_part(kind, name, num_objects, pair_of, gains, pair_of[1] - pair_of[0], alpha))
    return [part for part in parts if part is not None]


def same_boxes(champion: Report, challenger: Report) -> bool:
    """Whether both found the same boxes with the same scores."""
    one, other = vars(champion.detections), vars(challenger.detections)
    return all(np.array_equal(one[name], other[name]) for name in one)
