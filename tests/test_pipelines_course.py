"""What a training says of itself is logged once, however often it is begun again."""

from collections.abc import Mapping

import pytest

from pipelines.course import Course
from tasks import registry

Record = list[tuple[int, dict[str, float]]]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    """What was logged, message by message; what comes after it is of a later attempt."""
    logged: Record = []

    def log(run_id: str, step: int, values: Mapping[str, float]) -> None:
        assert run_id == "r"
        logged.append((step, dict(values)))

    def before(run_id: str) -> dict[str, tuple[int, float]]:
        assert run_id == "r"
        return {name: (step, value) for step, values in logged for name, value in values.items()}

    monkeypatch.setattr(registry, "log_progress", log)
    monkeypatch.setattr(registry, "logged_before", before)
    return logged


def said(step: int, accuracy: float = 0.0, images_per_s: float = 100.0) -> tuple[int, dict[str, float]]:
    return step, {
        "loss": 1 / step,
        "val_accuracy": accuracy,
        "epoch": step / 10,
        "images_per_s": images_per_s,
    }


def test_of_one_attempt_all_is_logged(record: Record) -> None:
    course = Course("r", again=False)
    messages = [said(3), said(10), said(10, 0.5), said(12, 0.5)]
    for message in messages:
        course.hear(*message)
    course.end()
    assert record == messages


def test_steps_that_the_record_has_are_not_logged_again(record: Record) -> None:
    first = Course("r", again=False)
    for message in (said(3), said(10), said(10, 0.5)):
        first.hear(*message)
    second = Course("r", again=True)
    for message in (said(5), said(10, images_per_s=99.0), said(10, 0.5, images_per_s=98.0), said(14, 0.5)):
        second.hear(*message)
    second.end()
    assert [step for step, _ in record] == [3, 10, 10, 14]
    assert record[2] == said(10, 0.5)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_validation_that_a_kill_kept_from_the_record_is_logged_by_the_next_attempt(
    record: Record, goes_on: bool
) -> None:
    first = Course("r", again=False)
    first.hear(*said(3))
    first.hear(*said(10))
    second = Course("r", again=True)
    for message in [said(10), said(10, 0.5), *([said(14, 0.5)] if goes_on else [])]:
        second.hear(*message)
    second.end()
    assert record[:3] == [said(3), said(10), said(10, 0.5)]
    assert record[3:] == ([said(14, 0.5)] if goes_on else [])


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("repeated", [[said(7), said(10, 0.5)], [said(10, 0.5, images_per_s=99.0)]])
def test_a_process_that_is_started_again_repeats_nothing(
    record: Record, repeated: Record, told: bool
) -> None:
    course = Course("r", again=False)
    course.hear(*said(3))
    course.hear(*said(10, 0.5))
    if told:  # of the new process's first step
        course.begin()
    for message in (*repeated, said(11, 0.5)):
        course.hear(*message)
    course.end()
    assert record == [said(3), said(10, 0.5), said(11, 0.5)]


def test_a_record_that_does_not_answer_gets_all(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    record.append(said(10))
    monkeypatch.setattr(registry, "logged_before", lambda _run_id: {})
    Course("r", again=True).hear(*said(5))
    assert record == [said(10), said(5)]
