"""Parameters of neural style transfer by optimisation (tasks.stylize): values stand in params.yaml, section stylize."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from data.parameters import Parameters
from models.classification import Architecture
from models.style import Normalisation, Weights
from models.taps import Pooling
from tasks.settings import Precision, WeightsSource

Colour = Literal["style", "luminance", "histogram"]
OptimizerName = Literal["lbfgs", "adam", "sgd"]
RANDOM = "random"


class StyleNetConfig(Parameters):
    """The network by whose features pictures are compared."""

    name: Architecture = Field(description="a network of the catalogue: ./convoy models list --catalogue")
    weights: WeightsSource = Field(
        min_length=1,
        description="its weights: a file, URL#sha256=…, package:NAME or a trained model; random: orthogonal filters "
        "of chance. Files that call layers conv1_1, … are taken as Caffe's: BGR, poolings round up",
    )
    pooling: Pooling = Field(description="average gives smoother pictures; of VGG alone")
    precision: Precision = Field(description="of the features; auto: bf16 where the processor computes in it")


class StyleCostConfig(Parameters):
    """J = content_weight · J_content + style_weight · J_style + variation_weight · J_variation."""

    normalisation: Normalisation = Field(
        description="course: means over places and channels; gatys: his sums; relative: shares of the targets' own "
        "energy, so that weights suit any network"
    )
    content_layer: str = Field(description="where the content is compared")
    content_weight: float = Field(ge=0, description="α")
    style_layers: tuple[tuple[str, float], ...] = Field(
        min_length=1,
        description="where styles are compared, and how much each place counts: [[relu1_1, 1.0], …]",
    )
    style_weight: float = Field(ge=0, description="β")
    variation_weight: float = Field(ge=0, description="γ, of squared differences of neighbouring pixels")

    @field_validator("style_layers")
    @classmethod
    def _once_each(cls, layers: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
        names = [name for name, _ in layers]
        if len(set(names)) < len(names) or any(weight < 0 for _, weight in layers):
            raise ValueError("each layer may stand once, with a weight of 0 or more")
        return layers

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not self.content_weight and not (self.style_weight and any(w for _, w in self.style_layers)):
            raise ValueError("content_weight or style_weight, with a layer, must be above 0")
        return self

    def weights(self) -> Weights:
        """As the objective takes them."""
        return Weights(
            self.content_weight, self.style_weight, self.variation_weight, self.content_layer,
            dict(self.style_layers),
        )  # fmt: skip


class StyleOptimConfig(Parameters):
    """How the picture is changed."""

    name: OptimizerName = Field(description="lbfgs: the fewest iterations; adam; sgd: gradient descent")
    lr: float = Field(gt=0, description="of lbfgs 1; of adam in grey levels of 0 to 1 a step, some 0.02")
    momentum: float = Field(ge=0, lt=1, description="of sgd")
    history: int = Field(ge=1, le=200, description="steps that lbfgs remembers; two pictures each")


class StylizeConfig(Parameters):
    """One picture in the style of others."""

    net: StyleNetConfig
    cost: StyleCostConfig
    optim: StyleOptimConfig
    scales: tuple[tuple[int, int], ...] = Field(
        min_length=1,
        description="coarse to fine: [longer side in pixels, iterations]; each begins with the one before, enlarged",
    )
    style_px: int = Field(
        ge=0,
        description="longer side of the styles at the last scale, smaller ones before; 0: as the content's",
    )
    noise: float = Field(
        ge=0, le=1, description="share of noise in the first picture; 0: the content, 1: noise alone"
    )
    seed: int = Field(ge=0, description="of the noise, and of random filters")
    colour: Colour = Field(
        description="style: colours of the styles; luminance: the content's, and only brightness is transferred; "
        "histogram: the styles are first given the content's mean and covariance of colours"
    )
    picture_every: int = Field(
        ge=0, description="iterations between two pictures that are kept; 0: the last alone"
    )
    checkpoint_every: int = Field(ge=1, description="iterations between two checkpoints")

    @field_validator("scales")
    @classmethod
    def _growing(cls, scales: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        sides = [px for px, _ in scales]
        if sides != sorted(sides) or min(sides) < 16 or min(n for _, n in scales) < 1:
            raise ValueError(
                "sides must be at least 16 px and not fall, iterations at least 1, as in [[128, 100], [256, 100]]"
            )
        return scales

    @property
    def num_iterations(self) -> int:
        return sum(iterations for _, iterations in self.scales)
