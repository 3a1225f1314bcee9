"""Landmarks' input: pictures decoded to squares, their points beside them, and batches in which both move together.

The stored points count from the centre of the first pixel (data.dataset); here they are edges, as in data.geometry: a
point at x of a picture 100 pixels wide stands at (x + 0.5) / 100 of its width.
"""

from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, model_validator
from torch import Tensor

from data import colour, geometry
from data.augment import Draws, tone_maps
from data.dataset import DatasetInfo
from data.decode import decode_many
from data.letterbox import placement
from data.parameters import Parameters
from data.random import SampleGenerator

# of a dataset's rows: what samples are made of
COLUMNS = ("image", "points_xy", "visible", "width", "height")

# of the 68 points of https://ibug.doc.ic.ac.uk/resources/300-W/, counted from 0: which change places in a mirror
IBUG68_PAIRS: tuple[tuple[int, int], ...] = (
    *((i, 16 - i) for i in range(8)),  # jaw
    *((17 + i, 26 - i) for i in range(5)),  # brows
    (31, 35), (32, 34),  # nostrils
    (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46),  # eyes
    (48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67),  # mouth
)  # fmt: skip
IBUG68_EYE_CORNERS = (36, 45)  # the outer ones
Array = TypeVar("Array", np.ndarray, Tensor)


class LandmarkInput(Parameters):
    """From encoded pictures to the network's input."""

    input_px: int = Field(ge=8, le=1024, description="side of the square that the network sees, in pixels")
    resize: Literal["crop", "squash"] = Field(
        description="crop: keep proportions and cut the middle; squash: the whole picture, distorted"
    )


class LandmarkAugment(Parameters):
    """What training does to its pictures and their points; everything off leaves them as they are."""

    mirror: bool = Field(description="mirror left-right in every other epoch; pairs of points change places")
    mirror_pairs: tuple[tuple[int, int], ...] = Field(
        description="numbers of the points, from 0, that change places in a mirror; []: by left and right in their "
        "names, or those of the 68 points of iBUG"
    )
    rotation_deg: float = Field(ge=0, le=180, description="greatest turn to either side, in degrees")
    scale: float = Field(ge=0, lt=1, description="pictures are enlarged by up to 1 ± this")
    shift_share: float = Field(
        ge=0, le=0.5, description="greatest shift across and down, as a share of the side"
    )
    brightness: float = Field(ge=0, le=1, description="levels are multiplied by up to 1 ± this")
    contrast: float = Field(ge=0, le=1, description="distances from the mean grey, by up to 1 ± this")
    saturation: float = Field(
        ge=0, le=1, description="distances from each pixel's own grey, by up to 1 ± this"
    )

    @model_validator(mode="after")
    def _pairs_are_pairs(self) -> Self:
        named = [number for pair in self.mirror_pairs for number in pair]
        if len(set(named)) < len(named) or min(named, default=0) < 0:
            raise ValueError(
                f"mirror_pairs (={[list(pair) for pair in self.mirror_pairs]}) must name each point once, from 0 on"
            )
        return self

    @property
    def warps(self) -> bool:
        return bool(self.mirror or self.rotation_deg or self.scale or self.shift_share)

    @property
    def recolours(self) -> bool:
        return bool(self.brightness or self.contrast or self.saturation)


@dataclass(frozen=True)
class LandmarkRecords:
    """Decoded samples of one split, in the order of their indices.

    `images` (N, C, S, S) uint8; `points_xy` (N, P, 2) float32 in their pixels; `visible` and `given` (N, P) bool: of a
    point that is not given, the place means nothing.
    """

    images: Tensor
    points_xy: Tensor
    visible: Tensor
    given: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "LandmarkRecords":
        parts = (self.images, self.points_xy, self.visible, self.given)
        return LandmarkRecords(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class LandmarkBatch:
    """What one step sees, as the records have it, augmented; indices (B,). Points outside their picture are not
    visible, and keep their place."""

    images: Tensor
    points_xy: Tensor
    visible: Tensor
    given: Tensor
    indices: np.ndarray

    def to(self, device: torch.device) -> "LandmarkBatch":
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return LandmarkBatch(
            move(self.images), move(self.points_xy), move(self.visible), move(self.given), self.indices
        )


def square_maps(sizes_px: np.ndarray, config: LandmarkInput) -> tuple[np.ndarray, np.ndarray]:
    """How data.squares fits upright pictures of `sizes_px` (N, 2) (width, height) to squares.

    Returns scale and shift, (N, 2) each: an edge at x of the picture stands at x * scale + shift of the square.
    """
    placed = [placement(width, height, config.input_px, config.resize) for width, height in sizes_px.tolist()]
    scale, shift = np.array(placed, np.float64).reshape(-1, 2, 2).swapaxes(0, 1)
    return scale, shift


def in_squares(points_xy: np.ndarray, sizes_px: np.ndarray, config: LandmarkInput) -> np.ndarray:
    """Stored points (N, P, 2) of upright pictures of `sizes_px` (N, 2) as edges in pixels of their squares, float64."""
    scale, shift = square_maps(sizes_px, config)
    return (points_xy + 0.5) * scale[:, None] + shift[:, None]


def decode_rows(rows: pa.Table, info: DatasetInfo, config: LandmarkInput) -> dict[str, np.ndarray]:
    """Rows of COLUMNS as arrays: the fields of `LandmarkRecords`."""
    num, P = rows.num_rows, len(info.points)
    stored = np.array(rows["points_xy"].to_pylist(), np.float32).reshape(num, P, 2)
    visible = np.array(rows["visible"].to_pylist(), bool).reshape(num, P)
    sizes = np.stack([rows["width"].to_numpy(), rows["height"].to_numpy()], 1)
    return {
        "images": decode_many(
            rows["image"].to_pylist(), config.input_px, info.picture_channels, config.resize, draft=False
        ),
        "points_xy": in_squares(stored, sizes, config).astype(np.float32),
        "visible": visible,
        "given": visible | (stored != 0).any(2),
    }


def empty_split(info: DatasetInfo, config: LandmarkInput) -> dict[str, np.ndarray]:
    """The arrays of a split without images."""
    P, S = len(info.points), config.input_px
    return {
        "images": np.empty((0, info.picture_channels, S, S), np.uint8),
        "points_xy": np.empty((0, P, 2), np.float32),
        "visible": np.empty((0, P), bool),
        "given": np.empty((0, P), bool),
    }


def shown(points_xy: Array, side_px: int) -> Array:
    """Which points (…, 2), edges in pixels of squares of `side_px`, lie in them: (…) bool."""
    return ((points_xy >= 0) & (points_xy <= side_px)).all(-1)  # type: ignore[return-value] # of numpy, maybe one bool


def is_ibug68(info: DatasetInfo) -> bool:
    """Whether the points are, by number, those of iBUG's markup of faces."""
    return info.points == tuple(str(i) for i in range(68))


def mirrored_order(info: DatasetInfo, changes: LandmarkAugment) -> np.ndarray:
    """Which point each becomes in a mirror: (P,) int64; raises ValueError where the pairs are not known, or not fit."""
    pairs = changes.mirror_pairs or info.mirror_pairs or (IBUG68_PAIRS if is_ibug68(info) else ())
    num = len(info.points)
    if not pairs:
        raise ValueError(
            f"augment.mirror needs to know which of the {num} points of {info.name!r} change places, and their names "
            "do not tell: give augment.mirror_pairs, as in [[0, 1]], or set augment.mirror=false"
        )
    if max(map(max, pairs)) >= num:
        raise ValueError(
            f"augment.mirror_pairs (={[list(pair) for pair in pairs]}) must name points below {num}, as many as "
            f"{info.name!r} has"
        )
    order = np.arange(num)
    for left, right in pairs:
        order[left], order[right] = right, left
    return order


def motion(changes: LandmarkAugment, side_px: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """The random maps (B, 2, 3) from places of new pictures to places of the old, and which are mirrored, (B,) bool."""
    B, S = len(draws.indices), float(side_px)
    middle = torch.full((B, 2), S / 2, device=draws.device)
    half = S / 2 / (1 + draws.around("scale", changes.scale))  # (B, 1)
    centre = middle + draws.around("shift", changes.shift_share * S, 2)
    maps = geometry.crop_resize(torch.cat([centre - half, centre + half], 1), side_px, side_px)
    angle = geometry.degrees(draws.around("rotation", changes.rotation_deg)[:, 0])
    maps = geometry.compose(maps, geometry.rotation(angle, middle))
    flips = draws.flips() if changes.mirror else torch.zeros(B, dtype=torch.bool, device=draws.device)
    return geometry.compose(maps, geometry.mirroring(flips, side_px)), flips


def make_batch(
    records: LandmarkRecords,
    indices: np.ndarray,
    info: DatasetInfo,
    config: LandmarkInput,
    changes: LandmarkAugment,
    generator: SampleGenerator | None,
    rows: np.ndarray | None = None,
) -> LandmarkBatch:
    """Take the samples at `indices` (B,) and augment them; without a generator, they stay as they are.

    Where `records` hold only a part of the split, `rows` (B,) are the places in them of those samples.
    """
    where = torch.from_numpy(indices if rows is None else rows).to(records.images.device)
    parts = (records.images, records.points_xy, records.visible, records.given)
    images, points, visible, given = (part.index_select(0, where) for part in parts)
    side_px = config.input_px
    if generator is not None:
        draws = Draws(indices, generator, images.device)
        if changes.warps:
            maps, flips = motion(changes, side_px, draws)
            images = geometry.warp_images(images, maps, (side_px, side_px))
            points = geometry.warp_points(points, maps)
            if changes.mirror:
                order = torch.from_numpy(mirrored_order(info, changes)).to(images.device)
                chosen = torch.where(flips[:, None], order, torch.arange(len(order), device=order.device))
                points = points.gather(1, chosen[:, :, None].expand(-1, -1, 2))
                visible, given = visible.gather(1, chosen), given.gather(1, chosen)
        if changes.recolours:
            images = colour.apply(images, tone_maps(images, changes, draws))
        images = colour.to_levels(images).contiguous()
    return LandmarkBatch(images, points, visible & shown(points, side_px), given, indices)
