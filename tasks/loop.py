"""The training loop, for every family: loss, backward, clip, step, average, log.

It runs in this process (tests, debugging, a lone GPU) and in each Ray Train worker, unchanged: what differs is
the `Session` it is given. A checkpoint holds weights, averaged weights, optimizer, random state and the step; the
order of samples and their augmentation are functions of (seed, epoch, index), so a resumed run equals an
uninterrupted one, bit for bit on a CPU. Under a time budget only the order of samples is: the clock decides the rest.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.dataset import DatasetInfo
from data.stream import Layout
from tasks.batches import BatchPlan
from tasks.families import Family
from tasks.machine import describe, joined
from tasks.optim import (
    LOOKAHEAD_EVERY,
    balanced_weights,
    build_optimizers,
    look_ahead,
    schedule_factor,
    set_rates,
    update_average,
)
from tasks.precision import autocast, mend_gradients, resolve_precision
from tasks.settings import TrainConfig
from tasks.stopping import Asking, Best, agree, total, why_early

PROGRESS_EVERY_S = 0.5
CHECKPOINT_EVERY_S = 15.0  # at the latest, for a lone worker


@dataclass(frozen=True)
class Progress:
    """What a run says of itself while it trains."""

    step: int
    num_steps: int
    epoch: float
    time_s: float  # of training so far, over all attempts
    images_per_s: float  # since the last message
    # share of the training time, over all attempts, in which the loop waited for its next batch
    input_wait: float
    lr: float
    metrics: dict[str, float]


class Session(Protocol):
    """Where a rank runs, and how it is heard."""

    rank: int
    world_size: int
    device: torch.device

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint of this run, or None."""

    def save(self, state: dict[str, Any], step: int) -> None:
        """Keep a checkpoint durably. Every rank calls it at the same step."""

    def report(self, progress: Progress) -> None:
        """Tell whoever watches. Called on rank 0."""

    def stopping(self) -> bool:
        """Whether somebody asked the run to stop. Called on rank 0; it must not wait."""


@dataclass
class Meter:
    """Sums of what steps report, kept on the device: reading them is a synchronisation, so it is done rarely."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    num_steps: int = 0
    since: float = field(default_factory=time.perf_counter)

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.num_steps += 1

    def take(self) -> tuple[dict[str, float], float]:
        """Means since the last call, and steps a second; starts anew."""
        means = {name: float(value) / self.num_steps for name, value in self.sums.items()}
        rate = self.num_steps / (time.perf_counter() - self.since)
        self.sums, self.num_steps, self.since = {}, 0, time.perf_counter()
        return means, rate


def fit(
    family: Family,
    config: Any,
    info: DatasetInfo,
    sample: Callable[[], Sequence[Any]],
    make_batches: Callable[[BatchPlan, int, Callable[[int], float]], Iterator[Any]],
    layout: Layout,
    validate: Callable[[nn.Module], dict[str, float]],
    session: Session,
) -> dict[str, Any]:
    """Train to the end, or until the session is to stop; the state of the last checkpoint, which says if it `ended`.

    `sample()` gives plain batches of training pictures for data-dependent initial weights; `layout` is train's;
    `make_batches(plan, first_step, place_at)` yields this rank's batches, none before it is asked for, and hears from
    `place_at(step)` where in the schedule a step stands; `validate(model)` is called on rank 0. Raises
    FloatingPointError for a loss that is not finite, or that the family's `judge` finds hopeless.
    """
    train: TrainConfig = config.train
    cpu_began_s = time.process_time()
    plan = BatchPlan.of(train, layout, session.rank, session.world_size)
    device = session.device
    dtype = resolve_precision(train.precision, device)
    torch.manual_seed(train.seed)
    model = family.model(config, info, sample).to(device)
    mend_gradients(model, device, dtype)
    optimizers = build_optimizers(model, config.optim)
    averaged = config.optim.averaging_decay or config.optim.lookahead
    average = {k: v.clone() for k, v in model.state_dict().items()} if averaged else None
    best = Best(train.patience_metric, train.patience)
    loss_of = family.loss
    if config.optim.class_weights == "balanced":
        counts = [info.counts["train"].get(name, 0) for name in info.classes]
        loss_of = partial(family.loss, class_weights=balanced_weights(counts).to(device))
    torch.manual_seed(train.seed + 1 + session.rank)  # dropout differs between ranks, weights do not

    step, time_before_s, waited_before_s = 0, 0.0, 0.0
    state = session.load()
    if state is not None:
        step, time_before_s, waited_before_s = state["step"], state["time_s"], state["waited_s"]
        model.load_state_dict(state["model"])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        if average is not None:
            average = {k: v.to(device) for k, v in state["average"].items()}
        best.load(state["best"])
        if state["random"] is not None:  # a rank that the interrupted run did not have starts its own stream
            restore_random_state(state["random"])
    metrics: dict[str, float] = dict(state["metrics"]) if state is not None else {}
    cpu_before_s = state["cpu_s"] if state is not None else 0.0
    here = describe(device, session.world_size)
    trained_on = joined(state["trained_on"] if state is not None else {}, here)

    network: nn.Module = model
    if session.world_size > 1:
        network = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    network.train()

    def place_at(step: int) -> float:  # heard from the first batch on: `spent_s` is there by then
        return place_of(step, plan.num_steps, spent_s, train.time_budget_s)

    batches = Waiting(make_batches(plan, step, place_at))
    asking = Asking(session, step)
    if state is not None and state["ended"]:
        return state
    started = time.perf_counter()
    meter = Meter()
    saved, images_per_s = started, 0.0

    def time_s() -> float:
        return time_before_s + time.perf_counter() - started

    def report(images_per_s: float) -> None:
        if session.rank == 0:
            lr = config.optim.lr * schedule_factor(config.optim, place, plan.num_steps)
            epoch = step / plan.steps_per_epoch
            input_wait = (waited_before_s + batches.time_s) / time_s()
            session.report(
                Progress(step, plan.num_steps, epoch, time_s(), images_per_s, input_wait, lr, dict(metrics))
            )

    spent_s = agree(time_s(), session) if train.time_budget_s else 0.0
    place, part = 0.0, 0
    for batch in batches:
        if part == 0:
            place = place_at(step)
            set_rates(optimizers, schedule_factor(config.optim, place, plan.num_steps))
        with autocast(device, dtype):
            loss, values = loss_of(network, batch.to(device), config)
        (loss / plan.num_parts).backward()
        meter.add(values)
        part = (part + 1) % plan.num_parts
        if part:
            continue
        if config.optim.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if average is not None and not config.optim.lookahead:
            update_average(average, model, config.optim.averaging_decay)
        elif average is not None and (step % LOOKAHEAD_EVERY == 0 or step == plan.num_steps):
            look_ahead(average, model, min(1.0, (place + 1) / plan.num_steps))
        if train.time_budget_s:
            spent_s = agree(time_s(), session)
        last = step == plan.num_steps or (train.time_budget_s > 0 and spent_s >= train.time_budget_s)
        stopped = not last and asking.told_to_stop(step)
        if last or stopped or time.perf_counter() - meter.since > PROGRESS_EVERY_S:
            means, rate = meter.take()  # synchronises
            require_finite(means, step, plan.num_steps)
            family.judge(means, step, plan.num_steps, config)
            metrics.update(means)
            images_per_s = rate * plan.batch_size / plan.num_parts
            if not last:  # which is told with its validation, below
                report(images_per_s)
        every = train.validate_every_epochs * plan.steps_per_epoch
        validated = bool(last or (every and step % every == 0))
        if session.rank == 0 and validated:
            began = time.perf_counter()
            seen = validate_with(model, average, validate)
            metrics.update(seen)
            require_finite(metrics, step, plan.num_steps)
            report(images_per_s)
            best.see(seen, average or model.state_dict(), step)
            meter.since += time.perf_counter() - began  # no part of the steps that are still to be reported
        if train.patience and validated:
            last = bool(agree(float(last or best.exhausted), session))
        # By the clock too, so that a short or slow run can be resumed; only where no other rank has another clock.
        overdue = session.world_size == 1 and time.perf_counter() - saved > CHECKPOINT_EVERY_S
        if last or stopped or step % train.checkpoint_every_steps == 0 or overdue:
            waited_s = waited_before_s + batches.time_s
            if last:
                metrics.update(best.metrics)  # the result is what they were measured on
            state = snapshot(model, optimizers, average, step, time_s(), waited_s, metrics)
            cpu_s = cpu_before_s + total(time.process_time() - cpu_began_s, session)
            early = why_early(train, step, plan.num_steps, plan.steps_per_epoch, spent_s) if last else ""
            state |= {"best": best.state(), "ended": last, "early": early}
            state |= {"trained_on": trained_on, "cpu_s": cpu_s}
            session.save(state, step)
            saved = time.perf_counter()
        if last or stopped:
            break

    assert state is not None
    return state


def place_of(step: int, num_steps: int, spent_s: float, budget_s: float) -> float:
    """Where in the schedule a step stands, in [0, num_steps]: by the steps or by the time spent, what is further."""
    return max(float(step), min(1.0, spent_s / budget_s) * num_steps) if budget_s else float(step)


class Waiting:
    """Iterates batches, and adds up how long it waited for all but the first."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.time_s, self.started = batches, 0.0, False

    def __iter__(self) -> "Waiting":
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        batch = next(self.batches)
        if self.started:
            self.time_s += time.perf_counter() - began
        self.started = True
        return batch


def require_finite(values: dict[str, float], step: int, num_steps: int) -> None:
    """Raise FloatingPointError if training has diverged."""
    if not all(math.isfinite(value) for value in values.values()):
        raise FloatingPointError(
            f"the loss is not finite at step {step} of {num_steps} ({values}); lower optim.lr, raise "
            "optim.warmup_share, or set or lower optim.clip_norm"
        )


def snapshot(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, Tensor] | None,
    step: int,
    time_s: float,
    waited_s: float,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """Everything that the next step depends on, as tensors and plain values: readable with `weights_only=True`."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "model": model.state_dict(),
        "average": average if average is not None else {},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        "step": step,
        "time_s": time_s,
        "waited_s": waited_s,
        "metrics": metrics,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put torch's generators where the checkpoint left them."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def result_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that a finished run stands for: the best validated, else the averaged, else the last ones."""
    return state["best"].get("weights") or state["average"] or state["model"]


def validate_with(
    model: nn.Module, average: dict[str, Tensor] | None, validate: Callable[[nn.Module], dict[str, float]]
) -> dict[str, float]:
    """Validate the weights that would be the result if training ended here.

    The model and torch's random state come back unchanged: training does not depend on how often it is validated.
    """
    kept = None
    if average is not None:
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(average)
    model.eval()
    on_gpu = {value.device for value in model.parameters() if value.is_cuda}
    with torch.inference_mode(), torch.random.fork_rng(on_gpu):
        metrics = {f"val_{name}": value for name, value in validate(model).items()}
    model.train()
    if kept is not None:
        model.load_state_dict(kept)
    return metrics
