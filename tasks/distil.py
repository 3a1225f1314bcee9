"""Distillation: a network learns what another model, or a whole ensemble, says of the same crop.

    ./convoy train classification --dataset digits --teacher models:/classifier-digits@champion

The loss is weight · T² · KL(teacher at T ‖ student at T) + (1 - weight) · cross-entropy, where a softmax at T is that
of the logits divided by T (Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531). Of a teacher of several
networks the softmax outputs at T are averaged. The teacher sees the very crop that the student sees, augmented and
mixed (Beyer et al. 2022, https://arxiv.org/abs/2106.05237), as uint8 through its own normalisation; it computes without
gradients, in evaluation mode, and in bfloat16 where training does.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from data.dataset import DatasetInfo
from data.parameters import Parameters
from models.classification import least_px
from tasks.card import ModelCard, Preprocessing

if TYPE_CHECKING:
    from tasks.families import Family


class DistilConfig(Parameters):
    """Whom a network learns from, beside the labels."""

    teacher: str = Field(
        description='"": nobody. A trained model, a net or an ensemble (models:/NAME@ALIAS, a run key, a folder), '
        "of the same classes and input.crop_px"
    )
    temperature: float = Field(
        gt=0, description="what both models' logits are divided by; higher shows more of the unlikely classes"
    )
    weight: float = Field(
        ge=0, le=1, description="share of the teacher in the loss; the labels have the rest"
    )


@dataclass(frozen=True)
class Teacher:
    """A model that is learned from: read on the driver, since a worker has neither the files nor the registry."""

    source: str  # as a person gave it
    sha256: str  # of its card and weights
    card: ModelCard
    states: tuple[dict[str, Tensor], ...]  # of each of its networks


class TeacherNetwork(nn.Module):
    """The teacher's networks, frozen: crops (B, C, S, S) uint8 → soft targets (B, K) float32."""

    def __init__(self, networks: list[nn.Module], temperature: float) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.temperature = temperature
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        outputs = [(network(images).float() / self.temperature).softmax(1) for network in self.networks]
        return torch.stack(outputs).mean(0)


def divergence(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T² · KL(targets ‖ softmax(logits / T)) in nats, the mean over the batch: (B, K), (B, K) → scalar, in float32.

    The factor keeps gradients at the size of the cross-entropy's, whatever T is.
    """
    own = F.log_softmax(logits.float() / temperature, 1)
    return temperature**2 * F.kl_div(own, targets, reduction="batchmean")


def taught(family: "Family", teacher: Teacher | None, config: Any, device: torch.device) -> "Family":
    """The family with the teacher in its loss; as it is without one."""
    if teacher is None:
        return family
    networks = []
    for member, state in zip(teacher.card.members, teacher.states, strict=True):
        network = family.rebuild(teacher.card, member)
        network.load_state_dict(state, strict=True)
        networks.append(network)
    soft: Callable[[Tensor], Tensor] = TeacherNetwork(networks, config.distil.temperature).to(device)
    return replace(family, loss=partial(family.loss, teacher=soft))


def require_teacher(config: Any, info: DatasetInfo, teacher: Teacher | None) -> None:
    """Raise a ValueError, before anything starts, for a teacher that could not teach this run."""
    name = config.distil.teacher if "distil" in type(config).model_fields else ""
    if teacher is None:
        if name:
            raise ValueError(f"distil.teacher (={name}) was not read: see tasks.weights")
        return
    card, start = teacher.card, f"distil.teacher (={name})"
    if card.family != "classification" or card.classes != info.classes:
        raise ValueError(
            f"{start} tells apart {len(card.classes)} classes ({few(card.classes)}) and {info.name!r} has "
            f"{len(info.classes)} ({few(info.classes)}): they must be the same, in the same order"
        )
    seen, own = card.preprocessing, config.input
    assert isinstance(seen, Preprocessing)
    if (seen.crop_px, seen.channels) != (own.crop_px, info.picture_channels):
        raise ValueError(
            f"{start} takes {seen.channels}×{seen.crop_px}×{seen.crop_px} and this run's crops are "
            f"{info.picture_channels}×{own.crop_px}×{own.crop_px}: set input.crop_px={seen.crop_px}, or choose a "
            "teacher that was trained on such crops"
        )
    smallest = min([own.crop_px, *(px for px, _share in config.train.growth)])
    for member in card.members:
        if smallest < own.crop_px and (
            "input_px" in member.arguments or smallest < least_px(member.architecture)
        ):
            raise ValueError(
                f"{start} has a {member.architecture}, which does not take pictures of {smallest} px that "
                f"train.growth (={config.train.growth}) shrinks to: set train.growth=[]"
            )


def few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
