"""What R-CNN, Fast R-CNN and Faster R-CNN cost a picture, and where: proposals, network, and the rest (suppression).

    PYTHONPATH=. .venv/bin/python benchmarks/rcnn.py [--pictures 2] [--side-px 640] [--body resnet18] [--crop-px 224]
        [--crops-per-pass 64]
    PYTHONPATH=. .venv/bin/python benchmarks/rcnn.py --dataset NAME [--split test] [--pictures 80] --models MODEL …

By default all have the same body, the same heads and random weights, and the pictures are photographs that
scikit-image ships, or the first of a dataset's split. R-CNN runs the body on 2,000 crops, by default 64 a pass: two
minutes a picture on two cores at the paper's 224 pixels, `--crop-px 96` takes a quarter of it; `--crops-per-pass 1` is
one at a time, as it is taught. The time does not depend on the weights but for
the last suppression. With `--models` they are trained ones (registered names, run keys, folders), each at the size
that it was trained at, and AP and AP50 of the pictures are shown. The median picture counts. Each model's line comes
once it is measured.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.dataset import SPLITS, Dataset, Split
from data.decode import decode_many
from data.detection import COLUMNS, DetectionInput, Scenes, Truths, decode_rows
from data.samples import read_photo
from models.detector import Finding, Found
from models.fasterrcnn import fasterrcnn_resnet18_fpn
from models.rcnn import CROPS_PER_PASS, FastRcnn, Rcnn
from models.roiheads import RegionDetector
from tasks.card import Preprocessing
from tasks.detection import detections_of, objects_of
from tasks.detectionmatches import match
from tasks.detectionmetrics import known_aps
from tasks.modelfile import load_model
from tasks.paths import store
from tasks.registry import resolve_model

PHOTOS = [f"skimage:{name}" for name in ("astronaut", "coffee", "chelsea", "motorcycle_left", "rocket")]
NUM_PROPOSALS, NUM_SAMPLES, HEAD_WIDTH = 2000, 128, 512
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WARM_UP_PX = 64
COLUMNS_SHOWN = ("px", "proposals", "proposals, s", "network, s", "rest, s", "a picture, s", "AP", "AP50")


class Subject(NamedTuple):
    """A detector, and the pictures that it is shown: squares (N, C, S, S) uint8, and their boxes where they count."""

    name: str
    model: RegionDetector
    images: Tensor
    truths: Truths | None = None


def untrained(body: str, num_classes: int, crop_px: int, images: Tensor) -> Iterator[Subject]:
    """The three of them, as their papers have them but for the body."""
    channels = images.shape[1]
    common: dict[str, Any] = {
        "num_classes": num_classes, "channels": channels, "mean": MEAN[:channels], "std": STD[:channels],
        "body": body, "num_samples": NUM_SAMPLES,
        "finding": Finding(min_score=0.05, suppression="hard", nms_iou=0.5, max_detections=100),
    }  # fmt: skip
    torch.manual_seed(0)
    yield Subject("rcnn", Rcnn(**common, crop_px=crop_px, proposals=NUM_PROPOSALS), images)
    torch.manual_seed(0)
    fast = FastRcnn(
        **common, strides=(16,), width=128, norm="frozen", norm_eps=1e-5, num_frozen=0, pooling="max",
        canonical_px=224, head_width=HEAD_WIDTH, proposals=NUM_PROPOSALS,
    )  # fmt: skip
    yield Subject("fast", fast, images)
    torch.manual_seed(0)
    yield Subject("faster", fasterrcnn_resnet18_fpn(**common, head_width=HEAD_WIDTH), images)


def trained(models: list[str], dataset: Dataset, split: Split, num: int) -> Iterator[Subject]:
    """Trained detectors, each with the first pictures of a split as it takes them."""
    for name in models:
        saved = load_model(resolve_model(name))
        network, taken = saved.members[0], saved.card.preprocessing
        if not isinstance(network, RegionDetector) or not isinstance(taken, Preprocessing):
            raise ValueError(f"{name} is no detector of the R-CNN line: rcnn, fast_rcnn, faster_rcnn")
        if saved.card.classes != dataset.info.classes:
            raise ValueError(f"{name} knows other classes than {dataset.info.name} has")
        images, truths = pictures_of(dataset, split, num, taken.stored_px, taken.resize)
        yield Subject(saved.card.members[0].architecture, network, images, truths)


@torch.inference_mode()
def look(model: RegionDetector, image: Tensor) -> tuple[Found, int, list[float]]:
    """Detections of one picture (1, C, S, S), its number of proposals, and seconds of proposals, network and rest."""
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


def pictures_of(dataset: Dataset, split: Split, num: int, side_px: int, resize: Any) -> tuple[Tensor, Truths]:
    """The first pictures of a split in squares, and their boxes."""
    dataset.require_family("detection")
    dataset.require(split)
    rows = dataset.table(split, list(COLUMNS)).slice(0, num)
    config = DetectionInput(stored_px=side_px, resize=resize, train_px=())
    arrays = decode_rows(rows, dataset.info.picture_channels, config)
    scenes = Scenes(**{key: torch.from_numpy(value) for key, value in arrays.items()})
    return scenes.images, scenes.truths(torch.arange(len(scenes)).numpy())


def figures(found: list[Found], truths: Truths | None, num_classes: int) -> list[str]:
    """AP and AP50 of detections, a picture each; nothing where no boxes are known."""
    if truths is None:
        return ["", ""]
    detections = detections_of(list(enumerate(found)))
    aps = known_aps(
        match(objects_of([(0, truths)]), detections, num_images=len(found), num_classes=num_classes)
    )
    return [f"{aps[name]:.3f}" if name in aps else "" for name in ("ap", "ap50")]


def measured(subject: Subject) -> list[str]:
    """The cells of a detector's line, as COLUMNS_SHOWN."""
    model: RegionDetector = subject.model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = subject.images
    look(model, images[:1, :, :WARM_UP_PX, :WARM_UP_PX])
    looked = [look(model, images[i : i + 1]) for i in range(len(images))]
    seconds = [statistics.median(column) for column in zip(*(each[2] for each in looked), strict=True)]
    whole = statistics.median(sum(each[2]) for each in looked)
    num = statistics.median(each[1] for each in looked)
    return [
        str(images.shape[2]), f"{num:,.0f}", *(f"{each:.3f}" for each in [*seconds, whole]),
        *figures([each[0] for each in looked], subject.truths, model.num_classes),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--side-px", type=int, default=640)
    parser.add_argument("--body", default="resnet18")
    parser.add_argument("--crop-px", type=int, default=224, help="side that R-CNN warps proposals to")
    parser.add_argument("--crops-per-pass", type=int, default=CROPS_PER_PASS, help="of R-CNN")
    parser.add_argument("--dataset", default="")
    parser.add_argument("--split", default="val", choices=SPLITS)
    parser.add_argument("--models", nargs="*", default=[], metavar="MODEL", help="trained; needs --dataset")
    given = parser.parse_args()
    if given.models and not given.dataset:
        parser.error("--models needs --dataset NAME, whose pictures they look at")
    dataset = Dataset.open(store() / given.dataset) if given.dataset else None
    if dataset is None:
        images = photographs(given.pictures, given.side_px)
        subjects = untrained(given.body, 20, given.crop_px, images)
    elif given.models:
        subjects = trained(given.models, dataset, given.split, given.pictures)
    else:
        images, _ = pictures_of(dataset, given.split, given.pictures, given.side_px, "letterbox")
        subjects = untrained(given.body, len(dataset.info.classes), given.crop_px, images)
    print(
        f"{torch.get_num_threads()} threads; the median of {given.pictures} pictures, or as many as there are"
    )
    print(f"{'':24}" + "".join(f"{name:>14}" for name in COLUMNS_SHOWN), flush=True)
    for subject in list(subjects):  # all of them first: a name that there is not shows at once
        if isinstance(subject.model, Rcnn):
            subject.model.regions_per_pass = given.crops_per_pass
        cells = measured(subject)
        print(f"{subject.name:24}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
