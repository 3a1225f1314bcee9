"""The explanations' commands: what they write, record and refuse."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data.dataset import Dataset
from models.classification import ARCHITECTURES
from pipelines import explain as flows
from pipelines.parameters import section
from pipelines.unitrequest import ExplainConfig, UnitsJob, request_of
from tasks import classification, unitviews
from tasks.modelfile import save_model
from tasks.paths import runs, store
from tasks.recordstore import connect
from tests.conftest import Run
from tests.tiny import tiny_config, tiny_dataset

QUICK = ("--set", "synthesis.steps=2", "--set", "synthesis.side_px=16", "--executor", "in_process")
pytestmark = pytest.mark.usefixtures("prefect_api")


def write_model(folder: Path, digits: Dataset, seed: int) -> str:
    torch.manual_seed(seed)
    config = tiny_config("classification")
    model = classification.build_model(config, digits.info, sample=list)
    save_model(folder, classification.card(config, digits.info, "", "r"), [model])
    return str(folder)


@pytest.fixture(scope="module")
def models(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [write_model(tmp_path_factory.mktemp("model") / f"v{seed}", digits, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(ARCHITECTURES["resnet8_cifar"](num_classes=4, channels=3).state_dict(), file)
    return str(file)


def test_units_leave_a_gallery_sheets_a_table_and_a_record(
    models: list[str], run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, printed, err = run(
        "explain",
        "units",
        models[0],
        "--layer",
        "conv1",
        "head",
        "--show",
        "3",
        *QUICK,
        "--out",
        str(out),
        "--json",
    )
    assert code == 0, err
    summary = json.loads(printed)
    assert {file.name for file in out.iterdir()} == set(summary["files"]) == {
        "units.html", "conv1.png", "head.png", "patches.csv", "units.json",
    }  # fmt: skip
    named = [("conv1", "features.2"), ("head", "classifier.4")]
    assert [(layer["name"], layer["module"]) for layer in summary["layers"]] == named
    assert [len(layer["units"]) for layer in summary["layers"]] == [3, 3]
    assert summary["layers"][0]["field"]["rows"] == {"start": 0, "side": 6, "stride": 2}
    assert summary["dataset"] == "digits"  # what the model says that it was trained on
    with (out / "patches.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 * (6 + 10)
    assert {row["model"] for row in rows} == {models[0]}
    assert list(dict.fromkeys((row["layer"], row["module"]) for row in rows)) == named
    record = connect().get_run(summary["mlflow_run"])
    assert record.info.status == "FINISHED" and record.data.params["architecture"] == "lenet5"
    kept = {file.path for file in connect().list_artifacts(summary["mlflow_run"], "units")}
    assert kept == {f"units/{name}" for name in summary["files"]}
    text = (out / "units.html").read_text()
    assert '<h2 id="conv1">conv1 (features.2)</h2>' in text
    assert 'src="data:image' in text and "http" not in text.replace("http-equiv", "")


def test_two_versions_are_shown_side_by_side(models: list[str], run: Run, tmp_path: Path) -> None:
    code, printed, err = run(
        "explain", "units", models[0], "--against", models[0], "--layer", "conv2", "--unit", "2", "5", *QUICK,
        "--out", str(tmp_path), "--json",
    )  # fmt: skip
    assert code == 0, err
    [layer] = json.loads(printed)["layers"]
    assert [unit["unit"] for unit in layer["units"]] == [2, 5]
    alive = [unit for unit in layer["units"] if unit["activation"] > 0]
    assert [(unit["against"]["unit"], unit["against"]["correlation"]) for unit in alive] == [
        (unit["unit"], 1.0) for unit in alive
    ]
    assert (tmp_path / "units.html").read_text().count("unit 5") >= 2


def test_bare_weights_are_shown_by_synthesis_alone(weights: str, run: Run, tmp_path: Path) -> None:
    code, printed, err = run(
        "explain", "units", weights, "--network", "resnet8_cifar", "--input", "16", "--layer", "stem", "--unit", "1",
        *QUICK, "--out", str(tmp_path), "--json",
    )  # fmt: skip
    assert code == 0, err
    summary = json.loads(printed)
    assert summary["dataset"] is None and summary["layers"][0]["title"] == "stem (bn1)"
    assert [note.partition(":")[0] for note in summary["notes"]] == [
        "no patches, pictures are synthesised alone"
    ]
    assert not (tmp_path / "patches.csv").exists()
    with Image.open(tmp_path / "stem.png") as sheet:
        assert sheet.width > 100


def test_without_a_dataset_no_empty_table_is_printed_and_the_reason_once(weights: str, run: Run) -> None:
    code, out, err = run(
        "explain", "units", weights, "--network", "resnet8_cifar", "--input", "16", "--layer", "stem", "--unit", "1",
        *QUICK,
    )  # fmt: skip
    assert code == 0, err
    assert "stem (bn1): 16 units of" in out and "strongest" not in out and " -\n" not in out
    assert (out + err).count("no patches, pictures are synthesised alone") == 1


def test_patches_need_a_dataset_with_labels(models: list[str], run: Run) -> None:
    scenes = tiny_dataset("detection", store()).info.name
    code, _, err = run("explain", "units", models[0], "--layer", "conv1", "--dataset", scenes, *QUICK[-2:])
    assert code == 2 and err.count("\n") == 1
    assert (
        "for detection, not for classification: give --dataset one that is (./convoy data list), or leave"
        in err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("MODEL", "--layer", "conv9"), "layer conv9 is not known: give one of the stages conv1, conv2"),
        (("MODEL", "--layer", "conv9"), "(all: ./convoy models show lenet5)"),
        (("MODEL", "--layer", "conv1", "--unit", "6"), "layer conv1 has units 0…5, not 6"),
        (("MODEL", "--layer", "conv1", "--dataset", "nope"), "no dataset named 'nope'"),
        (("MODEL", "--layer", "conv1", "--network", "vgg11"), "says itself which network it is"),
        (("MODEL", "--layer", "conv1", "--set", "synthesis.colour=1"), "colour is not a parameter"),
        (("MODEL",), "explain units needs a model and --layer NAME"),
        (("MODEL", "--layer", "conv1", "--resume", "k"), "give nothing else but --out and --executor"),
        (("--split", "val", "--resume", "k"), "give nothing else but --out and --executor"),
        (
            ("no.pth", "--layer", "stem", "--network", "resnet8_cifar"),
            "weights (=no.pth): there is no such file",
        ),
        (("WEIGHTS", "--layer", "stem", "--network", "resnet18"), "Choose the network (--network) that they"),
        (("WEIGHTS", "--layer", "stem", "--network", "nin"), "have no head for nin (features."),
        (
            ("WEIGHTS", "--layer", "stem", "--network", "resnet8_cifar", "--input", "0"),
            "--input (=0) is too small",
        ),
        (
            ("MODEL", "--layer", "conv2", "--set", "synthesis.side_px=8"),
            "synthesis.side_px (=8) is too small for layer",
        ),
        (("WEIGHTS", "--layer", "stem"), "are bare weights: say by --network what they are of"),
        (("WEIGHTS", "--layer", "stem", "--network", "resnet8_cifar", "--no-synthesis"), "nothing to show"),
    ],
)
def test_what_does_not_fit_gets_one_clear_line(
    words: tuple[str, ...], message: str, models: list[str], weights: str, run: Run
) -> None:
    named = {"MODEL": models[0], "WEIGHTS": weights}
    code, out, err = run("explain", "units", *(named.get(word, word) for word in words), *QUICK[-2:])
    assert code == 2 and out == ""
    assert message in err and err.startswith("convoy: ") and err.count("\n") == 1, err


def test_versions_of_other_layers_are_not_compared(models: list[str], weights: str) -> None:
    job = UnitsJob(
        models[0], ("head",), "digits", "test", (), weights, True, "resnet8_cifar", None, (),
        section("explain", ExplainConfig, {}),
    )  # fmt: skip
    with pytest.raises(ValueError, match="has other layers by these names"):
        request_of(job)


@pytest.mark.slow
def test_a_look_that_was_stopped_goes_on_with_what_it_had(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(models[0], tmp_path / "model")
    changes = {"synthesis": {"steps": 2, "side_px": 16}, "show": 6}
    asked = (str(model), ("conv1", "head"))
    straight = flows.explain_units(*asked, changes=changes, executor="in_process")
    synthesise, num = unitviews.synthesise, 0

    def stop_at_the_third(*arguments: Any) -> Any:
        nonlocal num
        num += 1
        if num == 3:
            raise KeyboardInterrupt
        return synthesise(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(unitviews, "synthesise", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            flows.explain_units(*asked, changes=changes, executor="in_process")
    folder = max(runs().iterdir(), key=lambda each: each.stat().st_mtime)
    assert len(list((folder / flows.SYNTHESISED).iterdir())) == 2

    def not_again(*_: Any) -> None:
        raise AssertionError("these pictures were looked at before")

    monkeypatch.setattr(unitviews, "look", not_again)
    resumed = flows.explain_units(resume=folder.name, executor="in_process")
    assert resumed["key"] == folder.name
    for name in ("patches.csv", "units.html", "conv1.png"):
        assert (folder / name).read_bytes() == (Path(straight["folder"]) / name).read_bytes()
    assert connect().get_run(resumed["mlflow_run"]).info.status == "FINISHED"
    shutil.copytree(models[1], model, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="began with weights of digest"):
        flows.explain_units(resume=folder.name, executor="in_process")
    with pytest.raises(ValueError, match=f"no look at units 'nope' .* known: .*{folder.name}"):
        flows.explain_units(resume="nope")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, level in (("dark", 40), ("light", 220)):
        Image.new("RGB", (40, 30), (level, 90, 90)).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_predictions_are_explained_in_a_sheet_and_a_page(
    method: str, weights: str, photos: Path, run: Run, tmp_path: Path
) -> None:
    words = ("explain", "prediction", weights, str(photos), "--method", method, "--network", "resnet8_cifar")
    code, printed, err = run(*words, "--out", str(tmp_path), "--json")
    assert code == 0, err
    rows = json.loads(printed)["explanations"]
    assert [Path(row["image"]).name for row in rows] == ["dark.png", "light.png"]
    assert all(0 < row["probability"] <= 1 and row["class"].startswith("class ") for row in rows)
    assert {file.name for file in tmp_path.iterdir()} == {"prediction.png", "prediction.html"}
    assert (tmp_path / "prediction.html").read_text().count("<img") == 4


def test_the_class_can_be_chosen_and_named(weights: str, photos: Path, run: Run, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\n")
    words = ("explain", "prediction", weights, str(photos / "dark.png"), "--network", "resnet8_cifar", "--class-names",
             str(names), "--out", str(tmp_path / "out"))  # fmt: skip
    code, printed, err = run(*words, "--class", "bee", "--json")
    assert code == 0, err
    assert json.loads(printed)["explanations"][0]["class"] == "bee"
    code, _, err = run(*words, "--class", "cow")
    assert (code, err) == (2, "convoy: class 'cow' is not known; the model knows ant, bee, cat, dog\n")


def test_a_file_that_is_no_picture_is_told_of_and_the_others_are_explained(
    weights: str, photos: Path, run: Run, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    code, printed, _ = run(
        "explain", "prediction", weights, str(broken), str(photos / "dark.png"), "--network", "resnet8_cifar",
        "--out", str(tmp_path / "out"), "--json",
    )  # fmt: skip
    bad, good = json.loads(printed)["explanations"]
    assert code == 1 and bad["error"] and bad["class"] is None and good["error"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "lime"), "--method (=lime) must be gradcam or occlusion"),
        (("--window", "4"), "--window and --stride are of occlusion"),
        (("--method", "occlusion", "--layer", "stem"), "--layer (=stem) is of Grad-CAM"),
        (("--method", "occlusion", "--window", "40"), "window (=40) must lie in 1…32"),
        (("--layer", "head"), "layer head has no places: Grad-CAM needs a map of several; leave --layer out"),
    ],
)
def test_an_explanation_that_cannot_be_gets_one_clear_line(
    words: tuple[str, ...], message: str, weights: str, photos: Path, run: Run
) -> None:
    code, out, err = run("explain", "prediction", weights, str(photos), "--network", "resnet8_cifar", *words)
    assert code == 2 and out == ""
    assert message in err and err.count("\n") == 1, err
