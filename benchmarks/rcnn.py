"""What R-CNN, Fast R-CNN and Faster R-CNN cost a picture, and where: proposals, network, and the rest (suppression).

    PYTHONPATH=. .venv/bin/python benchmarks/rcnn.py [--pictures 2] [--side-px 640] [--body resnet18]
        [--crop-px 224] [--dataset NAME] [--weights faster=FILE.safetensors …]

All have the same body and the same heads. R-CNN runs the body on 2,000 crops: two minutes a picture on two cores at
the paper's 224 pixels, `--crop-px 96` takes a quarter of it. The time does not depend on the weights but for the last
suppression. By default the pictures are photographs that scikit-image ships; of an ingested dataset they are the first
of its validation split, and AP50 on them is shown for detectors whose weights (a state dict) are given. The median
picture counts.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from data.dataset import Dataset
from data.decode import decode_many
from data.detection import COLUMNS, DetectionInput, Scenes, Truths, decode_rows
from data.samples import read_photo
from models.detector import Finding, Found
from models.fasterrcnn import fasterrcnn_resnet18_fpn
from models.rcnn import FastRcnn, Rcnn
from models.roiheads import RegionDetector
from tasks.detection import detections_of, objects_of
from tasks.detectionmatches import match
from tasks.detectionmetrics import summarise
from tasks.paths import store

PHOTOS = [f"skimage:{name}" for name in ("astronaut", "coffee", "chelsea", "motorcycle_left", "rocket")]
NUM_PROPOSALS, NUM_SAMPLES, HEAD_WIDTH = 2000, 128, 512
WARM_UP_PX = 64


def detectors(body: str, num_classes: int, crop_px: int) -> dict[str, Callable[[], RegionDetector]]:
    """The three of them by name, as their papers have them but for the body."""
    common: dict[str, Any] = {
        "num_classes": num_classes, "channels": 3, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
        "body": body, "num_samples": NUM_SAMPLES,
        "finding": Finding(min_score=0.05, suppression="hard", nms_iou=0.5, max_detections=100),
    }  # fmt: skip
    return {
        "rcnn": lambda: Rcnn(**common, crop_px=crop_px, proposals=NUM_PROPOSALS),
        "fast": lambda: FastRcnn(
            **common, strides=(16,), width=128, norm="frozen", norm_eps=1e-5, num_frozen=0, pooling="max",
            canonical_px=224, head_width=HEAD_WIDTH, proposals=NUM_PROPOSALS,
        ),
        "faster": lambda: fasterrcnn_resnet18_fpn(**common, head_width=HEAD_WIDTH),
    }  # fmt: skip


@torch.inference_mode()
def look(model: RegionDetector, image: Tensor) -> tuple[Found, int, list[float]]:
    """Detections of one picture (1, 3, S, S), its number of proposals, and seconds of proposals, network and rest."""
    marks = [time.perf_counter()]
    maps = model.maps(image)
    marks.append(time.perf_counter())
    proposals, _ = model.regions(image, maps, None)
    marks.append(time.perf_counter())
    logits, offsets = model.look_at_all(maps, proposals)
    marks.append(time.perf_counter())
    found = model.heads.find(logits, offsets, proposals, 1, image.shape[2], model.finding)
    marks.append(time.perf_counter())
    of_maps, of_proposals, of_heads, rest = (b - a for a, b in itertools.pairwise(marks))
    return found, len(proposals.image), [of_proposals, of_maps + of_heads, rest]


def photographs(num: int, side_px: int) -> Tensor:
    blobs = [read_photo(name) for name in PHOTOS[:num]]
    return torch.from_numpy(decode_many(blobs, side_px, 3, "letterbox"))


def validation(name: str, num: int, side_px: int) -> tuple[Tensor, Truths, int]:
    """The first pictures of a dataset, their boxes, and how many classes there are."""
    dataset = Dataset.open(store() / name)
    dataset.require_family("detection")
    rows = dataset.table("val", list(COLUMNS)).slice(0, num)
    config = DetectionInput(stored_px=side_px, resize="letterbox", train_px=())
    arrays = decode_rows(rows, dataset.info.picture_channels, config)
    scenes = Scenes(**{key: torch.from_numpy(value) for key, value in arrays.items()})
    return scenes.images, scenes.truths(torch.arange(len(scenes)).numpy()), len(dataset.info.classes)


def ap50(found: list[Found], truths: Truths, num_classes: int) -> float:
    """Of one picture each."""
    objects = objects_of([(0, truths)])
    detections = detections_of(list(enumerate(found)))
    return summarise(match(objects, detections, num_images=len(found), num_classes=num_classes))["ap50"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--side-px", type=int, default=640)
    parser.add_argument("--body", default="resnet18")
    parser.add_argument("--crop-px", type=int, default=224, help="side that R-CNN warps proposals to")
    parser.add_argument("--dataset", default="")
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE")
    given = parser.parse_args()
    weights = dict(each.split("=", 1) for each in given.weights)
    if given.dataset:
        images, truths, num_classes = validation(given.dataset, given.pictures, given.side_px)
    else:
        images, truths, num_classes = photographs(given.pictures, given.side_px), None, 20
    table = Table("", "proposals", "proposals, s", "network, s", "rest, s", "a picture, s", "AP50")
    for name, make in detectors(given.body, num_classes, given.crop_px).items():
        torch.manual_seed(0)
        model = make().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if name in weights:
            model.load_state_dict(load_file(weights[name]))
        look(model, images[:1, :, :WARM_UP_PX, :WARM_UP_PX])
        looked = [look(model, images[i : i + 1]) for i in range(len(images))]
        seconds = [statistics.median(column) for column in zip(*(each[2] for each in looked), strict=True)]
        whole = statistics.median(sum(each[2]) for each in looked)
        num = statistics.median(each[1] for each in looked)
        known = truths is not None and name in weights
        figure = f"{ap50([each[0] for each in looked], truths, num_classes):.3f}" if known and truths else ""
        table.add_row(name, f"{num:,.0f}", *(f"{each:.3f}" for each in [*seconds, whole]), figure)
    Console().print(
        f"{len(images)} pictures of {given.side_px} px, {given.body}, {torch.get_num_threads()} threads"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
