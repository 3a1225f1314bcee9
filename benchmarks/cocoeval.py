"""COCO's evaluation of detections: tasks/detectionmetrics.py against pycocotools and faster-coco-eval, in turn.

    benchmarks/peers.sh && PYTHONPATH=. .venv-peers/bin/python benchmarks/cocoeval.py

5,000 images with about 7 objects and 10 detections each, of 80 classes. What the peers read is ready in memory; each
is timed from there to the twelve figures. One round: pycocotools takes long.
"""

import contextlib
import io
import math
import time
from collections.abc import Callable
from typing import Any

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from rich.console import Console
from rich.table import Table

from tasks.detectionmatches import Detections, Objects, box_areas, match
from tasks.detectionmetrics import resampled_ap, summarise

IMAGES, CLASSES, OBJECTS, DETECTIONS, ROUNDS, DRAWS = 5_000, 80, 7, 10, 1, 3


def made() -> tuple[Objects, Detections]:
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(IMAGES), OBJECTS)
    corner = rng.random((len(image), 2)) * 500
    boxes = np.hstack([corner, corner + rng.lognormal(4, 0.8, (len(image), 2))])
    labels = rng.integers(0, CLASSES, len(image))
    crowd = rng.random(len(image)) < 0.01
    objects = Objects(
        image=image,
        boxes_xyxy=boxes,
        labels=labels,
        area=box_areas(boxes),
        crowd=crowd,
        difficult=crowd & False,
    )
    which = np.concatenate([i * OBJECTS + rng.integers(0, OBJECTS, DETECTIONS) for i in range(IMAGES)])
    sides = np.tile(boxes[which, 2:] - boxes[which, :2], 2)
    guesses = boxes[which] + rng.normal(0, 0.08, sides.shape) * sides
    guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2])
    wrong = rng.random(len(which)) < 0.2
    guessed = np.where(wrong, rng.integers(0, CLASSES, len(which)), labels[which])
    return objects, Detections(
        image=image[which], boxes_xyxy=guesses, labels=guessed, scores=rng.random(len(which))
    )


def rows(given: Objects | Detections) -> list[dict[str, Any]]:
    """Annotations as COCO's files have them."""
    sides = given.boxes_xyxy[:, 2:] - given.boxes_xyxy[:, :2]
    of = {"score": given.scores} if isinstance(given, Detections) else {"iscrowd": given.crowd.astype(int)}
    columns = {
        "image_id": given.image, "category_id": given.labels, "area": box_areas(given.boxes_xyxy),
        "bbox": np.hstack([given.boxes_xyxy[:, :2], sides]), **of,
    }  # fmt: skip
    lists = [part.tolist() for part in columns.values()]
    return [
        dict(zip(["id", *columns], row, strict=True))
        for row in zip(range(1, len(sides) + 1), *lists, strict=True)
    ]


def peer(coco: Any, evaluation: Any, objects: Objects, detections: Detections) -> Callable[[], list[float]]:
    images = [{"id": i, "width": 1000, "height": 1000} for i in range(IMAGES)]
    head = {"images": images, "categories": [{"id": k, "name": str(k)} for k in range(CLASSES)]}
    read = []
    for given in (objects, detections):
        one = coco()
        one.dataset = {**head, "annotations": rows(given)}
        one.createIndex()
        read.append(one)

    def run() -> list[float]:
        run_of = evaluation(*read, "bbox")
        run_of.evaluate()
        run_of.accumulate()
        run_of.summarize()
        return [float(value) for value in run_of.stats[:12]]

    return run


def main() -> None:
    objects, detections = made()

    def ours() -> list[float]:
        return list(summarise(match(objects, detections, num_images=IMAGES, num_classes=CLASSES)).values())

    with contextlib.redirect_stdout(io.StringIO()):
        ways = {
            "pycocotools": peer(pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval, objects, detections),
            "faster-coco-eval": peer(
                faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster, objects, detections
            ),
            "ours": ours,
        }
        taken, figures = dict.fromkeys(ways, math.inf), {}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                began = time.perf_counter()
                figures[name] = way()
                taken[name] = min(taken[name], time.perf_counter() - began)
    table = Table(
        f"{IMAGES:,} images, {DETECTIONS} detections each", "s", "AP", "AP50", "furthest from pycocotools"
    )
    for name, seconds in taken.items():
        far = np.abs(np.subtract(figures[name], figures["pycocotools"])).max()
        table.add_row(name, f"{seconds:.2f}", *(f"{figures[name][i]:.4f}" for i in (0, 1)), f"{far:.0e}")
    matches = match(objects, detections, num_images=IMAGES, num_classes=CLASSES)
    counts = np.random.default_rng(0).multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), DRAWS)
    began = time.perf_counter()
    resampled_ap(matches, counts)
    table.add_row("a draw of the bootstrap, ours", f"{(time.perf_counter() - began) / DRAWS:.3f}", "", "", "")
    Console().print(table)


if __name__ == "__main__":
    main()
