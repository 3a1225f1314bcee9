"""Classification with localisation: what is in the picture, and where, if there is one thing to find.

For each picture a vector y = (p_c, b_x, b_y, b_h, b_w, c_1 … c_K): whether there is an object, the middle, height and
width of its box as shares of the picture, and its class, as Ng's course on convolutional networks has it. Of several
objects it is the largest. Where there is none, only p_c counts. Two losses:

`squared`: the sum of squared errors of all components. `likelihood`: the negative log-likelihood of p_c (logistic) and
of the class (softmax), in nats, and squared errors of the box.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.detection import Truths, pad
from models.bodies import make_body
from models.boxes import area, cxcywh_to_xyxy, xyxy_to_cxcywh
from models.detector import Detector, Finding, Found

LocalisationLoss = Literal["squared", "likelihood"]
GRID = 3  # places of the last map that the head looks at, along each side
START_PRESENCE = 0.5  # p_c before anything is learnt


class Localiser(Detector):
    """A detector, see models.detector, of at most one object a picture."""

    def __init__(
        self,
        num_classes: int,
        channels: int,
        body: str,
        loss: LocalisationLoss,
        mean: Sequence[float],
        std: Sequence[float],
        finding: Finding,
    ) -> None:
        super().__init__(num_classes, mean, std, finding)
        self.loss: LocalisationLoss = loss
        self.body = make_body(body, channels)
        self.head = nn.Linear(self.body.widths[-1] * GRID**2, 5 + num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.constant_(self.head.bias, START_PRESENCE)

    def forward(self, images: Tensor, truths: Truths | None = None) -> dict[str, Tensor] | Found:
        """Losses where `truths` are given, else detections."""
        y = self.vector(images)
        return self.find(y, images.shape[2]) if truths is None else self.losses(y, images.shape[2], truths)

    def vector(self, images: Tensor) -> Tensor:
        """(B, C, S, S) uint8 → (B, 5 + K) float32: y, before the link of the likelihood."""
        # a coarse grid is kept: the mean over all places would not know where they are
        places = F.adaptive_avg_pool2d(self.body(self.normalise(images))[-1], GRID)
        return self.head(torch.flatten(places, 1)).float()

    def losses(self, y: Tensor, side_px: int, truths: Truths) -> dict[str, Tensor]:
        """Mean over the pictures of what each part of y costs; pictures of nothing but ignored objects do not count."""
        padded = pad(truths, len(y))
        wanted = padded.taken & ~padded.ignored
        there = wanted.any(1)
        counts = there | ~padded.taken.any(1)
        sizes = torch.where(wanted, area(padded.boxes_xyxy), -1.0)
        if sizes.shape[1]:
            largest = sizes.argmax(1)
            rows = torch.arange(len(y), device=y.device)
            box, label = padded.boxes_xyxy[rows, largest], padded.labels[rows, largest]
        else:
            box, label = y.new_zeros(len(y), 4), torch.zeros(len(y), dtype=torch.int64, device=y.device)
        cx, cy, width, height = (xyxy_to_cxcywh(box) / side_px).unbind(1)
        target = torch.stack([cx, cy, height, width], 1)
        presence, place, classes = y[:, 0], y[:, 1:5], y[:, 5:]
        if self.loss == "squared":
            of_presence = (presence - there.float()).square()
            of_box = (place - target).square().sum(1)
            of_class = (classes - F.one_hot(label, self.num_classes)).square().sum(1)
        else:
            of_presence = F.binary_cross_entropy_with_logits(presence, there.float(), reduction="none")
            of_box = (place.sigmoid() - target).square().sum(1)
            of_class = F.cross_entropy(classes, label, reduction="none")
        num = counts.sum().clamp(min=1)
        return {
            "presence": (of_presence * counts).sum() / num,
            "box": (of_box * there).sum() / num,
            "class": (of_class * there).sum() / num,
        }

    @torch.no_grad()
    def find(self, y: Tensor, side_px: int) -> Found:
        """The object of each picture, if its score is enough: p_c times the class's."""
        if self.loss == "squared":
            presence, place = y[:, 0].clamp(0, 1), y[:, 1:5].clamp(0, 1)
            classes = y[:, 5:].clamp(0, 1)
        else:
            presence, place = y[:, 0].sigmoid(), y[:, 1:5].sigmoid()
            classes = y[:, 5:].softmax(1)
        chance, label = classes.max(1)
        score = presence * chance
        cx, cy, height, width = place.unbind(1)
        boxes = cxcywh_to_xyxy(torch.stack([cx, cy, width, height], 1) * side_px).clamp(0, side_px)
        [image] = torch.where(score >= self.finding.min_score)
        return Found(boxes[image], score[image], label[image], image)
