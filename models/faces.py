"""Networks that turn a picture of a face into a vector of unit length, and the losses that they are trained by.

Bodies are the networks of models/mobilefacenet.py, Inception-ResNet-v1, and any network of the classification
catalogue, whose logits become the embedding. Where training tells the people of the train split apart (CosFace,
ArcFace), their unit vectors are a part of the module while it trains, and are left behind when it is saved: nothing
about a trained model names a person.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from data.parameters import Parameters
from models.catalogue import NetworkConfig, make_network
from models.classification import ARCHITECTURES, WITH_SIDES, Architecture, Classifier, arguments_of, least_px
from models.faceresnet import EMBEDDING, FaceResNet
from models.inception_resnet import MEAN, STD, InceptionResNetV1, without_logits
from models.margins import margin_softmax
from models.mobilefacenet import MobileFaceNet, ResidualFaceNet
from models.stages import misfits, stages_of
from models.triplets import (
    Distance,
    Mining,
    as_drawn,
    contrastive_losses,
    distances,
    mean_distance,
    mine,
    triplet_losses,
)

FaceArchitecture = Literal[
    "face_tiny", "face_small", "mobilefacenet", "inception_resnet_v1", "face_resnet128"
]
LossName = Literal["arcface", "cosface", "triplet", "contrastive"]


def face_resnet128(dim: int, channels: int) -> FaceResNet:
    """dlib's network as face-api publishes it, to begin with its weights; they are of one shape."""
    if (dim, channels) != (EMBEDDING, 3):
        raise ValueError(
            f"face_resnet128 makes {EMBEDDING} dimensions of colour pictures: set model.dim (={dim}) to {EMBEDDING}, "
            f"and take a dataset of 3 channels (this one has {channels})"
        )
    return FaceResNet()


# name → builder(dim, channels, ...)
FACE_NETS: dict[str, Callable[..., nn.Module]] = {
    "face_tiny": partial(ResidualFaceNet, widths=(8, 16, 32, 64), depths=(0, 0, 1, 0)),
    "face_small": ResidualFaceNet,
    "mobilefacenet": MobileFaceNet,
    "inception_resnet_v1": InceptionResNetV1,
    "face_resnet128": face_resnet128,
}
assert set(FACE_NETS) == set(get_args(FaceArchitecture))
HEADS: dict[str, tuple[str, ...]] = {  # modules after the body
    "face_tiny": ("head",),
    "face_small": ("head",),
    "mobilefacenet": ("head",),
    "inception_resnet_v1": ("last_linear", "last_bn"),
    "face_resnet128": ("fc",),
}
LEAST_FACE_PX = {"inception_resnet_v1": 75, "face_resnet128": 103}
# mean and deviation of red, green and blue, as shares of 255, that published weights were trained with
PUBLISHED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "inception_resnet_v1": ((MEAN,) * 3, (STD,) * 3),
    "face_resnet128": ((0.0,) * 3, (1 / 255,) * 3),  # it takes levels 0…255, and its own mean off them
}
PEOPLE = "people."  # start of the names of what is left behind
COLLAPSED_DISTANCE = 0.05  # mean distance of a batch's embeddings; of spread ones it is √2
COLLAPSED_SHARE = 0.01  # of the trivial solution's loss: how near to it a loss must be


class FaceModel(NetworkConfig):
    """Which network."""

    name: FaceArchitecture | Architecture = Field(
        description="face_tiny, face_small, mobilefacenet, inception_resnet_v1, face_resnet128, or a network of the "
        "catalogue without side branches"
    )
    dim: int = Field(ge=2, le=4096, description="dimensions of the embedding")
    centre: bool = Field(
        description="of a network of the catalogue: batch norm before unit length, so that a batch cannot become one "
        "point; face_tiny, face_small and mobilefacenet always have it, the published networks never"
    )

    @field_validator("name")
    @classmethod
    def _has_one_output(cls, name: str) -> str:
        if name in WITH_SIDES:
            raise ValueError(f"must be a network without side branches, not one of {', '.join(WITH_SIDES)}")
        return name

    def arguments(self, input_px: int) -> dict[str, Any]:
        """What the builder must be told beside channels and statistics."""
        about: dict[str, Any] = {"dim": self.dim}
        if self.name not in FACE_NETS:
            return about | {"centre": self.centre} | arguments_of(self.name, input_px)
        return about | ({} if self.name in LEAST_FACE_PX else {"input_px": input_px})


class FaceLoss(Parameters):
    """What training descends."""

    name: LossName = Field(
        description="arcface, cosface: softmax with a margin over the people of train; triplet; contrastive: pairs"
    )
    scale: float = Field(gt=0, description="arcface, cosface: what cosines are multiplied by")
    margin: float = Field(
        gt=0,
        description="by which the true person must win: arcface: an angle in radians; cosface: of the cosine; triplet: "
        "of the distance; contrastive: the distance from which on two people are far enough apart",
    )
    distance: Distance = Field(description="triplet: squared or plain Euclidean distance")
    mining: Mining = Field(
        description="triplet: random; semi_hard: for each pair, the nearest negative that is farther than it; "
        "batch_hard: for each picture, the farthest positive and the nearest negative"
    )

    @property
    def compares(self) -> bool:
        """Whether it needs several pictures of a person in a batch."""
        return self.name in ("triplet", "contrastive")


class Embedded(NamedTuple):
    """`embeddings` (B, D) float32 of unit length; while people are told apart, `cosines` (B, P) to each, and the true
    ones' places among them, `rows` (B,). Of several workers, `embeddings` may be those of all."""

    embeddings: Tensor
    cosines: Tensor | None = None
    rows: Tensor | None = None


class People(nn.Module):
    """A unit vector for each of P people: embeddings (B, D) → cosines (B, P).

    `labels` are theirs in the dataset, which may be any; `row_of` (greatest label + 1,) int64 has their places.
    """

    row_of: Tensor

    def __init__(self, labels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(labels), dim) * dim**-0.5)
        row_of = torch.full((max(labels) + 1,), -1)
        row_of[list(labels)] = torch.arange(len(labels))
        self.register_buffer("row_of", row_of)

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings @ F.normalize(self.weight).T


class Centred(nn.Module):
    """A network whose output is centred and scaled by what it was on average: (B, ...) → (B, dim)."""

    def __init__(self, body: nn.Module, dim: int) -> None:
        super().__init__()
        self.body = body
        self.last_norm = nn.BatchNorm1d(dim, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_norm(self.body(x))


class FaceNet(Classifier):
    """Uint8 pictures (B, C, H, W) in, `Embedded` out; in training, with `people`, labels (B,) in and cosines out."""

    def __init__(
        self,
        net: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        people: People | None = None,
    ) -> None:
        super().__init__(net, mean, std)
        self.people = people
        self.frozen: tuple[str, ...] = ()  # modules of the network that stay in evaluation mode

    def freeze_body(self, head: Sequence[str]) -> None:
        """Do not train what is not in the modules `head` of the network; norms there stay in evaluation mode."""
        heads = tuple(f"{name}." for name in head)
        for name, parameter in self.net.named_parameters():
            if not f"{name}.".startswith(heads):
                parameter.requires_grad_(False)
        self.frozen = tuple(
            name
            for name, module in self.net.named_modules()
            if name
            and not f"{name}.".startswith(heads)
            and not any(one.startswith(f"{name}.") for one in heads)
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> "FaceNet":
        super().train(mode)
        for name in self.frozen:
            self.net.get_submodule(name).eval()
        return self

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Embedded:  # type: ignore[override]
        raw = self.net(self.normalise(images))
        with torch.autocast(raw.device.type, enabled=False):  # bfloat16's cosines are of three digits
            embeddings = F.normalize(raw.float())
            if self.people is None or labels is None or not self.training:
                return Embedded(embeddings)
            return Embedded(embeddings, self.people(embeddings), self.people.row_of[labels])


def least_face_px(name: str) -> int:
    """Side of the smallest pictures that a network takes."""
    return LEAST_FACE_PX.get(name, least_px(name))


def make_body(name: str, channels: int, arguments: dict[str, Any]) -> nn.Module:
    """A fresh network without normalisation of its input; raises ValueError for a name that is not known."""
    if name in FACE_NETS:
        return FACE_NETS[name](channels=channels, **arguments)
    rest = {key: value for key, value in arguments.items() if key not in ("dim", "centre")}
    known = {**FACE_NETS, **ARCHITECTURES}
    body = make_network(known, name, num_classes=arguments["dim"], channels=channels, **rest)
    return Centred(body, arguments["dim"]) if arguments["centre"] else body


def build(
    name: str,
    channels: int,
    arguments: dict[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    people: Sequence[int] = (),
) -> FaceNet:
    """A fresh network; `people` are the labels of those to be told apart in training, if any."""
    net = make_body(name, channels, arguments).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return FaceNet(net, mean, std, People(people, arguments["dim"]) if people else None)


def head_of(name: str, net: nn.Module) -> tuple[str, ...]:
    """The modules that make the embedding of what the body finds."""
    if name in HEADS:
        return HEADS[name]
    if isinstance(net, Centred):
        return (*(f"body.{module}" for module in stages_of(net.body)[-1].modules), "last_norm")
    return stages_of(net)[-1].modules


def load_published(model: FaceNet, state: dict[str, Tensor], source: str) -> None:
    """Put the weights of a bare network into the model; raises ValueError naming what does not fit."""
    own, given = model.net.state_dict(), without_logits(state)
    given |= {name: own[name] for name in own if name.endswith("num_batches_tracked") and name not in given}
    if faults := misfits(own, given):
        raise ValueError(
            f"transfer.weights (={source}) do not fit this {type(model.net).__name__}: {'; '.join(faults[:4])}"
            f"{f'; and {len(faults) - 4} more' if len(faults) > 4 else ''}. Choose the network (model.name), model.dim "
            "and input.crop_px that they were trained for"
        )
    model.net.load_state_dict(given, strict=True)


def without_people(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict but for the vectors of the people that training told apart."""
    return {name: value for name, value in state.items() if not name.startswith(PEOPLE)}


def face_loss(
    found: Embedded,
    labels: Tensor,
    pictures: Tensor,
    config: FaceLoss,
    agree: Callable[[Tensor], Tensor] = as_drawn,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar to descend, and what to log; `labels`, `pictures` (B,): who is on which picture of `embeddings`.

    `agree`: see models.triplets.mine.

    Logged beside the loss: `pair_distance`, the mean over all pairs of the batch; of triplets `active`, the share whose
    loss is not zero, and `collapsed`, 1 where the loss is that of the trivial solution; of people told apart
    `accuracy`.
    """
    logged = {"pair_distance": mean_distance(found.embeddings)}
    if config.name == "arcface" or config.name == "cosface":
        assert found.cosines is not None and found.rows is not None
        value = margin_softmax(found.cosines, found.rows, config.name, config.scale, config.margin)
        logged["accuracy"] = (found.cosines.argmax(1) == found.rows).float().mean()
        return value, {"loss": value, **logged}
    if config.name == "triplet":
        value, trivial, active = triplet_loss(found.embeddings, labels, pictures, config, agree)
    else:
        value, trivial, active = contrastive_loss(found.embeddings, labels, pictures, config.margin, agree)
    at_margin = (value.detach() - trivial).abs() <= COLLAPSED_SHARE * trivial
    collapsed = at_margin & (logged["pair_distance"] < COLLAPSED_DISTANCE)
    return value, {"loss": value, **logged, "active": active, "collapsed": collapsed.float()}


def triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    pictures: Tensor,
    config: FaceLoss,
    agree: Callable[[Tensor], Tensor] = as_drawn,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss of the mined triplets, that of embeddings which are all alike, and the share above zero.

    A batch without a triplet has the loss 0.
    """
    triplets = mine(embeddings, labels, pictures, config.mining, agree)
    losses = triplet_losses(embeddings, triplets, config.margin, config.distance)
    num = max(1, len(losses))
    active = (losses.detach() > 0).sum() / num
    return losses.sum() / num, torch.tensor(config.margin, device=losses.device), active


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    pictures: Tensor,
    margin: float,
    agree: Callable[[Tensor], Tensor] = as_drawn,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss of the siamese pairs: each pair of one person, and as many of two, drawn at random.

    Beside it the loss of embeddings that are all alike, and the share of pairs whose loss is not zero.
    """
    anchor, positive, negative = mine(embeddings, labels, pictures, "random", agree)
    ones, others = embeddings[torch.cat([anchor, anchor])], embeddings[torch.cat([positive, negative])]
    same = torch.arange(len(ones), device=labels.device) < len(anchor)
    losses = contrastive_losses(distances(ones, others, "plain"), same, margin)
    num = max(1, len(losses))
    trivial = torch.tensor(margin**2 / 2, device=losses.device)
    return losses.sum() / num, trivial, (losses.detach() > 0).sum() / num
