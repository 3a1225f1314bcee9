"""Pictures with boxes, for training a detector: stored as squares, augmented, four in one where that is asked for.

Rows of a dataset become `Scenes` (`decode_rows`), and those `Batch`es (`make_batch`): pictures of uint8, and the boxes
of all of them one after the other. A letterboxed picture keeps its shape, with a border of grey; a squashed one fills
the square.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from data import colour, geometry
from data.augment import Draws, colour_maps, shrink
from data.classification import colours_of
from data.dataset import CROWD, DIFFICULT, DatasetInfo
from data.decode import decode_many
from data.letterbox import Whole, into_square, placement
from data.mixing import mosaic
from data.parameters import Parameters
from data.random import SampleGenerator
from data.squares import BORDER

COLUMNS = ("image", "width", "height", "boxes_xyxy", "box_labels", "box_flags")
STRIDE = 32  # of the coarsest map of a detector: sides are multiples of it
MOST_PX = 4096  # sides of a square
LEAST_PX = 2.0  # sides of boxes that are trained: smaller ones are neither object nor background
ENDLESS = (  # parameters of augmentation that make a picture another one each time
    "scale", "translate", "rotation_deg", "brightness", "contrast", "saturation", "colour_shift", "pca_colour",
    "mosaic",
)  # fmt: skip


class DetectionInput(Parameters):
    """What a detector is given."""

    stored_px: int = Field(
        ge=STRIDE,
        le=MOST_PX,
        multiple_of=STRIDE,
        description="side of the square that pictures are fitted to",
    )
    resize: Whole = Field(
        description="letterbox: keep the shape, fill with grey; squash: scale both sides to the square"
    )
    train_px: tuple[int, ...] = Field(
        description="sides of training batches, one drawn for each (multi-scale training); []: stored_px"
    )

    @model_validator(mode="after")
    def _sides_fit(self) -> Self:
        odd = [side for side in self.train_px if not STRIDE <= side <= MOST_PX or side % STRIDE]
        if odd:
            raise ValueError(
                f"train_px (={odd}) must be multiples of {STRIDE}, the coarsest stride, up to {MOST_PX}"
            )
        return self


class DetectionAugment(Parameters):
    """What training does to its pictures and their boxes; everything off gives the pictures as they are."""

    mirror: bool = Field(description="mirror left-right, half of the pictures")
    upside_down: bool = Field(
        description="mirror up-down, half of the pictures: where no direction is down, as under a microscope"
    )
    quarter_turns: bool = Field(
        description="swap rows and columns, half of the pictures: where no direction is special"
    )
    scale: tuple[float, float] = Field(
        description="least and greatest zoom, drawn on a logarithmic scale; [1, 1]: none"
    )
    translate: float = Field(
        ge=0, le=0.5, description="greatest shift, as a share of what is shown, to either side"
    )
    rotation_deg: float = Field(ge=0, le=180, description="greatest turn; a box becomes that of its corners")
    brightness: float = Field(ge=0, le=1, description="levels are multiplied by up to 1 ± this")
    contrast: float = Field(ge=0, le=1, description="distances from the mean grey, by up to 1 ± this")
    saturation: float = Field(
        ge=0, le=1, description="distances from each pixel's own grey, by up to 1 ± this"
    )
    colour_shift: float = Field(ge=0, le=0.5, description="largest shift of each channel, as a share of 255")
    pca_colour: float = Field(
        ge=0, le=1, description="shift along the main axes of the dataset's colours: deviation"
    )
    mosaic: float = Field(
        ge=0, le=1, description="share of the pictures that are made of four of their batch"
    )
    mosaic_until: float = Field(
        ge=0,
        le=1,
        description="share of the training after which no mosaic is made any more, of the steps or of the time budget, "
        "whichever is further",
    )
    least_seen: float = Field(
        ge=0, le=1, description="a box of which less is left to see is neither object nor background"
    )

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        low, high = self.scale
        if not 0.1 <= low <= high <= 10:
            raise ValueError(
                f"scale (={[low, high]}) must be [least, greatest] with 0.1 <= least <= greatest <= 10"
            )
        return self

    @property
    def moves(self) -> bool:
        """Whether pictures are resampled."""
        turned = self.mirror or self.upside_down or self.quarter_turns or self.rotation_deg
        return bool(turned or self.scale != (1.0, 1.0) or self.translate)

    @property
    def endless(self) -> list[str]:
        """Names of what is on and makes a picture another one each time; ways to lay it down are few, and come back."""
        on = [name for name in ENDLESS if getattr(self, name) not in (0, (1.0, 1.0))]
        return on if self.mosaic_until else [name for name in on if name != "mosaic"]

    @property
    def recolours(self) -> bool:
        return bool(
            self.brightness or self.contrast or self.saturation or self.colour_shift or self.pca_colour
        )


@dataclass(frozen=True)
class Truths:
    """The M boxes of a batch's pictures, of all of them one after the other."""

    boxes_xyxy: Tensor  # (M, 4) float32: edges, in pixels of the batch's pictures, inside them, with area
    labels: Tensor  # (M,) int64
    image: Tensor  # (M,) int64, ascending: place in the batch
    # (M,) bool: neither object nor background: crowds, difficult ones, hardly seen ones, too small ones
    ignored: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Truths":
        moved = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.boxes_xyxy, self.labels, self.image, self.ignored)
        )
        return Truths(*moved)


@dataclass(frozen=True)
class Padded:
    """The boxes of B pictures, N places each, of which only some are taken."""

    boxes_xyxy: Tensor  # (B, N, 4) float32
    labels: Tensor  # (B, N) int64
    ignored: Tensor  # (B, N) bool
    taken: Tensor  # (B, N) bool

    def flat(self) -> Truths:
        """The boxes that are there."""
        image, place = self.taken.nonzero().unbind(1)
        return Truths(
            self.boxes_xyxy[image, place], self.labels[image, place], image, self.ignored[image, place]
        )


def pad(truths: Truths, num_images: int) -> Padded:
    """The boxes of each of `num_images` pictures in a row of its own."""
    counts = torch.bincount(truths.image, minlength=num_images)
    starts = torch.cumsum(counts, 0) - counts
    place = torch.arange(len(truths), device=counts.device) - starts[truths.image]
    shape = (num_images, int(counts.max()) if len(truths) else 0)
    device = truths.boxes_xyxy.device
    boxes = torch.zeros(*shape, 4, device=device)
    labels = torch.zeros(shape, dtype=torch.int64, device=device)
    ignored, taken = (torch.zeros(shape, dtype=torch.bool, device=device) for _ in range(2))
    where = (truths.image, place)
    boxes[where], labels[where], ignored[where] = truths.boxes_xyxy, truths.labels, truths.ignored
    taken[where] = True
    return Padded(boxes, labels, ignored, taken)


@dataclass(frozen=True)
class Batch:
    """What one step sees: images (B, C, S, S) uint8, their boxes, and indices (B,) into the split."""

    images: Tensor
    truths: Truths
    indices: np.ndarray

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.images.to(device, non_blocking=True), self.truths.to(device), self.indices)


@dataclass(frozen=True)
class Scenes:
    """Decoded pictures of a split with their boxes: N pictures, M boxes of all of them one after the other."""

    images: Tensor  # (N, C, S, S) uint8
    boxes_xyxy: Tensor  # (M, 4) float32, pixels of the squares
    labels: Tensor  # (M,) int64
    flags: Tensor  # (M,) uint8: bits of data.formats.listing
    num_boxes: Tensor  # (N,) int64

    def __len__(self) -> int:
        return len(self.num_boxes)

    def to(self, device: torch.device) -> "Scenes":
        # boxes are few: they are chosen on the CPU
        return Scenes(self.images.to(device), self.boxes_xyxy, self.labels, self.flags, self.num_boxes)

    @cached_property
    def ends(self) -> Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(self.num_boxes, 0)])

    def truths(self, rows: np.ndarray) -> Truths:
        """The boxes of the pictures at `rows` (B,)."""
        spans = [torch.arange(int(self.ends[row]), int(self.ends[row + 1])) for row in rows.tolist()]
        places = torch.cat([*spans, torch.zeros(0, dtype=torch.int64)])
        image = torch.repeat_interleave(
            torch.arange(len(rows)), torch.tensor([len(span) for span in spans], dtype=torch.int64)
        )
        ignored = (self.flags[places] & (CROWD | DIFFICULT)) > 0
        return Truths(self.boxes_xyxy[places], self.labels[places], image, ignored)


def decode_rows(rows: pa.Table, channels: Literal[1, 3], config: DetectionInput) -> dict[str, np.ndarray]:
    """Rows of COLUMNS as arrays: the fields of `Scenes`. A DecodeError names the row."""
    return {
        "images": decode_many(rows["image"].to_pylist(), config.stored_px, channels, config.resize),
        "boxes_xyxy": boxes_in_squares(rows, config),
        "labels": flattened(rows["box_labels"], np.int64),
        "flags": flattened(rows["box_flags"], np.uint8),
        "num_boxes": lengths(rows["box_labels"]),
    }


def boxes_in_squares(rows: pa.Table, config: DetectionInput) -> np.ndarray:
    """The boxes of all rows, one after the other: (M, 4) float32 edges, in pixels of their squares."""
    sizes = zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True)
    places = [placement(w, h, config.stored_px, config.resize) for w, h in sizes]
    placed = np.repeat(np.array(places, np.float64).reshape(-1, 4), lengths(rows["box_labels"]), 0)
    boxes = flattened(rows["boxes_xyxy"], np.float64).reshape(-1, 4)
    return into_square(boxes, placed).astype(np.float32)


def too_small(boxes_xyxy: Tensor) -> Tensor:
    """Which boxes (…, 4), in pixels of a batch's pictures, have a side below `LEAST_PX`: (…) bool."""
    return ((boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]) < LEAST_PX).any(-1)


def lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Of each list of a column: (N,) int64."""
    return np.array([len(each) for each in column.to_pylist()], np.int64)


def flattened(column: pa.ChunkedArray, dtype: type[np.generic]) -> np.ndarray:
    """All values of a column of lists, one after the other."""
    parts = [np.asarray(each, dtype) for each in column.to_pylist()]
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)


def empty_split(channels: Literal[1, 3], config: DetectionInput) -> dict[str, np.ndarray]:
    """The arrays of a split without pictures."""
    return {
        "images": np.empty((0, channels, config.stored_px, config.stored_px), np.uint8),
        "boxes_xyxy": np.empty((0, 4), np.float32),
        "labels": np.empty(0, np.int64),
        "flags": np.empty(0, np.uint8),
        "num_boxes": np.empty(0, np.int64),
    }


def make_batch(
    samples: Scenes,
    indices: np.ndarray,
    info: DatasetInfo,
    config: DetectionInput,
    augmentation: DetectionAugment,
    generator: SampleGenerator | None,
    rows: np.ndarray | None = None,
) -> Batch:
    """The samples at `indices` (B,), augmented where a generator is given; plain, they have `stored_px` a side.

    Augmented, boxes that became too small are ignored: left out, they would be taught as background. Plain ones keep
    them as objects, since a validation is to count them as missed.
    Where `samples` hold only a part of the split, `rows` (B,) are the places in them of those samples.
    """
    rows = indices if rows is None else rows
    images = samples.images.index_select(0, torch.from_numpy(rows).to(samples.images.device))
    truths = samples.truths(rows)
    if generator is None:
        return Batch(images, truths, indices)
    draws = Draws(indices, generator, images.device)
    boxes = pad(truths, len(rows))
    boxes = Padded(
        boxes.boxes_xyxy.to(images.device), boxes.labels.to(images.device), boxes.ignored.to(images.device),
        boxes.taken.to(images.device),
    )  # fmt: skip
    seen = torch.ones_like(boxes.labels, dtype=torch.float32)
    if augmentation.mosaic and generator.done < augmentation.mosaic_until:
        images, boxes, seen = four_in_one(images, boxes, augmentation.mosaic, draws)
    side = side_of(config, draws)
    if augmentation.moves:
        maps = moved(images.shape[2], side, augmentation, draws)
        fill = torch.full((images.shape[1],), float(BORDER))
        pixels = geometry.warp_images(images, maps, (side, side), fill=fill)
        corners, left = geometry.warp_boxes(boxes.boxes_xyxy, maps, (side, side))
        seen = seen * left
    else:
        pixels = resized(images, side)
        corners = boxes.boxes_xyxy * (side / images.shape[2])
    if augmentation.recolours:
        pixels = colour.apply(pixels, colour_maps(pixels, colours_of(info), augmentation, draws))
    taken = boxes.taken & (seen > 0) & (corners[..., 2:] > corners[..., :2]).all(2)
    ignored = boxes.ignored | (seen < augmentation.least_seen) | too_small(corners)
    return Batch(colour.to_levels(pixels), Padded(corners, boxes.labels, ignored, taken).flat(), indices)


def side_of(config: DetectionInput, draws: Draws) -> int:
    """The side of a batch's pictures: drawn by its first sample."""
    if not config.train_px:
        return config.stored_px
    return config.train_px[draws.generator.integers(draws.indices[:1], "side", len(config.train_px))[0]]


def resized(images: Tensor, side_px: int) -> Tensor:
    """Squares of another side: (B, C, S, S) uint8 → (B, C, side, side) uint8."""
    if images.shape[2] == side_px:
        return images
    if images.shape[2] > side_px:
        return shrink(images, side_px)
    large = F.interpolate(images.float(), (side_px, side_px), mode="bilinear", align_corners=False)
    return colour.to_levels(large)


def four_in_one(images: Tensor, boxes: Padded, share: float, draws: Draws) -> tuple[Tensor, Padded, Tensor]:
    """A mosaic in place of a `share` of the pictures: pictures, their boxes (B, 4N), and how much of each is seen."""
    B, S = len(images), images.shape[2]
    own = torch.arange(B, device=images.device)
    others = (draws.uniform("mosaic.others", 3) * B).long().clamp(max=B - 1)
    centre = ((0.25 + 0.5 * draws.uniform("mosaic.centre", 2)) * S).round().long()
    plain = draws.uniform("mosaic")[:, 0] >= share
    # all of a mosaic that meets at the upper left corner is its fourth picture
    others[plain], centre[plain] = own[plain, None], 0
    pictures, corners, seen, owners = mosaic(images, boxes.boxes_xyxy, others, centre)

    def of_owners(values: Tensor) -> Tensor:
        return values[owners].flatten(1)

    mixed = Padded(corners, of_owners(boxes.labels), of_owners(boxes.ignored), of_owners(boxes.taken))
    return pictures, mixed, seen


def moved(stored_px: int, side_px: int, config: DetectionAugment, draws: Draws) -> Tensor:
    """Where each pixel of the new squares comes from: maps (B, 2, 3), see data.geometry."""
    B = len(draws.indices)
    low, high = np.log(config.scale)
    # (B,) side, in old pixels
    shown = stored_px / torch.exp(low + draws.uniform("scale")[:, 0] * (high - low))
    shift = draws.around("translate", config.translate, 2) * shown[:, None]
    centre = stored_px / 2 + shift
    half = shown[:, None] / 2
    maps = geometry.crop_resize(torch.cat([centre - half, centre + half], 1), side_px, side_px)
    middle = torch.full((B, 2), side_px / 2, device=draws.device)
    if config.rotation_deg:
        angle = geometry.degrees(draws.around("rotation", config.rotation_deg)[:, 0])
        maps = geometry.compose(maps, geometry.rotation(angle, middle))
    flips: Sequence[bool] = (config.mirror, config.upside_down, config.quarter_turns)
    if any(flips):
        chosen = (draws.uniform("flips", 3) < 0.5) & torch.tensor(flips, device=draws.device)
        maps = geometry.compose(maps, geometry.turned(chosen[:, 0], chosen[:, 1], chosen[:, 2], side_px))
    return maps
