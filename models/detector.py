"""What every detector is to the rest: losses of a batch with its boxes, detections of a batch without.

    detector(images, truths)    training: {name: term}, whose sum is descended
    detector(images)            (B, C, S, S) uint8 → Found, at the settings of `detector.finding`

Pictures are squares of uint8 that the detector normalises itself; boxes are edges in their pixels. One call with either
is what lets DistributedDataParallel wrap a detector.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from data.parameters import Parameters
from models.boxes import nms
from models.softnms import Decay, soft_nms

Suppression = Literal["hard", "soft_linear", "soft_gaussian"]
DECAYS: dict[Suppression, Decay] = {"soft_linear": "linear", "soft_gaussian": "gaussian"}


class Found(NamedTuple):
    """The D detections of a batch: by image, in it by falling score."""

    boxes_xyxy: Tensor  # (D, 4) float32, pixels of the batch's pictures
    scores: Tensor  # (D,) float32 in [0, 1]
    labels: Tensor  # (D,) int64
    image: Tensor  # (D,) int64, place in the batch, ascending


class Finding(Parameters):
    """Which of a detector's boxes are reported."""

    min_score: float = Field(ge=0, le=1, description="boxes below this score are left out")
    suppression: Suppression = Field(
        description="hard: of two boxes of a class that overlap, the worse is left out; soft_linear, soft_gaussian: it "
        "loses score"
    )
    nms_iou: float = Field(
        gt=0,
        le=1,
        description="boxes that overlap by more are suppressed; soft_gaussian suppresses by any overlap",
    )
    max_detections: int = Field(ge=1, description="boxes of a picture, at most: the best")


def suppressed(found: Found, num_images: int, num_classes: int, finding: Finding) -> Found:
    """The best boxes of each picture, after suppression by class; `found` may be in any order."""
    boxes, scores, labels, image = found
    groups = image * num_classes + labels
    if finding.suppression == "hard":
        kept = nms(boxes, scores, finding.nms_iou, labels=groups)
    else:
        kept, lowered = soft_nms(
            boxes, scores, DECAYS[finding.suppression], labels=groups, iou_threshold=finding.nms_iou,
            min_score=finding.min_score,
        )  # fmt: skip
        scores = scores.index_put((kept,), lowered)
    kept = kept[image[kept].argsort(stable=True)]  # by picture, in it by falling score
    counts = torch.bincount(image[kept], minlength=num_images)
    rank = torch.arange(len(kept), device=kept.device) - (counts.cumsum(0) - counts)[image[kept]]
    kept = kept[rank < finding.max_detections]
    return Found(boxes[kept], scores[kept], labels[kept], image[kept])


class Detector(nn.Module):
    """What detectors share: a body that gives maps, the input's normalisation, and which of it is trained."""

    body: nn.Module
    mean: Tensor
    std: Tensor
    body_is_frozen: bool = False
    body_lr_factor: float = 1.0  # rates of the body, relative to those of the rest

    def __init__(
        self, num_classes: int, mean: Sequence[float], std: Sequence[float], finding: Finding
    ) -> None:
        super().__init__()
        self.num_classes, self.finding = num_classes, finding
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalise(self, images: Tensor) -> Tensor:
        """(B, C, S, S) uint8 → float32, zero mean and unit deviation over the training pixels."""
        return (images.to(torch.float32, memory_format=torch.channels_last) / 255 - self.mean) / self.std

    def freeze_body(self) -> None:
        """Do not train the body: no gradients, and its norms keep their statistics."""
        self.body.requires_grad_(False)
        self.body_is_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.body_is_frozen:
            self.body.eval()
        return self

    def rate_factors(self) -> dict[str, float]:
        """Factors of learning rates by the names of parameters; of those that are not listed it is one."""
        body = {id(parameter) for parameter in self.body.parameters()}
        factor = self.body_lr_factor
        return {name: factor for name, each in self.named_parameters() if factor != 1 and id(each) in body}

    def fit(self, sizes_wh: Callable[[], Tensor], seed: int) -> None:
        """Fit what depends on training boxes, of most detectors nothing.

        `sizes_wh()` gives their widths and heights (N, 2), in pixels; pictures are read for it, so only where needed.
        """
