"""Faster R-CNN with a feature pyramid (Ren et al. 2015, https://arxiv.org/abs/1506.01497; Lin et al. 2016,
https://arxiv.org/abs/1612.03144): proposals are learnt, on the maps that are also looked at.

`FasterRcnn.net` has torchvision's layout and keys (41,755,286 parameters with ResNet-50, 90 classes and frozen norms),
so that its published weights fit: `torchvision_state`, `load_faster_rcnn`. Label k is their class k + 1. It does not
resize pictures: torchvision's were trained with a shorter side of 800 pixels.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from data.detection import Truths
from models.detector import Finding
from models.fpn import Backbone, Norm
from models.roialign import levels_of, roi_align, roi_max_pool
from models.roiheads import RegionDetector, RoiHeads, TwoLayers
from models.rpn import Limits, Proposals, RegionProposals
from models.stages import misfits

Pooling = Literal["align", "max"]
POOLED_PX = 7  # sides of the features of a proposal
NORM_EPS = 1e-5  # of frozen norms
CLASS_LAYERS = "roi_heads.box_predictor."
SHOWN = 8  # tensors in an error
REGIONS_PER_PASS = 1000


class PyramidNet(nn.Module):
    """The parts of a detector that looks at a pyramid; names are torchvision's."""

    def __init__(self, backbone: Backbone, rpn: RegionProposals | None, roi_heads: RoiHeads) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi_heads = backbone, rpn, roi_heads


class PyramidRcnn(RegionDetector):
    """A detector that looks at proposals on a pyramid: what Fast and Faster R-CNN share."""

    regions_per_pass = REGIONS_PER_PASS

    def __init__(
        self,
        num_classes: int,
        channels: int,
        body: str,
        strides: Sequence[int],
        width: int,
        norm: Norm,
        norm_eps: float,
        num_frozen: int,
        pooling: Pooling,
        canonical_px: float,
        head_width: int,
        num_samples: int,
        mean: Sequence[float],
        std: Sequence[float],
        finding: Finding,
        rpn: RegionProposals | None = None,
    ) -> None:
        """See `models.fpn.Backbone` for what makes the pyramid, `models.roialign.levels_of` for `canonical_px`."""
        super().__init__(num_classes, mean, std, finding)
        backbone = Backbone(body, channels, strides, width, norm, norm_eps, num_frozen)
        heads = RoiHeads(TwoLayers(width * POOLED_PX**2, head_width), head_width, num_classes, num_samples)
        self.net = PyramidNet(backbone, rpn, heads)
        self.pooling, self.canonical_px = pooling, canonical_px

    @property
    def body(self) -> nn.Module:  # type: ignore[override]
        return self.net.backbone.body

    @property
    def heads(self) -> RoiHeads:
        return self.net.roi_heads

    def maps(self, images: Tensor) -> list[Tensor]:
        """The levels of the pyramid, the coarsest is for the proposal network alone."""
        return self.net.backbone(self.normalise(images))

    def look(self, maps: list[Tensor], boxes_xyxy: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, 1 + K) and offsets (R, 1 + K, 4) of boxes (R, 4)."""
        strides = self.net.backbone.strides
        level = levels_of(boxes_xyxy, strides, self.canonical_px)
        maps = maps[: len(strides)]
        if self.pooling == "align":
            return self.heads(roi_align(maps, boxes_xyxy, image, level, strides, POOLED_PX))
        pooled = maps[0].new_zeros(len(boxes_xyxy), maps[0].shape[1], POOLED_PX, POOLED_PX)
        for number, (each, stride) in enumerate(zip(maps, strides, strict=True)):
            own = (level == number).nonzero()[:, 0]
            part = roi_max_pool(each, boxes_xyxy[own], image[own], stride, POOLED_PX)
            pooled = pooled.index_copy(0, own, part)
        return self.heads(pooled)


class FasterRcnn(PyramidRcnn):
    """A detector, see models.detector, whose proposals come from a network on its pyramid."""

    def __init__(
        self,
        num_classes: int,
        channels: int,
        body: str,
        strides: Sequence[int],
        width: int,
        norm: Norm,
        norm_eps: float,
        num_frozen: int,
        anchor_sides: Sequence[Sequence[float]],
        anchor_ratios: Sequence[float],
        rpn_samples: int,
        training_proposals: int,
        proposals: int,
        canonical_px: float,
        head_width: int,
        num_samples: int,
        mean: Sequence[float],
        std: Sequence[float],
        finding: Finding,
    ) -> None:
        """`anchor_sides` in pixels, for each stride and one more; `training_proposals` and `proposals` of a picture, at
        most, and of each level before suppression."""
        if len(anchor_sides) != len(strides) + 1:
            raise ValueError(
                f"anchor_sides (={anchor_sides}) must be of {len(strides) + 1} levels: "
                f"strides {list(strides)} and one more"
            )
        rpn = RegionProposals(
            width,
            anchor_sides,
            anchor_ratios,
            rpn_samples,
            Limits(training_proposals, training_proposals),
            Limits(proposals, proposals),
        )
        super().__init__(
            num_classes, channels, body, strides, width, norm, norm_eps, num_frozen, "align", canonical_px,
            head_width, num_samples, mean, std, finding, rpn,
        )  # fmt: skip

    def regions(
        self, images: Tensor, maps: list[Tensor], truths: Truths | None
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """The proposals of the network, and its losses."""
        assert self.net.rpn is not None
        return self.net.rpn(maps, images.shape[2], truths)


# Faster R-CNN as published, and for 640 pixels on a few cores; all arguments but classes, channels, mean, std and
# finding. Each can be given anew.
fasterrcnn_resnet50_fpn = partial(
    FasterRcnn,
    body="resnet50",
    strides=(4, 8, 16, 32),
    width=256,
    norm="frozen",
    norm_eps=NORM_EPS,
    num_frozen=0,
    anchor_sides=((32,), (64,), (128,), (256,), (512,)),
    anchor_ratios=(0.5, 1.0, 2.0),
    rpn_samples=256,
    training_proposals=2000,
    proposals=1000,
    canonical_px=224,
    head_width=1024,
    num_samples=512,
)
fasterrcnn_resnet18_fpn = partial(
    fasterrcnn_resnet50_fpn,
    body="resnet18",
    strides=(8, 16, 32),
    width=128,
    anchor_sides=((32,), (64,), (128,), (256,)),
    training_proposals=500,
    proposals=300,
    canonical_px=112,
    head_width=512,
    num_samples=128,
)


def torchvision_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published weights of a torchvision Faster R-CNN as `FasterRcnn.net` takes them.

    The older files lack a level in the names of the pyramid's and the proposal network's convolutions. Frozen norms,
    those that count no batches, were published with an epsilon of 0: their scale takes in what ours changes.
    """
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
        name = re.sub(r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", name)
        renamed[name] = value
    for name, variance in state.items():
        norm = name.removesuffix(".running_var")
        scale = renamed.get(f"{norm}.weight")
        frozen = norm != name and f"{norm}.num_batches_tracked" not in state
        if frozen and scale is not None and scale.shape == variance.shape:
            renamed[f"{norm}.weight"] = scale * ((variance + NORM_EPS) / variance).sqrt()
    return renamed


def is_faster_rcnn(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors are those of a whole Faster R-CNN, and not of a classifier."""
    return any(name.startswith("rpn.head.") for name in state)


def load_faster_rcnn(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Put the weights of a whole Faster R-CNN, by the keys of `FasterRcnn.net`, into a detector, but for layers of
    classes where there are others in number.

    Raises ValueError listing what does not fit.
    """
    if not isinstance(model, FasterRcnn):
        raise ValueError(
            f"transfer.weights (={source}) are of a whole Faster R-CNN, not of a {type(model).__name__}: set "
            "model.name=fasterrcnn_resnet50_fpn for published ones"
        )
    own = model.net.state_dict()
    classes = {name: value for name, value in own.items() if name.startswith(CLASS_LAYERS)}
    # a frozen norm counts no batches
    given = {name: v for name, v in state.items() if name in own or not name.endswith("num_batches_tracked")}
    if any(name not in given or given[name].shape != value.shape for name, value in classes.items()):
        given |= classes
    if faults := misfits(own, given):
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ValueError(
            f"transfer.weights (={source}) do not fit this detector: {'; '.join(faults[:SHOWN])}{more}. Published ones "
            "fit model.name=fasterrcnn_resnet50_fpn and pictures of colour"
        )
    model.net.load_state_dict(given, strict=True)
