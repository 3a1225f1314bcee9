"""Versions of a dataset: every change of bytes is one, none is lost, each can be put back."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.checks import check
from data.dataset import SPLITS, Dataset
from data.ingest import IngestConfig, ingest
from tasks import lineage, placing, versioning, versions
from tasks.paths import ROOT, store
from tasks.versions import UNRECORDED, Added, Version
from tests.pictures import class_tree, png, write_tree

pytestmark = pytest.mark.usefixtures("home")
CONFIG = IngestConfig(val_fraction=0.2, test_fraction=0.3, near_duplicate_distance=0, max_source_gb=1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a home with spaces"
    folder.mkdir()
    monkeypatch.setenv("CONVOY_HOME", str(folder))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    return folder


def source(tmp_path: Path, images: int = 8, **more: bytes) -> Path:
    """A folder of two classes, with `images` each and more files in class a."""
    folder = tmp_path / f"source-{images}-{'-'.join(more)}"
    return write_tree(
        folder, class_tree("ab", images) | {f"a/{name}.png": data for name, data in more.items()}
    )


def add(folder: Path, **options: Any) -> Added:
    return versions.add(folder, name="set", family="classification", config=CONFIG, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Added]]:
    """A home with three versions of one dataset, to be copied: DVC takes a second for each."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVOY_HOME", str(folder / "home"))
        patch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site"))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        sources = (source(folder), source(folder, extra=png(500)), source(folder, 9))
        return folder / "home", [add(each) for each in sources]


@pytest.fixture
def three(home: Path, made: tuple[Path, list[Added]]) -> list[Added]:
    """Three versions of one dataset, the last one checked out."""
    shutil.copytree(made[0], home, dirs_exist_ok=True)
    return made[1]


def ids(dataset: Dataset) -> set[str]:
    return {id for split in SPLITS for id in dataset.table(split, ["id"])["id"].to_pylist()}


def lose_cache(home: Path) -> None:
    shutil.rmtree(home / ".dvc" / "cache" / "files")


def lose_list(home: Path, digest: str) -> None:
    """The cache's list of one version's files: without it the version is not there."""
    (home / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]).unlink()


def point_at(number: int) -> Version:
    """Make the pointer name a version, as `git checkout` or `git pull` does; the folder stays."""
    version = versions.history("set")[number - 1]
    versioning.point(store() / "set", version.md5, version.size, version.nfiles)
    return version


# ---------------------------------------------------------------------------------------------- the list


def test_every_change_of_bytes_is_a_version_and_the_same_bytes_are_none(
    tmp_path: Path, three: list[Added]
) -> None:
    first, second, third = three
    assert [added.is_new for added in (first, second, third)] == [True] * 3
    again = add(source(tmp_path, 9))
    assert not again.is_new
    assert again.digest == third.digest
    listed = versions.history("set")
    assert [version.number for version in listed] == [1, 2, 3]
    assert [version.md5 for version in listed] == [first.digest, second.digest, third.digest]
    assert [sum(version.images.values()) for version in listed] == [16, 17, 18]
    assert Path(listed[1].source).name == "source-8-extra"
    assert all(version.added.endswith("Z") for version in listed)
    for version in listed:
        with versions.opened(version.md5) as dataset:
            assert check(dataset).problems == ()
            files = [file for file in dataset.path.iterdir() if file.is_file()]
            assert (sum(file.stat().st_size for file in files), len(files)) == (version.size, version.nfiles)


def test_the_list_lies_beside_the_pointer_where_git_sees_it(tmp_path: Path) -> None:
    shutil.copy2(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    names = ["set.dvc", "set.versions.json", ".set.versions.lock", ".set.versions.json.7", "set/dataset.json"]
    files = write_tree(tmp_path / "data" / "store", dict.fromkeys(names, b""))
    command = ["git", "-C", str(tmp_path), "ls-files", "--others", "--exclude-standard", str(files)]
    seen = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert seen == ["data/store/set.dvc", "data/store/set.versions.json"]


def test_a_dataset_that_is_older_than_lists_is_version_1(tmp_path: Path) -> None:
    ingest(source(tmp_path), name="set", family="classification", store=store(), config=CONFIG)
    digest = versioning.add(store() / "set")
    (only,) = versions.history("set")
    assert (only.number, only.md5, only.notes, sum(only.images.values())) == (1, digest, (), 16)
    add(source(tmp_path, 9))
    assert [version.md5 for version in versions.history("set")] == [digest, versions.current("set")]


def test_a_dataset_that_dvc_never_saw_is_version_1_once_another_takes_its_place(tmp_path: Path) -> None:
    ingest(source(tmp_path), name="set", family="classification", store=store(), config=CONFIG)
    before = versioning.measure(store() / "set")
    added = add(source(tmp_path, 9))
    assert added.version and added.version.number == 2
    placing.checkout("set", "1")
    assert versioning.measure(store() / "set") == before


def test_what_was_changed_by_hand_is_kept_before_an_add_replaces_it(tmp_path: Path) -> None:
    add(source(tmp_path))
    (store() / "set" / "notes.txt").write_text("a person's work")
    add(source(tmp_path, 9))
    listed = versions.history("set")
    assert [version.notes for version in listed] == [(), (UNRECORDED,), ()]
    placing.checkout("set", "2")
    assert (store() / "set" / "notes.txt").read_text() == "a person's work"


def test_a_version_that_differs_in_its_source_alone_says_so(tmp_path: Path) -> None:
    folder = source(tmp_path)
    add(folder)
    second = add(folder.rename(tmp_path / "elsewhere"))
    third = add(source(tmp_path, 9))
    assert second.version and second.version.notes == ("source only: otherwise the same as version 1",)
    assert third.version and third.version.notes == ()


@pytest.mark.parametrize("lost", ["report.json", "train-*.parquet"])
def test_a_damaged_folder_is_kept_but_is_never_the_latest(tmp_path: Path, lost: str) -> None:
    first = add(source(tmp_path))
    next((store() / "set").glob(lost)).unlink()
    again = add(source(tmp_path))
    assert (again.digest, again.is_new) == (first.digest, False)
    assert again.kept
    assert (again.kept.number, again.kept.notes, again.losses) == (2, (UNRECORDED,), ())
    assert versions.find("set", "latest", versions.history("set")).number == 1
    assert versions.current("set") == first.digest == versioning.measure(store() / "set")
    assert add(source(tmp_path)).kept is None
    added = add(source(tmp_path, 9))
    assert added.version and added.version.number == 3
    assert versions.find("set", "latest", versions.history("set")).number == 3


def test_what_a_person_recorded_with_dvc_is_the_latest(tmp_path: Path) -> None:
    add(source(tmp_path))
    (store() / "set" / "notes.txt").write_text("a person's work")
    versioning.add(store() / "set")
    assert versions.find("set", "latest", versions.history("set")).number == 2


def test_what_an_add_lost_is_told_and_stands_in_the_list(tmp_path: Path) -> None:
    add(source(tmp_path, 20))
    other = write_tree(tmp_path / "other", {f"{'cd'[i % 2]}/{i}.png": png(900 + i) for i in range(20)})
    added = add(other)
    assert added.losses == ("classes a, b of version 1 are gone", "all 40 pictures of version 1 are gone")
    assert versions.history("set")[1].notes == added.losses
    assert add(source(tmp_path, 20)).losses[0] == "classes c, d of version 2 are gone"


@pytest.mark.parametrize(("text", "said"), [
    ("{", "it is no JSON"), ("[" * 100_000, "it is no JSON"), ("[]", "must hold an object, got list"),
    ("{}", "versions (=None) must be a list of"), ('{"versions": null}', "versions (=None) must be a list of"),
    ('{"versions": 5}', "versions (=5) must be a list of"), ('{"versions": [1]}', "versions (=[1]) must be a list of"),
    ('{"versions": [{"number": 1}]}', "md5 is required"),
])  # fmt: skip
def test_a_broken_list_is_named(text: str, said: str) -> None:
    store().mkdir(parents=True)
    versions.list_file("set").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        versions.history("set")
    assert all("set.versions.json" in line for line in str(error.value).splitlines())


def test_two_merged_lists_with_one_number_are_refused(tmp_path: Path) -> None:
    add(source(tmp_path))
    file = versions.list_file("set")
    values = json.loads(file.read_text())
    values["versions"] *= 2
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="numbered from 1, each once"):
        versions.history("set")


ADD = """
import sys
from pathlib import Path
from data.ingest import IngestConfig
from tasks import versions
config = IngestConfig(val_fraction=0.2, test_fraction=0.3, near_duplicate_distance=0, max_source_gb=1)
if __name__ == "__main__":
    versions.add(sys.argv[1], name="set", family="classification", config=config, workers=1)
"""


def test_of_two_adds_at_once_both_are_versions(tmp_path: Path) -> None:
    sources = [source(tmp_path, number) for number in (8, 9)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ADD]
    running = [
        subprocess.Popen([*command, str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for folder in sources
    ]
    for process in running:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    listed = versions.history("set")
    assert {version.source for version in listed} == set(map(str, sources))
    assert versions.current("set") == listed[1].md5 == versioning.measure(store() / "set")
    for version in listed:
        with versions.opened(version.md5) as dataset:
            assert check(dataset).problems == ()


HOLD = """
import sys
from tasks import versions
with versions.exclusive("set"):
    print("", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another() -> Iterator[tuple[int, Callable[[], None]]]:
    """Another process is changing the dataset: its number, and what lets it end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as other:
        assert other.stdout and other.stdin
        other.stdout.readline()
        yield other.pid, other.stdin.close


def test_who_waits_for_another_add_says_so(tmp_path: Path) -> None:
    folder = source(tmp_path)
    heard: list[str] = []
    with held_by_another() as (process, release):

        def note(text: str) -> None:
            heard.append(text)
            release()

        assert add(folder, note=note).is_new
    assert heard == [f"waits for process {process}, which is changing set"]


def test_who_waits_for_a_lock_that_maintenance_removes_meanwhile_has_it_all_the_same() -> None:
    waits, inside, done = threading.Event(), threading.Event(), threading.Event()

    def change() -> None:
        with versions.exclusive("set", lambda _text: waits.set()):
            inside.set()
            done.wait(60)

    other = threading.Thread(target=change)
    with versions.exclusive("set"):
        other.start()
        assert waits.wait(60)
        versions.lock_file("set").unlink()
    try:
        assert inside.wait(60)
        assert versions.is_changing("set"), "a third one would begin beside it"
    finally:
        done.set()
        other.join()
    assert not versions.is_changing("set")


# ------------------------------------------------------------------------------------------- which version


LISTED = [
    Version(number=i + 1, md5=md5 * 8 + ".dir", size=1, nfiles=1)
    for i, md5 in enumerate(["1000", "abc0", "abc1"])
]


@pytest.mark.parametrize(
    ("which", "number"),
    [("1", 1), ("3", 3), ("latest", 3), ("1000", 1), ("abc0abc0", 2), ("abc1" * 8 + ".dir", 3)],
)
def test_a_version_is_named_by_number_latest_or_digest(which: str, number: int) -> None:
    assert versions.find("set", which, LISTED).number == number


@pytest.mark.parametrize("which", ["0", "4", "abc", "xyz", "", "-1", "ffff", "current"])
def test_a_version_that_is_not_there_is_refused_with_those_that_are(which: str) -> None:
    with pytest.raises(
        ValueError, match=r"version \(=.*\) of set is not known; give a number \(1 to 3\), latest"
    ):
        versions.find("set", which, LISTED)


def test_a_digest_that_fits_two_versions_is_refused() -> None:
    twins = [version.model_copy(update={"md5": "abcd" + version.md5[4:]}) for version in LISTED]
    with pytest.raises(ValueError, match="fits 3 digests"):
        versions.find("set", "abcd", twins)


# ----------------------------------------------------------------------------------------------- checkout


def test_each_version_can_be_put_back_and_lineage_names_it(three: list[Added]) -> None:
    added = three
    for number in (1, 3, 2):
        version = placing.checkout("set", str(number))
        assert version.number == number
        path = store() / "set"
        assert versions.current("set") == added[number - 1].digest == versioning.measure(path)
        assert lineage.data_state(path) == (added[number - 1].digest, "")
        assert check(Dataset.open(path)).problems == ()
    assert placing.checkout("set", "2").number == 2  # once more
    assert [version.number for version in versions.history("set")] == [1, 2, 3]


@pytest.mark.usefixtures("three")
def test_dvc_agrees_with_what_is_checked_out(home: Path) -> None:
    placing.checkout("set", "1")
    command = [sys.executable, "-m", "dvc", "status"]
    said = subprocess.run(command, cwd=home, capture_output=True, text=True, check=True).stdout
    assert "up to date" in said


@pytest.mark.usefixtures("three")
def test_a_pointer_keeps_what_else_stands_in_it() -> None:
    file = store() / "set.dvc"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "desc": "blood cells"}))
    placing.checkout("set", "1")
    values = yaml.safe_load(file.read_text())
    assert values["desc"] == "blood cells"
    assert values["outs"][0]["md5"] == versions.history("set")[0].md5


@pytest.mark.usefixtures("three")
def test_a_folder_that_was_changed_by_hand_is_not_replaced() -> None:
    (store() / "set" / "notes.txt").write_text("a person's work")
    pointer = (store() / "set.dvc").read_text()
    with pytest.raises(
        ValueError, match=r"was changed since it was recorded, and would be lost; keep it"
    ) as error:
        placing.checkout("set", "1")
    assert "\n" not in str(error.value)
    assert (store() / "set" / "notes.txt").read_text() == "a person's work"
    assert (store() / "set.dvc").read_text() == pointer


def test_what_is_in_the_folder_alone_is_in_the_cache_before_it_is_replaced(
    home: Path, tmp_path: Path, three: list[Added]
) -> None:
    _, _, third = three
    with versions.opened(versions.history("set")[0].md5) as dataset:
        shutil.copytree(dataset.path, tmp_path / "first")
    lose_cache(home)
    with pytest.raises(
        RuntimeError, match=r"is not in DVC's cache, and no remote is set; set one: .*data remote"
    ):
        placing.checkout("set", "1")
    shutil.rmtree(store() / "set")
    shutil.move(tmp_path / "first", store() / "set")
    versions.keep("set")
    assert versioning.is_cached(versions.history("set")[0].md5)


def test_a_damaged_cache_is_noticed_and_the_folder_stays(three: list[Added]) -> None:
    first, second, third = three
    with versions.opened(first.digest) as dataset:
        file = (dataset.path / "dataset.json").resolve()
    file.chmod(0o644)
    file.write_text(file.read_text() + " ")
    with pytest.raises(RuntimeError, match="DVC's cache is damaged"):
        placing.checkout("set", "1")
    assert versions.current("set") == third.digest == versioning.measure(store() / "set")
    assert [name.name for name in store().iterdir() if ".partial-" in name.name] == []


def test_a_checkout_that_ended_between_its_two_steps_is_no_change_by_hand(
    home: Path, monkeypatch: pytest.MonkeyPatch, three: list[Added]
) -> None:
    first, _, third = three

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(versioning, "point", killed)
    with pytest.raises(KeyboardInterrupt):
        placing.checkout("set", "1")
    monkeypatch.undo()
    monkeypatch.setenv("CONVOY_HOME", str(home))
    assert (versions.current("set"), versioning.measure(store() / "set")) == (third.digest, first.digest)
    placing.checkout("set", "2")
    assert versions.current("set") == versioning.measure(store() / "set")


# ----------------------------------------------------------------------------------------- the test split


def test_images_stay_in_test_from_version_to_version_even_past_a_checkout(tmp_path: Path) -> None:
    add(source(tmp_path, 8))
    add(source(tmp_path, 20))
    tested = set(Dataset.open(store() / "set").table("test", ["id"])["id"].to_pylist())
    placing.checkout("set", "1")
    lose = CONFIG.model_copy(update={"test_fraction": 0.0, "val_fraction": 0.0})
    added = versions.add(source(tmp_path, 21), name="set", family="classification", config=lose)
    assert added.version and added.version.number == 3
    assert added.report.known_images == 40
    assert set(Dataset.open(store() / "set").table("test", ["id"])["id"].to_pylist()) == tested


def test_sides_come_from_the_cache_where_the_folder_is_gone(tmp_path: Path) -> None:
    add(source(tmp_path, 20))
    shutil.rmtree(store() / "set")
    assert add(source(tmp_path, 21)).report.known_images == 40


def test_test_images_are_remembered_past_a_version_that_dvc_add_recorded(tmp_path: Path) -> None:
    add(source(tmp_path, 20))
    tested = set(Dataset.open(store() / "set").table("test", ["id"])["id"].to_pylist())
    others = write_tree(tmp_path / "others", {f"{name}/new.png": png(900 + ord(name)) for name in "abcd"})
    lose = CONFIG.model_copy(update={"test_fraction": 0.0, "val_fraction": 0.0})
    ingest(others, name="set", family="classification", store=store(), config=lose)
    versioning.add(store() / "set")  # what a person's own dvc add does: nothing of version 1 stands in it
    versions.add(source(tmp_path, 20), name="set", family="classification", config=lose)
    assert set(Dataset.open(store() / "set").table("test", ["id"])["id"].to_pylist()) == tested


def test_without_the_earlier_version_an_add_stops_or_starts_over(home: Path, tmp_path: Path) -> None:
    add(source(tmp_path, 20))
    shutil.rmtree(store() / "set")
    lose_cache(home)
    with pytest.raises(
        RuntimeError, match=r"version 1 of set says which images are for testing.*--fresh-splits"
    ):
        add(source(tmp_path, 21))
    added = add(source(tmp_path, 21), fresh_splits=True)
    assert added.version
    assert added.version.notes == ("splits drawn afresh, earlier versions left out of account",)


def test_what_an_add_moved_stands_in_the_list(tmp_path: Path) -> None:
    add(source(tmp_path, 20))
    add(source(tmp_path, 20), fresh_splits=True)  # the same bytes
    assert len(versions.history("set")) == 1
    lose = CONFIG.model_copy(update={"test_fraction": 0.0, "val_fraction": 0.0})
    versions.add(source(tmp_path, 20), name="set", family="classification", config=lose, fresh_splits=True)
    notes = versions.history("set")[1].notes
    assert notes[0].startswith("splits drawn afresh")
    assert any(note.endswith("pictures moved from test to train, drawn afresh") for note in notes)


# ------------------------------------------------------------------------------------------ stages of DVC

STAGE = """
stages:
  ingest:
    cmd: {python} stage.py
    deps: [stage.py]
    outs: [data/store/set]
"""


def test_what_a_stage_makes_has_dvc_lock_for_its_version(home: Path, tmp_path: Path) -> None:
    versioning.add(write_tree(home / "data" / "store" / "other", {"x": b""}))  # makes the repository
    (home / "dvc.yaml").write_text(STAGE.format(python=sys.executable))
    folder = source(tmp_path, 20)
    (home / "stage.py").write_text(ADD.replace("sys.argv[1]", repr(str(folder))))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dvc", "repro", "--quiet"]
    subprocess.run(command, cwd=home, env=environment, check=True)
    digest = versions.current("set")
    assert digest == versioning.measure(store() / "set")
    assert not versions.list_file("set").exists()
    assert not (store() / "set.dvc").exists()
    for call in (lambda: versions.require_list("set"), lambda: placing.checkout("set", "1")):
        with pytest.raises(
            ValueError, match=r"made by the stage ingest of dvc\.yaml, and dvc\.lock is its version"
        ):
            call()
    lose = CONFIG.model_copy(update={"test_fraction": 0.0})
    added = versions.add(source(tmp_path, 21), name="set", family="classification", config=lose)
    assert added.version is None
    assert added.report.known_images == 0  # a stage's output follows from what dvc.yaml names
    assert versions.current("set") == added.digest != digest
    assert versioning.is_cached(digest)
    assert not versions.list_file("set").exists()


# ------------------------------------------------------------------------------------------------ remotes


def clone(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another home with what git would bring: pointers, lists, DVC's configuration."""
    for name in (".dvc/config", "data/store/set.dvc", "data/store/set.versions.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(home / name, folder / name)
    monkeypatch.setenv("CONVOY_HOME", str(folder))
    return folder


def test_another_checkout_pulls_what_one_pushed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, three: list[Added]
) -> None:
    added = three
    versioning.set_remote(str(tmp_path / "remote"), {}, local=False)
    assert placing.push(["set"], all_versions=False)[0] == versions.history("set")[2].nfiles + 1
    whole = ids(Dataset.open(store() / "set"))
    other = clone(home, tmp_path / "clone", monkeypatch)
    assert placing.recorded_names() == ["set"]
    assert placing.pull(["set"], all_versions=False) == {"set": True}
    dataset = Dataset.open(other / "data" / "store" / "set")
    assert ids(dataset) == whole
    assert check(dataset).problems == ()
    assert versions.current("set") == added[2].digest
    assert placing.pull(["set"], all_versions=False) == {"set": False}
    with pytest.raises(
        RuntimeError, match=r"has not all of set \(.* push it from where it was made: \./convoy data push"
    ):
        placing.checkout("set", "1")

    monkeypatch.setenv("CONVOY_HOME", str(home))
    assert placing.push(["set"], all_versions=True)[0] > 0
    assert placing.push(["set"], all_versions=True) == (0, [])
    monkeypatch.setenv("CONVOY_HOME", str(other))
    assert placing.checkout("set", "1").md5 == added[0].digest  # fetched on the way
    assert placing.push(["set"], all_versions=True) == (0, ["set version 2"])
    placing.pull(["set"], all_versions=True)
    shutil.rmtree(tmp_path / "remote")
    placing.checkout("set", "2")


@pytest.mark.usefixtures("three")
def test_a_pull_leaves_what_was_changed_by_hand(tmp_path: Path) -> None:
    versioning.set_remote(str(tmp_path / "remote"), {}, local=False)
    placing.push(["set"], all_versions=True)
    (store() / "set" / "notes.txt").write_text("a person's work")
    with pytest.raises(ValueError, match="would be lost"):
        placing.pull(["set"], all_versions=False)
    assert (store() / "set" / "notes.txt").exists()


def test_a_pull_follows_a_pointer_that_git_changed(three: list[Added]) -> None:
    first, _, third = three
    point_at(1)
    assert versioning.measure(store() / "set") == third.digest
    assert placing.pull(["set"], all_versions=False) == {"set": True}
    assert versioning.measure(store() / "set") == first.digest


def test_a_pull_leaves_the_pointer_where_the_folders_version_is_not_in_the_cache(
    home: Path, three: list[Added]
) -> None:
    first, _, third = three
    lose_list(home, third.digest)
    point_at(1)
    pointer = (store() / "set.dvc").read_bytes()
    assert placing.pull(["set"], all_versions=False) == {"set": True}
    assert versioning.measure(store() / "set") == first.digest
    assert (store() / "set.dvc").read_bytes() == pointer
    assert versioning.is_cached(third.digest)


@pytest.mark.parametrize(
    "change", [lambda: placing.pull(["set"], False), lambda: placing.checkout("set", "1")]
)
def test_what_fails_to_replace_the_folder_leaves_the_pointer(
    home: Path, three: list[Added], change: Callable[[], Any]
) -> None:
    first, _, third = three
    for lost in (first, third):
        lose_list(home, lost.digest)
    point_at(1)
    pointer = (store() / "set.dvc").read_bytes()
    with pytest.raises(RuntimeError, match="no remote is set"):
        change()
    assert (store() / "set.dvc").read_bytes() == pointer
    assert versioning.measure(store() / "set") == third.digest
    assert versioning.is_cached(third.digest)


def test_a_pull_that_waited_for_another_brings_what_that_one_made(three: list[Added]) -> None:
    first, _, _ = three
    with held_by_another() as (_, release):

        def note(_: str) -> None:
            placing.place("set", point_at(1).md5)
            release()

        assert placing.pull(["set"], all_versions=False, note=note) == {"set": False}
    assert versions.current("set") == first.digest == versioning.measure(store() / "set")


def no_remote(_: Path) -> str:
    return ""


def lost_object(tmp_path: Path) -> str:
    url = str(tmp_path / "remote")
    versioning.set_remote(url, {}, local=False)
    placing.push(["set"], all_versions=False)
    entry = next(
        file for file in (tmp_path / "remote").rglob("*") if file.is_file() and file.suffix != ".dir"
    )
    entry.unlink()
    return url


def damaged_object(tmp_path: Path) -> str:
    url = lost_object(tmp_path)
    shutil.rmtree(tmp_path / "remote")
    placing.push(["set"], all_versions=False)
    entry = next(
        file for file in (tmp_path / "remote").rglob("*") if file.is_file() and file.suffix != ".dir"
    )
    entry.chmod(0o644)
    entry.write_bytes(b"rot")
    return url


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (no_remote, "no remote is set; set one: ./convoy data remote URL"),
        (lost_object, "has not all of"),
        (damaged_object, "has not all of"),
        (
            lambda tmp_path: "gs://bucket/x",
            r"gs://bucket/x needs a plug-in of DVC: \.venv/bin/pip install dvc-gs",
        ),
        (lambda tmp_path: "azure://bucket/x", r"pip install dvc-azure"),
        (
            lambda tmp_path: "ssh://nowhere.invalid/x",
            r"remote ssh://nowhere.invalid/x is not to be reached: ",
        ),
        (
            lambda tmp_path: str(tmp_path / "no" / "mount"),
            "is not to be reached: no folder .*no; is it mounted",
        ),
    ],
)
def test_what_cannot_be_pulled_is_one_clear_line(
    home: Path, tmp_path: Path, prepare: Callable[[Path], str], message: str
) -> None:
    add(source(tmp_path))
    url = prepare(tmp_path)
    if url:
        versioning.set_remote(url, {}, local=False)
    lose_cache(home)
    shutil.rmtree(store() / "set")
    with pytest.raises(RuntimeError, match=message) as error:
        placing.pull(["set"], all_versions=False)
    assert "\n" not in str(error.value)
    assert not (store() / "set").exists()


def test_a_push_without_remote_and_of_lost_bytes_is_refused(home: Path, tmp_path: Path) -> None:
    add(source(tmp_path))
    with pytest.raises(RuntimeError, match="no remote is set"):
        placing.push(["set"], all_versions=False)
    versioning.set_remote(str(tmp_path / "remote"), {}, local=False)
    lose_cache(home)
    with pytest.raises(RuntimeError, match=r"DVC's cache lacks .*; fetch it first"):
        placing.push(["set"], all_versions=False)
    with pytest.raises(ValueError, match=r"recorded no dataset 'other' \(recorded: set\)"):
        placing.push(["other"], all_versions=False)


def test_a_remotes_secrets_stay_out_of_the_file_that_git_tracks(home: Path, tmp_path: Path) -> None:
    add(source(tmp_path))
    options = {
        "endpointurl": "https://store.example.org",
        "secret_access_key": "hush",
        "access_key_id": "who",
    }
    shown = versioning.set_remote("s3://bucket/convoy", options, local=False)
    assert shown == {
        "name": "storage",
        "url": "s3://bucket/convoy",
        "endpointurl": "https://store.example.org",
    }
    assert versioning.remote() == shown
    shared, private = ((home / ".dvc" / name).read_text() for name in ("config", "config.local"))
    assert "s3://bucket/convoy" in shared
    assert "hush" not in shared and "who" not in shared
    assert "hush" in private and "who" in private
    assert "/config.local" in (ROOT / ".dvc" / ".gitignore").read_text()
    with pytest.raises(ValueError, match="has a password in it, and would go to git"):
        versioning.set_remote("ssh://ann:pw@host/x", {}, local=False)
    assert versioning.set_remote("ssh://ann:pw@host/x", {}, local=True)["url"] == "ssh://ann:…@host/x"
    with pytest.raises(ValueError, match="has a password in it, and would go to git"):
        versioning.set_remote("https://token@host/x", {}, local=False)
    assert "pw@host" not in (home / ".dvc" / "config").read_text()
    assert versioning.set_remote(str(tmp_path / "r"), {}, local=False)["url"] == str(tmp_path / "r")
    assert "hush" not in (home / ".dvc" / "config.local").read_text()  # another kind of place: its keys go


def test_a_remote_that_dvc_cannot_take_changes_nothing(tmp_path: Path) -> None:
    add(source(tmp_path))
    versioning.set_remote(str(tmp_path / "remote"), {}, local=False)
    for url, options in (("foo://x", {}), (str(tmp_path / "other"), {"nonsense": "3"})):
        with pytest.raises(RuntimeError):
            versioning.set_remote(url, options, local=False)
    assert versioning.remote()["url"] == str(tmp_path / "remote")


def test_a_version_is_read_without_dvc_where_its_bytes_are_here(tmp_path: Path) -> None:
    digest = add(source(tmp_path)).digest
    code = """
        import sys
        from tasks import placing, versions, versioning
        versioning._run = None
        with versions.opened(sys.argv[1]) as dataset:
            assert dataset.info.name == "set"
        placing.checkout("set", "1")
        assert "dvc" not in sys.modules
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), digest], env=environment, check=True)
