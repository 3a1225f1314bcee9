"""`./convoy data remove`, as a person types it."""

import io
import json
from pathlib import Path

import pytest

from tasks.paths import home, store
from tests.conftest import Run
from tests.pictures import class_tree, write_tree

pytestmark = pytest.mark.usefixtures("module_home")


def test_a_removed_dataset_comes_back_by_its_pointer(run: Run, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", class_tree("ab", 12))
    assert run("data", "add", str(source), "--name", "gone")[0] == 0
    pointer = store() / "gone.dvc"
    kept = pointer.read_bytes()
    code, _, err = run("data", "remove", "gone")
    assert code != 0 and "--yes" in err and (store() / "gone").is_dir()
    code, out, err = run("data", "remove", "gone", "--yes", "--json")
    assert code == 0, err
    assert json.loads(out)["name"] == "gone"
    assert not list(store().glob("gone*"))
    code, _, err = run("data", "remove", "gone", "--yes")
    assert code != 0 and "there is no dataset 'gone'" in err
    pointer.write_bytes(kept)
    assert run("data", "pull", "gone")[0] == 0
    assert (store() / "gone" / "report.json").is_file()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_is_asked_and_only_yes_removes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tree(tmp_path / "source", class_tree("ab", 12))
    assert run("data", "add", str(source), "--name", "asked")[0] == 0
    monkeypatch.setattr("sys.stdin", Terminal("\n"))
    code, _, err = run("data", "remove", "asked")
    assert (code, (store() / "asked").is_dir()) == (2, True)
    assert "remove asked from" in err
    assert "nothing was removed: the answer was not y" in err
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert run("data", "remove", "asked")[0] == 0
    assert not list(store().glob("asked*"))


def test_what_a_stage_makes_is_not_removed(run: Run) -> None:
    file = home() / "dvc.yaml"
    folder = store() / "made"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text("{}")
    file.write_text("stages: {make: {cmd: make, outs: [data/store/made]}}")
    try:
        code, _, err = run("data", "remove", "made", "--yes")
    finally:
        file.unlink()
    assert (code, folder.is_dir()) == (2, True)
    assert "'made' is made by the stage make of dvc.yaml" in err
