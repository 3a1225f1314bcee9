"""Checkpoints lie on the disk before they have their names, and one that cannot be read is passed over."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.raysnapshot import mend_snapshot
from tasks.train import LocalSession


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


DAMAGES = pytest.mark.parametrize("damage", [cut, empty, zero])  # as a power cut leaves what was not flushed


def session_in(folder: Path, *steps: int) -> LocalSession:
    session = LocalSession(folder, torch.device("cpu"), lambda _: None)
    for step in steps:
        session.save({"step": step, "model": {"w": torch.full((100,), float(step))}}, step)
    return session


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_checkpoint_lies_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync
    flushed: list[tuple[bool, bool]] = []

    def seen(number: int) -> None:
        flush(number)
        flushed.append((os.fstat(number).st_size > 1000, (tmp_path / "step-000000001.pt").exists()))

    monkeypatch.setattr(os, "fsync", seen)
    session_in(tmp_path, 1)
    assert flushed == [(True, False)]
    assert names(tmp_path) == ["step-000000001.pt"]


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    session = session_in(tmp_path, 1)
    with pytest.raises(Exception, match="pickle"):
        session.save({"model": torch.ones(100), "step": lambda: 2}, 2)
    assert names(tmp_path) == ["step-000000001.pt"]


@DAMAGES
def test_a_run_goes_on_from_the_newest_checkpoint_that_can_be_read(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    session = session_in(tmp_path, 1, 2)
    damage(tmp_path / "step-000000002.pt")
    state = session.load()
    assert state is not None and state["step"] == 1
    damage(tmp_path / "step-000000001.pt")
    with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)):
        session.load()  # not from the beginning, without a word
    assert session_in(tmp_path / "new").load() is None


@DAMAGES
def test_rays_list_of_checkpoints_names_one_that_can_be_read(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    listed = tmp_path / "checkpoint_manager_snapshot.json"

    def newest() -> Any:
        mend_snapshot(tmp_path, 1)
        return json.loads(listed.read_text())["latest_checkpoint_result"]["checkpoint_dir_name"]

    for name in ("checkpoint_1", "checkpoint_2"):
        (tmp_path / name).mkdir()
        for part in ("state", "random-0"):
            torch.save({"w": torch.ones(100)}, tmp_path / name / f"{part}.pt")
    listed.write_text("{")
    assert newest() == "checkpoint_2"
    written = listed.stat().st_ino
    assert newest() == "checkpoint_2" and listed.stat().st_ino == written  # what can be used stays
    damage(tmp_path / "checkpoint_2" / "state.pt")
    assert newest() == "checkpoint_1"
    damage(tmp_path / "checkpoint_1" / "random-0.pt")
    assert newest() == "checkpoint_1"  # Ray says what is wrong with it
