"""`./convoy data remove`, as a person types it."""

import json
from pathlib import Path

import pytest

from tasks.paths import store
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
