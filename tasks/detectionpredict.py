"""Predicting with a saved detector: encoded pictures in, boxes in their own pixels out.

The one path for evaluation, the command line, `mlflow models serve` and batch prediction. A view shows each picture
several times, as it is and mirrored, or at several sizes; what is found in all of them goes through one suppression.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor, nn
from torch.backends import cudnn

from data.decode import DecodeError, decode_image, read_size, to_square
from data.detection import STRIDE, resized
from data.letterbox import out_of_square, placement
from models.detector import Finding, Found, suppressed
from tasks.card import Preprocessing
from tasks.detection import DetectionView
from tasks.detectionmatches import Detections
from tasks.drawing import Mark, colour_of, draw_boxes
from tasks.modelfile import SavedModel
from tasks.precision import autocast, resolve_precision
from tasks.predict import default_device
from tasks.settings import Precision

BATCH_SIZE = 16  # pictures a forward pass
VIEWS: dict[DetectionView, tuple[tuple[float, bool], ...]] = {  # scale of the side, mirrored
    "single": ((1.0, False),),
    "mirror": ((1.0, False), (1.0, True)),
    "multi_scale": ((0.75, False), (1.0, False), (1.0, True), (1.25, False)),
}

DETECTION_SCHEMA = pa.schema(
    [
        (
            "boxes_xyxy",
            pa.list_(pa.list_(pa.float32())),
        ),  # edges in pixels of the upright picture, best first
        ("labels", pa.list_(pa.string())),  # class of each box
        ("scores", pa.list_(pa.float32())),  # in [0, 1]
        ("error", pa.string()),  # why the picture could not be read; null where it could
    ]
)


@dataclass(frozen=True)
class Squares:
    """Decoded pictures: N squares, and how each picture lies in its own."""

    images: Tensor  # (N, C, S, S) uint8
    placed: np.ndarray  # (N, 4), see data.letterbox.placement
    sizes_px: np.ndarray  # (N, 2) width and height of the upright pictures


class DetectionPredictor:
    """A saved detector on a device: networks, preprocessing, class names, and the least score that it reports."""

    def __init__(
        self,
        saved: SavedModel,
        device: torch.device | None = None,
        precision: Precision = "fp32",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Move the network to `device` (None: the first GPU, else the CPU)."""
        self.card = saved.card
        self.device = device if device is not None else default_device()
        self.dtype = resolve_precision(precision, self.device)
        assert (
            isinstance(saved.card.preprocessing, Preprocessing) and saved.card.preprocessing.resize != "crop"
        )
        self.preprocessing, self.resize = saved.card.preprocessing, saved.card.preprocessing.resize
        self.batch_size = batch_size
        [member] = saved.members
        self.detector: nn.Module = member.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.finding = Finding(**saved.card.members[0].arguments["finding"])
        self.view = view_named(saved.card.views)
        self.least_score = saved.card.thresholds.get("score", self.finding.min_score)

    def predict(self, blobs: Sequence[bytes], view: DetectionView | None = None) -> pa.Table:
        """What is found in encoded pictures: a table of `DETECTION_SCHEMA`, one row each and in their order.

        Boxes below the least score are left out. A picture that cannot be read gives its reason in `error`.
        """
        squares, errors = self.decode(blobs)
        found = self.detect(squares, view)
        kept = found.scores >= self.least_score
        places = iter(range(len(squares.images)))
        rows: list[tuple[list[list[float]] | None, list[str] | None, list[float] | None, str | None]] = []
        for error in errors:
            if error is not None:
                rows.append((None, None, None, error))
                continue
            own = np.flatnonzero(kept & (found.image == next(places)))
            labels = [self.card.classes[label] for label in found.labels[own]]
            rows.append((found.boxes_xyxy[own].tolist(), labels, found.scores[own].tolist(), None))
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
        return pa.table(columns, schema=DETECTION_SCHEMA)

    def decode(self, blobs: Sequence[bytes]) -> tuple[Squares, list[str | None]]:
        """Decode as the training data was: the readable pictures, and for each blob None or why it is not there."""
        want = self.preprocessing
        arrays, placed, sizes = [], [], []
        errors: list[str | None] = []
        for blob in blobs:
            try:
                picture = decode_image(blob, channels=want.channels, draft_px=want.stored_px)
                size = read_size(blob)
            except DecodeError as error:
                errors.append(str(error))
                continue
            errors.append(None)
            arrays.append(to_square(picture, want.stored_px, want.resize))
            placed.append(placement(*size, want.stored_px, self.resize))
            sizes.append(size)
        shape = (-1, want.channels, want.stored_px, want.stored_px)
        images = torch.from_numpy(np.array(arrays, np.uint8).reshape(shape))
        squares = Squares(
            images, np.array(placed, float).reshape(-1, 4), np.array(sizes, float).reshape(-1, 2)
        )
        return squares, errors

    @torch.inference_mode()
    def detect(self, squares: Squares, view: DetectionView | None = None) -> Detections:
        """All that the detector finds, in pixels of the upright pictures: by picture, the best first."""
        parts = []
        for start in range(0, len(squares.images), self.batch_size):
            images = squares.images[start : start + self.batch_size].to(self.device)
            found = self.look(images, VIEWS[view or self.view])
            parts.append((start, found))
        boxes = np.concatenate([np.empty((0, 4)), *(f.boxes_xyxy.cpu().double().numpy() for _, f in parts)])
        image = np.concatenate([np.empty(0, np.int64), *(s + f.image.cpu().numpy() for s, f in parts)])
        return Detections(
            image=image,
            boxes_xyxy=out_of_square(boxes, squares.placed[image], squares.sizes_px[image]),
            labels=np.concatenate([np.empty(0, np.int64), *(f.labels.cpu().numpy() for _, f in parts)]),
            scores=np.concatenate([np.empty(0), *(f.scores.cpu().double().numpy() for _, f in parts)]),
        )

    def look(self, images: Tensor, shown: Sequence[tuple[float, bool]]) -> Found:
        """What is found in squares (B, C, S, S), each shown at every scale and mirrored or not."""
        seen = [self.once(images, scale, mirrored) for scale, mirrored in shown]
        if len(seen) == 1:
            return seen[0]
        together = Found(*(torch.cat(parts) for parts in zip(*seen, strict=True)))
        return suppressed(together, len(images), len(self.card.classes), self.finding)

    def once(self, images: Tensor, scale: float, mirrored: bool) -> Found:
        """Detections in pixels of the squares, whatever size they were shown at."""
        stored = images.shape[2]
        side = max(STRIDE, round(stored * scale / STRIDE) * STRIDE)
        shown = resized(images.flip(3) if mirrored else images, side)
        # cuDNN's default for float32 is TF32, with ten bits of mantissa: another machine would disagree
        with cudnn.flags(enabled=True, allow_tf32=False), autocast(self.device, self.dtype):
            found = self.detector(shown)
        boxes = found.boxes_xyxy * (stored / side)
        if mirrored:
            boxes = torch.stack([stored - boxes[:, 2], boxes[:, 1], stored - boxes[:, 0], boxes[:, 3]], 1)
        return found._replace(boxes_xyxy=boxes)


def view_named(name: str) -> DetectionView:
    """The view of that name; raises ValueError naming those that there are."""
    if name not in VIEWS:
        raise ValueError(f"unknown view {name!r}; known: {', '.join(VIEWS)}")
    return name


def coco_results(
    ids: Sequence[str], rows: Sequence[dict[str, Any]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Predictions (rows of `DETECTION_SCHEMA`) as COCO's results: `category_id` is 1 for the first class."""
    number = {name: place for place, name in enumerate(classes, start=1)}
    return [
        {"image_id": id, "category_id": number[label], "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
        for id, row in zip(ids, rows, strict=True)
        if row["error"] is None
        for (x0, y0, x1, y1), label, score in zip(
            row["boxes_xyxy"], row["labels"], row["scores"], strict=True
        )
    ]


def draw_all(
    files: Sequence[Path], rows: Sequence[dict[str, Any]], classes: Sequence[str], folder: Path
) -> list[str]:
    """Write the readable pictures with their boxes into `folder`, as PNGs; the names of the files written.

    Files of one name get numbers. What was there under such a name is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = {name: place for place, name in enumerate(classes)}
    written: list[str] = []
    for file, row in zip(files, rows, strict=True):
        if row["error"] is not None:
            continue
        marks = [
            Mark(tuple(box), f"{label} {score:.2f}", colour_of(number[label]))
            for box, label, score in zip(row["boxes_xyxy"], row["labels"], row["scores"], strict=True)
        ]
        picture = np.asarray(decode_image(file.read_bytes(), channels=3))
        name, again = f"{file.stem}.png", 2
        while str(folder / name) in written:
            name, again = f"{file.stem}-{again}.png", again + 1
        Image.fromarray(draw_boxes(picture, marks[::-1])).save(folder / name)  # the best on top
        written.append(str(folder / name))
    return written
