"""What every detector is to the rest: losses of a batch with its boxes, detections of a batch without.

    detector(images, truths)    training: {name: term}, whose sum is descended
    detector(images)            (B, C, S, S) uint8 → Found, at the settings of `detector.finding`

Pictures are squares of uint8 that the detector normalises itself; boxes are edges in their pixels. One call with either
is what lets DistributedDataParallel wrap a detector.
"""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from data.parameters import Parameters
from models.boxes import nms


class Found(NamedTuple):
    """The D detections of a batch: by image, in it by falling score."""

    boxes_xyxy: Tensor  # (D, 4) float32, pixels of the batch's pictures
    scores: Tensor  # (D,) float32 in [0, 1]
    labels: Tensor  # (D,) int64
    image: Tensor  # (D,) int64, place in the batch, ascending


class Finding(Parameters):
    """Which of a detector's boxes are reported."""

    min_score: float = Field(ge=0, le=1, description="boxes below this score are left out")
    nms_iou: float = Field(
        gt=0, le=1, description="of two boxes of a class that overlap by more, the worse is left out"
    )
    max_detections: int = Field(ge=1, description="boxes of a picture, at most: the best")


def suppressed(found: Found, num_images: int, num_classes: int, finding: Finding) -> Found:
    """The best boxes of each picture, after suppression by class; `found` may be in any order."""
    boxes, scores, labels, image = found
    kept = nms(boxes, scores, finding.nms_iou, labels=image * num_classes + labels)
    kept = kept[image[kept].argsort(stable=True)]  # by picture, in it by falling score
    counts = torch.bincount(image[kept], minlength=num_images)
    rank = torch.arange(len(kept), device=kept.device) - (counts.cumsum(0) - counts)[image[kept]]
    kept = kept[rank < finding.max_detections]
    return Found(boxes[kept], scores[kept], labels[kept], image[kept])
