"""Optimizers, learning-rate schedules and weight averaging.

Learning rates are for the mean loss of a batch. Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/)
moves each filter bank by an orthogonal matrix; what is not a filter bank stays with SGD.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data.parameters import Parameters

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic iteration that drives singular values towards one
NEWTON_SCHULZ_STEPS = 3
LOOKAHEAD_EVERY = 5  # steps, and the base of the decay, both as in airbench
LOOKAHEAD_DECAY = 0.95**5
MUON_SGD_MOMENTUM = 0.85  # of what Muon leaves to SGD, as in https://github.com/KellerJordan/cifar10-airbench


class OptimConfig(Parameters):
    """How weights follow gradients."""

    name: Literal["sgd", "adamw", "muon"] = Field(
        description="sgd: with Nesterov momentum; muon: orthogonal updates of filters, sgd for the rest"
    )
    lr: float = Field(gt=0, description="highest learning rate; under muon, of the filters")
    momentum: float = Field(
        ge=0, lt=1, description="momentum; under adamw, beta1; under muon, of the filters"
    )
    head_lr: float = Field(gt=0, description="highest learning rate of dense layers; read by muon only")
    bias_lr: float = Field(gt=0, description="highest learning rate of biases and norms")
    weight_decay: float = Field(
        ge=0,
        description="times the learning rate, subtracted at each step; not from biases and norms, nor from filters "
        "under muon, which are kept at a fixed norm",
    )
    schedule: Literal["linear", "cosine", "constant", "triangular", "one_cycle"] = Field(
        description="how the learning rates move: after warm-up linear and cosine fall, constant stays; triangular "
        "rises in a straight line from first_share and falls in one, one_cycle does so along half cosines"
    )
    warmup_share: float = Field(ge=0, lt=1, description="share of the steps in which the rates rise")
    first_share: float = Field(
        ge=0, le=1, description="triangular, one_cycle: the first rates as a share of the highest; else 0"
    )
    final_share: float = Field(
        ge=0, le=1, description="the last rates as a share of the highest; not read by constant"
    )
    label_smoothing: float = Field(ge=0, lt=1, description="probability spread over all classes")
    class_weights: Literal["none", "balanced"] = Field(
        description="balanced: a sample's loss counts inversely to its class's share of train; 1 on average"
    )
    averaging_decay: float = Field(
        ge=0,
        lt=1,
        description="share that the averaged weights keep at a step; 0: the last weights are the result",
    )
    lookahead: bool = Field(
        description="slow weights that follow the weights every 5 steps and pull them back; they are the result"
    )
    clip_norm: float = Field(ge=0, description="greatest norm of the gradient; 0: no clipping")

    @model_validator(mode="after")
    def _settings_are_read(self) -> Self:
        if self.first_share and self.schedule not in ("triangular", "one_cycle"):
            raise ValueError(
                f"optim.first_share (={self.first_share:g}) is read by the schedules triangular and one_cycle; under "
                f"{self.schedule} it must be 0"
            )
        if self.first_share and not self.warmup_share:
            raise ValueError(
                f"optim.first_share (={self.first_share:g}) is where the rates begin to rise, and optim.warmup_share "
                "(=0) leaves no step to rise in: set that above 0, or first_share to 0"
            )
        if self.lookahead and self.averaging_decay:
            raise ValueError(
                f"optim.lookahead keeps slow weights as the result; set optim.averaging_decay "
                f"(={self.averaging_decay:g}) to 0, or lookahead to false"
            )
        return self


def schedule_factor(config: OptimConfig, step: float, num_steps: int) -> float:
    """The share of the highest rate at `step` in [0, num_steps], which may lie between two steps.

    Triangular is airbench's (https://github.com/KellerJordan/cifar10-airbench), one_cycle that of Smith and Topin
    2017 (https://arxiv.org/abs/1708.07120) with cosines, as in torch's OneCycleLR; momentum stays as it is.
    """
    warmup_steps = config.warmup_share * num_steps
    if step < warmup_steps:
        if config.schedule not in ("triangular", "one_cycle"):
            return (step + 1) / (warmup_steps + 1)
        risen = step / warmup_steps
        risen = risen if config.schedule == "triangular" else 0.5 * (1 - math.cos(math.pi * risen))
        return config.first_share + (1 - config.first_share) * risen
    if config.schedule == "constant":
        return 1.0
    past = min(1.0, (step - warmup_steps) / max(1.0, num_steps - warmup_steps))
    straight = config.schedule in ("linear", "triangular")
    fall = 1 - past if straight else 0.5 * (1 + math.cos(math.pi * past))
    return config.final_share + (1 - config.final_share) * fall


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: (M, N) → (M, N), singular values near one."""
    a, b, c = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for filter banks (O, I, h, w), seen as (O, I*h*w) matrices.

    Before a step each bank is scaled to the norm √O, so that the rate is relative to the weights and no weight
    decay is needed (https://github.com/KellerJordan/cifar10-airbench).
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
                update = p.grad.add(buffer, alpha=group["momentum"])
                p.mul_(len(p) ** 0.5 / p.norm())
                p.add_(orthogonalise(update.flatten(1)).view_as(p), alpha=-group["lr"])


def split_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by kind: filters (4-D), dense (2-D), and the 1-D rest (biases, norms)."""
    kinds: dict[str, list[nn.Parameter]] = {"filters": [], "dense": [], "rest": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = "filters" if parameter.ndim >= 3 else "dense" if parameter.ndim == 2 else "rest"
            kinds[kind].append(parameter)
    return {kind: parameters for kind, parameters in kinds.items() if parameters}


def by_factor(model: nn.Module, parameters: list[nn.Parameter]) -> list[tuple[float, list[nn.Parameter]]]:
    """Parameters by the factor that the model itself (`rate_factors()`, by name) sets before their learning rates."""
    rate_factors = getattr(model, "rate_factors", None)  # classifiers only
    named = rate_factors() if rate_factors is not None else {}
    factors = {id(parameter): named.get(name, 1.0) for name, parameter in model.named_parameters()}
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(factors[id(parameter)], []).append(parameter)
    return list(groups.items())


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """One optimizer, or more under muon. Every group remembers its highest rate as `peak_lr`."""
    kinds = split_parameters(model)
    rates = {"filters": config.lr, "dense": config.lr, "rest": config.bias_lr}
    optimizers: list[torch.optim.Optimizer] = []
    if config.name == "muon":
        rates["dense"] = config.head_lr
        for factor, params in by_factor(model, kinds.pop("filters", [])):
            optimizers.append(Muon(params, config.lr * factor, config.momentum))
    groups: list[dict[str, Any]] = [
        # torch adds SGD's decay to the gradient, hence scaled by the rate; biases and norms have none
        {
            "params": params,
            "lr": rates[kind] * factor,
            "weight_decay": 0.0 if kind == "rest" else config.weight_decay,
        }
        for kind, each in kinds.items()
        for factor, params in by_factor(model, each)
    ]
    if groups and config.name == "adamw":
        optimizers.append(torch.optim.AdamW(groups, betas=(config.momentum, 0.999)))
    elif groups:
        momentum = MUON_SGD_MOMENTUM if config.name == "muon" else config.momentum
        optimizers.append(torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=momentum > 0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's rate to `factor` times its highest."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Move the averaged state towards the model's: floating tensors by 1 - decay, counters by copying."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


@torch.no_grad()
def look_ahead(slow: dict[str, Tensor], model: nn.Module, progress: float) -> None:
    """Move the slow weights towards the model's, and the model's to where they are then.

    `progress` in [0, 1] is the share of the training done: the slow weights keep 0.95^5 · progress³ of themselves, so
    that they follow at first and average at the end. Zhang et al. 2019 (https://arxiv.org/abs/1907.08610), by the
    schedule of airbench (https://github.com/KellerJordan/cifar10-airbench).
    """
    update_average(slow, model, LOOKAHEAD_DECAY * progress**3)
    for name, value in model.state_dict().items():
        value.copy_(slow[name])


def balanced_weights(counts: list[int]) -> Tensor:
    """What a sample of each class counts: (K,), N / (number of classes with samples · N_k), 1 on average over samples.

    A class without samples has the weight 0: no label of it is met.
    """
    images = torch.tensor(counts, dtype=torch.float64)
    present = images > 0
    weights = images.sum() / (present.sum() * images.clamp(min=1))
    return torch.where(present, weights, 0.0).float()
