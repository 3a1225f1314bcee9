"""What training will see: a sheet of some samples, as they are and as they come in the first epochs.

Pictures and volumes are shown as pictures, with the boxes that training is given where there are any, signals as
curves.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image

from data.dataset import NUM_AXES, Dataset
from data.detection import Batch, Truths
from data.landmarks import LandmarkBatch
from data.random import SampleGenerator
from tasks.arrays import PANELS
from tasks.drawing import Mark, colour_of, draw_boxes, draw_points
from tasks.families import FAMILIES
from tasks.figures import BLUE, DPI, ORANGE, Figure, preview_figure, short
from tasks.inputs import as_pictures

SCENE_IN = 2.4  # side at which pictures with boxes are drawn: names of classes are to be read
MAX_LANES = 12  # channels of a signal that are drawn
LANE_IN, LEAST_ROW_IN = 0.3, 0.9  # height of a channel, and of all of them together at least, in inches
LANE_SHARE = 0.84  # of a lane that its curve may fill


def preview(family_name: str, config: Any, dataset: Dataset, *, num_pictures: int, num_epochs: int) -> Figure:
    """A row for each of `num_pictures` from all over the train split; a column for each epoch after the picture itself.

    The numbers that augment a picture are those of training with the same seed, so this is what it will see; only
    partners of mixed pictures differ, since they are the others of a batch.
    """
    dataset.require("train")
    family, num_images = FAMILIES[family_name], dataset.info.num_images("train")
    indices = np.unique(np.linspace(0, num_images - 1, min(num_pictures, num_images)).astype(np.int64))
    # these alone: the split may be far larger than memory
    arrays = family.decode(dataset.rows("train", indices.tolist(), family.columns), dataset.info, config)
    records = family.records({name: torch.from_numpy(array) for name, array in arrays.items()})
    rows = np.arange(len(indices))
    batches = [family.batch(records, indices, dataset.info, config, None, 0, rows)]
    for epoch in range(num_epochs):
        generator = SampleGenerator(config.train.seed, epoch)
        batches.append(family.batch(records, indices, dataset.info, config, generator, 0, rows))
    seed = f"seed {config.train.seed}"
    if family_name == "detection":
        pictures, counts = scenes_of(batches, dataset.info.classes)
        size = f"{config.input.stored_px} px, {seed}; boxes that do not count dashed"
        return preview_figure(pictures, counts, f"{dataset.info.name}, {size}", SCENE_IN)
    if family_name == "landmarks":
        counts = [f"{num} points" for num in batches[0].given.sum(1).tolist()]
        size = f"{config.input.input_px} px, {seed}; points that are not seen hollow"
        return preview_figure(faces_of(batches), counts, f"{dataset.info.name}, {size}", SCENE_IN)
    names = [dataset.info.classes[label] for label in batches[0].labels.tolist()]
    if NUM_AXES.get(family_name) == 1:
        signals = np.stack([batch.images.numpy() for batch in batches], 1)  # (N, 1 + E, C, L)
        rate_hz = config.preprocessing(dataset.info).rate_hz
        return signals_figure(signals, names, rate_hz, f"{dataset.info.name}, {seed}")
    columns = [as_pictures(batch.images.numpy()).transpose(0, 2, 3, 1) for batch in batches]
    pictures = np.stack(columns, 1)  # (N, 1 + E, H, W, C)
    size = f", {config.input.crop_px} px" if batches[0].images.dtype == torch.uint8 else ""
    panels = f"; {PANELS}" if NUM_AXES.get(family_name) == 3 else ""
    return preview_figure(pictures, names, f"{dataset.info.name}{size}, {seed}{panels}")


def scenes_of(batches: Sequence[Batch], classes: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Pictures (N, 1 + E, H, W, 3) with the boxes that each batch has of them, and how many there are to begin with.

    A batch's pictures may have a side of their own: all are drawn at one.
    """
    side = round(SCENE_IN * DPI)
    columns = []
    for batch in batches:
        pictures = as_pictures(batch.images.numpy())
        columns.append([
            with_boxes(picture, batch.truths, place, classes, side) for place, picture in enumerate(pictures)
        ])  # fmt: skip
    counts = torch.bincount(batches[0].truths.image, minlength=len(batches[0].images)).tolist()
    names = [f"{num} box{'' if num == 1 else 'es'}" for num in counts]
    return np.stack([np.stack(column) for column in columns], 1), names


def faces_of(batches: Sequence[LandmarkBatch]) -> np.ndarray:
    """Pictures (N, 1 + E, H, W, 3) with the points that each batch has of them."""
    side = round(SCENE_IN * DPI)
    columns = []
    for batch in batches:
        scale = side / batch.images.shape[3]
        places = batch.points_xy.numpy() * scale - 0.5  # edges here, centres of pixels where they are drawn
        columns.append(np.stack([
            draw_points(enlarged(picture, side), points[given], seen[given])
            for picture, points, seen, given in zip(
                as_pictures(batch.images.numpy()), places, batch.visible.numpy(), batch.given.numpy(), strict=True
            )
        ]))  # fmt: skip
    return np.stack(columns, 1)


def enlarged(picture: np.ndarray, side_px: int) -> np.ndarray:
    """A picture (C, S, S) uint8 at another side and in colour: (side, side, 3) uint8."""
    pixels = np.broadcast_to(picture.transpose(1, 2, 0), (*picture.shape[1:], 3))
    whole = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(whole.resize((side_px, side_px), Image.Resampling.BILINEAR))


def with_boxes(
    picture: np.ndarray, truths: Truths, place: int, classes: Sequence[str], side_px: int
) -> np.ndarray:
    """A picture (C, S, S) uint8 at another side, with its true boxes: (side, side, 3) uint8."""
    scale = side_px / picture.shape[2]
    marks = [
        Mark(tuple((truths.boxes_xyxy[i] * scale).tolist()), short(classes[label]), colour_of(label), dashed)
        for i, label, dashed in (
            (i, int(truths.labels[i]), bool(truths.ignored[i]))
            for i in (truths.image == place).nonzero()[:, 0].tolist()
        )
    ]
    return draw_boxes(enlarged(picture, side_px), marks)


def signals_figure(signals: np.ndarray, names: Sequence[str], rate_hz: float, what: str) -> Figure:
    """Signals (N, 1 + E, C, L): each row one of them, first as evaluation sees it, then in E epochs.

    A channel has a lane of its own, scaled to what it reaches in that row, and its ends written beside it: channels of
    any range can be read, and in one lane amplitudes can be compared. Beyond MAX_LANES channels the first are shown.
    """
    num_rows, num_columns, C, L = signals.shape
    lanes = min(C, MAX_LANES)
    row_in = max(LEAST_ROW_IN, LANE_IN * lanes)
    figure = Figure(figsize=(1.9 + 1.35 * num_columns, 1.1 + (row_in + 0.12) * num_rows))
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True)
    seconds = np.arange(L) / rate_hz if rate_hz else np.arange(L)
    for row, name in enumerate(names):
        low, high = signals[row, :, :lanes].min((0, 2)), signals[row, :, :lanes].max((0, 2))
        for column in range(num_columns):
            axes = grid[row, column]
            draw_lanes(axes, seconds, signals[row, column, :lanes], low, high)
            axes.tick_params(left=False, labelleft=False, labelbottom=row == num_rows - 1, labelsize=6)
            if row == 0:
                axes.set_title("as evaluated" if column == 0 else f"epoch {column - 1}", fontsize=8)
        ends = [f"{bottom:.3g} to {top:.3g}" for bottom, top in zip(low, high, strict=True)]
        first = grid[row, 0]
        first.set_yticks(lanes - 0.5 - np.arange(lanes), labels=ends)
        first.tick_params(labelleft=True)
        first.set_ylabel(short(name), fontsize=8, parse_math=False)
    figure.supxlabel("seconds" if rate_hz else "samples", fontsize=8)
    cut = f", the first {lanes} of {C} channels" if lanes < C else ""
    figure.suptitle(f"What training sees: {what}{cut}", fontsize=10, parse_math=False)
    height_in = figure.get_figheight()
    # room for names above and below
    figure.tight_layout(pad=0.4, rect=(0, 0.1 / height_in, 1, 1 - 0.3 / height_in))
    return figure


def draw_lanes(axes: Axes, time: np.ndarray, signal: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Curves of (C, L) at `time` (L,) below each other; `low` and `high` (C,) are the ends of their lanes."""
    C = len(signal)
    for channel, values in enumerate(signal):
        height = (high[channel] - low[channel]) or 1.0
        base = C - 1 - channel + (1 - LANE_SHARE) / 2
        colour = (BLUE, ORANGE)[channel % 2]
        axes.plot(time, base + LANE_SHARE * (values - low[channel]) / height, colour, linewidth=0.7)
    axes.set(xlim=(time[0], time[-1]), ylim=(0, C))
    axes.hlines(np.arange(1, C), time[0], time[-1], color="#DDDDDD", linewidth=0.5)
