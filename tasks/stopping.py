"""When a run ends before its last step: patience with the validation, and ranks that agree."""

from typing import Any, Protocol

import torch
from torch import Tensor


class Rank(Protocol):
    rank: int
    world_size: int
    device: torch.device


def agree(value: float, session: Rank) -> float:
    """Rank 0's value, on every rank: clocks and validations differ, and all must stop at the same step."""
    if session.world_size == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=session.device)
    torch.distributed.broadcast(shared, src=0)
    return float(shared)


class Best:
    """The best validated weights, and how many validations since were no better. Without patience it keeps nothing.

    The first of equals is the best. A split without validation pictures has no metric, and is refused.
    """

    def __init__(self, metric: str, patience: int) -> None:
        self.name, self.patience = f"val_{metric}", patience
        self.sign = -1.0 if metric == "loss" else 1.0
        self.metrics: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}
        self.step, self.num_worse = 0, 0

    @property
    def exhausted(self) -> bool:
        return self.patience > 0 and self.num_worse >= self.patience

    def see(self, metrics: dict[str, float], weights: dict[str, Tensor], step: int) -> None:
        """Take a validation of these weights at `step`; raises ValueError where it lacks the metric."""
        if not self.patience:
            return
        if self.name not in metrics:
            raise ValueError(
                f"train.patience (={self.patience}) watches {self.name}, and the validation gives "
                f"{', '.join(metrics) or 'nothing, for there are no validation pictures'}; set patience to 0"
            )
        if not self.metrics or self.sign * metrics[self.name] > self.sign * self.metrics[self.name]:
            self.metrics, self.step, self.num_worse = dict(metrics), step, 0
            self.weights = {name: value.detach().clone() for name, value in weights.items()}
        else:
            self.num_worse += 1

    def state(self) -> dict[str, Any]:
        """For a checkpoint; empty without patience."""
        if not self.patience:
            return {}
        return {
            "metrics": self.metrics, "weights": self.weights, "step": self.step, "num_worse": self.num_worse,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's."""
        if state:
            self.metrics, self.weights = dict(state["metrics"]), dict(state["weights"])
            self.step, self.num_worse = state["step"], state["num_worse"]
