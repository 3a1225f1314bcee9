"""Detection by a classifier: windows of several sizes all over a picture, and the best of those that overlap.

A picture is scaled so that a window of each size becomes what the network takes (an image pyramid), every window is
classified, and boxes whose class is probable enough go through non-maximum suppression, over all sizes together. Two
ways give the same probabilities: `crops` cuts each window out, `convolutional` runs the network once over each scaled
picture (models.slidingwindow). Where the network pads inside, they differ at the borders of windows; the way that
training saw its pictures is `crops`.

    ./convoy detect-windows skimage:astronaut --model out/faces_patches/model --class face
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.decode import MAX_PIXELS
from models.boxes import iou as overlaps
from models.boxes import nms
from models.classification import Classifier
from models.slidingwindow import PARTS, FullyConvolutional, crops_of, fully_convolutional, native_stride
from tasks.card import Preprocessing
from tasks.drawing import Mark, colour_of, draw_boxes
from tasks.precision import predicting
from tasks.predict import PASS_MB, Predictor
from tasks.temperature import with_temperature

Way = Literal["convolutional", "crops"]
SIZE_RATIO = (
    1.25  # of each window's side to the one before, where none are given; Viola and Jones 2001 took it
)
AGREEING_IOU = 0.5  # a window that overlaps another by as much shows the same
PAIRS_AT_ONCE = 2**22  # overlaps in memory
# of a scaled picture that the network runs over at once: a map of 64 channels at this size is 256 MiB
BAND_PX = 2**20
STRIDES_A_WINDOW = 6  # of a network that cannot be converted, where nobody says


@dataclass(frozen=True)
class Window:
    """A window that is kept: edges in pixels of the upright picture, as data.dataset has boxes."""

    box_xyxy: tuple[float, float, float, float]
    score: float  # probability of the class
    label: str
    window_px: int  # the size that found it
    # windows as probable as asked for that overlap it by AGREEING_IOU or more, itself among them
    num_agreeing: int

    @property
    def centre_xy(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box_xyxy
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Scan:
    """What was looked at, and what was found, best first."""

    found: tuple[Window, ...]
    num_windows: int
    windows_px: tuple[int, ...]
    stride_px: int  # of the scaled picture

    def document(self) -> dict[str, Any]:
        return asdict(self)


class WindowScorer:
    """The networks of a saved classifier, for windows: probabilities of every window of a scaled picture."""

    def __init__(self, predictor: Predictor, way: Way = "convolutional", stride_px: int = 0) -> None:
        """Convert the networks; `stride_px` in pixels of the scaled picture, 0: as the networks have it, either way.

        Raises ValueError for a model that is not of pictures or cannot be converted, and for a stride that
        does not fit.
        """
        preprocessing = predictor.card.preprocessing
        if predictor.card.family != "classification" or not isinstance(preprocessing, Preprocessing):
            raise ValueError(
                f"sliding windows need a classifier of pictures, got a model of {predictor.card.family}"
            )
        if preprocessing.crop_px > preprocessing.stored_px:
            raise ValueError(
                f"the model sees a reflected border (crop_px {preprocessing.crop_px} of {preprocessing.stored_px} px), "
                "which windows inside a picture do not have; train with crop_px at most stored_px"
            )
        self.predictor, self.way = predictor, way
        self.window_px, self.channels = preprocessing.crop_px, preprocessing.channels
        self.classifiers: list[Classifier] = predictor.members  # type: ignore[assignment]
        self.whole: list[FullyConvolutional] = []
        if stride_px < 0:
            raise ValueError(f"stride (={stride_px}) must be at least 1, or 0 for the network's own")
        nets = [member.net for member in self.classifiers]
        if way == "convolutional":
            self.whole = [fully_convolutional(net, self.window_px) for net in nets]
            native = max(whole.stride_px for whole in self.whole)
        else:
            own = [native_stride(net, self.window_px) for net in nets if type(net) in PARTS]
            native = max(own, default=max(1, self.window_px // STRIDES_A_WINDOW))
        self.stride_px = stride_px or native
        for whole in self.whole:
            if self.stride_px % whole.stride_px:
                raise ValueError(
                    f"stride (={self.stride_px}) must be a multiple of the network's own, {whole.stride_px}; any other "
                    "goes with --way crops"
                )

    @torch.inference_mode()
    def __call__(self, picture: Tensor) -> Tensor:
        """(C, H, W) uint8 → probabilities (rows, columns, K) of the windows at each `stride_px`."""
        device = self.predictor.device
        picture = picture[None].to(device)
        with predicting(device, self.predictor.dtype):
            members = self._convolved(picture) if self.way == "convolutional" else self._cropped(picture)
            mean = torch.stack([logits.float().softmax(-1) for logits in members]).mean(0).cpu()
        temperature = self.predictor.temperature("single")
        return with_temperature(mean.flatten(0, 1), temperature).view(mean.shape)

    def _convolved(self, picture: Tensor) -> Iterator[Tensor]:
        H, W = picture.shape[2:]
        for classifier, whole in zip(self.classifiers, self.whole, strict=True):
            step = self.stride_px // whole.stride_px
            bands = [
                whole(classifier.normalise(picture[:, :, pixels]))[0, :, rows, ::step]
                for pixels, rows in whole.bands(H, W, BAND_PX)
            ]
            yield torch.cat(bands, 1)[:, ::step].permute(1, 2, 0)

    def _cropped(self, picture: Tensor) -> Iterator[Tensor]:
        side, step = self.window_px, self.stride_px
        rows, columns = ((length - side) // step + 1 for length in picture.shape[2:])
        per_pass = max(1, PASS_MB * 2**18 // (self.channels * side**2))
        at_once = max(1, per_pass // columns)  # rows of windows whose copies are in memory
        for classifier in self.classifiers:
            logits = []
            for first in range(0, rows, at_once):
                end = min(first + at_once, rows)
                strip = picture[:, :, first * step : (end - 1) * step + side]
                crops = crops_of(strip, side, step)[0].flatten(0, 1)  # (windows, C, side, side)
                logits += [classifier(part) for part in crops.split(per_pass)]
            yield torch.cat(logits).unflatten(0, (rows, columns))


def window_sizes(width_px: int, height_px: int, window_px: int) -> list[int]:
    """Sides of windows from the network's own to the whole shorter side, each 1.25 times the one before."""
    shorter = min(width_px, height_px)
    sizes = (round(window_px * SIZE_RATIO**i) for i in itertools.count())
    return list(itertools.takewhile(lambda size: size <= shorter, sizes)) or [shorter]


def pyramid(picture: Image.Image, sizes: Sequence[int], window_px: int) -> Iterator[tuple[int, Tensor]]:
    """For each size of window the picture, scaled so that it becomes `window_px`: (size, (C, H, W) uint8).

    Scaled as in training, antialiased bilinear. Raises ValueError for a size that does not fit, and for one that would
    make the picture too large.
    """
    for size in sizes:
        if not 1 <= size <= min(picture.size):
            raise ValueError(
                f"windows (={size}) must be from 1 to {min(picture.size)} px, the picture's shorter side"
            )
        width, height = (max(window_px, round(side * window_px / size)) for side in picture.size)
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"windows (={size}) make the picture {width:,}x{height:,} px large, for the network takes {window_px}; "
                f"the most is {MAX_PIXELS:,} pixels: give larger ones"
            )
        scaled = (
            picture
            if (width, height) == picture.size
            else picture.resize((width, height), Image.Resampling.BILINEAR)
        )
        pixels = np.array(scaled)
        yield size, torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def detect(
    scorer: WindowScorer,
    picture: Image.Image,
    labels: Sequence[str],
    sizes: Sequence[int] = (),
    least_score: float = 0.5,
    iou: float = 0.3,
    most: int = 0,
    agreeing: int = 1,
) -> Scan:
    """Look for classes in a picture (L or RGB, as the model's channels), by windows of `sizes`, or of many.

    Each class goes through suppression by itself. What is left counts where so many windows are `agreeing`: what is
    there is seen from neighbouring places and sizes too, a false alarm mostly from one (Viola and Jones 2001). Then the
    best `most` are kept, 0: all. Raises ValueError for an unknown class, a size that does not fit, and numbers out of
    range.
    """
    if not 0 <= least_score <= 1:
        raise ValueError(f"score (={least_score}) must lie in 0…1: it is a probability")
    if not 0 <= iou <= 1:
        raise ValueError(f"iou (={iou}) must lie in 0…1: it is a share")
    if most < 0:
        raise ValueError(f"most (={most}) must be at least 1, or 0 for all")
    if agreeing < 1:
        raise ValueError(f"agreeing (={agreeing}) must be at least 1, the window itself")
    classes = scorer.predictor.card.classes
    unknown = [label for label in labels if label not in classes]
    if unknown or not labels:
        raise ValueError(
            f"class {', '.join(unknown) or 'to look for'} is not known; the model knows {', '.join(classes)}"
        )
    labels = list(dict.fromkeys(labels))
    windows = list(dict.fromkeys(sizes)) or window_sizes(*picture.size, scorer.window_px)
    places = [classes.index(label) for label in labels]
    boxes, scores, of_size, num_windows = [], [], [], 0
    for size, scaled in pyramid(picture, windows, scorer.window_px):
        probabilities = scorer(scaled)[..., places]  # (rows, columns, labels)
        num_windows += probabilities.shape[0] * probabilities.shape[1]
        boxes.append(boxes_of(probabilities.shape[:2], scaled.shape[1:], picture.size, scorer))
        scores.append(probabilities.flatten(0, 1))
        of_size += [size] * len(boxes[-1])
    every, chances = torch.cat(boxes), torch.cat(scores)
    found = []
    for column, label in enumerate(labels):
        likely = (chances[:, column] >= least_score).nonzero()[:, 0]
        kept = likely[nms(every[likely], chances[likely, column], iou)]
        for index, num in zip(kept.tolist(), count_agreeing(every[kept], every[likely]), strict=True):
            if num >= agreeing:
                x0, y0, x1, y1 = every[index].tolist()
                found.append(
                    Window((x0, y0, x1, y1), float(chances[index, column]), label, of_size[index], num)
                )
    found.sort(key=lambda each: -each.score)
    return Scan(tuple(found[: most or None]), num_windows, tuple(windows), scorer.stride_px)


def count_agreeing(kept: Tensor, likely: Tensor) -> list[int]:
    """How many of the `likely` boxes (N, 4) show what each of the `kept` ones (K, 4) does."""
    pieces = kept.split(max(1, PAIRS_AT_ONCE // max(1, len(likely))))
    counts = [(overlaps(piece[:, None], likely) >= AGREEING_IOU).sum(1) for piece in pieces]
    return torch.cat(counts).tolist()


def boxes_of(
    places: Sequence[int], scaled_hw: Sequence[int], picture_wh: Sequence[int], scorer: WindowScorer
) -> Tensor:
    """Boxes of the windows at (rows, columns) of a scaled picture, row by row, in the picture: (N, 4) xyxy."""
    rows, columns = torch.meshgrid(*(torch.arange(num) for num in places), indexing="ij")
    corners = torch.stack([columns, rows], -1).reshape(-1, 2) * scorer.stride_px
    scale = torch.tensor(picture_wh) / torch.tensor([scaled_hw[1], scaled_hw[0]])
    return torch.cat([corners * scale, (corners + scorer.window_px) * scale], 1)


def cut_out(picture: Image.Image, found: Window, preprocessing: Preprocessing) -> Image.Image:
    """A training picture of this window: the square of `stored_px` of which the network saw the middle."""
    more = preprocessing.stored_px / preprocessing.crop_px
    (x, y), half = found.centre_xy, (found.box_xyxy[2] - found.box_xyxy[0]) * more / 2
    half = min(half, min(picture.size) / 2)
    x, y = (
        min(max(place, half), side - half) for place, side in zip((x, y), picture.size, strict=True)
    )  # at the picture's edge the square moves inside
    side_px = preprocessing.stored_px
    return picture.resize(
        (side_px, side_px), Image.Resampling.BILINEAR, box=(x - half, y - half, x + half, y + half)
    )


def draw(picture: Image.Image, scan: Scan, labels: Sequence[str]) -> Image.Image:
    """The picture with its boxes, each with class and score, the best on top; the colour tells the class."""
    marks = [
        Mark(each.box_xyxy, f"{each.label} {each.score:.2f}", colour_of(labels.index(each.label)))
        for each in reversed(scan.found)
    ]
    return Image.fromarray(draw_boxes(np.array(picture.convert("RGB")), marks))


def write_crops(
    folder: Path, stem: str, picture: Image.Image, scan: Scan, preprocessing: Preprocessing
) -> list[Path]:
    """Write each found window as a picture to train on, STEM-LEFT-TOP-SIDE.png: found again, it is the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    corners = [(*map(round, each.box_xyxy[:2]), each.window_px) for each in scan.found]
    files = [folder / f"{stem}-{left}-{top}-{side}.png" for left, top, side in corners]
    for file, each in zip(files, scan.found, strict=True):
        cut_out(picture, each, preprocessing).save(file)
    return files
