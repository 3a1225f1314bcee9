"""Recipes: schedules, Lookahead, class weights, accumulation, patience and time budgets."""

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data.dataset import Dataset
from data.stream import Layout
from models.classification import cross_entropy
from tasks.batches import BatchPlan, Job, batch_of, training_jobs
from tasks.loop import place_of, result_weights
from tasks.optim import OptimConfig, balanced_weights, look_ahead, schedule_factor
from tasks.stopping import Best
from tasks.train import LocalSession, train
from tests.tiny import tiny_config, tiny_dataset


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset("classification", tmp_path_factory.mktemp("store"))


def optim(**changes: Any) -> OptimConfig:
    return tiny_config("classification", optim__averaging_decay=0.0, **changes).optim


def fitted(digits: Dataset, folder: Path, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """A run in this process: its result and its last checkpoint."""
    config = tiny_config("classification", **changes)
    result = train(
        "classification", config, digits, folder=folder, key="k", digest="d" * 32, executor="in_process"
    )
    newest = sorted((folder / "checkpoints").glob("step-*.pt"))[-1]
    return result, torch.load(newest, weights_only=True)


def test_triangular_is_airbenchs() -> None:
    config = optim(
        optim__schedule="triangular",
        optim__warmup_share=0.23,
        optim__first_share=0.2,
        optim__final_share=0.07,
    )
    expected = np.interp(np.arange(100), [0, 23, 100], [0.2, 1, 0.07])
    assert [schedule_factor(config, step, 100) for step in range(100)] == pytest.approx(expected)


def test_one_cycle_is_torchs() -> None:
    config = optim(
        optim__schedule="one_cycle", optim__warmup_share=0.3, optim__first_share=0.04, optim__final_share=4e-6
    )
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        sgd, max_lr=1.0, total_steps=101, pct_start=31 / 101, div_factor=25, cycle_momentum=False
    )
    # torch's peak is at step pct_start * total_steps - 1 and its last rate at total_steps - 1
    rates = []
    for _ in range(100):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        theirs.step()
    mine = [schedule_factor(config, step, 100) for step in range(100)]
    assert mine == pytest.approx(rates, abs=1e-9)


@pytest.mark.parametrize("warmup_share", [0.0, 0.25])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "triangular", "one_cycle"])
def test_schedules_at_their_ends(schedule: str, warmup_share: float) -> None:
    """The highest rate where warm-up is over, the last one where all steps are done, and never a rate outside."""
    config = optim(optim__schedule=schedule, optim__warmup_share=warmup_share, optim__final_share=0.1)
    last = 1.0 if schedule == "constant" else 0.1
    assert schedule_factor(config, 40 * warmup_share, 40) == pytest.approx(1)
    assert schedule_factor(config, 40, 40) == pytest.approx(last)
    if warmup_share:
        rises = schedule in ("triangular", "one_cycle")
        assert schedule_factor(config, 0, 40) == pytest.approx(0 if rises else 1 / 11)
    factors = [schedule_factor(config, step / 4, 40) for step in range(161)]
    assert min(factors) >= 0 and max(factors) <= 1 + 1e-12
    fall = factors[int(160 * warmup_share) :]
    assert all(before >= after - 1e-12 for before, after in itertools.pairwise(fall))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "triangular", "one_cycle"])
def test_a_schedule_of_a_single_step_has_a_rate(schedule: str) -> None:
    for warmup_share in (0.0, 0.9):
        factor = schedule_factor(optim(optim__schedule=schedule, optim__warmup_share=warmup_share), 0, 1)
        assert math.isfinite(factor) and 0 <= factor <= 1


def test_constant_warms_up_and_stays() -> None:
    config = optim(optim__schedule="constant", optim__warmup_share=0.2)
    assert [schedule_factor(config, step, 10) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert schedule_factor(config, 9, 10) == 1.0


def test_a_setting_that_is_not_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim.first_share \(=0.2\) is read by the schedules triangular"):
        optim(optim__first_share=0.2)
    with pytest.raises(ValueError, match=r"optim.first_share \(=0.2\) is where .*warmup_share \(=0\)"):
        optim(optim__schedule="triangular", optim__first_share=0.2, optim__warmup_share=0.0)
    with pytest.raises(ValueError, match=r"set optim\.averaging_decay"):
        tiny_config("classification", optim__lookahead=True)
    with pytest.raises(ValueError, match=r"train.patience \(=2\) counts validations"):
        tiny_config("classification", train__patience=2)


def test_lookahead_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(3.0)
    slow = {"weight": torch.tensor([[1.0]])}
    look_ahead(slow, model, progress=0.5)
    keeps = 0.95**5 * 0.125
    assert float(slow["weight"]) == pytest.approx(3 - 2 * keeps)
    assert torch.equal(model.weight.detach(), slow["weight"])


def test_balanced_weights_by_hand_and_one_on_average() -> None:
    assert balanced_weights([6, 2, 0]).tolist() == pytest.approx([8 / 12, 2.0, 0.0])
    counts = torch.tensor([5, 1, 14, 7])
    assert float((balanced_weights(counts.tolist()) * counts).sum() / counts.sum()) == pytest.approx(1.0)


def test_class_weights_scale_each_samples_loss() -> None:
    torch.manual_seed(0)
    logits, labels, partners = torch.randn(4, 3), torch.tensor([0, 1, 2, 1]), torch.tensor([1, 1, 0, 2])
    share, weights = torch.tensor([1.0, 0.5, 0.25, 0.0]), torch.tensor([0.5, 2.0, 1.0])
    nats = -logits.log_softmax(1)
    plain = sum(weights[k] * nats[i, k] for i, k in enumerate(labels)) / 4
    torch.testing.assert_close(cross_entropy(logits, labels, 0.0, class_weights=weights), plain)
    mixed = sum(
        share[i] * weights[labels[i]] * nats[i, labels[i]]
        + (1 - share[i]) * weights[partners[i]] * nats[i, partners[i]]
        for i in range(4)
    )
    torch.testing.assert_close(cross_entropy(logits, labels, 0.0, partners, share, weights), mixed / 4)
    even = cross_entropy(logits, labels, 0.1, partners, share, torch.ones(3))
    torch.testing.assert_close(even, cross_entropy(logits, labels, 0.1, partners, share))


def test_parts_of_a_batch_are_the_batch() -> None:
    whole, parted = (
        BatchPlan.of(
            tiny_config("classification", train__accumulate_batches=k).train, Layout((200,), 0), 0, 1
        )
        for k in (1, 4)
    )
    jobs, parts = list(training_jobs(whole, 1)), list(training_jobs(parted, 1))
    assert len(parts) == 4 * len(jobs)
    assert np.array_equal(np.concatenate([p.indices for p in parts[:4]]), jobs[0].indices)
    with pytest.raises(ValueError, match=r"num_workers \(=1\) times accumulate_batches \(=3\)"):
        tiny_config("classification", train__accumulate_batches=3)


def test_accumulated_steps_equal_whole_ones(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeNet-5 has no batch norm, so that the gradients are the same but for rounding."""
    monkeypatch.setattr("tasks.loop.PROGRESS_EVERY_S", math.inf)  # one mean, of all steps
    _, whole = fitted(digits, tmp_path / "whole")
    _, parted = fitted(digits, tmp_path / "parted", train__accumulate_batches=4)
    assert whole["step"] == parted["step"]
    for name, value in whole["model"].items():
        torch.testing.assert_close(parted["model"][name], value, rtol=1e-3, atol=1e-5)
    assert parted["metrics"]["loss"] == pytest.approx(whole["metrics"]["loss"], rel=1e-3)


def test_the_schedule_follows_what_is_spent_further() -> None:
    assert place_of(7, 100, 50.0, 0.0) == 7
    assert place_of(7, 100, 5.0, 10.0) == 50
    assert place_of(80, 100, 5.0, 10.0) == 80
    assert place_of(7, 100, 11.0, 10.0) == 100


def test_a_spent_budget_ends_the_run_and_a_second_call_adds_nothing(digits: Dataset, tmp_path: Path) -> None:
    result, state = fitted(digits, tmp_path / "run", train__epochs=1000.0, train__time_budget_s=0.5)
    assert state["ended"] and 0 < state["step"] < 1000 * 18 and state["time_s"] >= 0.5
    assert "val_accuracy" in result.metrics
    assert re.fullmatch(r"by its time budget of 0\.5 s, at epoch \d+(\.\d)? of 1000", result.ended_early)
    (tmp_path / "run" / "result.json").unlink()
    again, _ = fitted(digits, tmp_path / "run", train__epochs=1000.0, train__time_budget_s=0.5)
    assert (again.num_steps, again.ended_early) == (result.num_steps, result.ended_early)


def test_batches_hear_how_much_of_a_budget_is_spent(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends before training does would never end by the steps: the time is enough for fifty of them."""
    seen: list[float] = []
    ticks = itertools.count()

    def heard(family: Any, samples: Any, job: Job, info: Any, config: Any) -> Any:
        if job.generator is not None:
            seen.append(job.generator.done)
        return batch_of(family, samples, job, info, config)

    monkeypatch.setattr("tasks.feed.batch_of", heard)
    # a second a step, by a clock that no other work on this machine delays
    monkeypatch.setattr("tasks.loop.agree", lambda _time_s, _session: float(next(ticks)))
    _, state = fitted(digits, tmp_path / "run", train__epochs=1000.0, train__time_budget_s=50.0)
    assert state["step"] == 50 and seen == pytest.approx([step / 50 for step in range(50)])


def test_best_keeps_the_first_of_equals_and_counts_the_rest() -> None:
    best = Best("loss", 2)
    for step, loss in enumerate([3.0, 1.0, 1.0, 2.0]):
        assert not best.exhausted
        best.see({"val_loss": loss}, {"w": torch.tensor(float(step))}, step)
    assert best.exhausted and best.step == 1 and best.weights["w"] == 1
    again = Best("loss", 2)
    again.load(best.state())
    assert again.exhausted and again.metrics == {"val_loss": 1.0}
    with pytest.raises(ValueError, match="no validation pictures"):
        Best("loss", 2).see({}, {}, 1)


def test_patience_ends_a_run_that_cannot_improve_with_its_best_weights(
    digits: Dataset, tmp_path: Path
) -> None:
    changes = {"train__validate_every_epochs": 1, "train__epochs": 30.0, "train__patience_metric": "loss"}
    still = {"optim__lr": 1e-12, "optim__bias_lr": 1e-12, "optim__averaging_decay": 0.0}
    result, state = fitted(digits, tmp_path / "run", train__patience=2, **changes, **still)
    assert state["ended"] and state["step"] < 30 * 19
    assert result.ended_early == f"by its patience of 2 validations, at epoch {state['step'] // 19} of 30"
    assert state["best"]["num_worse"] == 2
    assert result_weights(state) is state["best"]["weights"]
    assert state["metrics"]["val_loss"] == state["best"]["metrics"]["val_loss"]


@pytest.mark.parametrize("crash_at", [5, 25])
def test_all_of_it_resumed_equals_uninterrupted(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    changes: dict[str, Any] = {
        "optim__lookahead": True, "optim__averaging_decay": 0.0, "optim__class_weights": "balanced",
        "train__accumulate_batches": 2, "train__patience": 3, "train__validate_every_epochs": 1,
        "train__epochs": 2.0,
    }  # fmt: skip
    _, straight = fitted(digits, tmp_path / "straight", **changes)
    save = LocalSession.save

    def save_then_crash(session: LocalSession, state: dict[str, Any], step: int) -> None:
        save(session, state, step)
        if step == crash_at:
            raise InterruptedError

    monkeypatch.setattr(LocalSession, "save", save_then_crash)
    with pytest.raises(InterruptedError):
        fitted(digits, tmp_path / "broken", **changes)
    monkeypatch.undo()
    result, resumed = fitted(digits, tmp_path / "broken", **changes)
    assert result.resumed_from_step == crash_at
    mine, theirs = result_weights(resumed), result_weights(straight)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
