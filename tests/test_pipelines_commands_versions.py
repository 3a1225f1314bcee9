"""`./convoy data versions|checkout|diff|remote|push|pull`, as a person types them."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from tasks import versions
from tasks.paths import store
from tests.conftest import Run
from tests.pictures import class_tree, png, write_tree

pytestmark = pytest.mark.usefixtures("module_home")


@pytest.fixture
def two(run: Run, tmp_path: Path, module_home: Path) -> Path:
    """A dataset `set` of two versions, and the folder it came from."""
    for left in (module_home / "data" / "store").glob("*set*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    source = write_tree(tmp_path / "source", class_tree("ab", 12))
    assert run("data", "add", str(source), "--name", "set")[0] == 0
    (source / "a" / "3.png").rename(source / "b" / "3a.png")
    (source / "a" / "4.png").unlink()
    write_tree(source, {"a/new.png": png(500)})
    assert run("data", "add", str(source), "--name", "set")[0] == 0
    return source


def test_an_add_says_which_version_it_made_or_that_there_is_none(run: Run, two: Path) -> None:
    code, out, err = run("data", "add", str(two), "--name", "set")
    assert code == 0, err
    assert out.startswith("the same bytes as version 2: no new version\n")
    write_tree(two, {"b/more.png": png(501)})
    _, out, _ = run("data", "add", str(two), "--name", "set", "--json")
    document = json.loads(out)
    assert (document["version"], document["new_version"], document["known_images"]) == (3, True, 24)
    write_tree(two, {"b/most.png": png(502)})
    _, out, _ = run("data", "add", str(two), "--name", "set", "--fresh-splits", "--set", "test_fraction=0")
    assert "version 4 of set" in out
    assert "ATTENTION: splits drawn afresh, earlier versions left out of account" in out
    assert "pictures moved from test to train, drawn afresh" in out


def test_an_add_says_what_it_found_in_the_folder_and_what_is_gone(
    run: Run, two: Path, tmp_path: Path
) -> None:
    (store() / "set" / "report.json").unlink()
    _, out, _ = run("data", "add", str(two), "--name", "set")
    lines = out.splitlines()
    assert lines[0] == "the same bytes as version 2, which is checked out now: no new version"
    assert lines[1].startswith(f"ATTENTION: {store() / 'set'} held what no add had recorded")
    assert "kept as version 3" in lines[1]
    assert "found in the folder" in run("data", "versions", "set", "--json")[1]
    assert "set: version 2 (" in run("data", "checkout", "set", "latest")[1]
    other = write_tree(tmp_path / "other", class_tree("ac", 12))
    _, out, _ = run("data", "add", str(other), "--name", "set")
    assert "ATTENTION: class b of version 2 is gone\n" in out
    assert run("data", "diff", "set")[1].startswith("set: version 2 → version 4: ")


def test_versions_are_listed_and_a_star_marks_the_one_that_is_there(run: Run, two: Path) -> None:
    document = json.loads(run("data", "versions", "set", "--json")[1])
    assert [(entry["number"], entry["current"]) for entry in document["versions"]] == [(1, False), (2, True)]
    assert document["current"] == versions.current("set")
    code, out, err = run("data", "checkout", "set", "1")
    assert (code, err) == (0, "")
    assert "set: version 1 (" in out
    lines = run("data", "versions", "set")[1].splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["*", "2"]
    assert str(two) in lines[0]


@pytest.mark.usefixtures("two")
def test_a_difference_is_shown_counted_and_written(run: Run, tmp_path: Path) -> None:
    code, out, err = run("data", "diff", "set")
    assert (code, err) == (0, "")
    assert out.startswith("set: version 1 → version 2: train")
    for text in ("added", "removed", "relabelled", "renamed", "a → b", "b/3a.png, was a/3.png; a → b"):
        assert text in out
    before = versions.current("set")
    _, out, _ = run("data", "diff", "set", "2", "1", "--json", "--out", str(tmp_path / "out" / "changes.csv"))
    document = json.loads(out)
    assert document["counts"] | {"moved": 0} == {
        "added": 1, "removed": 1, "changed pixels": 0, "relabelled": 1, "renamed": 1, "moved": 0,
    }  # fmt: skip
    with (tmp_path / "out" / "changes.csv").open() as file:
        rows = [(row["change"], row["id"]) for row in csv.DictReader(file) if row["change"] != "moved"]
    assert rows == [
        ("relabelled", "a/3.png"),
        ("renamed", "a/3.png"),
        ("added", "a/4.png"),
        ("removed", "a/new.png"),
    ]
    assert versions.current("set") == before
    assert "the same 24 pictures" in run("data", "diff", "set", "latest", "current")[1]


def test_images_that_left_the_test_split_are_told_first(run: Run, two: Path) -> None:
    run("data", "add", str(two), "--name", "set", "--fresh-splits", "--set", "test_fraction=0")
    lines = run("data", "diff", "set")[1].splitlines()
    assert lines[1].startswith("MOVED test → train: ")
    assert lines[1].endswith("models of before were tested on them")


@pytest.mark.usefixtures("two")
def test_versions_go_to_a_remote_and_come_back(run: Run, tmp_path: Path, module_home: Path) -> None:
    assert "no remote is set" in run("data", "remote")[1]
    code, _, err = run("data", "push", "set")
    assert code == 1
    assert "no remote is set; set one: ./convoy data remote URL" in err
    assert run("data", "remote", str(tmp_path / "remote"))[0] == 0
    shown = json.loads(run("data", "remote", "--json")[1])
    assert shown == {"remote": {"name": "storage", "url": str(tmp_path / "remote")}}
    assert "files of set" in run("data", "push", "--all-versions")[1]
    assert json.loads(run("data", "push", "--all-versions", "--json")[1])["files"] == 0
    shutil.rmtree(module_home / ".dvc" / "cache" / "files")
    shutil.rmtree(store() / "set")
    listed = run("data", "list")[1]
    assert "recorded and not here: set; ./convoy data pull NAME fetches one" in listed
    assert json.loads(run("data", "list", "--json")[1])["not_here"] == ["set"]
    code, out, err = run("data", "pull")
    assert code == 0, err
    assert out == f"set: 24 pictures, {versions.current('set')}\n"
    assert "were here already" in run("data", "pull", "set")[1]
    assert run("data", "checkout", "set", "1")[0] == 0
    (module_home / ".dvc" / "config").unlink()


@pytest.mark.usefixtures("two")
def test_a_secret_of_a_remote_may_come_by_standard_input(
    run: Run, module_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("geheim\n"))
    words = ("data", "remote", "s3://bucket/x", "--option", "secret_access_key=-")
    code, out, err = run(*words)
    assert (code, err) == (0, "") and "geheim" not in out
    local = module_home / ".dvc" / "config.local"
    assert "secret_access_key = geheim" in local.read_text()
    code, _, err = run(*words)  # which has no more lines
    assert (code, err) == (2, "convoy: --option (=secret_access_key) must be KEY=VALUE\n")
    for file in (local, local.with_name("config")):
        file.unlink()


@pytest.mark.usefixtures("two")
def test_all_leaves_out_what_was_never_made_here_or_pushed_and_a_name_does_not(
    run: Run, tmp_path: Path, module_home: Path
) -> None:
    lock = "stages:\n  ingest:\n    cmd: x\n    outs:\n    - {path: data/store/made, md5: %s.dir}\n" % (
        "a" * 32
    )
    (module_home / "dvc.lock").write_text(lock)
    run("data", "remote", str(tmp_path / "remote"))
    code, out, err = run("data", "push")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].endswith("files of set")
    assert out.splitlines()[1] == "not here, so not pushed: made"
    shutil.rmtree(module_home / ".dvc" / "cache" / "files")
    shutil.rmtree(store() / "set")
    code, out, err = run("data", "pull")
    assert (code, err) == (0, "")
    assert out.startswith("set: 24 pictures, ")
    assert f"not fetched: made: {tmp_path}/remote has not all of made (" in out
    document = json.loads(run("data", "pull", "--json")[1])
    assert (document["datasets"], list(document["not_fetched"])) == ({"set": False}, ["made"])
    for verb, message in (("push", "DVC's cache lacks made ("), ("pull", "/remote has not all of made (")):
        code, out, err = run("data", verb, "made", "set")
        assert (code, out) == (1, "")
        assert message in err
        assert err.count("a" * 32) == 1
    shutil.rmtree(tmp_path / "remote")
    (store() / "set.dvc").rename(tmp_path / "set.dvc")
    assert "recorded and not here: made; .venv/bin/dvc repro makes it" in run("data", "list")[1]
    code, _, err = run("data", "pull")  # nothing at all is there
    assert (code, "/remote has not all of made (" in err) == (1, True)
    (tmp_path / "set.dvc").rename(store() / "set.dvc")
    (module_home / "dvc.lock").unlink()
    (module_home / ".dvc" / "config").unlink()


FAULTS = {
    ("checkout", "set", "9"): "version (=9) of set is not known; give a number (1 to 2)",
    ("checkout", "nowhere", "1"): "no dataset named 'nowhere'",
    ("versions", "nowhere"): "no dataset named 'nowhere'",
    ("diff", "set", "1", "9"): "version (=9) of set is not known",
    ("pull", "nowhere"): "DVC has recorded no dataset 'nowhere' (recorded: set)",
    ("remote", "--option", "x"): "--option (=x) must be KEY=VALUE",
}


@pytest.mark.usefixtures("two")
def test_what_is_not_there_is_one_clear_line(run: Run) -> None:
    for arguments, message in FAULTS.items():
        code, out, err = run("data", *arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


def spoil(folder: Path, way: str) -> str:
    """Damage a dataset's folder; what the messages say of it."""
    file = folder / way if way.endswith("json") else min(folder.glob("train-*"))
    if way == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
        return f"{file.name}: its bytes have changed"
    file.unlink()
    return "is missing"


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("way", ["dataset.json", "report.json", "train", "truncated"])
def test_a_damaged_folder_is_called_so_and_is_brought_back_once_it_was_moved_away(
    run: Run, way: str, tmp_path: Path
) -> None:
    folder = store() / "set"
    damage = spoil(folder, way)
    for command in (("pull", "set"), ("checkout", "set", "1")):
        code, out, err = run("data", *command)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"convoy: {folder} is damaged (") and damage in err
        assert "move it away, and give this command again" in err
        assert "dvc add" not in err
    folder.rename(tmp_path / "moved")
    assert run("data", "pull", "set")[0] == 0
    assert run("data", "check", "set")[0] == 0


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("way", ["train", "truncated"])
def test_what_remove_says_is_kept_is_what_was_recorded_and_not_the_damage(run: Run, way: str) -> None:
    recorded, pointer = versions.current("set"), (store() / "set.dvc").read_bytes()
    damage = spoil(store() / "set", way)
    code, out, err = run("data", "remove", "set", "--yes")
    assert (code, err) == (0, "")
    assert f"removed set ({recorded}); DVC's cache keeps its bytes." in out
    assert "its folder was damaged (" in out and damage in out
    (store() / "set.dvc").write_bytes(pointer)
    assert run("data", "pull", "set")[0] == 0
    assert run("data", "check", "set")[0] == 0


@pytest.mark.usefixtures("two")
def test_a_first_version_has_none_before_it(run: Run) -> None:
    assert run("data", "diff", "set", "--json")[0] == 0
    run("data", "checkout", "set", "1")
    code, _, err = run("data", "diff", "set")
    assert code == 2
    assert "set has no version before version 1; name two: ./convoy data diff set A B" in err


@pytest.mark.usefixtures("two")
def test_what_is_recorded_and_not_here_is_to_be_fetched_and_not_added_again(
    run: Run, module_home: Path
) -> None:
    shutil.rmtree(store() / "set")
    for command in (
        ("show", "set"),
        ("check", "set"),
        ("export", "set", "--format", "folders", "--out", "x"),
    ):
        code, out, err = run("data", *command)
        assert (code, out) == (2, "")
        assert err == "convoy: dataset 'set' is recorded and not here; fetch it: ./convoy data pull set\n"
    (module_home / "dvc.lock").write_text(
        "stages:\n  ingest:\n    cmd: x\n    outs:\n    - {path: data/store/made, md5: %s.dir}\n" % ("a" * 32)
    )
    for command in (("show", "made"), ("versions", "made"), ("checkout", "made", "1"), ("pull", "made")):
        _, out, err = run("data", *command)
        assert (out, err.count("\n")) == ("", 1)
        assert "or make it: .venv/bin/dvc repro ingest" in err
    (module_home / "dvc.lock").unlink()
