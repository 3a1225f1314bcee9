"""The region proposal network (Ren et al. 2015, https://arxiv.org/abs/1506.01497): at each place of a pyramid and for
each anchor, whether there is an object and where its edges are; torchvision's layout, keys and losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.detection import Truths
from models.anchors import anchor_grid, anchors_of_cell, decode, encode
from models.detector import Finding, Found, suppressed
from models.matching import match, sample

POSITIVE_IOU, NEGATIVE_IOU, POSITIVE_SHARE = 0.7, 0.3, 0.5
NMS_IOU = 0.7
LEAST_PX = 1e-3  # sides of a proposal
BETA = 1 / 9  # of the smooth L1 loss: where squares become lengths


class Proposals(NamedTuple):
    """The P boxes of a batch's pictures that may hold an object."""

    boxes_xyxy: Tensor  # (P, 4) float32, inside the pictures, with area
    image: Tensor  # (P,) int64, ascending


@dataclass(frozen=True)
class Limits:
    """How many proposals of a picture: of each level before suppression, and of all after it."""

    before_nms: int
    after_nms: int


class RpnHead(nn.Module):
    """For each map (B, C, H, W): objectness (B, H · W · A) and offsets (B, H · W · A, 4), place by place; float32."""

    def __init__(self, width: int, num_anchors: int) -> None:
        super().__init__()
        # in sequences of their own: torchvision's keys
        self.conv = nn.Sequential(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)))
        self.cls_logits = nn.Conv2d(width, num_anchors, 1)
        self.bbox_pred = nn.Conv2d(width, 4 * num_anchors, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, offsets = [], []
        for each in maps:
            x = self.conv(each)
            logits.append(self.cls_logits(x).float().permute(0, 2, 3, 1).flatten(1))
            raw = self.bbox_pred(x).float().permute(0, 2, 3, 1)  # (B, H, W, A · 4)
            offsets.append(raw.reshape(len(raw), -1, 4))
        return logits, offsets


class RegionProposals(nn.Module):
    """Maps of a batch → proposals, and losses where there are truths."""

    def __init__(
        self,
        width: int,
        anchor_sides: Sequence[Sequence[float]],
        anchor_ratios: Sequence[float],
        num_samples: int,
        training_limits: Limits,
        limits: Limits,
    ) -> None:
        """`anchor_sides` are those of each level, in pixels, equally many; `num_samples` anchors of a picture are
        trained."""
        super().__init__()
        if len({len(sides) for sides in anchor_sides}) != 1:
            raise ValueError(f"anchor_sides (={anchor_sides}) must be equally many on each level")
        self.head = RpnHead(width, len(anchor_sides[0]) * len(anchor_ratios))
        self.cells = [anchors_of_cell(sides, anchor_ratios) for sides in anchor_sides]
        self.num_samples, self.training_limits, self.limits = num_samples, training_limits, limits

    def forward(
        self, maps: Sequence[Tensor], side_px: int, truths: Truths | None
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """The proposals do not depend on the truths; without those there is no loss."""
        logits, offsets = self.head(maps)
        grids = [
            anchor_grid(cell.to(each.device), each.shape[2], each.shape[3], side_px // each.shape[2])
            for cell, each in zip(self.cells, maps, strict=True)
        ]
        proposals = self.propose(logits, offsets, grids, side_px)
        if truths is None:
            return proposals, {}
        return proposals, self.losses(torch.cat(logits, 1), torch.cat(offsets, 1), torch.cat(grids), truths)

    @torch.no_grad()
    def propose(
        self, logits: Sequence[Tensor], offsets: Sequence[Tensor], grids: Sequence[Tensor], side_px: int
    ) -> Proposals:
        """The best of each level, decoded, cut at the edges, suppressed level by level; then the best of all."""
        limits = self.training_limits if self.training else self.limits
        B, parts = len(logits[0]), []
        for level, (scores, raw, anchors) in enumerate(zip(logits, offsets, grids, strict=True)):
            best, place = scores.topk(min(limits.before_nms, scores.shape[1]), 1)
            raw = raw.gather(1, place[..., None].expand(-1, -1, 4))
            boxes = decode(raw, anchors[place]).clamp(0, side_px).flatten(0, 1)
            image = torch.arange(B, device=place.device)[:, None].expand_as(place).flatten()
            seen = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_PX).all(1)
            level_of = torch.full_like(image, level)
            parts.append((boxes[seen], best.flatten().sigmoid()[seen], level_of[seen], image[seen]))
        found = Found(*(torch.cat(column) for column in zip(*parts, strict=True)))
        finding = Finding(min_score=0, nms_iou=NMS_IOU, suppression="hard", max_detections=limits.after_nms)
        kept = suppressed(found, B, len(grids), finding)
        return Proposals(kept.boxes_xyxy, kept.image)

    def losses(self, logits: Tensor, offsets: Tensor, anchors: Tensor, truths: Truths) -> dict[str, Tensor]:
        """Means over sampled anchors: cross-entropy of objectness; smooth L1 of the offsets of those with an object."""
        chosen, positive, wanted = [], [], []
        for i in range(len(logits)):
            own = truths.image == i
            objects = truths.boxes_xyxy[own]
            matched = match(anchors, objects, truths.ignored[own], POSITIVE_IOU, NEGATIVE_IOU, best_too=True)
            yes, no = sample(matched, self.num_samples, POSITIVE_SHARE)
            start = i * len(anchors)
            positive.append(start + yes)
            chosen += [start + yes, start + no]
            wanted.append(encode(objects[matched.owner[yes]], anchors[yes]))
        there, sampled = torch.cat(positive), torch.cat(chosen)
        target = torch.zeros_like(logits).flatten()
        target[there] = 1
        total = max(1, len(sampled))
        entropy = F.binary_cross_entropy_with_logits(
            logits.flatten()[sampled], target[sampled], reduction="sum"
        )
        apart = F.smooth_l1_loss(offsets.flatten(0, 1)[there], torch.cat(wanted), beta=BETA, reduction="sum")
        return {"rpn_objectness": entropy / total, "rpn_box": apart / total}
