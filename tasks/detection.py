"""The detection family: its parameters, and how it turns pictures with boxes into batches, losses and detectors."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data.dataset import CROWD, DIFFICULT, Dataset, DatasetInfo
from data.detection import (
    LEAST_PX,
    Batch,
    DetectionAugment,
    DetectionInput,
    Scenes,
    Truths,
    boxes_in_squares,
    decode_rows,
    empty_split,
    flattened,
    make_batch,
    too_small,
)
from data.parameters import Parameters
from data.random import SampleGenerator
from models.anchors import best_possible_recall
from models.bodies import load_body
from models.detection import BY_SELECTIVE_SEARCH, FIELDS, PUBLISHED, DetectorConfig, build
from models.detector import Finding, Found, Suppression
from models.fasterrcnn import is_faster_rcnn, load_faster_rcnn
from models.roiheads import RegionDetector
from models.yolo import Yolo
from tasks.card import Member, ModelCard, Preprocessing, card_of_one
from tasks.detectionjoin import joined, moved, of_batch
from tasks.detectionmatches import Detections, Objects, box_areas, match
from tasks.detectionmetrics import known_aps
from tasks.optim import OptimConfig
from tasks.settings import TrainConfig, WeightsSource
from tasks.transfer import Weights

DetectionView = Literal["single", "mirror", "multi_scale"]


class DetectionTransfer(Parameters):
    """What training starts from."""

    weights: WeightsSource = Field(
        description='"": none. FILE.safetensors or .pth, https://...#sha256=..., package:NAME of an installed package '
        "that ships them, or a trained classifier: of the network that model.body names; or a file of a whole Faster "
        "R-CNN, as torchvision publishes them for fasterrcnn_resnet50_fpn"
    )
    mode: Literal["all", "head"] = Field(
        description="what is trained: all of it, or what comes after the body, which then stays as it is"
    )
    body_lr_factor: float = Field(
        gt=0, le=1, description="learning rates of the body, relative to those of the rest"
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.mode == "head" and not self.weights:
            raise ValueError(
                "transfer.mode (=head) keeps a body that nobody trained: give transfer.weights, or set mode=all"
            )
        return self


class DetectionEvaluate(Parameters):
    """How a detector is tested, and what it reports once it is registered."""

    views: tuple[DetectionView, ...] = Field(
        min_length=1, description="ways to look at each picture, all reported"
    )
    registered_view: DetectionView = Field(description="the way that the registered model uses")
    batch_size: int = Field(ge=1, description="pictures a forward pass")
    num_worst: int = Field(
        ge=0, le=100, description="pictures to show: a third each of hits, misses and false alarms"
    )
    precision: float = Field(
        gt=0, lt=1, description="share of the reported boxes that are to be right: decides the least score"
    )
    min_score: float = Field(ge=0, le=1, description="boxes below this score are not looked at at all")
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

    def finding(self) -> Finding:
        """What the detector needs of it."""
        return Finding(**self.model_dump(include=set(Finding.model_fields)))


class DetectionConfig(Parameters):
    """Everything that decides what a training run of a detector gives."""

    dataset: str = Field(description="name of an ingested dataset: ./convoy data list")
    model: DetectorConfig
    input: DetectionInput
    augment: DetectionAugment
    transfer: DetectionTransfer
    optim: OptimConfig
    train: TrainConfig
    evaluate: DetectionEvaluate

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.model.name == PUBLISHED and not self.transfer.weights:
            raise ValueError(
                f"model.name (={PUBLISHED}) has norms that stay as its weights have them, and untrained they do "
                "nothing: give transfer.weights, or set model.name=faster_rcnn"
            )
        if self.train.growth:
            raise ValueError("train.growth must be [] for detection: input.train_px draws sides of batches")
        if self.optim.class_weights != "none":
            raise ValueError(
                f"optim.class_weights (={self.optim.class_weights}) must be none for detection: its losses count "
                "objects"
            )
        if self.optim.label_smoothing:
            raise ValueError(
                f"optim.label_smoothing (={self.optim.label_smoothing:g}) must be 0 for detection: boxes have scores"
            )
        if self.train.patience_metric == "accuracy":
            raise ValueError(
                f"train.patience_metric (={self.train.patience_metric}) must be ap or loss for detection"
            )
        return self

    def arguments(self) -> dict[str, Any]:
        """What the builder of the detector takes beside classes, channels and statistics, as its card has it."""
        return {**self.model.arguments(), "finding": self.evaluate.finding().model_dump()}


def unread(config: DetectionConfig) -> dict[str, str]:
    """Parameters of detectors that the one of this name has no use for, and why."""
    model = config.model
    others = {name for names in FIELDS.values() for name in names} - set(FIELDS[model.name])
    found = {f"model.{name}": f"model.name (={model.name}) does not read it" for name in sorted(others)}
    if model.name == "yolo" and model.assignment != "midpoint":
        found["model.num_anchors"] = f"model.assignment (={model.assignment}) has no anchors"
    return found


def notes(config: DetectionConfig, dataset: Dataset) -> list[str]:
    """What a person should know before training: that it will be slow, how many boxes are too small for it."""
    told = []
    rows = dataset.table("train", ["width", "height", "boxes_xyxy", "box_labels", "box_flags"])
    name, endless = config.model.name, config.augment.endless
    if name in BY_SELECTIVE_SEARCH and endless:
        off = " ".join(f"augment.{each}={'[1,1]' if each == 'scale' else 0}" for each in endless)
        told.append(
            f"model.name (={name}) looks at what selective search proposes, which takes a second or two of a "
            f"photograph, and each of {rows.num_rows:,} training pictures is searched anew in every epoch, since "
            f"augmentation makes it another one; to search it once, set {off}"
        )
    objects = (flattened(rows["box_flags"], np.uint8) & (CROWD | DIFFICULT)) == 0
    small = too_small(torch.from_numpy(boxes_in_squares(rows, config.input))).numpy() & objects
    if small.any():
        told.append(
            f"of {objects.sum():,} training boxes, {small.sum():,} with a side below {LEAST_PX:g} px at "
            f"input.stored_px (={config.input.stored_px}): where augmentation does not enlarge these, they are taught "
            "as neither object nor background; raise input.stored_px to find them"
        )
    return told


def decode(rows: pa.Table, info: DatasetInfo, config: DetectionConfig) -> dict[str, np.ndarray]:
    """Decode rows of a dataset to arrays; see data.detection.decode_rows."""
    return decode_rows(rows, info.picture_channels, config.input)


def empty(info: DatasetInfo, config: DetectionConfig) -> dict[str, np.ndarray]:
    """The arrays of a split without pictures."""
    return empty_split(info.picture_channels, config.input)


def records(arrays: dict[str, Tensor]) -> Scenes:
    """The split as samples."""
    return Scenes(**arrays)


def batch(
    samples: Scenes,
    indices: np.ndarray,
    info: DatasetInfo,
    config: DetectionConfig,
    generator: SampleGenerator | None,
    shrink_px: int = 0,
    rows: np.ndarray | None = None,
) -> Batch:
    """The samples at `indices`, augmented where a generator is given; see data.detection.make_batch."""
    assert shrink_px == 0, "the parameters refuse growth"
    return make_batch(samples, indices, info, config.input, config.augment, generator, rows)


def build_model(
    config: DetectionConfig,
    info: DatasetInfo,
    sample: Callable[[], Sequence[Batch]],
    weights: Weights | None = None,
) -> nn.Module:
    """A fresh detector; `sample()` gives plain batches of training pictures, to whose boxes anchors are fitted."""
    mean, std = (info.channel_mean, info.channel_std) if weights is None else (weights.mean, weights.std)
    model = build(config.model.name, len(info.classes), info.channels, config.arguments(), mean, std)
    if isinstance(model, RegionDetector):
        model.pictures_return = not config.augment.endless
    if weights is not None:
        if is_faster_rcnn(weights.state):
            load_faster_rcnn(model, weights.state, weights.source)
        else:
            load_body(model.body, weights.state, weights.source)
        model.body_lr_factor = config.transfer.body_lr_factor
        if config.transfer.mode == "head":
            model.freeze_body()

    model.fit(lambda: trained_sizes([each.truths for each in sample()]), config.train.seed)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def trained_sizes(truths: Sequence[Truths]) -> Tensor:
    """Widths and heights (N, 2), in pixels, of those boxes of batches that detectors are trained to find."""
    boxes = torch.cat([each.boxes_xyxy[~each.ignored].cpu() for each in truths])
    boxes = boxes[~too_small(boxes)]
    return boxes[:, 2:] - boxes[:, :2]


def loss(model: nn.Module, batch: Batch, config: Any) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG001
    """One forward pass: the sum of the detector's terms, and what to log of them."""
    terms = model(batch.images, batch.truths)
    value = torch.stack(list(terms.values())).sum()
    return value, {"loss": value.detach(), **{name: term.detach() for name, term in terms.items()}}


def validate(model: nn.Module, batches: Iterable[Batch], config: Any) -> dict[str, float]:
    """Loss, and COCO's AP and AP50 of single views; called without gradients, in evaluation mode.

    Where there are anchors, the best possible recall of these pictures' boxes. Without an object, the loss alone.
    """
    found, truths, num_images, total = [], [], 0, 0.0
    for each in batches:
        total += float(loss(model, each, config)[0]) * len(each.images)
        found.append((num_images, model(each.images)))
        truths.append((num_images, each.truths))
        num_images += len(each.images)
    objects = objects_of(truths)
    num_classes = int(getattr(model, "num_classes"))  # noqa: B009 - of any detector
    matches = match(objects, detections_of(found), num_images=num_images, num_classes=num_classes)
    metrics = known_aps(matches) | {"loss": total / num_images}
    sizes = trained_sizes([each for _, each in truths])
    if isinstance(model, Yolo) and model.assignment == "midpoint" and len(sizes):
        metrics["best_possible_recall"] = best_possible_recall(sizes, model.anchors.flatten(0, 1).cpu())
    return metrics


def objects_of(batches: Sequence[tuple[int, Truths]]) -> Objects:
    """The boxes of several batches, each with the place of its first picture; what is ignored is difficult."""
    boxes = np.concatenate([np.empty((0, 4)), *(t.boxes_xyxy.cpu().numpy() for _, t in batches)])
    return Objects(
        image=np.concatenate(
            [np.empty(0, np.int64), *(start + t.image.cpu().numpy() for start, t in batches)]
        ),
        boxes_xyxy=boxes,
        labels=np.concatenate([np.empty(0, np.int64), *(t.labels.cpu().numpy() for _, t in batches)]),
        crowd=np.zeros(len(boxes), bool),
        difficult=np.concatenate([np.empty(0, bool), *(t.ignored.cpu().numpy() for _, t in batches)]),
        area=box_areas(boxes),
    )


def detections_of(batches: Sequence[tuple[int, Found]]) -> Detections:
    """What was found in several batches, each with the place of its first picture."""
    return joined([moved(of_batch(found), start) for start, found in batches])


def card(config: DetectionConfig, info: DatasetInfo, digest: str, run: str) -> ModelCard:
    """What a single trained detector says of itself; the least score is chosen later (tasks.detectionevaluate)."""
    side_px = config.input.stored_px
    return card_of_one(
        config, info, digest, run,
        arguments=config.arguments(),
        classes=info.classes,
        preprocessing=Preprocessing(
            stored_px=side_px, crop_px=side_px, pad_px=0, channels=info.picture_channels, resize=config.input.resize
        ),
        thresholds={"precision": config.evaluate.precision},
    )  # fmt: skip


def rebuild(card: ModelCard, member: Member) -> nn.Module:
    """A detector of the member's shape; its weights, statistics included, come from the member's file."""
    channels = card.preprocessing.channels
    unset = (0.0,) * channels
    return build(member.architecture, len(card.classes), channels, member.arguments, unset, unset)
