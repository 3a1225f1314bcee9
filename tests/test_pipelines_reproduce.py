"""`./convoy reproduce`, for real: a small training of a commit, done again by that commit in a home of its own."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.dataset import Dataset
from pipelines import reproduce
from tasks import registry, versioning
from tasks.paths import ROOT, runs, store
from tasks.recordstore import connect
from tasks.reproduction import find_origin
from tests.chaos import lives
from tests.conftest import Run
from tests.pictures import write_tree
from tests.platforms import wait_for
from tests.test_tasks_lineage import git

CODE = ("data", "models", "tasks", "pipelines", "params.yaml", "pyproject.toml", ".gitignore")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code that is tested, as the one commit of a repository."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "store"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


@pytest.fixture(scope="module")
def trained(checkout: Path, module_home: Path, versioned_digits: Dataset) -> dict[str, Any]:
    """The summary of a training of the commit, on data that DVC has."""
    left_out = ("PREFECT_", "CONVOY_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    environment |= {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1", "CONVOY_HOME": str(module_home)}
    command = ["train", "classification", "--dataset", versioned_digits.info.name, "--set", "train.epochs=1",
               "--set", "train.seed=3", "--executor", "in_process", "--json"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.fixture(autouse=True)
def here(checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What is reproduced is looked for in the checkout, and temporary files in a folder that is looked into."""
    monkeypatch.setattr(reproduce, "ROOT", checkout)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.mark.slow
def test_the_same_commit_data_and_parameters_give_the_same_weights_and_leave_only_a_report(
    trained: dict[str, Any], checkout: Path, here: Path, run: Run
) -> None:
    code, out, err = run("reproduce", "models:/classifier-digits@champion", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["outcome"], report["may_differ"], report["made_of"]) == ("equal", [], [])
    [weights] = report["weights"]
    assert weights["recorded"] == weights["now"]
    assert {each["verdict"] for each in report["metrics"]} == {"equal"}
    assert "accuracy" in {each["name"] for each in report["metrics"]}
    assert (report["commit"], report["executor"]) == (git(checkout, "rev-parse", "HEAD"), "in_process")
    assert report["digest"] == versioning.digest(store() / "digits")
    kept = connect().list_artifacts(trained["mlflow_run"], "reproduced")
    assert len(kept) == 1
    assert connect().get_run(trained["mlflow_run"]).data.tags["reproduced"].startswith("equal, ")
    assert list(here.iterdir()) == []
    assert [folder.name for folder in runs().iterdir()] == [trained["key"]]
    assert len(git(checkout, "worktree", "list").splitlines()) == 1
    assert git(checkout, "status", "--porcelain") == ""


@pytest.mark.slow
def test_another_seed_in_the_record_gives_other_weights_and_that_is_said(
    trained: dict[str, Any], here: Path, run: Run
) -> None:
    job = json.loads((Path(trained["folder"]) / "job.json").read_text())
    file = here.parent / "job.json"
    file.write_text(
        json.dumps(job | {"config": job["config"] | {"train": {**job["config"]["train"], "seed": 4}}})
    )
    registry.log_folder(trained["mlflow_run"], file, "job")
    code, out, _err = run("reproduce", trained["key"], "--json")
    report = json.loads(out)
    assert (code, report["outcome"]) == (1, "unequal")
    assert "torch, processor and threads are those of the record" in report["reason"]
    registry.log_folder(trained["mlflow_run"], Path(trained["folder"]) / "job.json", "job")


def test_a_limit_ends_it_and_nothing_stays(
    trained: dict[str, Any], checkout: Path, here: Path, run: Run
) -> None:
    code, out, err = run("reproduce", trained["key"], "--seconds-limit", "0.5")
    assert (code, out) == (1, "")
    assert "was not trained again within 0.5 s, and nothing was kept of it" in err
    assert list(here.iterdir()) == []
    assert len(git(checkout, "worktree", "list").splitlines()) == 1


def test_data_that_is_gone_is_said_before_anything_is_trained(
    trained: dict[str, Any], checkout: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_origin(trained["key"], checkout).digest
    gone = "f" * 32 + ".dir"
    registry.set_tags(trained["mlflow_run"], {"dvc.digest": gone})
    monkeypatch.setattr(reproduce, "train", lambda *given: pytest.fail("it was trained"))
    code, _out, err = run("reproduce", trained["key"])
    registry.set_tags(trained["mlflow_run"], {"dvc.digest": versioning.digest(store() / "digits")})
    assert code == 2
    assert f"the data of {trained['key']} is gone: {gone} is not in DVC's cache, and no remote is set" in err


TRAINS = """
import os, time
from pathlib import Path
Path("pid").write_text(str(os.getpid()))
time.sleep(600)
"""
REPRODUCES = """
import sys
from pathlib import Path
from types import SimpleNamespace
from pipelines import reproduce
origin = SimpleNamespace(key="run", metrics={}, executor="in_process", commit="c0ffee")
reproduce.train(origin, Path(sys.argv[1]), Path("home"), 0)
"""


@pytest.mark.chaos
def test_who_is_killed_leaves_no_training(tmp_path: Path) -> None:
    code = write_tree(
        tmp_path / "code", {"pipelines/__init__.py": b"", "pipelines/__main__.py": TRAINS.encode()}
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", REPRODUCES, str(code)]
    file = tmp_path / "pid"
    with subprocess.Popen(command, env=environment, cwd=tmp_path) as killed:
        try:
            wait_for(lambda: file.is_file() and file.read_text(), 60, "it trains")
            training = psutil.Process(int(file.read_text()))
        finally:
            killed.kill()
    try:
        wait_for(lambda: not lives(training), 10, "the training has ended")
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            training.kill()


def test_a_dirty_record_is_refused(trained: dict[str, Any], run: Run) -> None:
    registry.set_tags(trained["mlflow_run"], {"git.dirty": "true"})
    code, _out, err = run("reproduce", "models:/classifier-digits@champion")
    registry.set_tags(trained["mlflow_run"], {"git.dirty": "false"})
    assert code == 2
    assert "the difference was not kept: commit the code (git commit -a), and train again" in err
