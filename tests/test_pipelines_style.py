"""Style through the whole chain: from a folder of pictures, by the flow, to a registered model that stylises."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.types import DataType
from PIL import Image

from pipelines.reporting import set_reporter
from pipelines.style import retrain_stylizer, train_stylizer
from tasks import modellist, registry
from tasks.packaging import signature_of
from tasks.paths import store
from tasks.predictors import open_predictor
from tests.conftest import Run
from tests.pairs import GATE
from tests.smears import smear
from tests.test_pipelines_training import Listener
from tests.test_tasks_style import ADAIN, trained
from tests.tiny import TINY, tiny_dataset

NAME = "stylizer-smears"
URI = f"models:/{NAME}@champion"
FREE = {**GATE, "latency_ratio": 0, "memory_ratio": 0}


@pytest.fixture(scope="module")
def finished(module_home: Path, prefect_api: str) -> dict[str, Any]:
    """The summary of one run to the end."""
    assert prefect_api and store().is_relative_to(module_home)
    tiny_dataset("style", store())
    recipe = {name: part for name, part in TINY["style"].items() if name != "dataset"}
    with pytest.MonkeyPatch.context() as patch:
        for place in ("configuration", "parameters"):
            patch.setattr(f"pipelines.{place}.recipes", lambda _family: {"default": recipe})
        set_reporter(Listener())
        return train_stylizer("smears", executor="in_process")


def test_the_flow_ends_in_a_registered_champion(finished: dict[str, Any]) -> None:
    assert (finished["model"], finished["version"], finished["alias"]) == (NAME, 1, "champion")
    assert finished["family"] == "style" and 0 < finished["metrics"]["total"] < 2
    evaluation = Path(finished["folder"]) / "evaluation"
    assert (evaluation / "metrics.json").is_file() and (evaluation / "sheet.png").is_file()
    assert modellist.show_model(URI)["dataset"] == "smears"
    tags = registry.get_tags(finished["mlflow_run"], ("weights.source", "weights.sha256"))
    assert tags["weights.source"] == "random" and len(tags["weights.sha256"]) == 64


@pytest.mark.slow
def test_a_challenger_is_judged_by_what_j_is_of_the_same_pictures(
    finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {name: part for name, part in TINY["style"].items() if name != "dataset"}
    for place in ("configuration", "parameters"):
        monkeypatch.setattr(f"pipelines.{place}.recipes", lambda _family: {"default": recipe})
    monkeypatch.setattr("pipelines.parameters.load", lambda: {"gate": FREE})
    set_reporter(Listener())
    longer = {"train": {"epochs": 3.0}}
    summary = retrain_stylizer("smears", changes=longer, executor="in_process")
    assert (summary["version"], summary["champion"]) == (2, 1)
    verdict = json.loads((Path(summary["folder"]) / "gate" / "verdict.json").read_text())
    named = {test["name"]: test for test in verdict["metrics"]}
    assert set(named) == {"total_share", "content_share", "style_share"}
    assert named["total_share"]["champion"] == pytest.approx(finished["metrics"]["total_share"], rel=1e-3)
    assert named["style_share"]["champion"] == pytest.approx(finished["metrics"]["style_share"], rel=1e-3)
    other = {**longer, "cost": {"content_weight": 0.5}}
    summary = retrain_stylizer("smears", changes=other, executor="in_process")
    assert summary["outcome"] == "inconclusive"
    assert "cannot be compared: the champion was made for J = 0.001 content (stem)" in summary["reason"]


def test_commands_stylise_files_and_folders(finished: dict[str, Any], run: Run, tmp_path: Path) -> None:
    assert finished["version"] == 1
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.png").write_bytes(smear(1, 37))
    (source / "b.png").write_bytes(b"junk")
    code, out, _err = run("predict", URI, str(source), "--out", str(tmp_path / "out"), "--json")
    document = json.loads(out)
    assert code == 1 and document["styles"] == ["bricks", "tissue"]
    first, second = document["predictions"]
    assert first["stylised"] == str(tmp_path / "out" / "a.png") and "not an image" in second["error"]
    one = ("predict", URI, str(source / "a.png"), "--out", str(tmp_path / "one.png"))
    code, _out, err = run(*one, "--style", "tissue=3", "--style", "bricks")
    assert code == 0, err
    plain, mixed = (np.asarray(Image.open(tmp_path / name)) for name in ("out/a.png", "one.png"))
    assert plain.shape == mixed.shape == (37, 37, 3) and (plain != mixed).any()
    for words, message in {
        ("--style", "moon"): "neither a style of this model (bricks, tissue) nor a picture that is there",
        ("--style", "tissue=x"): "the weight of tissue must be a number, as in tissue=0.7",
        ("--style", "skimage:moon"): "a picture as a style is for adain",
        ("--strength", "0.5"): "a strength (=0.5) is for adain",
        ("--view", "mirror"): "must be single for style",
    }.items():
        code, _out, err = run(*one, *words)
        assert code == 2 and message in err
    code, _out, err = run("predict", URI, str(source / "a.png"))
    assert code == 2 and "give --out" in err
    code, _out, err = run("predict", URI, str(source), "--out", str(tmp_path / "x.png"))
    assert code == 2 and "is one file, and there are 2 pictures" in err


def test_a_picture_that_no_training_saw_is_a_style_of_adain(run: Run, tmp_path: Path) -> None:
    model = trained(tiny_dataset("style", tmp_path / "store"), tmp_path / "run", model=ADAIN)
    (tmp_path / "a.png").write_bytes(smear(1, 37))
    made = {}
    for name, words in {
        "own": (), "moon": ("--style", "skimage:moon"), "half": ("--style", "skimage:moon", "--strength", "0.5"),
    }.items():  # fmt: skip
        out = tmp_path / f"{name}.png"
        code, _out, err = run("predict", str(model), str(tmp_path / "a.png"), "--out", str(out), *words)
        assert code == 0, err
        made[name] = np.asarray(Image.open(out)).astype(int)
    assert (made["own"] != made["moon"]).any() and (made["half"] != made["moon"]).any()


def test_a_registered_stylizer_is_served_with_its_first_style(finished: dict[str, Any]) -> None:
    assert finished["version"] == 1
    answering = open_predictor(registry.resolve_model(URI))  # as tasks.pyfunc does
    good, bad = answering.predict([smear(1, 33), b"junk"]).to_pylist()
    assert Image.open(io.BytesIO(good["picture"])).size == (33, 33)
    assert bad["picture"] is None and "not an image" in bad["error"]
    outputs = signature_of("style").outputs
    assert [(each.name, each.type) for each in outputs] == [
        ("picture", DataType.binary),
        ("error", DataType.string),
    ]


@pytest.mark.slow
def test_commands_evaluate_and_preview(finished: dict[str, Any], run: Run, tmp_path: Path) -> None:
    code, out, err = run("evaluate", URI, "--recipe", "default", "--out", str(tmp_path / "report"), "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["total"] == pytest.approx(finished["metrics"]["total"], rel=1e-3)
    file = tmp_path / "preview.png"
    code, _out, err = run("data", "preview", "smears", "--pictures", "2", "--epochs", "2", "--out", str(file))
    assert code == 0, err
    assert file.stat().st_size > 1000
