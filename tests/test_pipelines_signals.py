"""Signals and volumes through the whole chain: from files, by the flow, to a registered model that answers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.dataset import Dataset
from pipelines.reporting import set_reporter
from pipelines.signals import train_signals
from pipelines.volumes import train_volumes
from tasks import modellist
from tasks.paths import store
from tasks.predict import load_predictor
from tests.conftest import Run
from tests.test_pipelines_training import Listener
from tests.test_tasks_pyfunc import STRANGER, TIMEOUT_S, environment
from tests.tiny import TINY, tiny_dataset
from tests.waves import tone, wav, write_blobs, write_tones

FLOWS: dict[str, Callable[..., Any]] = {"signals": train_signals, "volumes": train_volumes}
families = pytest.mark.parametrize("family", FLOWS)


@pytest.fixture(scope="module")
def finished(module_home: Path, prefect_api: str) -> dict[str, dict[str, Any]]:
    """The summary of one run to the end, of each family."""
    assert prefect_api and store().is_relative_to(module_home)
    summaries = {}
    for family, flow in FLOWS.items():
        dataset = tiny_dataset(family, store())
        recipe = {name: part for name, part in TINY[family].items() if name != "dataset"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "pipelines.configuration.recipes", lambda family, recipe=recipe: {"default": recipe}
            )
            patch.setattr("pipelines.parameters.recipes", lambda family, recipe=recipe: {"default": recipe})
            set_reporter(Listener())
            changes = {"optim": {"name": "adamw", "lr": 3e-3, "bias_lr": 3e-3}}
            summaries[family] = flow(dataset.info.name, changes=changes, executor="in_process")
    return summaries


@families
def test_the_flow_ends_in_a_registered_champion(family: str, finished: dict[str, dict[str, Any]]) -> None:
    summary = finished[family]
    name = f"{family}-{TINY[family]['dataset']}"
    assert (summary["model"], summary["version"], summary["alias"]) == (name, 1, "champion")
    assert summary["metrics"]["accuracy"] > 0.6 and summary["family"] == family
    assert (Path(summary["folder"]) / "evaluation" / "worst_mistakes.png").is_file()
    assert modellist.show_model(f"models:/{name}@champion")["dataset"] == TINY[family]["dataset"]


@families
def test_commands_evaluate_and_predict_by_the_registered_name(
    family: str, finished: dict[str, dict[str, Any]], run: Run, tmp_path: Path
) -> None:
    uri = f"models:/{finished[family]['model']}@champion"
    code, out, _err = run("evaluate", uri, "--recipe", "default", "--out", str(tmp_path / "report"), "--json")
    assert code == 0
    assert json.loads(out)["metrics"]["accuracy"] == finished[family]["metrics"]["accuracy"]
    files = (write_tones if family == "signals" else write_blobs)(tmp_path / "new", 2)
    (next(files.iterdir()) / "README.md").write_text("not an item")
    code, out, _err = run("predict", uri, str(files), "--json")
    document = json.loads(out)
    assert code == 0 and len(document["predictions"]) == 6
    assert all(row["label"] in document["classes"] for row in document["predictions"])
    code, _out, err = run("predict", uri, str(files), "--view", "mirror")
    assert code == 2 and "view 'mirror' is of pictures" in err
    (tmp_path / "none").mkdir()
    code, _out, err = run("predict", uri, str(tmp_path / "none"))
    assert code == 2 and "no images in the folder" in err and ".npy" in err


def test_a_stranger_gets_the_same_answers(finished: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    blobs = [wav(tone(1, 2)), wav(tone(2, 11)), b"junk"]
    files = [tmp_path / f"{i}.wav" for i in range(len(blobs))]
    for file, data in zip(files, blobs, strict=True):
        file.write_bytes(data)
    uri = f"models:/{finished['signals']['model']}@champion"
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, uri, *map(str, files)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    expected = load_predictor(Path(finished["signals"]["folder"]) / "model").predict(blobs).to_pylist()
    assert [row["label"] for row in rows] == [row["label"] for row in expected]
    assert "neither WAV" in rows[2]["error"]
    np.testing.assert_allclose(rows[0]["probabilities"], expected[0]["probabilities"], rtol=1e-6)


@families
def test_data_commands_show_what_a_dataset_is(
    family: str, finished: dict[str, dict[str, Any]], run: Run, tmp_path: Path
) -> None:
    name = finished[family]["dataset"]
    code, out, _err = run("data", "show", name)
    assert code == 0 and ("samples" in out if family == "signals" else "side 2" in out) and "width" not in out
    assert ("8000 Hz" in out) == (family == "signals")
    page = tmp_path / "checks.html"
    code, out, _err = run("data", "check", name, "--html", str(page), "--json")
    found = {finding["name"] for finding in json.loads(out)["findings"]}
    assert code == 0 and not found & {"tiny-pictures", "extreme-aspect", "changed"} and page.is_file()
    file = tmp_path / "preview.png"
    command = (
        "data",
        "preview",
        name,
        "--recipe",
        "default",
        "--pictures",
        "2",
        "--epochs",
        "1",
        "--out",
        str(file),
    )
    crop = "input.length=48" if family == "signals" else "input.crop_voxels=10"
    assert run(*command, "--set", crop)[0] == 0 and file.stat().st_size > 1000


def test_a_set_of_several_is_added_by_its_folder(run: Run, module_home: Path, tmp_path: Path) -> None:
    assert store().is_relative_to(module_home)
    head = "@problemName X\n@classLabel true up down\n@data\n"
    for name in "AB":
        (tmp_path / "sets" / name).mkdir(parents=True)
        for split in ("TRAIN", "TEST"):
            values = range(6) if split == "TRAIN" else range(6, 12)
            cases = "".join(f"{i},{i + 1},{ord(name)}:{('up', 'down')[i % 2]}\n" for i in values)
            (tmp_path / "sets" / name / f"{name}_{split}.ts").write_text(head + cases)
    command = ("data", "add", str(tmp_path / "sets"), "--name", "up-down", "--family", "signals")
    code, _out, err = run(*command)
    assert code == 2 and "2 sets in it; choose one: --subset A, B" in err
    code, out, _err = run(*command, "--subset", "B", "--set", "val_fraction=0")
    assert code == 0 and "next: ./convoy train signals --dataset up-down" in out
    info = Dataset.open(store() / "up-down").info
    assert (info.num_images("train"), info.num_images("test"), info.source) == (6, 6, "sets/B")


def test_reports_of_signals_speak_of_no_images(run: Run, module_home: Path, tmp_path: Path) -> None:
    assert store().is_relative_to(module_home)
    command = ("data", "add", str(tmp_path / "tones"), "--name", "spoken", "--family", "signals")
    write_tones(tmp_path / "tones", 8)
    added = run(*command)
    write_tones(tmp_path / "tones", 12)
    shown = [added, run(*command), run("data", "versions", "spoken"), run("data", "diff", "spoken")]
    for code, out, _err in shown:
        assert code == 0
        assert "image" not in out.lower()
    assert " signals of 3 classes, from" in shown[1][1] and "Signals" in shown[3][1]
