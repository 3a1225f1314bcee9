"""Where pixels go: one map a sample, applied once to all that moves with it.

Coordinates are continuous pixels, x to the right and y down: the upper left pixel covers [0, 1) x [0, 1), its centre
is (0.5, 0.5), and boxes are edges (x0, y0, x1, y1). A map (B, 2, 3) float32 takes places of the *new* picture to
places of the *old* one, since that is what sampling asks for; points and boxes go the other way, by its inverse. So
any chain of crops, rotations and shears costs one interpolation, and blurs once.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def identity(num: int, device: torch.device | None = None) -> Tensor:
    """Maps that move nothing: (num, 2, 3)."""
    return torch.eye(2, 3, device=device).repeat(num, 1, 1)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """First `inner`, then `outer`, as functions of the new place: (B, 2, 3) each."""
    # Written out: a batched product of such small matrices costs ten times as much.
    maps = (outer[:, :, :2, None] * inner[:, None]).sum(2)
    maps[:, :, 2] += outer[:, :, 2]
    return maps


def invert(maps: Tensor) -> Tensor:
    """The maps the other way round; raises torch.linalg.LinAlgError where one is flat."""
    linear = torch.linalg.inv(maps[:, :, :2])
    return torch.cat([linear, -linear @ maps[:, :, 2:]], 2)


def _about(linear: Tensor, centre_xy: Tensor) -> Tensor:
    """`linear` (B, 2, 2) with `centre_xy` (B, 2) staying where it is."""
    shift = centre_xy - (linear * centre_xy[:, None]).sum(2)
    return torch.cat([linear, shift[:, :, None]], 2)


def rotation(angle_rad: Tensor, centre_xy: Tensor) -> Tensor:
    """Turn the picture clockwise, as one sees it, by `angle_rad` (B,) about `centre_xy` (B, 2)."""
    cos, sin = torch.cos(angle_rad), torch.sin(angle_rad)
    # the inverse turn, since maps go from new to old; y points down
    return _about(torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2), centre_xy)


def shear(x_rad: Tensor, y_rad: Tensor, centre_xy: Tensor) -> Tensor:
    """Slant by the angles (B,): rows slide by tan(x) a pixel of height, columns by tan(y) a pixel of width."""
    x, y, one = torch.tan(x_rad), torch.tan(y_rad), torch.ones_like(x_rad)
    inverse = torch.stack([one, -x, -y, one], 1).view(-1, 2, 2) / (1 - x * y)[:, None, None]
    return _about(inverse, centre_xy)


def crop_resize(boxes_xyxy: Tensor, width_px: int, height_px: int) -> Tensor:
    """Cut `boxes_xyxy` (B, 4) out and stretch each to a new picture of `height_px` x `width_px`."""
    scale_x = (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) / width_px
    scale_y = (boxes_xyxy[:, 3] - boxes_xyxy[:, 1]) / height_px
    zero = torch.zeros_like(scale_x)
    rows = [scale_x, zero, boxes_xyxy[:, 0], zero, scale_y, boxes_xyxy[:, 1]]
    return torch.stack(rows, 1).view(-1, 2, 3)


def mirroring(flip: Tensor, width_px: int) -> Tensor:
    """Swap left and right where `flip` (B,) bool is set, in a picture of `width_px`."""
    maps = identity(len(flip), flip.device)
    maps[flip, 0, 0] = -1
    maps[flip, 0, 2] = width_px
    return maps


def turned(mirror: Tensor, upside_down: Tensor, swap: Tensor, side_px: int) -> Tensor:
    """The eight ways to lay down a square of `side_px`: mirrored in x or y, rows and columns swapped; (B,) bool."""
    maps = identity(len(mirror), mirror.device)
    maps[mirror, 0, 0], maps[mirror, 0, 2] = -1, side_px
    maps[upside_down, 1, 1], maps[upside_down, 1, 2] = -1, side_px
    maps[swap, :, :2] = maps[swap, :, :2].flip(2)
    return maps


def random_resized_boxes(
    draws: Tensor, width_px: Tensor, height_px: Tensor, area: tuple[float, float], log_aspect: float
) -> Tensor:
    """Inception's random crop (https://arxiv.org/abs/1409.4842): (B, 4) boxes inside pictures of these sides, (B,).

    `draws` (B, 4) in [0, 1): the share of the area in `area`, the log of width / height in ±`log_aspect`, the place.
    A box that would not fit is narrowed to the picture, where others try again: so a sample needs four draws, always.
    """
    share = area[0] + draws[:, 0] * (area[1] - area[0])
    aspect = torch.exp((draws[:, 1] * 2 - 1) * log_aspect)
    width = torch.minimum((share * width_px * height_px * aspect).sqrt().clamp(min=1), width_px)
    height = torch.minimum((share * width_px * height_px / aspect).sqrt().clamp(min=1), height_px)
    left, top = draws[:, 2] * (width_px - width), draws[:, 3] * (height_px - height)
    return torch.stack([left, top, left + width, top + height], 1)


def elastic_field(draws: Tensor, strength_px: float, height_px: int, width_px: int) -> Tensor:
    """A smooth local warp (Simard et al. 2003, https://doi.org/10.1109/ICDAR.2003.1227801).

    `draws` (B, 2, k, k) in [0, 1) move the nodes of a coarse mesh by up to ±`strength_px`; between them it is bicubic.
    Returns displacements (B, 2, height, width), x then y, in pixels of the old picture.
    """
    nodes = (draws * 2 - 1) * strength_px
    return F.interpolate(nodes, (height_px, width_px), mode="bicubic", align_corners=False)


def sampling_grid(
    maps: Tensor, field: Tensor | None, new_hw: tuple[int, int], old_hw: tuple[int, int]
) -> Tensor:
    """What `grid_sample` reads with `align_corners`: (B, H', W', 2), the middles of the old edge pixels at -1 and 1.

    So that its reflection repeats no edge pixel, as that of `data.augment.reflect_pad` does not.
    """
    (new_h, new_w), (old_h, old_w) = new_hw, old_hw
    # affine_grid's own places have the new picture's edges at -1 and 1: x = (u + 1) W / 2
    new = torch.tensor([[new_w / 2, 0, new_w / 2], [0, new_h / 2, new_h / 2]], device=maps.device)
    scale_x, scale_y = 2 / max(old_w - 1, 1), 2 / max(old_h - 1, 1)  # x = (u + 1) (W - 1) / 2 + 1/2
    old = torch.tensor([[scale_x, 0, -1 - scale_x / 2], [0, scale_y, -1 - scale_y / 2]], device=maps.device)
    B = len(maps)
    theta = compose(compose(old.expand(B, 2, 3), maps), new.expand(B, 2, 3))
    grid = F.affine_grid(theta, [B, 1, new_h, new_w], align_corners=False)
    if field is not None:
        grid = grid + field.permute(0, 2, 3, 1) * torch.tensor([scale_x, scale_y], device=maps.device)
    return grid


def warp_images(
    images: Tensor,
    maps: Tensor,
    new_hw: tuple[int, int],
    field: Tensor | None = None,
    fill: Tensor | None = None,
) -> Tensor:
    """Sample new pictures by `maps`: (B, C, H, W) uint8 → (B, C, *new_hw) float32 in grey levels, bilinear.

    Outside the old picture lies its reflection, or `fill` (C,) in grey levels where that is given.
    """
    grid = sampling_grid(maps, field, new_hw, (images.shape[2], images.shape[3]))
    floats = images.float()
    if fill is None:
        return F.grid_sample(floats, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    # grid_sample pads with zeros: with the fill subtracted, zero is the fill
    offset = fill.to(floats).view(1, -1, 1, 1)
    return F.grid_sample(floats.sub_(offset), grid, align_corners=True).add_(offset)


def warp_points(points_xy: Tensor, maps: Tensor) -> Tensor:
    """Where points (B, N, 2) of the old picture stand in the new one; they may leave it."""
    back = invert(maps)
    return points_xy @ back[:, :, :2].transpose(1, 2) + back[:, None, :, 2]


def warp_boxes(boxes_xyxy: Tensor, maps: Tensor, new_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes (B, N, 4) in the new picture, clipped to it, and the share of each that is still seen, (B, N).

    A box becomes the hull of its moved corners.
    """
    B, N, _ = boxes_xyxy.shape
    x0, y0, x1, y1 = boxes_xyxy.unbind(2)
    corners = torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], 2).view(B, N * 4, 2)
    moved = warp_points(corners, maps).view(B, N, 4, 2)
    low, high = moved.amin(2), moved.amax(2)
    size = torch.tensor([new_hw[1], new_hw[0]], device=boxes_xyxy.device)
    clipped_low, clipped_high = low.clamp(min=0).minimum(size), high.clamp(min=0).minimum(size)
    whole = (high - low).clamp(min=1e-6).prod(2)
    return torch.cat([clipped_low, clipped_high], 2), (clipped_high - clipped_low).prod(2) / whole


def degrees(values: Tensor) -> Tensor:
    """Degrees to radians."""
    return values * (math.pi / 180)
