"""When a run ends before its last step: patience with the validation, a time budget, a wish to stop, and ranks that
agree."""

import time
from typing import Any, Protocol

import torch
from torch import Tensor

from tasks.settings import TrainConfig

ASK_EVERY_S = 0.25
MOST_STEPS = 1000  # between two questions: steps may become slower


class Interrupted(KeyboardInterrupt):
    """A training was asked to stop, and did: its last checkpoint holds every step that it took.

    A KeyboardInterrupt, so that nothing takes it for a failure that a second attempt would mend.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class Rank(Protocol):
    rank: int
    world_size: int
    device: torch.device


class Stoppable(Rank, Protocol):
    def stopping(self) -> bool: ...


def agree(value: float, session: Rank) -> float:
    """Rank 0's value, on every rank: clocks and validations differ, and all must stop at the same step."""
    if session.world_size == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=session.device)
    torch.distributed.broadcast(shared, src=0)
    return float(shared)


def total(value: float, session: Rank) -> float:
    """The sum of a value over all ranks, on every rank."""
    if session.world_size == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=session.device)
    torch.distributed.all_reduce(shared)
    return float(shared)


class Asking:
    """Asks rank 0 about every quarter of a second whether to stop, at steps that all ranks know beforehand.

    Rank 0's word to the others is one number: after how many steps to ask again; 0 is the wish to stop.
    """

    def __init__(self, session: Stoppable, step: int) -> None:
        self.session = session
        self.asked_at, self.next, self.since = step, step + 1, time.perf_counter()

    def told_to_stop(self, step: int) -> bool:
        """Whether all ranks stop after `step`. To be called after every step."""
        if step < self.next:
            return False
        now = time.perf_counter()
        stopping = self.session.rank == 0 and self.session.stopping()
        fitting = int((step - self.asked_at) * ASK_EVERY_S / max(now - self.since, 1e-9))
        num_steps = int(agree(0.0 if stopping else float(min(max(fitting, 1), MOST_STEPS)), self.session))
        self.asked_at, self.next, self.since = step, step + num_steps, now
        return num_steps == 0


def why_early(train: TrainConfig, step: int, num_steps: int, steps_per_epoch: int, spent_s: float) -> str:
    """Why a run that has ended after `step` did so before its epochs were over; "" where it took all its steps."""
    if step == num_steps:
        return ""
    epoch = 10 * step // steps_per_epoch / 10  # rounded down, so that it is never the last one
    spent = 0 < train.time_budget_s <= spent_s
    patience = f"{train.patience} validation{'s' * (train.patience != 1)}"
    by = f"time budget of {train.time_budget_s:g} s" if spent else f"patience of {patience}"
    return f"by its {by}, at epoch {epoch:g} of {train.epochs:g}"


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
