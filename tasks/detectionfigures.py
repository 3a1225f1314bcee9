"""Figures of a detector's evaluation: curves of precision and recall, and pictures of what it gets right and wrong."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from tasks.detectionerrors import FALSE_ALARMS, Judgement, best_hits, largest_misses, worst_false_alarms
from tasks.detectionmatches import Detections, Matches, Objects, pair_iou
from tasks.detectionmetrics import RECALLS, at_threshold, class_slices, curve, precision_at
from tasks.drawing import Mark, draw_boxes
from tasks.figures import GREY, short, title

MAX_CURVES = 10  # classes whose curves have a colour and a name: those of lowest AP
CELL_PX, CELL_IN, CAPTION_IN = 288, 2.4, 0.45
COLUMNS = 4  # examples in a line: a page is 1180 px wide, and shrinks what is wider, captions too
LEAST_WINDOW_PX = 48  # of a picture that an example shows, where it has as many
PAST_BORDER = (224, 224, 224)
TRUE, RIGHT, WRONG, OTHER = "#ffcc00", "#34c759", "#ff3b30", "#64d2ff"  # true boxes, and detections
ROWS = {
    "hit": "hits, the surest",
    "missed": "missed objects, the largest",
    "wrong": "false alarms, the surest",
}


class Example(NamedTuple):
    """A part of a picture with boxes."""

    row: str  # of ROWS
    caption: str
    picture: np.ndarray  # (CELL_PX, CELL_PX, 3) uint8


def pr_figure(matches: Matches, classes: Sequence[str], threshold: float, what: str) -> Figure:
    """Precision against recall of each class at an IoU of 0.5, their mean, and where the threshold cuts."""
    t = matches.threshold_place(0.5)
    right, wrong = (
        (side & ~matches.ignored[0, t])[None] for side in (matches.found[0, t] >= 0, matches.found[0, t] < 0)
    )
    positives = np.bincount(matches.object_labels[~matches.object_ignored[0]], minlength=len(classes))
    best = {
        k: precision_at(right[:, part], wrong[:, part], float(positives[k]))[0]
        for k, part in class_slices(matches)
        if positives[k]
    }
    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    if not best:
        title(figure, "Precision and recall: no object to find", what)
        return figure
    axes = figure.add_subplot()
    by_ap = sorted(best, key=lambda k: (best[k].mean(), k))
    for place, k in enumerate(by_ap):
        points = curve(matches, k)
        named = place < MAX_CURVES
        colour = f"C{place}" if named else "#CCCCCC"
        name = f"{short(classes[k])}  {best[k].mean():.3f}".replace("$", r"\$")
        axes.plot(
            [0, *points.recall], [*points.precision[:1], *points.precision] or [0], color=colour,
            linewidth=1.3 if named else 0.7, label=name if named else None, zorder=3 if named else 1,
        )  # fmt: skip
        cut = at_threshold(matches, threshold, k)
        if named:
            axes.plot(
                cut.recall, cut.precision, "o", color=colour, markersize=6, markeredgecolor="black", zorder=5
            )
    mean = np.mean(list(best.values()), axis=0)
    axes.plot(
        RECALLS,
        mean,
        color="black",
        linewidth=2.4,
        label=f"mean of {len(best)} classes  {mean.mean():.3f}",
        zorder=4,
    )
    axes.plot([], [], "o", color=GREY, markeredgecolor="black", label=f"threshold {threshold:.3g}")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(color="#E9E9E9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    left_out = f", the {MAX_CURVES} of lowest AP of {len(best)} in colour" if len(best) > MAX_CURVES else ""
    title(figure, f"Precision and recall at IoU 0.5{left_out}", what)
    figure.legend(loc="outside right upper", title="AP at IoU 0.5", frameon=False, fontsize=9)
    return figure


def examples_of(
    judgement: Judgement,
    objects: Objects,
    detections: Detections,
    classes: Sequence[str],
    picture_at: Callable[[int], np.ndarray],
    most: int,
) -> list[Example]:
    """At most so many hits, missed objects and false alarms each; `picture_at` gives the image at a place, RGB
    (H, W, 3)."""
    load = cache(picture_at)

    def example(row: str, place: int, mark: Mark, caption: str, of: tuple[int, int]) -> Example:
        """`of`: the detection and the object that the mark stands for, which is drawn last."""
        true = np.flatnonzero((objects.image == place) & ~judgement.object_ignored)
        others = judgement.place[detections.image[judgement.place] == place]
        marks = [Mark(_edges(detections.boxes_xyxy[i]), "", OTHER) for i in others if i != of[0]]
        marks += [Mark(_edges(objects.boxes_xyxy[i]), "", TRUE, dashed=True) for i in true if i != of[1]]
        return Example(row, caption, _window(load(place), mark.box_xyxy, [*marks, mark]))

    made = []
    for row, places in (("hit", best_hits(judgement, most)), ("wrong", worst_false_alarms(judgement, most))):
        for d in places.tolist():
            i, name = int(judgement.place[d]), short(classes[judgement.labels[d]])
            mark = Mark(
                _edges(detections.boxes_xyxy[i]),
                f"{name} {judgement.scores[d]:.2f}",
                RIGHT if row == "hit" else WRONG,
            )
            caption = _caption(judgement, d, detections, objects, classes)
            made.append(example(row, int(detections.image[i]), mark, caption, (i, -1)))
    for m in largest_misses(judgement, objects, most).tolist():
        name = short(classes[objects.labels[m]])
        mark = Mark(_edges(objects.boxes_xyxy[m]), name, TRUE, dashed=True)
        x0, y0, x1, y1 = mark.box_xyxy
        caption = f"{x1 - x0:.0f} × {y1 - y0:.0f} px"
        made.append(example("missed", int(objects.image[m]), mark, caption, (-1, m)))
    return made


def _caption(
    judgement: Judgement, d: int, detections: Detections, objects: Objects, classes: Sequence[str]
) -> str:
    """The kind of a detection, and how much it overlaps the object that it is about."""
    about, kind = int(judgement.overlapped[d]), str(judgement.verdicts[d])
    if about < 0:
        return kind
    boxes = detections.boxes_xyxy[[judgement.place[d]]], objects.boxes_xyxy[[about]]
    iou = float(pair_iou(*boxes, np.zeros(1, bool))[0])
    is_a = f", is {short(classes[objects.labels[about]])}" if kind == "wrong class" else ""
    return f"{kind}{is_a}, IoU {iou:.2f}"


def _edges(box_xyxy: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box_xyxy.tolist()
    return x0, y0, x1, y1


def _window(picture: np.ndarray, box_xyxy: Sequence[float], marks: Sequence[Mark]) -> np.ndarray:
    """A square of the picture around a box, of twice its longer side where the picture has that, with the marks in it.

    Grey is only what a picture that is not square lacks of it, the same on both sides.
    """
    x0, y0, x1, y1 = box_xyxy
    height, width = picture.shape[:2]
    side = min(max(2 * (x1 - x0), 2 * (y1 - y0), LEAST_WINDOW_PX), max(width, height))
    corner = np.array([(x0 + x1 - side) / 2, (y0 + y1 - side) / 2])
    room = np.array([width - side, height - side])  # below 0 where there has to be grey
    low = np.minimum(room / 2, 0)
    corner = np.clip(corner, low, np.maximum(room, low))
    left, top = corner.tolist()
    cell = Image.fromarray(picture).transform(
        (CELL_PX, CELL_PX),
        Image.Transform.EXTENT,
        (left, top, left + side, top + side),
        Image.Resampling.BILINEAR,
        fillcolor=PAST_BORDER,
    )
    scale = CELL_PX / side
    moved = []
    for mark in marks:
        edges = (np.array(mark.box_xyxy).reshape(2, 2) - corner) * scale
        if (edges[1] > 0).all() and (edges[0] < CELL_PX).all():
            moved.append(mark._replace(box_xyxy=_edges(edges.ravel())))
    return draw_boxes(np.asarray(cell), moved)


def examples_figure(examples: Sequence[Example], judgement: Judgement, what: str) -> Figure:
    """Hits, missed objects and false alarms in lines of their own, each example with its caption above; headings say
    how many of all there are. What there is no example of has no line."""
    counts = judgement.counts
    totals = {**counts, "wrong": sum(counts[kind] for kind in FALSE_ALARMS)}
    lines = []
    for row, text in ROWS.items():
        own = [each for each in examples if each.row == row]
        heading = f"{text}: {len(own)} of {totals[row]:,}"
        lines += [
            ("" if start else heading, own[start : start + COLUMNS]) for start in range(0, len(own), COLUMNS)
        ]
    columns = max([3, *(len(line) for _, line in lines)])
    cell = CELL_IN + 0.1
    height = CELL_IN + CAPTION_IN + 0.25
    figure = Figure(figsize=(0.4 + cell * columns, 1.1 + height * len(lines)), layout="constrained")
    if not lines:
        title(figure, "Hits, misses and false alarms: none to show", what)
        return figure
    title(
        figure,
        "Hits, misses and false alarms. True boxes are dashed yellow; of the detections the one shown is green where "
        "it is a hit and red where it is a false alarm, all others around it are light blue",
        what,
    )
    axes = figure.add_subplot()  # one for all: an Axes for each picture takes four times as long
    axes.set_axis_off()
    for number, (heading, line) in enumerate(lines):
        top = number * height
        axes.text(0, top + 0.2, heading, fontsize=11, weight="bold", va="bottom")
        for place, each in enumerate(line):
            left, upper = place * cell, top + CAPTION_IN
            axes.text(left, upper - 0.03, each.caption, fontsize=9, va="bottom", parse_math=False)
            axes.imshow(
                each.picture, extent=(left, left + CELL_IN, upper + CELL_IN, upper), interpolation="nearest"
            )
    axes.set(xlim=(0, columns * cell), ylim=(len(lines) * height, 0), aspect="equal")
    return figure
