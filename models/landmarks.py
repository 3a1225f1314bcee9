"""Networks that find landmarks by direct regression, and the losses of their places.

Any network of the classification catalogue is the body: in place of logits of classes its last layer gives 3 numbers a
point, x and y relative to the mean shape and the logit of being visible. Places are shares of the picture's side.
Losses: wing (Feng et al. 2018, https://arxiv.org/abs/1711.06753), smooth L1 (Girshick 2015,
https://arxiv.org/abs/1504.08083), mean squared error.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.catalogue import NetworkConfig, make_network
from models.classification import ARCHITECTURES, WITH_SIDES, Architecture, Classifier

PointLoss = Literal["wing", "smooth_l1", "mse"]


class LandmarkModel(NetworkConfig):
    """Which network, and what its training descends."""

    name: Architecture = Field(description="the body, a network of the catalogue without side branches")
    loss: PointLoss = Field(
        description="of the places, in pixels of the input: wing stays steep near zero; smooth_l1 is square within a "
        "pixel; mse"
    )
    wing_px: float = Field(gt=0, description="wing: error up to which it is a logarithm, in pixels")
    wing_curvature_px: float = Field(gt=0, description="wing: the smaller, the steeper near zero, in pixels")
    visibility_weight: float = Field(
        ge=0, description="of the cross-entropy of visibility, beside the places"
    )

    @field_validator("name")
    @classmethod
    def _has_one_output(cls, name: Architecture) -> Architecture:
        if name in WITH_SIDES:
            raise ValueError(f"must be a network without side branches, not one of {', '.join(WITH_SIDES)}")
        return name


class Landmarks(NamedTuple):
    """What a network finds: places as shares of the side, (B, P, 2) float32, and logits of visibility, (B, P)."""

    points: Tensor
    visibility: Tensor


class LandmarkNet(Classifier):
    """Uint8 pictures (B, C, H, W) in, `Landmarks` out.

    `mean_shape` (P, 2), a buffer, is what an untrained head finds: it learns what differs from it.
    """

    mean_shape: Tensor

    def __init__(
        self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], num_points: int
    ) -> None:
        super().__init__(net, mean, std)
        self.register_buffer("mean_shape", torch.full((num_points, 2), 0.5))

    @torch.no_grad()
    def fit_mean_shape(self, points: Tensor, given: Tensor) -> None:
        """Take the mean place of each point, of `points` (N, P, 2) as shares where `given` (N, P); else the middle."""
        num = given.sum(0)[:, None]
        mean = (points * given[:, :, None]).sum(0) / num.clamp(min=1)
        self.mean_shape.copy_(torch.where(num > 0, mean, torch.tensor(0.5)))

    def forward(self, images: Tensor) -> Landmarks:  # type: ignore[override]
        raw = super().forward(images)
        assert isinstance(raw, Tensor)
        points = raw.float().view(len(raw), -1, 3)  # (B, P, 3)
        return Landmarks(self.mean_shape + points[:, :, :2], points[:, :, 2])


def build(
    name: str,
    num_points: int,
    channels: int,
    arguments: dict[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> LandmarkNet:
    """A fresh network by its catalogue name; raises ValueError for a name or an argument that is not known."""
    net = make_network(ARCHITECTURES, name, num_classes=3 * num_points, channels=channels, **arguments)
    return LandmarkNet(net.to(memory_format=torch.channels_last), mean, std, num_points)  # type: ignore[call-overload]


def wing(errors: Tensor, width: float, curvature: float) -> Tensor:
    """Wing loss of each error: w·ln(1 + |e|/ε) where |e| < w, and |e| - C beyond, C such that both meet."""
    size = errors.abs()
    constant = width - width * math.log1p(width / curvature)
    return torch.where(size < width, width * torch.log1p(size / curvature), size - constant)


def point_losses(config: LandmarkModel) -> Callable[[Tensor], Tensor]:
    """The loss of each error, in pixels."""
    losses: dict[PointLoss, Callable[[Tensor], Tensor]] = {
        "wing": partial(wing, width=config.wing_px, curvature=config.wing_curvature_px),
        "smooth_l1": lambda errors: F.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none"),
        "mse": torch.square,
    }
    return losses[config.loss]


def landmark_loss(
    found: Landmarks, points_xy: Tensor, visible: Tensor, given: Tensor, side_px: int, config: LandmarkModel
) -> dict[str, Tensor]:
    """Scalars `points`, the mean over the coordinates of given points, and `visibility`, weighted.

    `points_xy` (B, P, 2) in pixels of pictures of `side_px`; `visible`, `given` (B, P) bool. Points that are not given
    count in neither.
    """
    num = given.sum().clamp(min=1)
    errors = torch.where(given[:, :, None], found.points * side_px - points_xy, 0.0)
    places = (point_losses(config)(errors) * given[:, :, None]).sum() / (2 * num)
    entropy = F.binary_cross_entropy_with_logits(found.visibility, visible.float(), reduction="none")
    return {"points": places, "visibility": config.visibility_weight * (entropy * given).sum() / num}
