"""What the R-CNN line says of each proposal: its class or background, and for each class where the box's edges are.

`RegionDetector` is the course of R-CNN, Fast R-CNN and Faster R-CNN (Girshick 2015, https://arxiv.org/abs/1504.08083,
section 2.3), which differ in where proposals come from and in what is looked at of each. Layout, keys and losses of the
heads are torchvision's: class 0 of the outputs is background, class k + 1 is label k.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.detection import Truths
from models.anchors import decode, encode
from models.detector import Detector, Finding, Found, suppressed
from models.matching import match, sample
from models.rpn import BETA, Proposals

WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of offsets
IOU, POSITIVE_SHARE = 0.5, 0.25
LEAST_PX = 1e-2  # sides of a reported box


class Samples(NamedTuple):
    """The R proposals of a batch that are trained."""

    boxes_xyxy: Tensor  # (R, 4) float32
    image: Tensor  # (R,) int64, ascending
    labels: Tensor  # (R,) int64: 0 for background, label + 1
    wanted_xyxy: Tensor  # (R, 4) float32: the object's box; of background its own


class TwoLayers(nn.Module):
    """Two dense layers: (R, C, size, size) → (R, width)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(features, width)
        self.fc7 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))


class BoxPredictor(nn.Module):
    """(R, width) → logits (R, 1 + K) and offsets (R, 1 + K, 4), float32."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, 1 + num_classes)
        self.bbox_pred = nn.Linear(width, 4 * (1 + num_classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x).float(), self.bbox_pred(x).float().unflatten(1, (-1, 4))


class RoiHeads(nn.Module):
    """Features of proposals (R, …) → logits (R, 1 + K) and offsets (R, 1 + K, 4); what is trained, what is found."""

    def __init__(self, box_head: nn.Module, width: int, num_classes: int, num_samples: int) -> None:
        """`box_head` gives (R, width); `num_samples` proposals of a picture are trained, a quarter of them objects."""
        super().__init__()
        self.box_head, self.box_predictor = box_head, BoxPredictor(width, num_classes)
        self.num_classes, self.num_samples = num_classes, num_samples

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits, offsets = self.box_predictor(self.box_head(features))
        return logits, offsets

    @torch.no_grad()
    def sample(self, proposals: Proposals, truths: Truths, num_images: int) -> Samples:
        """Draw from each picture's proposals and its objects' own boxes."""
        parts = []
        for i in range(num_images):
            own = truths.image == i
            objects, ignored = truths.boxes_xyxy[own], truths.ignored[own]
            boxes = torch.cat([proposals.boxes_xyxy[proposals.image == i], objects[~ignored]])
            matched = match(boxes, objects, ignored, IOU, IOU)
            yes, no = sample(matched, self.num_samples, POSITIVE_SHARE)
            labels = torch.cat([truths.labels[own][matched.owner[yes]] + 1, torch.zeros_like(no)])
            wanted = torch.cat([objects[matched.owner[yes]], boxes[no]])
            chosen = torch.cat([yes, no])
            parts.append((boxes[chosen], torch.full_like(chosen, i), labels, wanted))
        return Samples(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def losses(self, logits: Tensor, offsets: Tensor, samples: Samples) -> dict[str, Tensor]:
        """Means over the samples: cross-entropy in nats; smooth L1 of the offsets of objects, for their own class."""
        there = samples.labels.nonzero()[:, 0]
        total = max(1, len(samples.labels))
        target = encode(samples.wanted_xyxy[there], samples.boxes_xyxy[there], WEIGHTS)
        found = offsets[there, samples.labels[there]]
        return {
            "class": F.cross_entropy(logits, samples.labels, reduction="sum") / total,
            "box": F.smooth_l1_loss(found, target, beta=BETA, reduction="sum") / total,
        }

    @torch.no_grad()
    def find(
        self,
        logits: Tensor,
        offsets: Tensor,
        proposals: Proposals,
        num_images: int,
        side_px: int,
        finding: Finding,
    ) -> Found:
        """Cut by score, decode by class, suppress by class, keep the best."""
        scores = logits.softmax(1)[:, 1:]
        place, label = (scores >= finding.min_score).nonzero().unbind(1)
        boxes = decode(offsets[place, label + 1], proposals.boxes_xyxy[place], WEIGHTS).clamp(0, side_px)
        seen = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_PX).all(1)
        place, label, boxes = place[seen], label[seen], boxes[seen]
        found = Found(boxes, scores[place, label], label, proposals.image[place])
        return suppressed(found, num_images, self.num_classes, finding)


class RegionDetector(Detector):
    """A detector, see models.detector, that looks at proposals one by one."""

    regions_per_pass: int  # where nothing is trained: bounds the memory
    # where proposals are given and not found: of (B, C, S, S) uint8, and whether these may be seen again
    propose: Callable[[Tensor, bool], Proposals]
    # whether training sees a picture again as it was; elsewhere it may always be
    pictures_return: bool = True

    def maps(self, images: Tensor) -> list[Tensor]:
        """What regions are cut from, of pictures (B, C, S, S) uint8."""
        raise NotImplementedError

    def regions(
        self,
        images: Tensor,
        maps: list[Tensor],  # noqa: ARG002 - for those that find them there
        truths: Truths | None,  # noqa: ARG002
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """The proposals, and what they cost where they are learnt."""
        return self.propose(images, self.pictures_return or not self.training), {}

    def look(self, maps: list[Tensor], boxes_xyxy: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, 1 + K) and offsets (R, 1 + K, 4) of boxes (R, 4)."""
        raise NotImplementedError

    @property
    def heads(self) -> RoiHeads:
        raise NotImplementedError

    def forward(self, images: Tensor, truths: Truths | None = None) -> dict[str, Tensor] | Found:
        """Losses where `truths` are given, else detections."""
        maps = self.maps(images)
        proposals, terms = self.regions(images, maps, truths)
        if truths is None:
            return self.find(maps, proposals, len(images), images.shape[2])
        samples = self.heads.sample(proposals, truths, len(images))
        logits, offsets = self.look(maps, samples.boxes_xyxy, samples.image)
        return terms | self.heads.losses(logits, offsets, samples)

    @torch.no_grad()
    def find(self, maps: list[Tensor], proposals: Proposals, num_images: int, side_px: int) -> Found:
        """Detections among proposals."""
        logits, offsets = self.look_at_all(maps, proposals)
        return self.heads.find(logits, offsets, proposals, num_images, side_px, self.finding)

    def look_at_all(self, maps: list[Tensor], proposals: Proposals) -> tuple[Tensor, Tensor]:
        """`look`, a pass after the other: logits (P, 1 + K) and offsets (P, 1 + K, 4)."""
        passes = zip(*(each.split(self.regions_per_pass) for each in proposals), strict=True)
        parts = [self.look(maps, boxes, image) for boxes, image in passes]
        return torch.cat([logits for logits, _ in parts]), torch.cat([offsets for _, offsets in parts])
