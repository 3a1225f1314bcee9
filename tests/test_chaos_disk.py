"""A disk that is full at any point: one clear error, nothing stored is lost, and with room the same command ends well.

The disk is a tmpfs of its own, which only root may mount. Each cell fills it while the command stands at a point.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data.files import file_sha256
from tasks import ledger, versioning, versions
from tasks.gallery import Gallery
from tasks.gallerynames import folder_of
from tasks.paths import store
from tests.chaos import (
    IN_PROCESS,
    RAY_AGENTS_S,
    TRAIN,
    Straight,
    judge_home,
    judge_run,
    judge_store,
    run,
    running,
    running_records,
    statuses,
    undisturbed,
)
from tests.pictures import class_tree, write_tree
from tests.platforms import tiny_changes
from tests.test_chaos_points import (
    AFTER,
    EMBED_POINTS,
    INGEST_POINTS,
    MOVE_POINTS,
    POINTS,
    SEARCH,
    WORDS,
    add_words,
    enrol_people,
    judge_re_embedded,
    re_embed_words,
    slow,
    told,
    trials_of,
)
from tests.test_tasks_ledger import with_versions
from tests.test_tasks_study import report, study
from tests.tiny import tiny_dataset

pytestmark = pytest.mark.chaos
DISK_MB = 96
WHAT_TO_DO = "Make room (./convoy maintain lists what nothing needs), then type the same command again"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk cannot be mounted here: {getattr(error, 'stderr', '') or error}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def ballast(disk: Path) -> Iterator[Path]:
    """A file that `fill` makes as large as it can be."""
    yield disk / "ballast"
    (disk / "ballast").unlink(missing_ok=True)


def fill(ballast: Path) -> None:
    """Leave no byte free."""
    with ballast.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                pass
    about = os.statvfs(ballast.parent)
    assert about.f_bavail * about.f_frsize < 1 << 12


def kept(home: Path) -> dict[str, str]:
    """The SHA-256 of each file that a home stores for good: datasets, DVC's cache, models."""
    places = [home / "data" / "store", home / ".dvc" / "cache", home / "mlflow"]
    files = [
        file for place in places for file in place.rglob("*") if file.is_file() and file.suffix != ".lock"
    ]
    return {str(file): file_sha256(file) for file in files if ".lock" not in file.name}


def require_one_error(code: int, err: str) -> None:
    """The command ended with one line of ours, which says what is full and what to do."""
    ours = [line for line in err.splitlines() if line.startswith("convoy: ")]
    assert code == 1 and len(ours) == 1, err
    assert ours[0].startswith("convoy: no space is left in CONVOY_HOME (") and WHAT_TO_DO in ours[0]
    assert "Traceback" not in err and err.splitlines()[-1] == ours[0], err


# --- ingest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    ["shards", *map(slow, ("before the name", "before the pointer", "inside DVC", "before the list"))],
)
def test_an_ingest_onto_a_full_disk_ends_as_an_undisturbed_one_once_there_is_room(
    point: str, disk: Path, ballast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = disk / f"ingest-{point.replace(' ', '-')}"
    monkeypatch.setenv("CONVOY_HOME", str(home))
    sources = [write_tree(tmp_path / f"source-{images}", class_tree("ab", images)) for images in (8, 10)]
    run(home, tmp_path / "first", *add_words(sources[0]))
    shutil.copytree(home, tmp_path / "straight")
    run(tmp_path / "straight", tmp_path / "second", *add_words(sources[1]))
    before = kept(home)
    with running(home, tmp_path / "full", add_words(sources[1]), INGEST_POINTS[point]) as full:
        full.reach()
        fill(ballast)
        full.let_go()
        code, err = full.end()
        if (
            point != "before the name" or code
        ):  # what it works with makes room when it goes, now and then enough
            require_one_error(code, err)
        assert full.left_after(5) == []
    after = kept(home)
    cached = {name for name in before if "/.dvc/cache/" in name}
    assert cached and all(after[name] == before[name] for name in cached)  # the first version is there
    with versions.opened(versions.history("set")[0].md5) as dataset:
        assert dataset.info.num_images("train")
    ballast.unlink()
    document = run(home, tmp_path / "again", *add_words(sources[1]))
    assert (document["version"], document["new_version"]) == (2, code != 0)
    assert told(home) == told(tmp_path / "straight")
    judge_store()
    shutil.rmtree(home)


# --- train to promote ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Straight]:
    """A home on the small disk, with the digits and the champion of a run that nobody disturbed."""
    home = disk / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVOY_HOME", str(home))
        tiny_dataset("classification", store())
        versioning.add(store() / "digits")
        yield undisturbed(home, tmp_path_factory.mktemp("straight") / "run")


FULL_AT: dict[str, tuple[str, str]] = {  # the point, and the executor
    **{name: (where, "in_process") for name, where in POINTS.items()},
    "a checkpoint of Ray": ("tasks.raytrain:RaySession.save:3", "ray"),
}


@pytest.mark.slow
@pytest.mark.parametrize("point", FULL_AT)
def test_a_training_on_a_full_disk_goes_on_once_there_is_room(
    point: str, straight: Straight, ballast: Path, tmp_path: Path
) -> None:
    where, executor = FULL_AT[point]
    before = kept(straight.home)
    with running(
        straight.home, tmp_path / "full", [*TRAIN, f"--executor={executor}", *tiny_changes()], where
    ) as full:
        full.reach()
        fill(ballast)
        full.let_go()
        code, err = full.end()
        require_one_error(code, err)
        key = full.key
        ballast.unlink()
        assert full.left_after(90) == []
    after = kept(straight.home)
    assert {name: after[name] for name in before} == before
    again = run(straight.home, tmp_path / "again", "train", "--resume", key, f"--executor={executor}")
    judge_run(straight, key, again)


@pytest.mark.slow
def test_a_model_that_does_not_fit_beside_others_is_registered_once_there_is_room(
    straight: Straight, tmp_path: Path
) -> None:
    """MLflow's files on a disk of their own, as they often are."""
    files = straight.home / "mlflow"
    aside = straight.home / "mlflow-aside"
    with running(
        straight.home, tmp_path / "full", [*TRAIN, IN_PROCESS, *tiny_changes()], POINTS["evaluate"]
    ) as full:
        full.reach()
        # room for what is there of this module's earlier runs, by whole pages
        size_mb = 4 + sum(2 * file.stat().st_size for file in files.rglob("*") if file.is_file()) // 10**6
        shutil.move(files, aside)
        files.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(files)], check=True)
        try:
            shutil.copytree(aside, files, dirs_exist_ok=True)
            fill(files / "ballast")
            full.let_go()
            code, err = full.end()
        finally:
            (files / "ballast").unlink(missing_ok=True)
            made = files.with_name("mlflow-made")
            shutil.copytree(files, made)
            subprocess.run(["umount", str(files)], check=True)
            files.rmdir()
            made.rename(files)
            shutil.rmtree(aside)
        last = err.splitlines()[-1]
        assert (
            code == 1
            and last.startswith("convoy: no space is left in MLflow's folder (")
            and WHAT_TO_DO in last
        )
        assert statuses(full.key) == ["FAILED"]
    again = run(straight.home, tmp_path / "again", "train", "--resume", full.key, IN_PROCESS)
    judge_run(straight, full.key, again)


# --- search ----------------------------------------------------------------------------------------------------


def test_a_journal_on_a_full_disk_loses_no_more_than_the_line_that_did_not_fit(
    disk: Path, ballast: Path
) -> None:
    folder = disk / "journal"
    folder.mkdir()
    full = study(folder)
    ended, cut = full.ask().number, full.ask().number
    full.finish(ended, report(0.5))
    fill(ballast)
    long = {"metric" * 1000: 0.5}  # the block that the journal ends in may have room for short lines
    with pytest.raises(OSError, match="No space left on device"):
        full.hear(cut, replace(report(0.6), metrics=long))
    before = full.trials()
    assert not (folder / "trials.journal").read_bytes().endswith(b"\n")
    ballast.unlink()
    again = study(folder)
    assert again.trials() == before
    again.finish(again.go_on(cut).number, report(0.7, 2))
    assert [(trial.state, trial.value) for trial in study(folder).trials()] == [
        ("finished", 0.5), ("finished", 0.7),
    ]  # fmt: skip
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_search_on_a_full_disk_goes_on_once_there_is_room(
    straight: Straight, ballast: Path, tmp_path: Path
) -> None:
    searched = trials_of(run(straight.home, tmp_path / "searched", *SEARCH))
    # before its second trial: what ends takes its checkpoints away, and so makes room
    with running(straight.home, tmp_path / "full", SEARCH, "tasks.study:Study.ask:2") as full:
        full.reach()
        fill(ballast)
        full.let_go()
        code, err = full.end()
        require_one_error(code, err)
        ballast.unlink()
        assert full.left_after(RAY_AGENTS_S) == []
    assert trials_of(run(straight.home, tmp_path / "again", "search", "--resume", full.key)) == searched
    assert statuses(full.key) == ["FINISHED"] and running_records() == []


# --- promote, re-embed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["before the alias", slow("alias moved")])
def test_a_promotion_on_a_full_disk_is_made_once_when_there_is_room(
    point: str, disk: Path, ballast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = disk / f"moved-{point.replace(' ', '-')}"
    monkeypatch.setenv("CONVOY_HOME", str(home))
    with_versions(home, "moved", 2)
    with running(home, tmp_path / "full", WORDS["promote"], MOVE_POINTS[point]) as full:
        full.reach()
        fill(ballast)
        full.let_go()
        require_one_error(*full.end())
        assert full.left_after(5) == []
    ballast.unlink()
    document = run(home, tmp_path / "again", *WORDS["promote"])
    assert (document["action"], document["state"]) == ("promote", "sealed")
    assert ledger.aliases("moved") == AFTER["promote"]
    assert [move.action for move in ledger.history("moved")] == ["register", "promote"]
    judge_home()
    shutil.rmtree(home)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["between batches", "before the switch"])
def test_a_re_embedding_on_a_full_disk_goes_on_once_there_is_room(
    point: str, disk: Path, ballast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = disk / f"faces-{point.replace(' ', '-')}"
    monkeypatch.setenv("CONVOY_HOME", str(home))
    second = enrol_people(home, tmp_path / "people")
    shutil.copytree(folder_of("staff"), folder_of("full"))
    with running(home, tmp_path / "full", re_embed_words("full", second), EMBED_POINTS[point]) as full:
        full.reach()
        fill(ballast)
        full.let_go()
        require_one_error(*full.end())
        ballast.unlink()
        assert full.left_after(RAY_AGENTS_S) == []
    with Gallery.open(folder_of("full")) as opened:
        assert opened.check() == len(opened.people())
    run(home, tmp_path / "again", *re_embed_words("full", second))
    judge_re_embedded("full")
    shutil.rmtree(home)
