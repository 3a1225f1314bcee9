"""The course of a run: what was said of it before stays, whatever happens when it goes on."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.result import Listener

COURSE = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'


def listening(folder: Path, course: bytes) -> Callable[[], Listener]:
    """A run of that course that is about to go on."""
    (folder / "history.jsonl").write_bytes(course)
    return lambda: Listener(folder, None, None, lambda: False)


def test_a_course_whose_last_line_was_cut_loses_that_line_alone(tmp_path: Path) -> None:
    assert listening(tmp_path, COURSE + b'{"step": 3, "lo')().file.read_bytes() == COURSE


def test_a_course_that_is_whole_is_not_written_again(tmp_path: Path) -> None:
    go_on = listening(tmp_path, COURSE)
    file = tmp_path / "history.jsonl"
    os.utime(file, (1e9, 1e9))
    go_on()
    assert (file.read_bytes(), file.stat().st_mtime) == (COURSE, 1e9)


def test_a_course_that_cannot_be_written_again_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = listening(tmp_path, COURSE + b'{"step"')

    def fail(_number: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        go_on()
    assert (tmp_path / "history.jsonl").read_bytes() == COURSE + b'{"step"'
    assert [file.name for file in tmp_path.iterdir()] == ["history.jsonl"]
