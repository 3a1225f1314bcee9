"""The families: one table. Another is one file per layer and one entry here; see docs/adding-a-family.md."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from data.classification import COLUMNS
from data.dataset import Dataset
from data.detection import COLUMNS as DETECTION_COLUMNS
from data.landmarks import COLUMNS as LANDMARK_COLUMNS
from data.parameters import Parameters
from data.stream import Layout, layout_of
from models.classification import without_sides
from models.faces import without_people
from tasks import arrays, classification, detection, faces, landmarks, signals, style, volumes
from tasks.card import ModelCard


def plain_layout(config: Any, dataset: Dataset) -> Layout:  # noqa: ARG001
    """How the train split lies on disk: any pictures make a batch."""
    return layout_of(dataset, "train")


def no_notes(config: Any, dataset: Dataset) -> list[str]:  # noqa: ARG001
    """Nothing about the pictures stands out."""
    return []


def all_read(config: Any) -> dict[str, str]:  # noqa: ARG001
    """Every parameter has its effect, whatever the others are."""
    return {}


def no_fault(means: dict[str, float], step: int, num_steps: int, config: Any) -> None:
    """Nothing but a loss that is not finite is wrong with a training."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the loop, evaluation and prediction need to know of a family: no base class, just callables."""

    config: type[Parameters]  # its parameters
    columns: tuple[str, ...]  # of a dataset's rows: what samples are made of
    decode: Callable[..., Any]  # (table of these columns, info, config) -> arrays, one entry a row
    empty: Callable[..., Any]  # (info, config) -> arrays of a split without samples
    records: Callable[..., Any]  # (tensors of a split) -> records: len(), .to(device)
    batch: Callable[..., Any]  # (records, indices, info, config, generator, shrink_px, rows) -> batch
    # (config, info, sample) -> a fresh model; sample() gives some plain batches
    model: Callable[..., nn.Module]
    loss: Callable[..., Any]  # (model, batch, config) -> (scalar, {name: tensor}); it owns the forward pass
    validate: Callable[..., dict[str, float]]  # (model, batches of a split, config) -> metrics
    card: Callable[..., ModelCard]  # (config, info, digest, run) -> card of one trained model
    rebuild: Callable[..., nn.Module]  # (card, member) -> a model of that shape, weights still to be loaded
    layout: Callable[..., Layout] = plain_layout  # (config, dataset) -> train's, and how batches are drawn
    # (config, dataset) -> what a person should know before training
    notes: Callable[[Any, Dataset], list[str]] = no_notes
    # (config) -> parameters, as section.name, that beside the others have no effect, and why
    unread: Callable[[Any], dict[str, str]] = all_read
    # (means, step, num_steps, config) -> raises where training went wrong
    judge: Callable[..., None] = no_fault
    kept: Callable[..., dict[str, Any]] = without_sides  # state dict in training -> that of the saved model


FAMILIES: dict[str, Family] = {
    "classification": Family(
        config=classification.ClassificationConfig,
        columns=COLUMNS,
        decode=classification.decode,
        empty=classification.empty,
        records=classification.records,
        batch=classification.batch,
        model=classification.build_model,
        loss=classification.loss,
        validate=classification.validate,
        card=classification.card,
        rebuild=classification.rebuild,
    ),
    "detection": Family(
        config=detection.DetectionConfig,
        columns=DETECTION_COLUMNS,
        notes=detection.notes,
        unread=detection.unread,
        decode=detection.decode,
        empty=detection.empty,
        records=detection.records,
        batch=detection.batch,
        model=detection.build_model,
        loss=detection.loss,
        validate=detection.validate,
        card=detection.card,
        rebuild=detection.rebuild,
    ),
    "faces": Family(
        config=faces.FaceConfig,
        columns=COLUMNS,
        decode=classification.decode,
        empty=classification.empty,
        records=classification.records,
        batch=classification.batch,
        model=faces.build_model,
        loss=faces.loss,
        validate=faces.validate,
        card=faces.card,
        rebuild=faces.rebuild,
        layout=faces.layout,
        judge=faces.judge,
        kept=without_people,
    ),
    "landmarks": Family(
        config=landmarks.LandmarkConfig,
        columns=LANDMARK_COLUMNS,
        decode=landmarks.decode,
        empty=landmarks.empty,
        records=landmarks.records,
        batch=landmarks.batch,
        model=landmarks.build_model,
        loss=landmarks.loss,
        validate=landmarks.validate,
        card=landmarks.card,
        rebuild=landmarks.rebuild,
    ),
    "signals": Family(
        config=signals.SignalConfig,
        columns=arrays.COLUMNS,
        decode=arrays.decode,
        empty=arrays.empty,
        records=arrays.records,
        batch=signals.batch,
        model=signals.build_model,
        loss=classification.loss,
        validate=classification.validate,
        card=arrays.card,
        rebuild=arrays.rebuild,
    ),
    "style": Family(
        config=style.StylizerConfig,
        columns=COLUMNS,
        decode=classification.decode,
        empty=classification.empty,
        records=classification.records,
        batch=classification.batch,
        model=style.build_model,
        loss=style.loss,
        validate=style.validate,
        card=style.card,
        rebuild=style.rebuild,
    ),
    "volumes": Family(
        config=volumes.VolumeConfig,
        columns=arrays.COLUMNS,
        decode=arrays.decode,
        empty=arrays.empty,
        records=arrays.records,
        batch=volumes.batch,
        model=arrays.build_model,
        loss=classification.loss,
        validate=classification.validate,
        card=arrays.card,
        rebuild=arrays.rebuild,
    ),
}
