"""Ranks that end together, whatever their own clocks say."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed

from tasks.settings import TrainConfig
from tasks.stopping import Asking, agree, why_early
from tests.ranks import run_two
from tests.tiny import SMALL


@dataclass
class Session:
    """A rank that wishes to stop when it is asked for the fifth time."""

    rank: int = 0
    world_size: int = 1
    num_asked: int = 0
    device = torch.device("cpu")

    def stopping(self) -> bool:
        self.num_asked += 1
        return self.num_asked >= 5


def first_step_told(session: Session, pause_s: float) -> int:
    """The step at which a loop with steps of that length is told to stop."""
    asking, step = Asking(session, 0), 0
    while True:
        step += 1
        time.sleep(pause_s)
        if asking.told_to_stop(step):
            return step


def rank(number: int, folder: Path) -> None:
    """One of two ranks; the second one's clock and steps differ from the first one's, and it has no wish."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=number, world_size=2
    )
    session = Session(number, 2)
    if number:
        begun, clock = time.perf_counter(), time.perf_counter
        time.perf_counter = lambda: begun + 100 * (clock() - begun)
        session.stopping = lambda: True  # type: ignore[method-assign]  # nobody may listen to it
    agreed = agree(0.25 + number, session)
    told = first_step_told(session, 0.002 + 0.003 * number)
    (folder / f"rank-{number}").write_text(f"{agreed} {told}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_with_clocks_of_their_own_stop_at_the_first_ones_word(tmp_path: Path) -> None:
    run_two(rank, tmp_path)
    first, second = ((tmp_path / f"rank-{number}").read_text().split() for number in range(2))
    assert first == second
    assert float(first[0]) == 0.25
    assert int(first[1]) > 5  # it was not asked at every step


@pytest.mark.parametrize(
    ("step", "spent_s", "patience", "why"),
    [
        (90, 600.0, 2, ""),
        (89, 600.0, 2, "by its time budget of 600 s, at epoch 4.9 of 5"),
        (75, 601.2, 2, "by its time budget of 600 s, at epoch 4.1 of 5"),
        (1, 600.0, 2, "by its time budget of 600 s, at epoch 0 of 5"),
        (36, 599.0, 2, "by its patience of 2 validations, at epoch 2 of 5"),
        (36, 599.0, 1, "by its patience of 1 validation, at epoch 2 of 5"),
    ],
)
def test_a_run_knows_why_it_ended_before_its_epochs_were_over(
    step: int, spent_s: float, patience: int, why: str
) -> None:
    changes = {"epochs": 5.0, "time_budget_s": 600.0, "patience": patience, "validate_every_epochs": 1}
    train = TrainConfig.parse({**SMALL["train"], **changes}, "train")
    assert why_early(train, step, 90, 18, spent_s) == why


def clock_of(step_s: float) -> Callable[[], float]:
    """A clock that moves by one step's time whenever it is looked at."""
    ticks = iter(range(10**6))
    return lambda: next(ticks) * step_s


@pytest.mark.parametrize(("step_s", "gap"), [(0.001, 250), (0.05, 5), (3.0, 1), (1e-6, 1000)])
def test_it_is_asked_about_four_times_a_second_and_at_least_every_step_or_thousandth(
    step_s: float, gap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.stopping.time.perf_counter", clock_of(step_s))
    asking = Asking(Session(), 40)
    assert not asking.told_to_stop(41)
    assert asking.next == 41 + gap
    assert not any(asking.told_to_stop(step) for step in range(42, 41 + gap))
    assert asking.session.num_asked == 1  # type: ignore[attr-defined]
