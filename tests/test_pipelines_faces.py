"""Faces through the whole chain: from folders of people, by the flow, to a registered embedder that answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.dataset import Dataset
from pipelines.commands_train import summary_views
from pipelines.faces import train_faces
from pipelines.render import emit
from pipelines.reporting import set_reporter
from tasks import modellist
from tasks.livenessmodel import keep_threshold
from tasks.paths import store
from tasks.predict import load_predictor
from tasks.recordstore import connect
from tests.conftest import Run
from tests.handmade import write_model
from tests.test_pipelines_training import Listener
from tests.tiny import TINY, tiny_dataset

NAME = "faces-drawn"
URI = f"models:/{NAME}@champion"


@pytest.fixture(scope="module")
def finished(module_home: Path, prefect_api: str) -> dict[str, Any]:
    """The summary of one run to the end."""
    assert prefect_api and store().is_relative_to(module_home)
    tiny_dataset("faces", store())
    recipe = {name: part for name, part in TINY["faces"].items() if name != "dataset"}
    with pytest.MonkeyPatch.context() as patch:
        for place in ("configuration", "parameters"):
            patch.setattr(f"pipelines.{place}.recipes", lambda _family: {"default": recipe})
        set_reporter(Listener())
        return train_faces("drawn", changes={"train": {"epochs": 3}}, executor="in_process")


@pytest.fixture
def pictures(finished: dict[str, Any], tmp_path: Path) -> list[Path]:
    files = []
    blobs = Dataset.open(store() / finished["dataset"]).table("test", ["image"])["image"][:3]
    for number, blob in enumerate(blobs):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(blob.as_py())
        files.append(file)
    return files


def test_the_flow_ends_in_a_registered_champion(finished: dict[str, Any]) -> None:
    assert (finished["model"], finished["version"], finished["alias"]) == (NAME, 1, "champion")
    assert 0.5 < finished["metrics"]["auc"] <= 1 and finished["family"] == "faces"
    assert 0 <= finished["metrics"]["accuracy"] <= 1  # at the threshold of validation
    assert (Path(finished["folder"]) / "evaluation" / "metrics.json").is_file()
    assert modellist.show_model(URI)["dataset"] == "drawn"


def test_the_summary_points_at_the_page_and_has_intervals_beside_their_figures(
    finished: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    emit(finished, summary_views(finished | {"to_first_step_s": None}), as_json=False)
    shown, metrics = capsys.readouterr().out, finished["metrics"]
    report = Path(finished["folder"]) / "evaluation" / "report.html"
    assert report.is_file() and f"report {report}" in " ".join(shown.split())
    assert f"auc {metrics['auc']:.4g} {metrics['auc_low']:.4g} to" in " ".join(shown.split())
    assert "_low" not in shown and "_high" not in shown
    files = [each.path for each in connect().list_artifacts(finished["mlflow_run"], "evaluation")]
    assert "evaluation/report.html" in files


def test_commands_evaluate_by_the_registered_name(
    finished: dict[str, Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {name: part for name, part in TINY["faces"].items() if name != "dataset"}
    for place in ("scoring", "parameters"):
        monkeypatch.setattr(f"pipelines.{place}.recipes", lambda _family: {"default": own})
    code, out, err = run("evaluate", URI, "--recipe", "default", "--out", str(tmp_path / "report"), "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["auc"] == finished["metrics"]["auc"]


def test_commands_embed_pictures_and_say_how_far_apart_they_are(
    finished: dict[str, Any], run: Run, tmp_path: Path, pictures: list[Path]
) -> None:
    assert finished["version"] == 1
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    files = [*map(str, pictures), str(tmp_path / "bad.jpg")]
    code, out, _err = run("predict", URI, *files, "--json")
    document = json.loads(out)
    rows, apart = document["predictions"], document["squared_distances"]
    assert code == 1 and len(rows) == 4 and "not an image" in rows[3]["error"]
    a, b = (np.array(rows[i]["embedding"]) for i in (0, 1))
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-5)
    assert apart[0][1] == pytest.approx(((a - b) ** 2).sum()) and apart[0][0] == 0 and apart[0][3] is None
    assert "accuracy" in document["thresholds"]
    code, out, err = run("predict", URI, files[0], files[1])
    assert code == 0 and "Squared distances" in out, err
    code, out, err = run("predict", URI, files[0])
    assert code == 0 and "an embedding of 16 numbers" in out and "Squared distances" not in out, err
    code, _out, err = run("predict", URI, files[0], "--view", "ten_crop")
    assert code == 2 and "single, mirror" in err


def test_predict_requires_liveness_where_it_is_asked_to(
    finished: dict[str, Any], run: Run, tmp_path: Path, pictures: list[Path]
) -> None:
    assert finished["version"] == 1
    check = write_model(tmp_path / "check", ("real", "print"), channels=3, stored_px=16, crop_px=16, pad_px=0)
    predictor = load_predictor(check)
    scores = predictor.predict([file.read_bytes() for file in pictures])["probabilities"].to_pylist()
    order = np.argsort([row[0] for row in scores])
    # the least real of three is a spoof
    keep_threshold(check, tmp_path / "fitted", scores[order[1]][0], "by hand")
    files = [str(file) for file in pictures]
    code, out, err = run("predict", URI, *files, "--liveness", str(tmp_path / "fitted"), "--json")
    document = json.loads(out)
    rows = document["predictions"]
    assert code == 1, err  # not every picture has an answer
    assert document["liveness"]["threshold"] == scores[order[1]][0]
    assert [row["embedding"] is None for row in rows] == [place == order[0] for place in range(3)]
    assert "judged a spoof" in rows[order[0]]["error"]
    assert document["squared_distances"][order[0]] == [None] * 3
    code, out, _err = run("predict", URI, *files, "--liveness", str(tmp_path / "fitted"))
    assert code == 1 and "spoof" in out
    code, _out, err = run("predict", URI, files[0], "--liveness", URI)
    assert code == 2 and f"{URI} is a model for faces; a liveness check is a classifier" in err
    code, _out, err = run("predict", str(check), files[0], "--liveness", str(check))
    assert code == 2 and "--liveness is for embedders of faces" in err


def test_a_preview_shows_what_training_sees(finished: dict[str, Any], run: Run, tmp_path: Path) -> None:
    file = tmp_path / "preview.png"
    code, _out, err = run(
        "data", "preview", finished["dataset"], "--pictures", "2", "--epochs", "2", "--out", str(file)
    )
    assert code == 0, err
    assert file.stat().st_size > 1000
