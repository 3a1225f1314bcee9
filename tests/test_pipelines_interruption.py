"""Signals while a training runs: asked first, stopped then, and told to whoever dealt with them before."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipelines import interruption
from pipelines.interruption import interruptible, resume_command, undisturbed
from tasks.stopping import Interrupted

GO_ON = "./convoy train --resume KEY"
LAST = "the run goes on from its last one, or from the start where there is none"


class Terminated(BaseException):
    """What Prefect's handler raises."""


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers as a flow has them; they must be back at the end."""

    def terminated(_number: int, _frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminated)
    ctrl_c = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGTERM) is terminated
    assert signal.getsignal(signal.SIGINT) is ctrl_c
    signal.signal(signal.SIGTERM, before)


def training(notes: list[str], train: Callable[[Any], None], *, under_way: bool = True) -> None:
    with interruptible("in_process", notes.append, GO_ON) as stop:
        stop.under_way = under_way
        train(stop)


def be_told(stop: Any, number: int) -> None:
    signal.raise_signal(number)
    assert stop.asked.is_set()


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_asks_the_training_and_is_raised_when_it_has_ended(
    number: int, raised: type[BaseException], notes: list[str]
) -> None:
    def train(stop: Any) -> None:
        be_told(stop, number)
        raise Interrupted(17)

    with pytest.raises(raised) as caught:
        training(notes, train)
    assert not isinstance(caught.value, Interrupted)
    assert notes[-1] == f"stopped after step 17: no step is lost; go on: {GO_ON}"


def test_a_training_that_ends_by_itself_meanwhile_is_stopped_all_the_same(notes: list[str]) -> None:
    with pytest.raises(Terminated):
        training(notes, lambda stop: be_told(stop, signal.SIGTERM))
    assert notes[-1] == f"stopped; the training was done by then; go on: {GO_ON}"


@pytest.mark.parametrize("under_way", [True, False])
def test_the_second_signal_or_the_first_before_any_step_stops_at_once(
    under_way: bool, notes: list[str]
) -> None:
    seen: list[type[BaseException]] = []

    def train(stop: Any) -> None:
        if under_way:
            be_told(stop, signal.SIGTERM)
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            seen.append(type(error))
            raise

    with pytest.raises(Terminated):
        training(notes, train, under_way=under_way)
    assert seen == [KeyboardInterrupt]  # the one exception that a wait for Ray lets out
    what = (
        f"stopped without waiting for a checkpoint: {LAST}" if under_way else "stopped before it took a step"
    )
    assert notes[-1] == f"{what}; go on: {GO_ON}"


def test_a_training_that_does_not_hear_is_stopped_in_time(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "STOP_WITHIN_S", 0.1)

    def train(stop: Any) -> None:
        be_told(stop, signal.SIGTERM)
        while True:
            time.sleep(1)

    with pytest.raises(Terminated):
        training(notes, train)
    assert notes[-1] == f"stopped without waiting for a checkpoint: {LAST}; go on: {GO_ON}"


def test_a_failure_while_it_stops_is_told_and_a_failure_otherwise_is_raised(notes: list[str]) -> None:
    def train(stop: Any) -> None:
        be_told(stop, signal.SIGTERM)
        raise RuntimeError("a worker died\nlong ago")

    def fail(_stop: Any) -> None:
        raise RuntimeError("by itself")

    with pytest.raises(Terminated):
        training(notes, train)
    assert notes[-1] == f"stopped, but no checkpoint could be kept (a worker died): {LAST}; go on: {GO_ON}"
    with pytest.raises(RuntimeError, match="by itself"):
        training(notes, fail)


def test_a_training_that_nobody_stops_says_nothing(notes: list[str]) -> None:
    training(notes, lambda _stop: None)
    assert notes == []


def test_the_command_that_goes_on_names_the_executor_where_it_must() -> None:
    assert resume_command("train", "k") == "./convoy train --resume k"
    assert (
        resume_command("ensemble", "k", "in_process") == "./convoy ensemble --resume k --executor in_process"
    )


def test_signals_wait_while_a_stopped_run_is_put_in_order() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with undisturbed():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
    assert signal.getsignal(signal.SIGTERM) is before
