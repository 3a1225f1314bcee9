"""Ways to look at a picture at test time: each turns pictures into crops, and says how much each crop counts.

What is averaged afterwards is the softmax output of each crop. Crops stay uint8, as training's do.

- single: the centre. Signals and volumes are looked at by this one alone.
- mirror: the centre and its mirror image.
- mirror_shift: airbench's six (https://github.com/KellerJordan/cifar10-airbench): the centre and two diagonal
  shifts by one pixel, each with its mirror image; the centres weigh 1/2 together, the shifts 1/4 each. Airbench
  averages logits; here it is softmax outputs, as in the other views.
- five_crop: four corners and the centre of the picture with its reflected border: for what is something else in the
  mirror, such as digits.
- ten_crop: these five, each with its mirror image
  (He et al. 2015, section 3.4, average softmax outputs too).
- multi_scale: the picture at three scales, 1, 1.125 and 1.25, of each the centre and its mirror image, 1/6 each. These
  are the ratios of 256, 288 and 320 px at which GoogLeNet was tested (Szegedy et al. 2014, section 7,
  https://arxiv.org/abs/1409.4842). Scaled is the decoded square, so a larger scale shows less of the picture, larger,
  and no new detail. Crops keep the side that the network was trained at: any network takes them.
"""

from collections.abc import Callable, Collection
from typing import TypeVar, get_args

import torch
from torch import Tensor

from data.augment import reflect_pad, shrink
from data.fitting import ArrayPreprocessing, crop_middle
from tasks.card import Preprocessing
from tasks.settings import ViewName

Place = tuple[int, int]  # upper left corner (row, column) of a crop, in pixels of the picture without border
SCALES = (1.0, 1.125, 1.25)  # of multi_scale
# of the weights of torch's kernel for uint8 where the greatest is 1, as it is at the edges of what is enlarged
WEIGHT_BITS = 14
Name = TypeVar("Name", bound=str)
View = Callable[[Tensor, Preprocessing], tuple[Tensor, Tensor]]


def single(images: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """(B, C, T, T) uint8 → crops (1, B, C, c, c) and weights (1,)."""
    return crops_at(images, [centre(images, preprocessing)], preprocessing.crop_px), torch.ones(1)


def mirror(images: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """(B, C, T, T) uint8 → crops (2, B, C, c, c) and weights (2,)."""
    crops, _ = single(images, preprocessing)
    return with_mirrored(crops), torch.full((2,), 0.5)


def mirror_shift(images: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """(B, C, T, T) uint8 → crops (6, B, C, c, c) and weights (6,); raises ValueError for a picture of one pixel."""
    row, column = centre(images, preprocessing)
    places = [(row, column), (row - 1, column - 1), (row + 1, column + 1)]
    crops = crops_at(images, places, preprocessing.crop_px)
    return with_mirrored(crops), torch.tensor([0.5, 0.25, 0.25]).div(2).repeat(2)


def five_crop(images: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """(B, C, T, T) uint8 → crops (5, B, C, c, c) and weights (5,)."""
    low = -preprocessing.pad_px
    high = images.shape[2] + preprocessing.pad_px - preprocessing.crop_px
    places = [(low, low), (low, high), (high, low), (high, high), centre(images, preprocessing)]
    return crops_at(images, places, preprocessing.crop_px), torch.full((5,), 0.2)


def ten_crop(images: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """(B, C, T, T) uint8 → crops (10, B, C, c, c) and weights (10,)."""
    crops, _ = five_crop(images, preprocessing)
    return with_mirrored(crops), torch.full((10,), 0.1)


def multi_scale(images: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """(B, C, T, T) uint8 → crops (6, B, C, c, c) and weights (6,)."""
    crops = torch.cat([single(scaled(images, scale), preprocessing)[0] for scale in SCALES])
    return with_mirrored(crops), torch.full((2 * len(SCALES),), 1 / (2 * len(SCALES)))


def scaled(images: Tensor, scale: float) -> Tensor:
    """Pictures of a side that is no smaller, the nearest in whole pixels: (B, C, T, T) uint8 → (B, C, T', T')."""
    side_px = round(images.shape[2] * scale)
    if side_px == images.shape[2]:
        return images
    if images.is_cuda or torch.compiler.is_exporting():  # the kernel is the CPU's; ONNX has no such one
        return enlarged(images, side_px)
    return shrink(images, side_px)  # which enlarges, too


def enlarged(images: Tensor, side_px: int) -> Tensor:
    """Larger squares, bit for bit as torch's kernel for uint8 makes them: (B, C, T, T) → (B, C, side_px, side_px).

    Bilinear, along rows and then along columns, rounded each time. All numbers are whole, and less than 2^24: exact in
    float32, on any device.
    """
    T, unit = images.shape[3], 2**WEIGHT_BITS
    places = (torch.arange(side_px, dtype=torch.float64, device=images.device) + 0.5) * (T / side_px) - 0.5
    first = places.floor()
    share = places - first  # of the second of two neighbours
    near, far = (((part * unit + 0.5).floor()).to(torch.float32) for part in (1 - share, share))
    one, other = (place.clamp(0, T - 1).to(torch.int64) for place in (first, first + 1))
    for axis in (3, 2):
        along = [-1 if i == axis else 1 for i in range(4)]
        sums = images.index_select(axis, one).to(torch.float32) * near.view(along)
        sums = sums + images.index_select(axis, other).to(torch.float32) * far.view(along)
        images = (sums / unit + 0.5).floor().to(torch.uint8)
    return images


VIEWS: dict[ViewName, View] = {
    "single": single,
    "mirror": mirror,
    "mirror_shift": mirror_shift,
    "five_crop": five_crop,
    "ten_crop": ten_crop,
    "multi_scale": multi_scale,
}
assert set(VIEWS) == set(get_args(ViewName))
NUM_CROPS: dict[ViewName, int] = {
    "single": 1,
    "mirror": 2,
    "mirror_shift": 6,
    "five_crop": 5,
    "ten_crop": 10,
    "multi_scale": 6,
}


def view_named(name: str, views: Collection[Name]) -> Name:
    """The view of that name, which came from a file or a person; raises ValueError naming those that there are."""
    for known in views:
        if name == known:
            return known
    raise ValueError(f"view {name!r} is not known; known: {', '.join(views)}")


def require_view(name: ViewName, preprocessing: Preprocessing | ArrayPreprocessing) -> None:
    """Raise a ValueError for a view of pictures that a signal or volume is to be looked at by."""
    if name != "single" and isinstance(preprocessing, ArrayPreprocessing):
        raise ValueError(f"view {name!r} is of pictures; signals and volumes are looked at by: single")


def crops_of(
    items: Tensor, view: ViewName, preprocessing: Preprocessing | ArrayPreprocessing
) -> tuple[Tensor, Tensor]:
    """Items (B, C, …) by a view: crops (V, B, C, …) and weights (V,). Of signals and volumes, the middle."""
    if isinstance(preprocessing, ArrayPreprocessing):
        require_view(view, preprocessing)
        return crop_middle(items, preprocessing.crop)[None], torch.ones(1)
    return VIEWS[view](items, preprocessing)


def centre(images: Tensor, preprocessing: Preprocessing) -> Place:
    """Where the middle crop lies; outside the picture where the crop is the larger one."""
    return ((images.shape[2] - preprocessing.crop_px) // 2, (images.shape[3] - preprocessing.crop_px) // 2)


def crops_at(images: Tensor, places: list[Place], crop_px: int) -> Tensor:
    """Cut squares, reflecting the picture as far as they reach beyond it: (B, C, T, T) → (V, B, C, c, c)."""
    T = images.shape[2]
    starts = [start for place in places for start in place]
    border = max(0, -min(starts), max(starts) + crop_px - T)
    if border >= T:
        raise ValueError(
            f"a picture of {T}×{T} px cannot be reflected by {border} px, which this view needs: "
            "set input.stored_px higher, or choose the view 'single' or 'mirror'"
        )
    padded = reflect_pad(images, border)
    return torch.stack(
        [
            padded[:, :, row + border : row + border + crop_px, column + border : column + border + crop_px]
            for row, column in places
        ]
    )


def with_mirrored(crops: Tensor) -> Tensor:
    """The crops, then their mirror images: (V, B, C, c, c) → (2V, B, C, c, c)."""
    return torch.cat([crops, crops.flip(4)])
