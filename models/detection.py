"""The detectors by name, and the parameters that tell them apart."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import nn

from data.parameters import Parameters
from models.detector import Finding
from models.yolo import Assignment, BoxLoss, Yolo

DETECTORS: dict[str, Callable[..., nn.Module]] = {"yolo": Yolo}
DetectorName = Literal["yolo"]
Body = Literal[
    "plain_tiny", "plain_small", "plain_medium",
    "efficientnet_lite0", "mobilenet_v2", "resnet18", "resnet34", "resnet50",
]  # fmt: skip


class DetectorConfig(Parameters):
    """Which detector."""

    name: DetectorName = Field(description="yolo: one pass, boxes from every place of its maps")
    body: Body = Field(
        description="what gives the maps: plain_… are made for training from nothing on CPUs, the others take "
        "transfer.weights of the classifier of that name"
    )
    strides: tuple[Literal[8, 16, 32], ...] = Field(
        min_length=1,
        description="levels that find objects: [8, 16, 32] is a pyramid, [32] the one grid of YOLO",
    )
    width: int = Field(ge=8, le=1024, description="channels of the neck and the heads")
    assignment: Assignment = Field(
        description="task_aligned: the places whose predictions are best learn to find an object; midpoint: the cell "
        "with its middle, by anchors"
    )
    num_anchors: int = Field(
        ge=1, le=16, description="anchors of each level, fitted to the boxes; midpoint only"
    )
    box_loss: BoxLoss = Field(description="1 - that overlap; squared: errors of middles and roots of sides")

    @property
    def network(self) -> str:
        """The network of the classification catalogue whose weights it may start from."""
        return self.body

    def arguments(self) -> dict[str, Any]:
        """What the builder takes of it."""
        values = self.model_dump(exclude={"name"})
        return {**values, "strides": sorted(self.strides)}


def build(
    name: str,
    num_classes: int,
    channels: int,
    arguments: dict[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    """A fresh detector by name; `arguments` as the card has them, `finding` among them."""
    if name not in DETECTORS:
        raise ValueError(f"no detector {name!r}; known: {', '.join(DETECTORS)}")
    values = {**arguments, "finding": Finding(**arguments["finding"])}
    return DETECTORS[name](num_classes=num_classes, channels=channels, mean=mean, std=std, **values)
