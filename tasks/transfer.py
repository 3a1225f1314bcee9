"""Transfer learning: where a network's first weights come from, and which of its stages are trained.

What is frozen gets no gradient and no optimizer state, and its batch norms keep the statistics that they came with
(models.classification.Classifier.freeze). The head of other classes is fresh; all else must fit. A head of landmarks is
taken over with the mean shape that it was learnt around, or not at all.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from data.parameters import Parameters
from models.classification import Classifier
from models.landmarks import LandmarkNet
from models.sides import is_side
from models.stages import misfits, parameters_of, stages_of
from tasks.settings import WeightsSource

SHOWN = 8  # names in an error


class TransferConfig(Parameters):
    """What training starts from, and what of it is trained."""

    weights: WeightsSource = Field(
        description='"": none. FILE.safetensors or .pth, https://...#sha256=..., package:NAME of an installed package '
        "that ships them, or a trained model (models:/NAME@ALIAS, a run key, a model folder)"
    )
    mode: Literal["all", "head", "stages"] = Field(
        description="what is trained: all of it, the head alone, or the head and the last num_stages stages"
    )
    num_stages: int = Field(ge=0, description="trained stages before the head; read by mode=stages only")
    cache_features: bool = Field(
        description="compute what the frozen stages give once, keep it, and train on that: no augmentation"
    )
    body_lr_factor: float = Field(
        gt=0, le=1, description="learning rates of what is trained before the head, relative to the head's"
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.mode != "all" and not self.weights:
            raise ValueError(
                f"transfer.mode (={self.mode}) freezes weights that nobody trained: give transfer.weights, or set "
                "mode=all"
            )
        if self.mode == "stages" and not self.num_stages:
            raise ValueError(
                "transfer.num_stages must be at least 1 for mode=stages; for none, set mode=head"
            )
        if self.mode != "stages" and self.num_stages:
            raise ValueError(
                f"transfer.num_stages (={self.num_stages}) is read by mode=stages only: set that, or num_stages=0"
            )
        if self.cache_features and self.mode == "all":
            raise ValueError(
                "transfer.cache_features needs frozen stages, and mode=all has none: set mode=head or mode=stages"
            )
        return self


@dataclass(frozen=True)
class Weights:
    """Tensors of a bare network, and all that is known of them."""

    source: str  # as a person gave it
    sha256: str  # of the file
    state: dict[str, Tensor]
    mean: tuple[float, ...]  # of its input's channels, as shares of 255
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()  # of its head, or its points; () if not known
    mean_shape: Tensor | None = None  # (P, 2), of landmarks: what the head's places are relative to
    about: dict[str, Any] = field(default_factory=dict)  # what else a card says of them


def num_frozen(config: TransferConfig, model: Classifier) -> int:
    """How many stages, from the input on, are not trained; raises ValueError if there are not that many."""
    num = len(stages_of(model.net)) - 1  # the head is always trained
    if config.mode == "all":
        return 0
    if config.num_stages > num:
        names = ", ".join(stage.name for stage in stages_of(model.net)[:-1])
        raise ValueError(
            f"transfer.num_stages (={config.num_stages}) must be at most {num}, the stages before the head: {names}"
        )
    return num - config.num_stages


def load(
    model: Classifier,
    weights: Weights,
    classes: tuple[str, ...],
    setting: str = "transfer.weights",
    named: str = "model.name",
) -> None:
    """Put the weights into the model, but for a head of other classes; raises ValueError listing what does not fit.

    A model for landmarks keeps its own mean shape unless it gets the head, which comes with the shape that it learnt
    to differ from. A head of classes is never one of points, though it had as many numbers.
    `setting` is where a person gave the weights, `named` where they named the network.
    """
    own = model.net.state_dict()
    head_stage = stages_of(model.net)[-1]
    head = parameters_of(model.net, [head_stage])
    prefixes = tuple(f"{module}." for module in head_stage.modules)
    given = dict(weights.state)
    # a saved model has none: they begin anew, whatever the head does
    if not any(is_side(name) for name in given):
        given |= {name: value for name, value in own.items() if is_side(name)}
    same_head = all(name in given and given[name].shape == own[name].shape for name in head)
    shape = model.mean_shape if isinstance(model, LandmarkNet) else None
    same_kind = getattr(weights.mean_shape, "shape", None) == getattr(shape, "shape", None)
    keeps_head = same_head and same_kind and weights.classes in ((), classes)
    if not keeps_head:
        given = {name: value for name, value in given.items() if not name.startswith(prefixes)}
        given |= {name: own[name] for name in head}
    for name in own:
        if name.endswith("num_batches_tracked"):  # files of before torch 0.4.1 lack it
            given.setdefault(name, own[name])
    if faults := misfits(own, given):
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ValueError(
            f"{setting} (={weights.source}) do not fit this {type(model.net).__name__}: "
            f"{'; '.join(faults[:SHOWN])}{more}. Choose the network ({named}) that they were trained for"
        )
    model.net.load_state_dict(given, strict=True)
    if keeps_head and shape is not None and weights.mean_shape is not None:
        shape.copy_(weights.mean_shape)


def start_from(
    model: Classifier, config: TransferConfig, weights: Weights, classes: tuple[str, ...], features: bool
) -> None:
    """Load the weights, freeze what is not trained; with `features`, let the model take cached ones for pictures."""
    load(model, weights, classes)
    model.body_lr_factor = config.body_lr_factor
    model.freeze(num_frozen(config, model))
    model.reads_features = features
