"""Landmarks through the whole chain: from pictures with points, by the flow, to a registered model that finds them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.dataset import Dataset
from data.decode import read_size
from pipelines.commands_train import summary_views
from pipelines.landmarks import train_landmarks
from pipelines.render import emit
from pipelines.reporting import set_reporter
from tasks import modellist
from tasks.drawing import LEAST_DRAWN_PX
from tasks.paths import store
from tasks.recordstore import connect
from tests.conftest import Run
from tests.test_pipelines_training import Listener
from tests.tiny import TINY, tiny_dataset

NAME = "landmarks-dotfaces"
URI = f"models:/{NAME}@champion"


@pytest.fixture(scope="module")
def finished(module_home: Path, prefect_api: str) -> dict[str, Any]:
    """The summary of one run to the end."""
    assert prefect_api and store().is_relative_to(module_home)
    tiny_dataset("landmarks", store())
    recipe = {name: part for name, part in TINY["landmarks"].items() if name != "dataset"}
    with pytest.MonkeyPatch.context() as patch:
        for place in ("configuration", "parameters"):
            patch.setattr(f"pipelines.{place}.recipes", lambda _family: {"default": recipe})
        set_reporter(Listener())
        changes = {"optim": {"name": "adamw", "lr": 3e-3, "bias_lr": 3e-3}, "train": {"epochs": 3}}
        return train_landmarks("dotfaces", changes=changes, executor="in_process")


@pytest.fixture
def pictures(finished: dict[str, Any], tmp_path: Path) -> list[Path]:
    files = []
    for number, blob in enumerate(
        Dataset.open(store() / finished["dataset"]).table("test", ["image"])["image"][:3]
    ):
        file = tmp_path / f"{number}.png"
        file.write_bytes(blob.as_py())
        files.append(file)
    return files


def test_the_flow_ends_in_a_registered_champion(finished: dict[str, Any]) -> None:
    assert (finished["model"], finished["version"], finished["alias"]) == (NAME, 1, "champion")
    assert 0 < finished["metrics"]["nme"] < 1 and finished["family"] == "landmarks"
    assert (Path(finished["folder"]) / "evaluation" / "metrics.json").is_file()
    assert modellist.show_model(URI)["dataset"] == "dotfaces"


def test_the_summary_points_at_the_page_that_the_run_keeps(
    finished: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    emit(finished, summary_views(finished | {"to_first_step_s": None}), as_json=False)
    shown, metrics = capsys.readouterr().out, finished["metrics"]
    report = Path(finished["folder"]) / "evaluation" / "report.html"
    assert report.is_file() and f"report {report}" in " ".join(shown.split())
    assert f"nme {metrics['nme']:.4g} {metrics['nme_low']:.4g} to" in " ".join(shown.split())
    files = [each.path for each in connect().list_artifacts(finished["mlflow_run"], "evaluation")]
    assert "evaluation/report.html" in files


def test_commands_evaluate_by_the_registered_name(
    finished: dict[str, Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the tiny recipe's eye corners, not those of params.yaml: they decide what errors are shares of
    own = {name: part for name, part in TINY["landmarks"].items() if name != "dataset"}
    for place in ("scoring", "parameters"):
        monkeypatch.setattr(f"pipelines.{place}.recipes", lambda _family: {"default": own})
    code, out, err = run("evaluate", URI, "--recipe", "default", "--out", str(tmp_path / "report"), "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["nme"] == finished["metrics"]["nme"]
    assert "NME, 95% interval" in (tmp_path / "report" / "report.html").read_text()


def test_commands_find_points_and_draw_them(
    finished: dict[str, Any], run: Run, tmp_path: Path, pictures: list[Path]
) -> None:
    assert finished["version"] == 1
    (tmp_path / "bad.png").write_bytes(b"junk")
    files = [*map(str, pictures), str(tmp_path / "bad.png")]
    code, out, _err = run("predict", URI, *files, "--draw", str(tmp_path / "drawn"), "--json")
    document = json.loads(out)
    rows = document["predictions"]
    assert code == 1 and len(rows) == 4 and "not an image" in rows[3]["error"]
    width, height = read_size(pictures[0].read_bytes())
    for row in rows[:3]:
        assert list(row["points"]) == document["points"] and len(row["visible"]) == len(row["points"])
        assert all(-width < x < 2 * width and -height < y < 2 * height for x, y in row["points"].values())
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == [f"{i}.png" for i in range(3)]
    both = (pictures[0], tmp_path / "drawn" / "0.png")
    before, after = (np.asarray(Image.open(file).convert("RGB")) for file in both)
    assert min(after.shape[:2]) >= LEAST_DRAWN_PX and after.shape[0] % before.shape[0] == 0
    assert (
        after.shape[0] // before.shape[0] == after.shape[1] // before.shape[1] and np.ptp(after, axis=2).any()
    )
    code, _out, err = run("predict", URI, files[0], "--coco", str(tmp_path / "coco.json"))
    assert code == 2 and "--coco is for models that find things" in err
    code, _out, err = run("predict", URI, files[0], "--view", "mirror")
    assert code == 2 and "--view (=mirror) must be single for landmarks" in err


def test_a_preview_shows_what_training_sees(finished: dict[str, Any], run: Run, tmp_path: Path) -> None:
    file = tmp_path / "preview.png"
    command = ("data", "preview", finished["dataset"], "--pictures", "2", "--epochs", "2", "--out", str(file))
    code, _out, err = run(*command, "--set", "augment.mirror=false")
    assert code == 0, err
    assert file.stat().st_size > 1000
