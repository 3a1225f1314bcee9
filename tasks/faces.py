"""The family faces: its parameters, and how it turns pictures of people into batches, losses and embedders.

    ./convoy data add convoy:synthetic_faces --name synthetic_faces --family faces
    ./convoy train faces --dataset synthetic_faces

An embedder is trained on some people and used on others, so a dataset is split by person, and validation looks at
people that training never saw: how well distances tell their pairs apart.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data.augment import AugmentConfig
from data.classification import InputConfig
from data.dataset import SPLITS, Dataset, DatasetInfo, Split
from data.parameters import Parameters
from data.people import People
from data.records import Batch
from data.stream import Layout, layout_of
from models.faces import (
    FACE_NETS,
    FaceLoss,
    FaceModel,
    build,
    face_loss,
    head_of,
    least_face_px,
    load_published,
)
from tasks.card import Member, ModelCard, Preprocessing, card_of_one
from tasks.facepairs import neighbour_loss, pair_figures, pairs_of_people
from tasks.optim import OptimConfig
from tasks.settings import TrainConfig, WeightsSource
from tasks.transfer import Weights
from tasks.verification import NOTHING, far_name
from tasks.wholebatch import as_the_first_has, gathered, workers_of

FaceView = Literal["single", "mirror"]
MOST_PAIRS = 20_000  # of a kind, that validation looks at while training
ACCURACY = (
    "accuracy"  # among a card's thresholds, that of the highest accuracy; the others are called far_1e-2
)
BEGINNING = 0.1  # share of the steps in which embeddings may still be alike


class FaceEvaluate(Parameters):
    """How an embedder is tested."""

    views: tuple[FaceView, ...] = Field(
        min_length=1, description="ways to look at each picture, all reported; mirror: f(x) + f(mirror x)"
    )
    registered_view: FaceView = Field(description="the way that the registered model uses")
    batch_size: int = Field(ge=1, description="pictures a forward pass")
    num_worst: int = Field(ge=0, le=100, description="pairs to show that are judged most wrongly")
    false_accept_rates: tuple[float, ...] = Field(
        min_length=1,
        description="rates at which thresholds are fitted on validation, as far as its pairs support them",
    )

    @model_validator(mode="after")
    def _rates_are_shares(self) -> Self:
        if not all(0 < rate < 1 for rate in self.false_accept_rates):
            raise ValueError(
                f"false_accept_rates (={list(self.false_accept_rates)}) must lie between 0 and 1"
            )
        return self


class FaceSampling(Parameters):
    """Which pictures a batch has."""

    pictures_per_person: int = Field(
        ge=0,
        le=100,
        description="K: batches of train.batch_size / K people with K pictures each; 0: any pictures, each "
        "once an epoch",
    )


class FaceTransfer(Parameters):
    """What training starts from."""

    weights: WeightsSource = Field(
        description='"": none. FILE.safetensors or .pth, https://...#sha256=..., or package:NAME of an installed '
        "package that ships them: of the network that model.name names"
    )
    mode: Literal["all", "head"] = Field(
        description="what is trained: all of it, or the layers that make the embedding"
    )

    @model_validator(mode="after")
    def _freezes_weights(self) -> Self:
        if self.mode == "head" and not self.weights:
            raise ValueError(
                "transfer.mode (=head) freezes weights that nobody trained: give transfer.weights"
            )
        return self


class FaceConfig(Parameters):
    """Everything that decides what a training run on faces gives."""

    dataset: str = Field(description="name of an ingested dataset: ./convoy data list")
    model: FaceModel
    input: InputConfig
    augment: AugmentConfig
    sampling: FaceSampling
    loss: FaceLoss
    transfer: FaceTransfer
    optim: OptimConfig
    train: TrainConfig
    evaluate: FaceEvaluate

    @model_validator(mode="after")
    def _network_fits(self) -> Self:
        name, least = self.model.name, least_face_px(self.model.name)
        if self.input.crop_px < least:
            raise ValueError(f"input.crop_px (={self.input.crop_px}) must be at least {least} for {name}")
        if self.train.growth and name in FACE_NETS:
            raise ValueError(
                f"train.growth must be [] for {name}: its last layers take pictures of one size only"
            )
        return self

    @model_validator(mode="after")
    def _batches_have_pairs(self) -> Self:
        K, settings = self.sampling.pictures_per_person, self.train
        if K == 1 or (self.loss.compares and K == 0):
            raise ValueError(
                f"sampling.pictures_per_person (={K}) must be at least 2 for loss.name={self.loss.name}"
                f"{'' if self.loss.compares else ', or 0'}"
            )
        if K:
            parts = settings.num_workers * settings.accumulate_batches
            met = settings.batch_size // (settings.accumulate_batches * K)  # those of all workers meet
            if settings.batch_size % (parts * K) or (self.loss.compares and met < 2):
                raise ValueError(
                    f"train.batch_size (={settings.batch_size}) must be divisible by pictures_per_person (={K}) times "
                    f"num_workers times accumulate_batches (={parts}), and each part of accumulate_batches "
                    f"(={settings.accumulate_batches}) must have two people or more"
                )
        return self

    @model_validator(mode="after")
    def _people_are_no_classes(self) -> Self:
        if self.augment.mixup_alpha or self.augment.cutmix_alpha:
            raise ValueError(
                "augment.mixup_alpha and cutmix_alpha must be 0 for faces: nobody is half a person"
            )
        if self.optim.class_weights != "none" or self.optim.label_smoothing:
            raise ValueError("optim.class_weights must be none and optim.label_smoothing 0 for faces")
        if self.train.patience_metric == "ap":
            raise ValueError("train.patience_metric must be accuracy or loss for faces")
        return self


def layout(config: FaceConfig, dataset: Dataset) -> Layout:
    """How train lies on disk, and who is on each picture where batches are drawn by person.

    Raises ValueError for a person of train who stands in another split too: what evaluation measured would be a lie.
    """
    require_apart(dataset)
    found = layout_of(dataset, "train")
    K = config.sampling.pictures_per_person
    if not K:
        return found
    labels = dataset.table("train", ["label"])["label"].to_numpy().astype(np.int64)
    return replace(found, people=People(labels, K))


def require_apart(dataset: Dataset) -> None:
    """Raise ValueError if anybody stands in two splits."""
    found = {split: people_of(dataset.info, split) for split in SPLITS}
    for first, second in combinations(SPLITS, 2):
        both = sorted(found[first] & found[second])
        if both:
            raise ValueError(
                f"dataset {dataset.info.name!r}: {len(both)} people of {first} stand in {second} too, as {both[0]!r}; "
                "an embedder is tested on people that it never saw: add the source again with each person on one side"
            )


def people_of(info: DatasetInfo, split: Split) -> set[str]:
    """Names of those who have a picture in a split."""
    return {name for name, num in info.counts.get(split, {}).items() if num}


def build_model(
    config: FaceConfig,
    info: DatasetInfo,
    sample: Callable[[], Sequence[Batch]],  # noqa: ARG001
    weights: Weights | None = None,
) -> nn.Module:
    """A fresh embedder, with a vector for each person of train where the loss tells them apart.

    With `weights` its body begins with them and their normalisation.
    """
    people = [label for label, name in enumerate(info.classes) if info.counts["train"].get(name, 0)]
    if not config.loss.compares and len(people) < 2:
        raise ValueError(f"loss.name={config.loss.name} tells people apart, and train has {len(people)}")
    mean, std = (info.channel_mean, info.channel_std) if weights is None else (weights.mean, weights.std)
    arguments = config.model.arguments(config.input.crop_px)
    told_apart = () if config.loss.compares else people
    model = build(config.model.name, info.channels, arguments, mean, std, told_apart)
    if weights is not None:
        load_published(model, weights.state, weights.source)
        if config.transfer.mode == "head":
            model.freeze_body(head_of(config.model.name, model.net))
    return model


def loss(model: nn.Module, batch: Batch, config: FaceConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward pass: the loss to descend, and what to log of it; see models.faces.face_loss.

    Of several workers each compares the pictures of all; people are told apart on its own pictures alone, since that
    loss is a mean over pictures.
    """
    found = model(batch.images, batch.labels)
    workers = workers_of(model)
    pictures = torch.from_numpy(batch.indices).to(batch.labels.device)
    labels, pictures = (gathered(each, workers) for each in (batch.labels, pictures))
    whole = found._replace(embeddings=gathered(found.embeddings, workers))
    agree = partial(as_the_first_has, workers=workers)
    with torch.autocast(labels.device.type, enabled=False):  # bfloat16's distances are of two digits
        value, logged = face_loss(whole, labels, pictures, config.loss, agree)
    return value, {name: term.detach() for name, term in logged.items()}


def judge(means: dict[str, float], step: int, num_steps: int, config: FaceConfig) -> None:
    """Raise FloatingPointError where training has come to the trivial solution: all embeddings are the same.

    `means` are those of the steps since the last message, all of which must have it; the first steps may.
    """
    if means.get("collapsed", 0.0) < 1 or step <= num_steps * max(BEGINNING, config.optim.warmup_share):
        return
    raise FloatingPointError(
        f"training has collapsed to the trivial solution by step {step} of {num_steps}: all embeddings are the same "
        f"(mean distance {means['pair_distance']:.2g}), the loss sits at {means['loss']:.4g}, which is that of "
        f"loss.margin (={config.loss.margin:g}), and no gradient leads away; lower optim.lr, raise optim.warmup_share, "
        "begin with loss.mining=semi_hard or random, or set model.centre=true"
    )


def validate(model: nn.Module, batches: Iterable[Batch], config: Any) -> dict[str, float]:  # noqa: ARG001
    """How well distances tell pairs of people apart that training never saw: `accuracy`, at the best threshold of these
    pairs, `auc`, and `loss`, see tasks.facepairs; nothing where nobody has two pictures, or there is one person."""
    found = [(model(each.images).embeddings.float().cpu(), each.labels.cpu()) for each in batches]
    embeddings, labels = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    pairs, same = pairs_of_people(labels, MOST_PAIRS)
    if not same.any() or same.all():
        return {}
    return {**pair_figures(embeddings, pairs, same), "loss": neighbour_loss(embeddings, labels)}


def card(config: FaceConfig, info: DatasetInfo, digest: str, run: str) -> ModelCard:
    """What a single trained embedder says of itself; it names nobody."""
    rates = [f"far_{far_name(rate)}" for rate in config.evaluate.false_accept_rates]
    return card_of_one(
        config, info, digest, run,
        arguments=config.model.arguments(config.input.crop_px),
        classes=(),
        preprocessing=Preprocessing(**config.input.model_dump(), channels=info.picture_channels),
        thresholds=dict.fromkeys([ACCURACY, *rates], NOTHING),
        alignment=info.alignment,
    )  # fmt: skip


def far_of(name: str) -> float:
    """The false-accept rate that a card's threshold stands for: 0.01 for far_1e-2."""
    return float(name.removeprefix("far_"))


def rebuild(card: ModelCard, member: Member) -> nn.Module:
    """A network of the member's shape; its weights, statistics included, come from the member's file."""
    channels = card.preprocessing.channels
    unset = (0.0,) * channels
    return build(member.architecture, channels, member.arguments, unset, unset)
