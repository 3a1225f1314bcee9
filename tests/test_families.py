"""Laws that every family keeps: a family is tested from the moment it is listed in tasks/families.py."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.dataset import Dataset
from data.random import SampleGenerator
from data.stream import Layout
from models.catalogue import NetworkConfig
from pipelines.families import PIPELINES, load
from tasks.batches import BatchPlan
from tasks.families import FAMILIES
from tasks.features import started
from tasks.modelfile import load_model
from tasks.optim import build_optimizers
from tasks.stopping import Interrupted
from tasks.train import LocalSession, decode_here, train
from tests.saved import save_untrained
from tests.tiny import HEART, TINY, tiny_config, tiny_dataset, tiny_weights

GOLDEN = Path(__file__).parent / "golden"
NUM_GOLDEN_STEPS = 20

families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    store = tmp_path_factory.mktemp("store")
    return {family: tiny_dataset(family, store) for family in TINY}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder / "model").members[0].state_dict()


def assert_equal_weights(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different


def run(
    family: str,
    dataset: Dataset,
    folder: Path,
    executor: Any = "in_process",
    stopping: Any = lambda: False,
    **changes: Any,
) -> Any:
    config = tiny_config(family, **changes)
    return train(
        family,
        config,
        dataset,
        folder=folder,
        key=folder.name,
        digest="d" * 32,
        executor=executor,
        stopping=stopping,
        weights=tiny_weights(family, config),
    )


def first_batch(
    family: str, dataset: Dataset, config: Any, num: int = 32
) -> tuple[Any, torch.nn.Module, Any]:
    entry = started(family, tiny_weights(family, config), cached=False)
    records = decode_here(entry, dataset, "train", config)
    torch.manual_seed(0)
    model = entry.model(
        config,
        dataset.info,
        lambda: [entry.batch(records, np.arange(min(100, len(records))), dataset.info, config, None)],
    )
    indices = np.arange(num)
    batch = entry.batch(records, indices, dataset.info, config, None)
    return entry, model, batch


def test_every_family_has_a_tiny_run() -> None:
    assert set(TINY) == set(FAMILIES)


@families
def test_what_may_start_from_weights_says_of_which_network(family: str) -> None:
    sections = FAMILIES[family].config.model_fields
    assert "transfer" not in sections or issubclass(sections["model"].annotation, NetworkConfig)  # type: ignore[arg-type]


@families
def test_every_trainable_parameter_gets_a_finite_gradient(family: str, datasets: dict[str, Dataset]) -> None:
    config = tiny_config(family)
    entry, model, batch = first_batch(family, datasets[family], config)
    loss, values = entry.loss(model.train(), batch, config)
    loss.backward()
    assert loss.ndim == 0 and loss.isfinite() and all(value.isfinite() for value in values.values())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@families
def test_a_report_says_which_model_was_tested_as_it_was_called_and_by_which_run(
    family: str, datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    model, dataset = save_untrained(family, datasets[family], tmp_path / "model"), datasets[family]
    report = load(PIPELINES[family].evaluate)(
        [model], dataset, config=tiny_config(family).evaluate, called=("models:/mine/3",)
    )
    report.write(tmp_path / "report")
    about = json.loads((tmp_path / "report" / "about.json").read_text())
    assert (about["models"], about["runs"]) == ("models:/mine/3", "untrained")
    page = tmp_path / "report" / "report.html"
    assert page.is_file() == (family != "style")
    assert not page.is_file() or "models:/mine/3, trained by untrained; " in page.read_text()


@families
def test_one_batch_is_learnt_by_heart(family: str, datasets: dict[str, Dataset]) -> None:
    lr, num_steps = HEART.get(family, (3e-3, 100))
    config = tiny_config(family, optim__name="adamw", optim__lr=lr, optim__bias_lr=lr)
    entry, model, batch = first_batch(family, datasets[family], config)
    optimizers = build_optimizers(model.train(), config.optim)
    losses = []
    for _ in range(num_steps):
        loss, _values = entry.loss(model, batch, config)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


@families
def test_golden_losses(family: str, datasets: dict[str, Dataset]) -> None:
    """20 steps of plain fp32 training give the losses that they gave before; `make golden` writes them anew."""
    config = tiny_config(family)
    entry, model, _batch = first_batch(family, datasets[family], config)
    records = decode_here(entry, datasets[family], "train", config)
    plan = BatchPlan.of(config.train, Layout((len(records),), 0), 0, 1)
    optimizers = build_optimizers(model.train(), config.optim)
    losses = []
    for step in range(NUM_GOLDEN_STEPS):
        batch = entry.batch(records, plan.indices(step), datasets[family].info, config, SampleGenerator(0, 0))
        loss, _values = entry.loss(model, batch, config)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    file = GOLDEN / f"{family}.json"
    if os.environ.get("CONVOY_GOLDEN") == "write":
        file.write_text(json.dumps([round(loss, 6) for loss in losses]) + "\n")
    # float32 sums differ in order between processors, and the differences grow with the steps
    assert losses == pytest.approx(json.loads(file.read_text()), rel=2e-3)


@families
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    family: str, datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    run(family, datasets[family], tmp_path / "a")
    run(family, datasets[family], tmp_path / "b")
    run(family, datasets[family], tmp_path / "c", train__seed=1)
    assert_equal_weights(tmp_path / "a", tmp_path / "b")
    mine, theirs = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert any(not torch.equal(mine[name], theirs[name]) for name in mine)


@families
def test_streamed_from_the_shards_it_learns_the_same_weights(
    family: str, datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    run(family, datasets[family], tmp_path / "resident", train__data_mode="resident")
    run(family, datasets[family], tmp_path / "streamed", train__data_mode="streaming")
    assert_equal_weights(tmp_path / "resident", tmp_path / "streamed")


class Crash(Exception):
    """Stands for a crash in the middle of a run."""


@families
@pytest.mark.parametrize("crash_at", [5, 15])
def test_interrupted_and_resumed_equals_uninterrupted(
    family: str, crash_at: int, datasets: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(family, datasets[family], tmp_path / "straight")
    save = LocalSession.save

    def save_then_crash(session: LocalSession, state: dict[str, Any], step: int) -> None:
        save(session, state, step)
        if step == crash_at:
            raise Crash

    monkeypatch.setattr(LocalSession, "save", save_then_crash)
    with pytest.raises(Crash):
        run(family, datasets[family], tmp_path / "broken")
    monkeypatch.undo()
    result = run(family, datasets[family], tmp_path / "broken")
    assert result.resumed_from_step == crash_at
    assert_equal_weights(tmp_path / "straight", tmp_path / "broken")


@families
def test_a_run_that_is_told_to_stop_loses_no_step(
    family: str, datasets: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(family, datasets[family], tmp_path / "straight")
    monkeypatch.setattr("tasks.stopping.ASK_EVERY_S", 0.0)  # that is, after every step
    answers = iter([False] * 6 + [True])  # checkpoints are kept every 5 steps
    with pytest.raises(Interrupted, match="stopped after step 7") as stopped:
        run(family, datasets[family], tmp_path / "stopped", stopping=lambda: next(answers))
    assert stopped.value.step == 7
    assert not (tmp_path / "stopped" / "result.json").exists()
    result = run(family, datasets[family], tmp_path / "stopped")
    assert result.resumed_from_step == 7
    assert_equal_weights(tmp_path / "straight", tmp_path / "stopped")


@families
def test_a_run_that_is_told_to_stop_at_its_last_step_is_done(
    family: str, datasets: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run(family, datasets[family], tmp_path / "straight")
    monkeypatch.setattr("tasks.stopping.ASK_EVERY_S", 0.0)
    answers = iter([False] * (straight.num_steps - 1) + [True])
    result = run(family, datasets[family], tmp_path / "told", stopping=lambda: next(answers))
    assert result.num_steps == straight.num_steps
    assert next(answers)  # nobody asked after the last step


@families
def test_a_finished_run_is_not_trained_again(
    family: str, datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    first = run(family, datasets[family], tmp_path / "run")
    before = (tmp_path / "run" / "model" / "model.json").stat().st_mtime_ns
    assert run(family, datasets[family], tmp_path / "run") == first
    assert (tmp_path / "run" / "model" / "model.json").stat().st_mtime_ns == before


@families
def test_a_loss_that_is_not_finite_names_the_step(
    family: str, datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    changes = {"optim__lr": 1e9, "optim__bias_lr": 1e9, "optim__clip_norm": 0.0}
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+ of \d+.*optim.lr"):
        run(family, datasets[family], tmp_path / "run", **changes)


@families
def test_history_has_one_row_a_message_in_order_of_steps(
    family: str, datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    result = run(
        family, datasets[family], tmp_path / "run", train__epochs=2.0, train__validate_every_epochs=1
    )
    lines = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert lines[0].startswith("step,")
    steps = [int(line.split(",")[0]) for line in lines[1:]]
    assert steps == sorted(set(steps)) and steps[-1] == result.num_steps
    assert "val_loss" in lines[0] and result.metrics["val_loss"] > 0


@families
def test_a_lone_worker_keeps_checkpoints_by_the_clock_too(
    family: str, datasets: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    original = LocalSession.save

    def save(session: LocalSession, state: dict[str, Any], step: int) -> None:
        saved.append(step)
        original(session, state, step)

    monkeypatch.setattr(LocalSession, "save", save)
    monkeypatch.setattr("tasks.loop.CHECKPOINT_EVERY_S", 0.0)
    result = run(family, datasets[family], tmp_path / "run", train__checkpoint_every_steps=10**6)
    assert saved == list(range(1, result.num_steps + 1))
