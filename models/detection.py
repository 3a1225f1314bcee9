"""The detectors by name, and the parameters that tell them apart."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from pydantic import Field, field_validator

from models.catalogue import NetworkConfig
from models.detector import Detector, Finding
from models.fasterrcnn import NORM_EPS, Pooling, fasterrcnn_resnet18_fpn, fasterrcnn_resnet50_fpn
from models.localiser import LocalisationLoss, Localiser
from models.rcnn import FastRcnn, Rcnn
from models.yolo import Assignment, BoxLoss, Yolo

BY_SELECTIVE_SEARCH = ("rcnn", "fast_rcnn")  # those that are given proposals
# of the R-CNN line sizes that a few cores can train; norms that are trained, so that they start from nothing too
PYRAMID: dict[str, Any] = {
    "strides": (8, 16, 32),
    "width": 128,
    "norm": "batch",
    "canonical_px": 112,
    "head_width": 512,
}
# what recipes choose is given anew; here it is for cards of models from before they could choose it
DETECTORS: dict[str, Callable[..., Detector]] = {
    "yolo": Yolo,
    "localiser": Localiser,
    "rcnn": partial(Rcnn, crop_px=96, num_samples=64, proposals=2000),
    "fast_rcnn": partial(
        FastRcnn,
        **PYRAMID,
        norm_eps=NORM_EPS,
        num_frozen=0,
        pooling="align",
        num_samples=128,
        proposals=2000,
    ),
    "faster_rcnn": partial(fasterrcnn_resnet18_fpn, **PYRAMID),
    "fasterrcnn_resnet50_fpn": fasterrcnn_resnet50_fpn,
}
PUBLISHED = "fasterrcnn_resnet50_fpn"  # the detector whose body is no choice, and whose norms are not trained
PUBLISHED_BODY = "resnet50"
DetectorName = Literal["yolo", "localiser", "rcnn", "fast_rcnn", "faster_rcnn", "fasterrcnn_resnet50_fpn"]
FIELDS = {  # of the parameters below, what each is built from
    "yolo": ("body", "strides", "width", "assignment", "num_anchors", "box_loss"),
    "localiser": ("body", "loss"),
    "rcnn": ("body", "crop_px", "proposals"),
    "fast_rcnn": ("body", "pooling", "proposals"),
    "faster_rcnn": ("body",),
    "fasterrcnn_resnet50_fpn": (),
}
Body = Literal[
    "plain_tiny", "plain_small", "plain_medium",
    "efficientnet_lite0", "mobilenet_v2", "resnet18", "resnet34", "resnet50",
]  # fmt: skip


class DetectorConfig(NetworkConfig):
    """Which detector."""

    name: DetectorName = Field(
        description="yolo: one pass, boxes from every place of its maps; localiser: the one object of a picture; "
        "rcnn: every proposal of selective search through the body; fast_rcnn: proposals cut from its maps; "
        "faster_rcnn: proposals by a network; fasterrcnn_resnet50_fpn: as published"
    )
    body: Body = Field(
        description="what gives the maps: plain_… are made for training from nothing on CPUs, the others take "
        "transfer.weights of the classifier of that name"
    )
    strides: tuple[Literal[8, 16, 32], ...] = Field(
        min_length=1,
        description="yolo: levels that find objects: [8, 16, 32] is a pyramid, [32] the one grid of YOLO",
    )
    width: int = Field(ge=8, le=1024, description="yolo: channels of the neck and the heads")
    assignment: Assignment = Field(
        description="yolo: task_aligned: the places whose predictions are best learn to find an object; midpoint: "
        "the cell with its middle, by anchors"
    )
    num_anchors: int = Field(
        ge=1, le=16, description="yolo: anchors of each level, fitted to the boxes; midpoint only"
    )
    box_loss: BoxLoss = Field(
        description="yolo: 1 - that overlap; squared: errors of middles and roots of sides"
    )
    loss: LocalisationLoss = Field(
        description="localiser: squared errors of all that it says, or the likelihood of presence and class"
    )
    pooling: Pooling = Field(
        description="fast_rcnn: how features of a proposal are cut from the maps: align: bilinear samples; max: the "
        "largest of whole places, as published"
    )
    crop_px: int = Field(
        ge=32, le=512, description="rcnn: side of the squares that proposals are warped to; 227 as published"
    )
    proposals: int = Field(
        ge=1, le=10_000, description="rcnn, fast_rcnn: of a picture, at most; 2000 as published"
    )

    @field_validator("strides")
    @classmethod
    def _each_once(cls, strides: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(strides)) < len(strides):
            raise ValueError(f"must name each stride once, got {list(strides)}")
        return strides

    @property
    def network(self) -> str:
        """The network of the classification catalogue whose weights it may start from."""
        return self.body if "body" in FIELDS[self.name] else PUBLISHED_BODY

    def arguments(self) -> dict[str, Any]:
        """What the builder takes of it."""
        values = self.model_dump(include=set(FIELDS[self.name]))
        return values | ({"strides": sorted(self.strides)} if "strides" in values else {})


def build(
    name: str,
    num_classes: int,
    channels: int,
    arguments: dict[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
) -> Detector:
    """A fresh detector by name; `arguments` as the card has them, `finding` among them."""
    if name not in DETECTORS:
        raise ValueError(f"no detector {name!r}; known: {', '.join(DETECTORS)}")
    values = {**arguments, "finding": Finding(**arguments["finding"])}
    return DETECTORS[name](num_classes=num_classes, channels=channels, mean=mean, std=std, **values)
