"""YOLO: one pass over the picture gives all boxes (Redmon et al. 2016, https://arxiv.org/abs/1506.02640).

A body gives maps at strides 8, 16 and 32; a neck carries what the coarse ones know to the fine ones (Lin et al. 2017,
https://arxiv.org/abs/1612.03144); a head at each level says for each place what is there. Two ways, `assignment`:

`midpoint`, as taught: the cell with an object's middle finds it, by the anchor of the most similar shape. An anchor
predicts (t_x, t_y, t_w, t_h, p_c, classes): b_xy = σ(t_xy) + cell, inside the cell; b_wh = anchor · e^t, which may be
larger (YOLOv2, https://arxiv.org/abs/1612.08242). The score is p_c times the class's.

`task_aligned`: a place predicts the distances to a box's four edges and a score for each class, and which places learn
to find an object is decided by their predictions (models.assignment).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.detection import Padded, Truths, pad
from models.anchors import MAX_LOG_SCALE, best_possible_recall, kmeans_anchors
from models.assignment import Cells, by_midpoint, task_aligned
from models.bodies import STRIDES, ConvNorm, make_body
from models.boxes import ciou, diou, giou, iou, share_inside
from models.detector import Detector, Finding, Found, suppressed
from models.matching import MOST_IGNORED

Assignment = Literal["task_aligned", "midpoint"]
BoxLoss = Literal["ciou", "diou", "giou", "iou", "squared"]
OVERLAPS = {"ciou": ciou, "diou": diou, "giou": giou, "iou": iou}
TOP, ALPHA, BETA = 10, 1.0, 6.0  # of task-aligned assignment; α = 1 as in the paper
LEAST_RECALL = 0.98  # best possible recall of anchors that need not be fitted
BOX_WEIGHT, SCORE_WEIGHT = 2.5, 1.0
GOOD_IOU = 0.6  # from which on a box of no assigned object is no background, by midpoint
START_LOGIT = math.log(0.01 / 0.99)  # of a score: most places are background
START_DISTANCE = 2.0  # of an edge, in strides
MAX_CANDIDATES = 3000  # boxes of a picture that go through suppression, at most


class Neck(nn.Module):
    """Adds to each map what the coarser ones know, and back: lists of (B, C_i, H_i, W_i) → (B, width, H_i, W_i).

    Strides may leave one out: from 8 the next may be 32.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvNorm(each, width, 1) for each in widths)
        self.down = nn.ModuleList(ConvNorm(width, width) for _ in widths[1:])
        steps = [coarse // fine for fine, coarse in itertools.pairwise(strides)]
        self.up = nn.ModuleList(ConvNorm(width, width, stride=step) for step in steps)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [lateral(each) for lateral, each in zip(self.lateral, maps, strict=True)]
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = self.down[i](
                maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[2:], mode="nearest")
            )
        for i in range(1, len(maps)):
            maps[i] = maps[i] + self.up[i - 1](maps[i - 1])
        return maps


class AlignedHead(nn.Module):
    """Edges and scores of a level by branches of their own: (B, width, H, W) → (B, 4 + K, H, W)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.box, self.score = ConvNorm(width, width), ConvNorm(width, width)
        self.edges, self.classes = nn.Conv2d(width, 4, 1), nn.Conv2d(width, num_classes, 1)
        for layer, bias in ((self.edges, START_DISTANCE), (self.classes, START_LOGIT)):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.edges(self.box(x)), self.classes(self.score(x))], 1)


class AnchorHead(nn.Module):
    """What each anchor of each place says: (B, width, H, W) → (B, anchors · (5 + K), H, W)."""

    def __init__(self, width: int, num_classes: int, num_anchors: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(width, width), ConvNorm(width, width))
        self.output = nn.Conv2d(width, num_anchors * (5 + num_classes), 1)
        nn.init.normal_(self.output.weight, std=0.01)
        bias = torch.zeros(num_anchors, 5 + num_classes)
        bias[:, 4] = START_LOGIT
        self.output.bias = nn.Parameter(bias.flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.stem(x))


class Yolo(Detector):
    """A detector, see models.detector: pictures of uint8 whose sides are multiples of 32, boxes in their pixels."""

    anchors: Tensor
    best_possible_recall: Tensor  # of the boxes that they were fitted to; NaN where there were none

    def __init__(
        self,
        num_classes: int,
        channels: int,
        body: str,
        strides: Sequence[int],
        width: int,
        assignment: Assignment,
        num_anchors: int,
        box_loss: BoxLoss,
        mean: Sequence[float],
        std: Sequence[float],
        finding: Finding,
    ) -> None:
        """`strides` are those of the levels that have a head; `num_anchors` of each level, read by midpoint only."""
        super().__init__(num_classes, mean, std, finding)
        self.assignment = assignment
        self.box_loss: BoxLoss = box_loss
        self.strides, self.num_anchors = tuple(strides), num_anchors
        self.levels = [STRIDES.index(stride) for stride in strides]
        self.body = make_body(body, channels, max(self.levels) + 1)
        self.neck = Neck([self.body.widths[level] for level in self.levels], self.strides, width)
        self.heads = nn.ModuleList(
            AnchorHead(width, num_classes, num_anchors)
            if assignment == "midpoint"
            else AlignedHead(width, num_classes)
            for _ in strides
        )
        if assignment == "midpoint":
            # by level; squares of a few strides until they are fitted to the data (fit_anchors)
            sides = torch.arange(1, num_anchors + 1) * 2.0
            self.register_buffer("anchors", torch.stack([sides[:, None].expand(-1, 2) * s for s in strides]))
            self.register_buffer("best_possible_recall", torch.tensor(math.nan))

    @torch.no_grad()
    def fit(self, sizes_wh: Callable[[], Tensor], seed: int) -> None:
        """Fit the anchors to boxes' widths and heights (N, 2), in pixels of the input, unless they cover them already.

        The small ones go to the fine levels. Without enough boxes the anchors stay what they are, and where those that
        are fitted cover fewer boxes: k-means looks at the mean overlap, which a few very long boxes hardly change.
        """
        num = self.num_anchors * len(self.strides)
        if self.assignment != "midpoint":
            return
        sizes = sizes_wh()
        if not len(sizes):
            return
        recall = best_possible_recall(sizes, self.anchors.flatten(0, 1))
        if recall < LEAST_RECALL and len(sizes.unique(dim=0)) >= num:
            fitted = kmeans_anchors(sizes, num, seed)
            if (reached := best_possible_recall(sizes, fitted)) >= recall:
                self.anchors.copy_(fitted.view_as(self.anchors))
                recall = reached
        self.best_possible_recall.fill_(recall)

    def forward(self, images: Tensor, truths: Truths | None = None) -> dict[str, Tensor] | Found:
        """Losses where `truths` are given, else detections."""
        maps = self.maps(images)
        if truths is None:
            return self.find(*self.predict(maps, images.shape[2]))
        padded = pad(truths, len(images))
        if self.assignment == "midpoint":
            return self._midpoint_losses(maps, padded)
        return self._aligned_losses(maps, padded)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Raw outputs of each level, (B, outputs, H, W) float32; of task-aligned ones edges first, then scores."""
        features = self.body(self.normalise(images))
        maps = self.neck([features[level] for level in self.levels])
        return [head(each).float() for head, each in zip(self.heads, maps, strict=True)]

    def centres(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Of all places, level by level and row by row: middles (P, 2) in pixels, and strides (P,)."""
        middles, strides = [], []
        for each, stride in zip(maps, self.strides, strict=True):
            y = (torch.arange(each.shape[2], device=each.device) + 0.5) * stride
            x = (torch.arange(each.shape[3], device=each.device) + 0.5) * stride
            grid = torch.stack([x[None].expand(len(y), -1), y[:, None].expand(-1, len(x))], 2)
            middles.append(grid.reshape(-1, 2))
            strides.append(torch.full((len(middles[-1]),), float(stride), device=each.device))
        return torch.cat(middles), torch.cat(strides)

    def predict(self, maps: Sequence[Tensor], side_px: int) -> tuple[Tensor, Tensor]:
        """Boxes (B, P, 4) cut at the edges and scores (B, P, K) of all places, float32."""
        if self.assignment == "midpoint":
            boxes, objectness, classes = self.decode_anchors(maps)
            return boxes.clamp(0, side_px), objectness.sigmoid()[..., None] * classes.sigmoid()
        boxes, logits = self.decode_edges(maps)
        return boxes.clamp(0, side_px), logits.sigmoid()

    def decode_edges(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes (B, P, 4) by their distances from the middle of each place, and logits of the classes (B, P, K)."""
        raw = torch.cat([each.flatten(2) for each in maps], 2).transpose(1, 2)
        middles, strides = self.centres(maps)
        distances = F.softplus(raw[..., :4]) * strides[:, None]
        boxes = torch.cat([middles - distances[..., :2], middles + distances[..., 2:]], 2)
        return boxes, raw[..., 4:]

    def decode_anchors(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, P, 4), logits of an object's presence (B, P) and of its classes (B, P, K), anchor by anchor."""
        boxes, presence, classes = [], [], []
        for level, (each, stride) in enumerate(zip(maps, self.strides, strict=True)):
            B, _, H, W = each.shape
            raw = each.view(B, self.num_anchors, -1, H, W).permute(0, 1, 3, 4, 2)  # (B, A, H, W, 5 + K)
            cell = torch.stack(torch.meshgrid(torch.arange(W), torch.arange(H), indexing="xy"), 2).to(each)
            middle = (raw[..., :2].sigmoid() + cell) * stride
            sides = raw[..., 2:4].clamp(max=MAX_LOG_SCALE).exp() * self.anchors[level][:, None, None]
            boxes.append(torch.cat([middle - sides / 2, middle + sides / 2], -1).flatten(1, 3))
            presence.append(raw[..., 4].flatten(1))
            classes.append(raw[..., 5:].flatten(1, 3))
        return torch.cat(boxes, 1), torch.cat(presence, 1), torch.cat(classes, 1)

    def _aligned_losses(self, maps: list[Tensor], truths: Padded) -> dict[str, Tensor]:
        boxes, logits = self.decode_edges(maps)
        middles, _ = self.centres(maps)
        assigned = task_aligned(logits.detach().sigmoid(), boxes.detach(), middles, truths, TOP, ALPHA, BETA)
        total = assigned.score.sum().clamp(min=1.0)
        targets = torch.zeros_like(logits)
        image, place = assigned.positive.nonzero().unbind(1)
        owner = assigned.owner[image, place]
        targets[image, place, truths.labels[image, owner]] = assigned.score[image, place]
        entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        # less the targets' own, which no score can avoid: a perfect detector has a loss of 0
        own = torch.special.entr(targets) + torch.special.entr(1 - targets)
        entropy = (entropy - own).sum(2)
        scored = assigned.positive | assigned.negative
        found, wanted = boxes[image, place], truths.boxes_xyxy[image, owner]
        weights = assigned.score[image, place]
        apart = self.distance(found, wanted, maps)
        return {
            "box": BOX_WEIGHT * (apart * weights).sum() / total,
            "score": SCORE_WEIGHT * (entropy * scored).sum() / total,
        }

    def _midpoint_losses(self, maps: list[Tensor], truths: Padded) -> dict[str, Tensor]:
        boxes, presence, classes = self.decode_anchors(maps)
        sides = [each.shape[2] for each in maps]
        of_anchor = torch.tensor(self.strides, device=boxes.device).repeat_interleave(self.num_anchors)
        side_of_anchor = torch.tensor(sides, device=boxes.device).repeat_interleave(self.num_anchors)
        area = side_of_anchor.square()

        def found_by(truths: Padded) -> tuple[Cells, Tensor]:
            """The cells that are to find objects, and their places (M,) among all."""
            cells = by_midpoint(truths, self.anchors.flatten(0, 1), of_anchor, side_of_anchor)
            own = cells.row * side_of_anchor[cells.anchor] + cells.column
            return cells, (area.cumsum(0) - area)[cells.anchor] + own

        cells, place = found_by(truths)
        wanted = truths.boxes_xyxy[cells.image, cells.owner]
        there = torch.zeros_like(presence)
        there[cells.image, place] = 1.0
        side_px = sides[0] * self.strides[0]
        background = self._background(boxes.detach(), truths, side_px)
        out, of_ignored = found_by(replace(truths, ignored=~truths.ignored))
        background[out.image, of_ignored] = False
        scored = (there > 0) | background
        entropy = F.binary_cross_entropy_with_logits(presence, there, reduction="none")
        labels = F.one_hot(truths.labels[cells.image, cells.owner], self.num_classes).float()
        of_class = F.binary_cross_entropy_with_logits(classes[cells.image, place], labels, reduction="none")
        total = max(1, len(place))
        return {
            "box": BOX_WEIGHT * self.distance(boxes[cells.image, place], wanted, maps).sum() / total,
            "score": SCORE_WEIGHT * (entropy * scored).sum() / total,
            "class": SCORE_WEIGHT * of_class.sum() / total,
        }

    @torch.no_grad()
    def _background(self, boxes_xyxy: Tensor, truths: Padded, side_px: int) -> Tensor:
        """Which boxes (B, P, 4) are background, where they are not to find an object, ignored or not: (B, P) bool.

        Not those that are good already, though another is to find the object (YOLOv2), nor those of which, cut at the
        picture's edges, half or more lies in an ignored object.
        """
        if not truths.taken.shape[1]:
            return torch.ones_like(boxes_xyxy[..., 0], dtype=torch.bool)
        known = torch.where(truths.taken[..., None], truths.boxes_xyxy, 0.0)
        ignored = torch.where(truths.ignored[..., None], known, 0.0)
        return torch.stack([
            (iou(b[:, None], k) <= GOOD_IOU).all(1)
            & (share_inside(b[:, None].clamp(0, side_px), i) < MOST_IGNORED).all(1)
            for b, k, i in zip(boxes_xyxy, known, ignored, strict=True)
        ])  # fmt: skip

    def distance(self, found: Tensor, wanted: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """How far boxes are from those wanted, (M, 4) each → (M,): 1 - overlap, or squared errors as YOLO has them."""
        if self.box_loss != "squared":
            return 1 - OVERLAPS[self.box_loss](found, wanted)
        side = maps[0].shape[2] * self.strides[0]  # middles and roots of the sides, as shares of the picture
        middles = ((found[:, :2] + found[:, 2:]) - (wanted[:, :2] + wanted[:, 2:])) / (2 * side)
        roots = [((b[:, 2:] - b[:, :2]).clamp(min=1e-6) / side).sqrt() for b in (found, wanted)]
        return 5 * (middles.square().sum(1) + (roots[0] - roots[1]).square().sum(1))

    @torch.no_grad()
    def find(self, boxes_xyxy: Tensor, scores: Tensor) -> Found:
        """Cut by score, suppress by class, keep the best: boxes (B, P, 4) and scores (B, P, K) → detections."""
        finding, K = self.finding, self.num_classes
        best, place = scores.flatten(1).topk(min(MAX_CANDIDATES, scores[0].numel()), 1)
        image, rank = (best >= finding.min_score).nonzero().unbind(1)
        place = place[image, rank]
        boxes, labels, chance = boxes_xyxy[image, place // K], place % K, best[image, rank]
        return suppressed(Found(boxes, chance, labels, image), len(scores), K, finding)
