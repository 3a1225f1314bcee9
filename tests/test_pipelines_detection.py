"""Detectors through the whole chain: from scenes of digits, by the flow, to a registered model that finds boxes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.dataset import Dataset
from data.samples import sample_tree
from pipelines.detection import train_detector
from pipelines.parameters import recipes
from pipelines.reporting import set_reporter
from tasks import modellist
from tasks.detectionevaluate import LeastScore, fit_threshold
from tasks.drawing import LEAST_DRAWN_PX
from tasks.modelfile import load_card
from tasks.paths import store
from tasks.predictors import open_predictor
from tests.conftest import Run
from tests.handmade import write_model
from tests.test_pipelines_training import Listener
from tests.test_tasks_pyfunc import STRANGER, TIMEOUT_S, environment
from tests.tiny import TINY, tiny_dataset

NAME = "detector-digit_scenes"


@pytest.fixture(scope="module")
def finished(module_home: Path, prefect_api: str) -> dict[str, Any]:
    """The summary of one run to the end: long enough that it finds most digits, if not always which."""
    assert prefect_api and store().is_relative_to(module_home)
    tiny_dataset("detection", store())
    recipe = {name: part for name, part in TINY["detection"].items() if name != "dataset"}
    with pytest.MonkeyPatch.context() as patch:
        for place in ("configuration", "parameters"):
            patch.setattr(f"pipelines.{place}.recipes", lambda _family: {"default": recipe})
        set_reporter(Listener())
        changes = {
            "optim": {"name": "adamw", "lr": 0.01, "bias_lr": 0.01, "clip_norm": 10.0},
            "train": {"epochs": 6},
            "augment": {"mosaic": 0},
            "evaluate": {"views": ["single", "mirror", "multi_scale"]},
        }
        return train_detector("digit_scenes", changes=changes, executor="in_process")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    tree = sample_tree("sklearn:digit_scenes")
    files = []
    for number in range(4):
        file = tmp_path / f"{number}.png"
        file.write_bytes(tree.read(f"test/{number:04d}.png"))
        files.append(file)
    return files


def test_the_flow_ends_in_a_registered_champion_with_a_least_score(finished: dict[str, Any]) -> None:
    assert (finished["model"], finished["version"], finished["alias"]) == (NAME, 1, "champion")
    metrics = finished["metrics"]
    assert metrics["ap50"] > 0.1 and metrics["num_images"] == 120 and metrics["num_objects"] == 329
    assert {f"{view}.ap50" for view in ("single", "mirror", "multi_scale")} <= metrics.keys()
    assert metrics["single.ap"] == metrics["ap"] and 0 < metrics["ap_low"] < metrics["ap_high"] < 1
    card = load_card(Path(finished["folder"]) / "model")
    assert card.thresholds == {"precision": 0.5, "score": metrics["threshold"]}
    assert card.calibrated_on.startswith("80 validation pictures of digit_scenes, view single")
    evaluation = Path(finished["folder"]) / "evaluation"
    assert {"metrics.json", "report.html", "examples.png", "pr.png", "confusion.png", "detections.json"} <= {
        file.name for file in evaluation.iterdir()
    }
    about = json.loads((evaluation / "about.json").read_text())
    assert about["models"] == about["runs"] == finished["key"]
    assert (
        f'<div class="quiet">{finished["key"]}; 1 network, view single'
        in (evaluation / "report.html").read_text()
    )
    assert modellist.show_model(f"models:/{NAME}@champion")["dataset"] == "digit_scenes"


def test_commands_evaluate_by_the_registered_name(finished: dict[str, Any], run: Run, tmp_path: Path) -> None:
    command = ("evaluate", f"models:/{NAME}@champion", "--recipe", "default")
    code, out, err = run(*command, "--out", str(tmp_path / "report"), "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["metrics"]["ap"] == finished["metrics"]["ap"]
    assert document["about"]["models"] == f"models:/{NAME}@champion (version 1)"
    assert document["about"]["runs"] == finished["key"]
    assert json.loads((tmp_path / "report" / "about.json").read_text()) == document["about"]
    assert len(document["per_class"]) == 10 and json.loads((tmp_path / "report" / "metrics.json").read_text())
    code, out, _err = run(*command, "--views", "mirror")
    assert code == 0 and "ap50" in out and "By class" in out
    assert "digit_scenes, test split: the registered view is single" in " ".join(out.split())
    code, _out, err = run(*command, "--views", "ten_crop")
    assert code == 2 and "views" in err and "'mirror'" in err


def test_commands_find_boxes_draw_them_and_write_cocos_results(
    finished: dict[str, Any], run: Run, tmp_path: Path, pictures: list[Path]
) -> None:
    assert finished["version"] == 1
    (tmp_path / "bad.png").write_bytes(b"junk")
    uri, files = (
        f"models:/{NAME}@champion",
        [*map(str, pictures), str(tmp_path / "bad.png"), str(tmp_path / "gone.png")],
    )
    options = (
        "--draw",
        str(tmp_path / "drawn"),
        "--coco",
        str(tmp_path / "new" / "coco.json"),
        "--least-score",
        "0.05",
    )
    code, out, _err = run("predict", uri, *files, *options, "--json")
    document = json.loads(out)
    rows = document["predictions"]
    assert code == 1 and document["least_score"] == 0.05 and len(rows) == 6
    assert "not an image" in rows[4]["error"] and "cannot be read" in rows[5]["error"]
    readable = rows[:4]
    assert sum(len(row["labels"]) for row in readable) > 0
    for row in readable:
        assert len(row["boxes_xyxy"]) == len(row["labels"]) == len(row["scores"])
        assert all(0.05 <= score <= 1 for score in row["scores"]) and row["scores"] == sorted(
            row["scores"], reverse=True
        )
        assert all(0 <= x0 <= x1 <= 96 and 0 <= y0 <= y1 <= 96 for x0, y0, x1, y1 in row["boxes_xyxy"])
    results = json.loads((tmp_path / "new" / "coco.json").read_text())
    wanted = [
        (str(file), document["classes"].index(label) + 1, score)
        for file, row in zip(pictures, readable, strict=True)
        for label, score in zip(row["labels"], row["scores"], strict=True)
    ]
    assert [(each["image_id"], each["category_id"], each["score"]) for each in results] == wanted
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == [f"{i}.png" for i in range(4)]
    found = next(i for i, row in enumerate(readable) if row["labels"])
    both = (pictures[found], tmp_path / "drawn" / f"{found}.png")
    before, after = (np.asarray(Image.open(file).convert("RGB")) for file in both)
    assert min(after.shape[:2]) >= LEAST_DRAWN_PX and after.shape[0] % before.shape[0] == 0
    assert (
        after.shape[0] // before.shape[0] == after.shape[1] // before.shape[1] and np.ptp(after, axis=2).any()
    )


def test_the_registered_least_score_decides_unless_another_is_given(
    finished: dict[str, Any], run: Run, pictures: list[Path]
) -> None:
    uri = f"models:/{NAME}@champion"
    document = json.loads(run("predict", uri, str(pictures[1]), "--json")[1])
    assert document["least_score"] == finished["metrics"]["threshold"]
    few = json.loads(run("predict", uri, str(pictures[1]), "--least-score", "0.99", "--json")[1])
    many = json.loads(run("predict", uri, str(pictures[1]), "--least-score", "0.02", "--json")[1])
    assert len(few["predictions"][0]["labels"]) < len(many["predictions"][0]["labels"])
    code, _out, err = run("predict", uri, str(pictures[1]), "--least-score", "7")
    assert code == 2 and "must lie in 0…1" in err
    code, _out, err = run("predict", uri, str(pictures[1]), "--view", "ten_crop")
    assert code == 2 and "view 'ten_crop' is not known; known: single, mirror, multi_scale" in err


def test_several_detectors_are_tested_together_and_each_alone(
    finished: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    uri = f"models:/{finished['model']}@champion"
    command = ("evaluate", uri, str(finished["folder"]), "--recipe", "default", "--views", "single")
    code, out, err = run(*command, "--out", str(tmp_path / "report"), "--json")
    assert code == 0, err
    document = json.loads(out)
    rows = document["members"]
    assert [row["model"] for row in rows] == [uri, str(finished["folder"]), "together"]
    assert document["about"]["models"] == f"{uri} (version 1), {finished['folder']}"
    # the same model twice is that model
    assert document["metrics"]["ap"] == rows[2]["ap"] == rows[0]["ap"] == finished["metrics"]["ap"]
    assert "<h2>Models</h2>" in (tmp_path / "report" / "report.html").read_text()


def test_detectors_are_combined_to_one_that_predicts(
    finished: dict[str, Any], run: Run, tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []

    def noting_the_pass(*given: Any, batch_size: int) -> LeastScore:
        passes.append(batch_size)
        return fit_threshold(*given, batch_size=batch_size)

    monkeypatch.setattr("tasks.detectionevaluate.fit_threshold", noting_the_pass)
    uri, pair = f"models:/{finished['model']}@champion", tmp_path / "pair"
    code, out, err = run("models", "combine", uri, str(finished["folder"]), "--out", str(pair), "--json")
    assert code == 0, err
    document = json.loads(out)
    assert len(document["members"]) == 2
    same = f"{uri}, {finished['folder']} are one and the same model, which counts 2 times"
    assert document["notes"] == [same]
    # the same model twice is that model; the pass is that of `evaluate`, whose recipe is the dataset's
    assert document["threshold"] == pytest.approx(finished["metrics"]["threshold"], rel=1e-5)
    assert passes == [recipes("detection")["digit_scenes"]["evaluate"]["batch_size"]]
    one, two = (
        json.loads(run("predict", each, *map(str, pictures), "--json")[1])["predictions"]
        for each in (uri, str(pair))
    )
    assert [row["labels"] for row in one] == [row["labels"] for row in two]
    code, _out, err = run("models", "combine", uri, "--out", str(tmp_path / "none"))
    assert code == 2 and "at least two models" in err and not (tmp_path / "none").exists()
    code, _out, err = run("models", "combine", uri, uri, "--out", str(pair))
    assert code == 2 and "already holds a model" in err


def test_large_pictures_are_looked_at_in_tiles_where_that_is_asked_for(
    finished: dict[str, Any], run: Run, tmp_path: Path, pictures: list[Path]
) -> None:
    uri = f"models:/{finished['model']}@champion"
    large = Image.new("L", (192, 192))
    for place, file in enumerate(pictures):
        large.paste(Image.open(file), (96 * (place % 2), 96 * (place // 2)))
    large.save(tmp_path / "large.png")
    large.crop((0, 0, 60, 64)).save(tmp_path / "small.png")  # no larger than the input
    files = (str(tmp_path / "large.png"), str(tmp_path / "small.png"))
    command = ("predict", uri, *files, "--least-score", "0.05", "--json")
    whole, tiled = (
        json.loads(run(*command, *more)[1])["predictions"] for more in ((), ("--tile", "--overlap", "0.5"))
    )
    # in a batch of another size
    np.testing.assert_allclose(whole[1]["scores"], tiled[1]["scores"], atol=1e-4)
    assert len(whole[0]["boxes_xyxy"]) < len(tiled[0]["boxes_xyxy"])
    assert all(0 <= x0 <= x1 <= 192 and 0 <= y0 <= y1 <= 192 for x0, y0, x1, y1 in tiled[0]["boxes_xyxy"])
    code, _out, err = run("predict", uri, *files, "--overlap", "0.5")
    assert code == 2 and "give --tile too" in err
    code, _out, err = run("predict", uri, *files, "--tile", "--overlap", "1")
    assert code == 2 and "must lie in 0…0.9" in err
    code, out, err = run("evaluate", uri, "--recipe", "default", "--views", "single", "--tile", "--json")
    document = json.loads(out)
    assert code == 0 and document["about"]["tiles"].startswith("of larger pictures, overlapping by 0.25"), err


def test_what_detectors_do_not_do_is_said_of_the_model_as_it_was_typed(
    finished: dict[str, Any], run: Run, tmp_path: Path, pictures: list[Path]
) -> None:
    uri = f"models:/{finished['model']}@champion"
    classifier = write_model(tmp_path / "classifier", ["a", "b"])
    for command in (
        ("export", uri, "--format", "onnx", "--out", "never"),
        ("detect-windows", str(pictures[0]), "--model", uri, "--class", "3"),
        ("liveness", "evaluate", uri),
        ("evaluate", str(classifier), uri, "--dataset", "digit_scenes"),
    ):
        code, _out, err = run(*command)
        told = err.splitlines()[-1]
        assert code == 2 and told.startswith(f"convoy: {uri} is a model for detection")
        assert "artifacts" not in err
    code, _out, err = run("models", "combine", uri, str(classifier), "--out", str(tmp_path / "both"))
    assert code == 2 and f"must have the same family: {uri} has 'detection', {classifier} has" in err


def test_a_file_for_a_folder_is_refused_before_anything_is_found(
    finished: dict[str, Any], run: Run, pictures: list[Path]
) -> None:
    uri = f"models:/{finished['model']}@champion"
    code, _out, err = run("predict", uri, str(pictures[0]), "--draw", str(pictures[1]))
    assert code == 2 and err == f"convoy: --draw {pictures[1]} is a file: give a folder\n"
    folder = pictures[0].parent
    code, _out, err = run("predict", uri, str(pictures[0]), "--coco", str(folder))
    assert code == 2 and err == f"convoy: --coco {folder} is a folder: give a file\n"


def test_a_stranger_gets_the_same_boxes(
    finished: dict[str, Any], tmp_path: Path, pictures: list[Path]
) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk")
    files = [*pictures, tmp_path / "junk.png"]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, f"models:/{NAME}@champion", *map(str, files)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    predictor = open_predictor(Path(finished["folder"]) / "model")
    expected = predictor.predict([file.read_bytes() for file in files]).to_pylist()
    assert [row["labels"] for row in rows] == [row["labels"] for row in expected]
    assert "not an image" in rows[4]["error"]
    for row, want in zip(rows[:4], expected, strict=False):
        np.testing.assert_allclose(row["boxes_xyxy"], want["boxes_xyxy"], rtol=1e-5)


def test_a_preview_shows_what_training_sees(finished: dict[str, Any], run: Run, tmp_path: Path) -> None:
    file = tmp_path / "preview.png"
    name = finished["dataset"]
    assert Dataset.open(store() / name).info.family == "detection"
    command = ("data", "preview", name, "--recipe", "digit_scenes", "--pictures", "2", "--epochs", "2")
    assert run(*command, "--out", str(file))[0] == 0 and file.stat().st_size > 1000
