"""Predicting with a saved detector: encoded pictures in, boxes in their own pixels out.

The one path for evaluation, the command line, `mlflow models serve` and batch prediction. A view shows each picture
several times, as it is and mirrored, or at several sizes; what is found in all of them is fused (tasks.detectionjoin).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor, nn

from data.decode import decode_image, read_size
from data.detection import STRIDE, resized
from data.letterbox import out_of_square, placement
from data.squares import to_square
from models.detector import Detector, Found
from tasks.card import Preprocessing
from tasks.detection import DetectionView
from tasks.detectionjoin import by_picture, fused, joined, moved, of_batch, taken
from tasks.detectionmatches import Detections, coco_result
from tasks.drawing import Mark, colour_of, draw_boxes
from tasks.inputs import readable
from tasks.modelfile import SavedModel
from tasks.precision import predicting, resolve_precision
from tasks.predict import default_device, placed
from tasks.settings import Precision
from tasks.tiling import detect_in_tiles
from tasks.views import view_named

BATCH_SIZE = 16  # pictures a forward pass
PIECE_IMAGES, PIECE_LARGE = 64, 4  # decoded at a time: as squares, and at their full size for tiles
MOST_OVERLAP = 0.9  # of neighbouring tiles, as a share of their side
Looks = tuple[tuple[float, bool], ...]  # scale of the side, mirrored
VIEWS: dict[DetectionView, Looks] = {
    "single": ((1.0, False),),
    "mirror": ((1.0, False), (1.0, True)),
    "multi_scale": ((0.75, False), (1.0, False), (1.0, True), (1.25, False)),
}

DETECTION_SCHEMA = pa.schema(
    [
        # edges in pixels of the upright picture, best first
        ("boxes_xyxy", pa.list_(pa.list_(pa.float32()))),
        ("labels", pa.list_(pa.string())),  # class of each box
        ("scores", pa.list_(pa.float32())),  # in [0, 1]
        ("error", pa.string()),  # why the picture could not be read; null where it could
    ]
)


@dataclass(frozen=True)
class Squares:
    """N pictures, or parts of one, as squares, and how each lies in its own."""

    images: Tensor  # (N, C, S, S) uint8
    placed: np.ndarray  # (N, 4), see data.letterbox.placement
    sizes_px: np.ndarray  # (N, 2) width and height of the upright pictures


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures, those that could be read: looked at whole, or in tiles."""

    whole: Squares
    places: np.ndarray  # (N,) int64: of the whole ones among all
    large: dict[int, np.ndarray]  # place → (H, W) or (H, W, 3) uint8, the upright picture at its full size

    def __len__(self) -> int:
        return len(self.places) + len(self.large)


class DetectionPredictor:
    """A saved detector on a device: networks, preprocessing, class names, and the least score that it reports.

    What several networks find is fused. With a `tile_overlap`, a share of a tile's side, pictures larger than the
    networks' input are looked at in tiles of its size (tasks.tiling), so that nothing in them is made smaller.
    """

    def __init__(
        self,
        saved: SavedModel,
        device: torch.device | None = None,
        precision: Precision = "fp32",
        batch_size: int = BATCH_SIZE,
        tile_overlap: float | None = None,
    ) -> None:
        """Move the networks to `device` (None: the first GPU, else the CPU)."""
        if tile_overlap is not None and not 0 <= tile_overlap <= MOST_OVERLAP:
            raise ValueError(
                f"overlap (={tile_overlap}) of tiles must lie in 0…{MOST_OVERLAP}: a share of their side"
            )
        self.card = saved.card
        self.device = device if device is not None else default_device()
        self.dtype = resolve_precision(precision, self.device)
        assert (
            isinstance(saved.card.preprocessing, Preprocessing) and saved.card.preprocessing.resize != "crop"
        )
        self.preprocessing, self.resize = saved.card.preprocessing, saved.card.preprocessing.resize
        self.batch_size, self.tile_overlap = batch_size, tile_overlap
        self.networks = [on_device(member, self.device) for member in saved.members]
        self.view = view_named(saved.card.views, VIEWS)
        # what it would report if nothing had been chosen on validation
        self.min_score = max(network.finding.min_score for network in self.networks)
        self.least_score = saved.card.thresholds.get("score", self.min_score)
        self.nms_iou = max(network.finding.nms_iou for network in self.networks)

    @property
    def piece_images(self) -> int:
        """How many pictures to decode at a time: what is in memory does not grow with their number."""
        return PIECE_IMAGES if self.tile_overlap is None else PIECE_LARGE

    def predict(self, blobs: Sequence[bytes], view: DetectionView | None = None) -> pa.Table:
        """What is found in encoded pictures: a table of `DETECTION_SCHEMA`, one row each and in their order.

        Boxes below the least score are left out. A picture that cannot be read gives its reason in `error`.
        """
        rows: list[tuple[list[list[float]] | None, list[str] | None, list[float] | None, str | None]] = []
        for start in range(0, len(blobs), self.piece_images):
            pictures, errors = self.decode(blobs[start : start + self.piece_images])
            found = self.detect(pictures, view)
            kept = found.scores >= self.least_score
            places = iter(range(len(pictures)))
            for error in errors:
                if error is not None:
                    rows.append((None, None, None, error))
                    continue
                own = np.flatnonzero(kept & (found.image == next(places)))
                labels = [self.card.classes[label] for label in found.labels[own]]
                rows.append((found.boxes_xyxy[own].tolist(), labels, found.scores[own].tolist(), None))
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
        return pa.table(columns, schema=DETECTION_SCHEMA)

    def decode(self, blobs: Sequence[bytes]) -> tuple[Pictures, list[str | None]]:
        """Decode as the training data was: the readable pictures, and for each blob None or why it is not there."""
        want = self.preprocessing

        def decode(blob: bytes) -> tuple[Image.Image, tuple[int, int], bool]:
            size = read_size(blob)
            tiled = self.tile_overlap is not None and max(size) > want.stored_px
            draft_px = None if tiled else want.stored_px
            return decode_image(blob, channels=want.channels, draft_px=draft_px), size, tiled

        pictures, errors = readable(blobs, decode)
        places = [place for place, (*_, tiled) in enumerate(pictures) if not tiled]
        large = {place: np.asarray(picture) for place, (picture, _, tiled) in enumerate(pictures) if tiled}
        whole = self.squares([pictures[place][:2] for place in places])
        return Pictures(whole, np.array(places, np.int64), large), errors

    def squares(self, pictures: Sequence[tuple[Image.Image, tuple[int, int]]]) -> Squares:
        """Pictures, each with its width and height before it was decoded smaller, as the networks take them."""
        want = self.preprocessing
        arrays = [to_square(picture, want.stored_px, want.resize, size) for picture, size in pictures]
        placed = [placement(*size, want.stored_px, self.resize) for _picture, size in pictures]
        shape = (-1, want.channels, want.stored_px, want.stored_px)
        return Squares(
            torch.from_numpy(np.array(arrays, np.uint8).reshape(shape)),
            np.array(placed, float).reshape(-1, 4),
            np.array([size for _picture, size in pictures], float).reshape(-1, 2),
        )

    def detect(self, pictures: Pictures, view: DetectionView | None = None) -> Detections:
        """All that is found, in pixels of the upright pictures: by picture, the best first."""
        return fused(self.detect_each(pictures, view), len(self.card.classes), self.nms_iou)

    @torch.inference_mode()
    def detect_each(self, pictures: Pictures, view: DetectionView | None = None) -> list[Detections]:
        """What each network finds by itself; otherwise as `detect`."""
        shown = VIEWS[view or self.view]
        return [self.alone(network, pictures, shown) for network in self.networks]

    def alone(self, network: Detector, pictures: Pictures, shown: Looks) -> Detections:
        """What one network finds, in pixels of the upright pictures."""
        whole = self.in_squares(network, pictures.whole, shown)
        parts = [replace(whole, image=pictures.places[whole.image])]
        for place, picture in pictures.large.items():
            parts.append(moved(self.in_tiles(network, picture, shown), place))
        return by_picture(joined(parts))

    def in_squares(self, network: Detector, squares: Squares, shown: Looks) -> Detections:
        """What one network finds in squares, in pixels of what they show; what lies in a border alone is nothing."""
        parts = []
        for start in range(0, len(squares.images), self.batch_size):
            images = squares.images[start : start + self.batch_size].to(self.device)
            parts.append(moved(self.look(network, images, shown), start))
        found = joined(parts)
        placed, sizes_px = squares.placed[found.image], squares.sizes_px[found.image]
        boxes = out_of_square(found.boxes_xyxy, placed, sizes_px)
        seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return taken(replace(found, boxes_xyxy=boxes), np.flatnonzero(seen))

    def in_tiles(self, network: Detector, picture: np.ndarray, shown: Looks) -> Detections:
        """What one network finds in a large picture (H, W) or (H, W, 3) uint8, tile by tile."""
        assert self.tile_overlap is not None
        side = self.preprocessing.stored_px

        def detect(crops: list[np.ndarray]) -> Detections:
            cut = [Image.fromarray(crop) for crop in crops]
            return self.in_squares(network, self.squares([(crop, crop.size) for crop in cut]), shown)

        return detect_in_tiles(
            picture, detect, side_px=side, overlap_px=round(self.tile_overlap * side),
            nms_iou=network.finding.nms_iou, batch_size=self.batch_size,
        )  # fmt: skip

    def look(self, network: Detector, images: Tensor, shown: Looks) -> Detections:
        """What is found in squares (B, C, S, S), each shown at every scale and mirrored or not, in their pixels."""
        seen = [of_batch(self.once(network, images, scale, mirrored)) for scale, mirrored in shown]
        return fused(seen, len(self.card.classes), network.finding.nms_iou)

    def once(self, network: Detector, images: Tensor, scale: float, mirrored: bool) -> Found:
        """Detections in pixels of the squares, whatever size they were shown at."""
        stored = images.shape[2]
        side = max(STRIDE, round(stored * scale / STRIDE) * STRIDE)
        shown = resized(images.flip(3) if mirrored else images, side)
        with predicting(self.device, self.dtype):
            found = network(shown)
        boxes = found.boxes_xyxy * (stored / side)
        if mirrored:
            boxes = torch.stack([stored - boxes[:, 2], boxes[:, 1], stored - boxes[:, 0], boxes[:, 3]], 1)
        return found._replace(boxes_xyxy=boxes)


def on_device(member: nn.Module, device: torch.device) -> Detector:
    """A network of a saved detector, ready to predict."""
    assert isinstance(member, Detector)
    placed(member, device)
    return member


def coco_results(
    ids: Sequence[str], rows: Sequence[dict[str, Any]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Predictions (rows of `DETECTION_SCHEMA`) as COCO's results."""
    number = {name: place for place, name in enumerate(classes)}
    return [
        coco_result(id, number[label], box, score)
        for id, row in zip(ids, rows, strict=True)
        if row["error"] is None
        for box, label, score in zip(row["boxes_xyxy"], row["labels"], row["scores"], strict=True)
    ]


def drawer(classes: Sequence[str]) -> Callable[[np.ndarray, dict[str, Any], int], np.ndarray]:
    """What draws a prediction (a row of `DETECTION_SCHEMA`) into its picture; see tasks.drawing.write_drawn."""
    number = {name: place for place, name in enumerate(classes)}

    def draw(picture: np.ndarray, row: dict[str, Any], zoom: int) -> np.ndarray:
        marks = [
            Mark(tuple(edge * zoom for edge in box), f"{label} {score:.2f}", colour_of(number[label]))
            for box, label, score in zip(row["boxes_xyxy"], row["labels"], row["scores"], strict=True)
        ]
        return draw_boxes(picture, marks[::-1])  # the best on top

    return draw
