"""MTCNN: faces and five points of each, by three small networks in a row (Zhang et al. 2016,
https://arxiv.org/abs/1604.02878). Written from the paper; tensors have the names of facenet-pytorch's files.

P-Net looks at every place of every size: a picture is shrunk step by step, and each 12 x 12 window says whether it is
a face and how its edges should move. R-Net looks again at what is left, at 24 x 24, O-Net at 48 x 48 and gives the
points. Between them overlapping boxes are suppressed, edges moved, and boxes made square.

Deviations: boxes are continuous pixels (edges), where the original rounds each to whole pixels and counts from 1; crops
are means of four bilinear samples a pixel from the level of a pyramid of halves that fits, so that all crops of a size
are taken at once. Beyond the picture lies black, as in the original. Speed: benchmarks/facedetect.py.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.boxes import area, nms

PNET_PX, RNET_PX, ONET_PX = 12, 24, 48
PNET_STRIDE = 2
# suppression in a level, after a stage, and of boxes inside others
LEVEL_IOU, STAGE_IOU, NESTED = 0.5, 0.7, 0.7
MAX_CROPS = 512  # looked at together


class Faces(NamedTuple):
    """Faces of a picture, the surest first: edges (N, 4) and points (N, 5, 2) in pixels, scores (N,) in 0…1.

    The points are those of data.alignment.POINTS. Edges may lie outside the picture.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    points_xy: Tensor


@dataclass(frozen=True)
class Search:
    """Which faces are looked for."""

    min_face_px: int = 20
    pyramid_factor: float = 0.709  # from one size to the next: √½, half the area
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)  # of the three nets' probabilities

    def __post_init__(self) -> None:
        if self.min_face_px < PNET_PX:
            raise ValueError(f"min_face_px (={self.min_face_px}) must be at least {PNET_PX}")
        if not 0 < self.pyramid_factor < 1:
            raise ValueError(f"pyramid_factor (={self.pyramid_factor}) must lie between 0 and 1")
        if not all(0 < threshold < 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds (={self.thresholds}) must lie between 0 and 1")


class PNet(nn.Module):
    """(B, 3, H, W) → logits (B, 2, h, w) and moves of edges (B, 4, h, w) of windows 12 wide, 2 apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 2, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_1(x), self.conv4_2(x)


class RNet(nn.Module):
    """(B, 3, 24, 24) → logits (B, 2) and moves of edges (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu4(self.dense4(_flat(self.prelu3(self.conv3(x)))))
        return self.dense5_1(x), self.dense5_2(x)


class ONet(nn.Module):
    """(B, 3, 48, 48) → logits (B, 2), moves of edges (B, 4), five x and five y (B, 10) as shares of the box."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2 = nn.Linear(256, 2), nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu5(self.dense5(_flat(self.prelu4(self.conv4(x)))))
        return self.dense6_1(x), self.dense6_2(x), self.dense6_3(x)


class MTCNN(nn.Module):
    """The three networks; `pnet`, `rnet` and `onet` are loaded each from its own file."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = PNet(), RNet(), ONet()

    @torch.inference_mode()
    def forward(self, image: Tensor, search: Search) -> Faces:
        """The faces of a picture (3, H, W) uint8, RGB."""
        boxes = self.propose(image, search)
        halves = _halves(image)
        logits, moves = self._look(self.rnet, halves, boxes, RNET_PX)
        scores = logits.softmax(1)[:, 1]
        kept = nms(boxes, scores, STAGE_IOU, min_score=search.thresholds[1])
        boxes = squared(moved(boxes[kept], moves[kept]))
        logits, moves, points = self._look(self.onet, halves, boxes, ONET_PX)
        scores = logits.softmax(1)[:, 1]
        found = scores >= search.thresholds[2]
        boxes, scores = boxes[found], scores[found]
        points_xy = (
            boxes[:, None, :2] + points[found].view(-1, 2, 5).mT * (boxes[:, 2:] - boxes[:, :2])[:, None]
        )
        boxes = moved(boxes, moves[found])
        kept = unnested(boxes, scores, NESTED)
        return Faces(boxes[kept], scores[kept], points_xy[kept])

    def propose(self, image: Tensor, search: Search) -> Tensor:
        """P-Net on all levels of the pyramid: squares (N, 4) in pixels."""
        H, W = image.shape[1:]
        none = torch.zeros(0, 4, device=image.device)
        boxes, moves, scores = [none], [none], [none[:, 0]]
        for height, width in pyramid((H, W), search):
            level = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)
            logits, move = self.pnet(_normalised(level))
            score = logits[0].softmax(0)[1]
            row, column = (score >= search.thresholds[0]).nonzero().unbind(1)
            scale = score.new_tensor([W / width, H / height])
            corner = torch.stack([column, row], 1) * PNET_STRIDE
            box = torch.cat([corner * scale, (corner + PNET_PX) * scale], 1)
            kept = nms(box, score[row, column], LEVEL_IOU)
            row, column = row[kept], column[kept]
            boxes.append(box[kept])
            moves.append(move[0, :, row, column].T)
            scores.append(score[row, column])
        box = torch.cat(boxes)
        kept = nms(box, torch.cat(scores), STAGE_IOU)
        return squared(moved(box[kept], torch.cat(moves)[kept]))

    def _look(self, net: nn.Module, halves: list[Tensor], boxes: Tensor, side_px: int) -> tuple[Tensor, ...]:
        """What `net` says of each box."""
        parts = boxes.split(MAX_CROPS)  # of no boxes: one part of none
        said = [net(_normalised(crops(halves, part, side_px))) for part in parts]
        return tuple(torch.cat(each) for each in zip(*said, strict=True))


def pyramid(size_hw: tuple[int, int], search: Search) -> list[tuple[int, int]]:
    """Heights and widths of a picture's levels, the largest first: a face of `min_face_px` is 12 in the first."""
    H, W = size_hw
    scale = PNET_PX / search.min_face_px
    levels = []
    while min(H, W) * scale >= PNET_PX:
        levels.append((round(H * scale), round(W * scale)))
        scale *= search.pyramid_factor
    return levels


def moved(boxes_xyxy: Tensor, moves: Tensor) -> Tensor:
    """Boxes (N, 4) with edges moved by `moves` (N, 4), shares of the box's sides; corners never swap."""
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).repeat(1, 2)
    new = boxes_xyxy + moves * sides
    return torch.cat([torch.minimum(new[:, :2], new[:, 2:]), torch.maximum(new[:, :2], new[:, 2:])], 1)


def squared(boxes_xyxy: Tensor) -> Tensor:
    """Squares (N, 4) with the boxes' centres and longer sides, of a pixel at least."""
    centre = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    half = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).amax(1, keepdim=True).clamp(min=1) / 2
    return torch.cat([centre - half, centre + half], 1)


def unnested(boxes_xyxy: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Places of the boxes kept, the surest first: none shares more than `threshold` of the smaller one with a surer."""
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes_xyxy[order]
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    smaller = torch.minimum(area(boxes)[:, None], area(boxes)[None])
    over = ((high - low).clamp(min=0).prod(2) > threshold * smaller).tolist()
    kept: list[int] = []
    for i in range(len(boxes)):
        if not any(over[i][j] for j in kept):
            kept.append(i)
    return order[kept]


def crops(halves: list[Tensor], boxes_xyxy: Tensor, side_px: int) -> Tensor:
    """What squares (N, 4) show, at `side_px`: (N, 3, side_px, side_px) in grey levels.

    `halves` are a picture (1, 3, H, W) and its halves; each square is cut from the last in which it still has
    `side_px` pixels a side.
    """
    N, k = len(boxes_xyxy), 2 * side_px
    corner, sides = boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    level = (sides[:, 0] / side_px).log2().floor().clamp(0, len(halves) - 1)
    steps = (torch.arange(k, device=boxes_xyxy.device) + 0.5) / k
    places = corner[:, None] + sides[:, None] * steps[:, None]  # (N, k, 2)
    cut = boxes_xyxy.new_empty(N, 3, side_px, side_px)
    for number, half in enumerate(halves):
        own = (level == number).nonzero()[:, 0]
        if not len(own):
            continue
        size = places.new_tensor([half.shape[3], half.shape[2]]) * 2**number  # what this level covers
        x, y = (places[own] / size * 2 - 1).unbind(2)
        grid = torch.stack([x[:, None, :].expand(-1, k, k), y[:, :, None].expand(-1, k, k)], 3)
        sampled = F.grid_sample(half, grid.view(1, -1, k, 2), align_corners=False)
        cut[own] = F.avg_pool2d(sampled.view(3, len(own), k, k), 2).transpose(0, 1)
    return cut


def _halves(image: Tensor) -> list[Tensor]:
    """A picture (3, H, W) as (1, 3, H, W) in grey levels, its half, the half of that … down to 48 pixels."""
    levels = [image[None].float()]
    while min(levels[-1].shape[2:]) >= 2 * ONET_PX:
        levels.append(F.avg_pool2d(levels[-1], 2, ceil_mode=True))
    return levels


def _normalised(levels: Tensor) -> Tensor:
    """What the networks see; channels last, since torch's max pooling is then three times as fast on a CPU."""
    return ((levels.float() - 127.5) / 128).contiguous(memory_format=torch.channels_last)


def _flat(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, W · H · C): the published weights were trained where columns come first."""
    return x.permute(0, 3, 2, 1).flatten(1)
