"""What commands show."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipelines.render import ConsoleReporter, cell, emit, pairs, plain, table
from pipelines.reporting import Clock, Status, current_reporter, set_reporter

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_any_document_is_valid_json(value: Any) -> None:
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == plain(value)


def test_json_keeps_numbers_and_turns_the_rest_into_what_it_can_hold() -> None:
    value = {"a": np.float64(0.5), "b": np.arange(2), "c": math.nan, "d": Path("x"), "e": (1, 2), 3: None}
    assert plain(value) == {"a": 0.5, "b": [0, 1], "c": None, "d": "x", "e": [1, 2], "3": None}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (True, "yes"), (1797, "1,797"), (0.973123, "0.9731"), (12345.6, "12,346"), (("a", 1), "a, 1"),
     ("x", "x"), (0.0, "0")],
)  # fmt: skip
def test_cells_read_as_a_person_writes(value: Any, text: str) -> None:
    assert cell(value) == text


def shown(view: Any) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_names_in_brackets_are_text_and_not_markup() -> None:
    assert "[bold]cat[/bold]" in shown(table("T", ("class",), [("[bold]cat[/bold]",)]))
    assert "[red]" in shown(pairs("P", {"[red]": "x"}))


def test_numbers_stand_to_the_right() -> None:
    lines = shown(table("", ("name", "n"), [("a", 1), ("b", 1000)])).splitlines()
    rows = [line.rstrip() for line in lines if line.strip()[:1] in ("a", "b")]
    assert len({len(row) for row in rows}) == 1


def test_emit_prints_the_document_or_the_views(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"x": 1}, ["a line"], True)
    assert json.loads(capsys.readouterr().out) == {"x": 1}
    emit({"x": 1}, ["a line"], False)
    assert capsys.readouterr().out == "a line\n"


def test_progress_goes_to_stderr_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    for done in range(1, 101):
        reporter.show(Status("train", done, 100, 1234.5, "loss 0.3"))
    reporter.note("a note")
    reporter.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "train 1/100, 1,234 images/s, loss 0.3", "train 100/100, 1,234 images/s, loss 0.3", "a note"
    ]  # fmt: skip


def test_the_last_that_is_said_of_a_step_that_ends_early_is_shown_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter = ConsoleReporter()
    for done in (11, 40, 66):
        status = Status("train", done, 7600, 1234.5, "val_accuracy 0.9")
        reporter.show(status)
    for _ in range(2):
        reporter.show(replace(status, ended=True))
    line = "train {}/7,600, 1,234 images/s, val_accuracy 0.9"
    assert capsys.readouterr().err.splitlines() == [line.format(11), line.format(66)]


def test_speed_is_told_in_its_unit() -> None:
    assert str(Status("ingest", 2, 4, 1234.5, unit="signals")) == "ingest 2/4, 1,234 signals/s"
    assert str(Status("download", 3, None, 0.44, unit="MB")) == "download 3, 0.4 MB/s"
    assert str(Status("check", 3, 4, None)) == "check 3/4"


def test_a_terminal_gets_a_bar_with_speed_and_time_left() -> None:
    reporter = ConsoleReporter()
    screen = io.StringIO()
    reporter.console = Console(file=screen, force_terminal=True, width=120)
    reporter.show(Status("train", 10, 100, 1234.5, "loss 0.3"))
    reporter.show(Status("train", 60, 100, 1234.5, "loss 0.2"))
    reporter.show(Status("evaluate", 1, None, None))
    reporter.close()
    drawn = screen.getvalue()
    for text in ("train", "1,234 images/s", "left", "60%", "loss 0.2", "evaluate"):
        assert text in drawn


def test_the_clock_says_nothing_before_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock()
    assert clock.rate(0) is None
    now[0] = 102.0
    assert clock.rate(10) == 5.0


def test_what_an_earlier_attempt_had_done_is_not_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock()
    now[0] = 102.0
    assert clock.own_rate(90) is None
    now[0] = 104.0
    assert clock.own_rate(110) == 5.0


def test_the_reporter_is_the_one_that_was_set() -> None:
    before = current_reporter()
    reporter = ConsoleReporter()
    set_reporter(reporter)
    assert current_reporter() is reporter
    if before is not None:
        set_reporter(before)
