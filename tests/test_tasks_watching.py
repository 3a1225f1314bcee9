"""Datasets that are watched: each change is told of once, when it has settled."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from data.ingest import IngestConfig
from tasks import placing, versioning, versions, watching
from tasks.paths import store
from tasks.watching import Change, Look, WatchConfig, difference_of, sentence
from tests.pictures import class_tree, write_tree

pytestmark = pytest.mark.usefixtures("home")
CONFIG = IngestConfig(val_fraction=0.2, test_fraction=0.3, near_duplicate_distance=0, max_source_gb=1)
AT_ONCE, LATER = WatchConfig(settle_s=0), WatchConfig(settle_s=3600)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("CONVOY_HOME", str(folder))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    return folder


def add(tmp_path: Path, images: int, name: str = "set") -> str:
    folder = write_tree(tmp_path / f"source-{images}", class_tree("ab", images))
    return versions.add(folder, name=name, family="classification", config=CONFIG).digest


def look(config: WatchConfig = AT_ONCE) -> Look:
    told: list[Change] = []
    found = watching.watch(config, told.append)
    assert tuple(told) == found.changes
    return found


def age(seconds: float, name: str = "set") -> None:
    """Have the pointer written so long ago."""
    past = time.time() - seconds
    os.utime(store() / f"{name}.dvc", (past, past))


def test_what_is_seen_first_is_noted_and_a_change_is_told_of_once(tmp_path: Path) -> None:
    assert look() == Look((), {}, (), ())
    first = add(tmp_path, 8)
    assert look() == Look((), {}, ("set",), ())
    assert look() == Look((), {}, (), ("set",))
    second = add(tmp_path, 9)
    assert look().changes == (Change("set", "classification", first, second),)
    assert look() == Look((), {}, (), ("set",))


def test_two_changes_in_a_row_are_one_when_they_have_settled(tmp_path: Path) -> None:
    first = add(tmp_path, 8)
    look()
    add(tmp_path, 9)
    assert look(LATER).waiting["set"].endswith("must be left alone for 3600 s (watch.settle_s)")
    last = add(tmp_path, 10)
    found = look(LATER)
    assert found.changes == () and set(found.waiting) == {"set"}
    age(3601)
    assert look(LATER).changes == (Change("set", "classification", first, last),)


def test_a_change_that_is_taken_back_before_it_settled_is_none(tmp_path: Path) -> None:
    add(tmp_path, 8)
    look()
    add(tmp_path, 9)
    look(LATER)
    placing.checkout("set", "1")
    assert look().unchanged == ("set",)


def test_a_dataset_that_is_being_written_to_waits(tmp_path: Path) -> None:
    add(tmp_path, 8)
    look()
    add(tmp_path, 9)
    with versions.exclusive("set"):
        assert look().waiting == {"set": "it is being written to"}
    assert len(look().changes) == 1


def test_a_change_that_nobody_could_be_told_of_is_told_of_at_the_next_look(tmp_path: Path) -> None:
    add(tmp_path, 8)
    look()
    add(tmp_path, 9)

    def fail(_change: Change) -> None:
        raise ConnectionError("nobody answers")

    with pytest.raises(ConnectionError):
        watching.watch(AT_ONCE, fail)
    assert len(look().changes) == 1


def test_a_pointer_that_git_brought_counts_where_its_bytes_are_not_here(tmp_path: Path) -> None:
    add(tmp_path, 8)
    look()
    out: dict[str, Any] = versioning.recorded_out(store() / "set")
    versioning.point(store() / "set", "f" * 32 + ".dir", out["size"], out["nfiles"])
    shutil.rmtree(store() / "set")
    [change] = look().changes
    assert (change.family, change.after) == ("classification", "f" * 32 + ".dir")
    assert difference_of(change) == {}
    assert sentence(change, {}).endswith("bytes of one are not in DVC's cache")


def test_a_change_is_told_in_the_numbers_of_data_diff(tmp_path: Path) -> None:
    first, second = add(tmp_path, 8), add(tmp_path, 9)
    change = Change("set", "classification", first, second)
    difference = difference_of(change)
    assert (difference["counts"]["added"], difference["unchanged"]) == (2, 16)
    assert sum(difference["images_after"].values()) == 18 and "examples" not in difference
    assert sentence(change, difference) == f"set changed, {first[:8]} → {second[:8]}: 2 added, 16 unchanged"
