"""Faces brought to one place: five points of a face moved onto five places of a template, by the best similarity.

A face embedder wants its faces where it was trained with them. `arcface` is the template of ArcFace and SphereFace
(https://arxiv.org/abs/1801.07698), on which most published ones were; `dlib` is the mean face of dlib's face chips
(http://dlib.net/imaging.html#get_face_chip_details), which are cut with a margin of 0.25. Turn, size and shift come
from least squares (Umeyama 1991, https://doi.org/10.1109/34.88573, without reflection); the picture is resampled once.

Points are continuous pixels, as in data.geometry: the centre of the first pixel is (0.5, 0.5). ArcFace's
template counts from that centre, in pixels of 112, so half a pixel is added to it here.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from data import geometry
from data.aligned import Template

POINTS = ("left eye", "right eye", "nose", "left corner of the mouth", "right corner of the mouth")
# as one sees them: the left eye has the smaller x
ARCFACE_PX = 112
TEMPLATES_XY: dict[Template, tuple[tuple[float, float], ...]] = {  # as shares of a square's side
    "arcface": tuple(
        ((x + 0.5) / ARCFACE_PX, (y + 0.5) / ARCFACE_PX)
        for x, y in (
            (38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)
        )
    ),
    "dlib": (
        (0.225492, 0.215990), (0.754761, 0.215990), (0.490127, 0.515625), (0.254149, 0.780233), (0.726104, 0.780233)
    ),
}  # fmt: skip
LEAST_SPREAD_PX = 0.01  # points that lie closer together have no direction
LEAST_LIKENESS = 0.01  # of a cosine: less, and no turn brings the points to the template

# of the 68 points of https://ibug.doc.ic.ac.uk/resources/300-W/, counted from 0: both eyes are means of six
_IBUG68_EYES, _IBUG68_NOSE, _IBUG68_MOUTH = ((36, 42), (42, 48)), 30, (48, 54)


def template(side_px: int, margin: float = 0.0, name: Template = "arcface") -> Tensor:
    """Where the five points belong in a square of `side_px`: (5, 2).

    `margin` is what is seen beyond each edge of the template, as a share of its side: 0.25 shows half as much again.
    """
    if side_px < 1 or margin <= -0.5:
        raise ValueError(f"side_px (={side_px}) must be at least 1, margin (={margin}) above -0.5")
    places = torch.tensor(TEMPLATES_XY[name], dtype=torch.float64)
    return ((places + margin) / (1 + 2 * margin) * side_px).float()


def similarity(old_xy: Tensor, new_xy: Tensor) -> Tensor:
    """The turn, size and shift, without reflection, that bring `old_xy` (B, N, 2) closest to `new_xy` (N, 2).

    Least squares in the new picture. Returns maps (B, 2, 3) from old places to new ones; data.geometry wants their
    inverse. With points as complex numbers it is one division: z ↦ a z + b, a = Σ z̄ w / Σ |z|² about the means.
    Raises ValueError for points that are not finite, all in one place, or like no turned template.
    """
    old, new = old_xy.double(), new_xy.double()
    old_mean, new_mean = old.mean(1), new.mean(0)
    z, w = old - old_mean[:, None], new - new_mean
    power = (z**2).sum((1, 2))
    dot = (z * w).sum((1, 2))
    cross = (z[..., 0] * w[:, 1] - z[..., 1] * w[:, 0]).sum(1)
    likeness = torch.hypot(dot, cross) / (power * (w**2).sum()).sqrt()
    spread_px = (power / old.shape[1]).sqrt()
    # comparisons that NaN fails
    good = (spread_px >= LEAST_SPREAD_PX) & (likeness >= LEAST_LIKENESS) & old.isfinite().all(2).all(1)
    if not good.all():
        first = int((~good).int().argmax())
        raise ValueError(
            f"{int((~good).sum())} of {len(old)} faces cannot be aligned: the points of face {first} are "
            f"{old_xy[first].tolist()}; they must be finite, apart from each other, and in the order "
            f"{', '.join(POINTS)}"
        )
    a = torch.stack([dot, -cross, cross, dot], 1).view(-1, 2, 2) / power[:, None, None]
    shift = new_mean - (a * old_mean[:, None]).sum(2)
    return torch.cat([a, shift[:, :, None]], 2).to(old_xy.dtype)


def align(
    images: Tensor, points_xy: Tensor, side_px: int, margin: float = 0.0, name: Template = "arcface"
) -> Tensor:
    """Faces at the template's places: (B, C, H, W) uint8 and their points (B, 5, 2) → (B, C, side_px, side_px) uint8.

    One resampling: bilinear, and where a face is made smaller, the mean of as many such samples a new pixel as it
    takes. What lies beyond the picture is black, as in training of the published embedders. Raises as `similarity`.
    """
    to_old = geometry.invert(similarity(points_xy, template(side_px, margin, name).to(points_xy)))
    return resample(images, to_old, side_px)


def resample(images: Tensor, to_old: Tensor, side_px: int) -> Tensor:
    """Squares of `side_px` by maps (B, 2, 3) from new places to old ones: see `align`."""
    B, C = images.shape[:2]
    steps = torch.linalg.matrix_norm(to_old[:, :, :2], ord=2).ceil().clamp(min=1).int().tolist()
    squares = torch.empty(B, C, side_px, side_px, dtype=torch.uint8, device=images.device)
    for i, k in enumerate(steps):  # one by one: a picture has few faces, and each its own part of the picture
        finer = to_old[i : i + 1].clone()
        finer[:, :, :2] /= k
        part, finer = _part(images[i], finer, side_px * k)
        black = torch.zeros(C, device=images.device)
        sampled = geometry.warp_images(part[None], finer, (side_px * k, side_px * k), fill=black)
        squares[i] = F.avg_pool2d(sampled, k)[0].round_().clamp_(0, 255)
    return squares


def _part(image: Tensor, to_old: Tensor, side_px: int) -> tuple[Tensor, Tensor]:
    """The part of a picture (C, H, W) that the map (1, 2, 3) reaches, and the map into it.

    A photograph is large and a face small; beyond the part there is nothing that a sample sees.
    """
    H, W = image.shape[1:]
    corners = to_old.new_tensor([[0, 0, 1], [side_px, 0, 1], [0, side_px, 1], [side_px, side_px, 1]])
    places = corners @ to_old[0].T  # (4, 2)
    low, high = (places.amin(0) - 1).floor().tolist(), (places.amax(0) + 1).ceil().tolist()
    (left, right), (top, bottom) = (
        _cut(start, end, size) for start, end, size in zip(low, high, (W, H), strict=True)
    )
    moved = to_old.clone()
    moved[0, :, 2] -= moved.new_tensor([left, top])
    return image[:, top:bottom, left:right], moved


def _cut(start: float, end: float, size: int) -> tuple[int, int]:
    """Pixels of an axis from `start` to `end`; two at least, since `grid_sample` takes one for all there is."""
    first = int(min(max(start, 0), max(size - 2, 0)))
    return first, int(min(max(end, first + 2), size))


def five_of_68(points_xy: Tensor) -> Tensor:
    """The five points of the 68 of iBUG: (…, 68, 2) → (…, 5, 2); an eye is the mean of the six around it."""
    eyes = [points_xy[..., first:end, :].mean(-2) for first, end in _IBUG68_EYES]
    rest = [points_xy[..., number, :] for number in (_IBUG68_NOSE, *_IBUG68_MOUTH)]
    return torch.stack([*eyes, *rest], -2)
