"""The command line: what commands print, and what they say of bad input."""

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from cyclopts import App
from PIL import Image

from data.dataset import Dataset
from data.samples import SAMPLES
from models.signals import least_length
from pipelines import commands, commands_aliases, fulldisk, homefolder
from pipelines.beforehand import require_engines
from pipelines.commands import Stopped, first_line, raise_stopped
from pipelines.commands_models import CATALOGUES, about_report
from pipelines.options import quiet_stdout
from tasks import ledger, registry
from tasks.detection import DetectionView
from tasks.faces import FaceView
from tasks.paths import ROOT, runs, store
from tasks.train import train
from tests.conftest import Run
from tests.test_tasks_ledger import with_versions
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("module_home")


@pytest.fixture(scope="module")
def model(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained model."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config("classification", train__epochs=3.0)
    result = train(
        "classification", config, digits, folder=folder, key="k", digest="d", executor="in_process"
    )
    return result.model_folder


@pytest.fixture(scope="module")
def registered(digits: Dataset, model: Path) -> str:
    """The URI of a registered model."""
    run_id = registry.start_run(
        key="k",
        experiment="convoy/classification",
        name="digits",
        tags={},
        parameters={},
        dataset=digits,
        digest="d",
    )
    registry.log_metrics(run_id, {"test.accuracy": 0.5})
    images = digits.table("test", ["image"])["image"][:2].to_pylist()
    version = registry.register(run_id, model, name="classifier-digits", example=images, tags={})
    ledger.promote_first("classifier-digits", version)
    return "models:/classifier-digits@champion"


def photographs(folder: Path, num: int = 12) -> Path:
    """A tree of two classes of pictures, light and dark."""
    for label, level in (("dark", 40), ("light", 200)):
        (folder / label).mkdir(parents=True)
        for i in range(num):
            Image.new("L", (24 + i, 20), level + 3 * i).save(folder / label / f"{i}.png")
    return folder


def test_a_full_disk_is_told_where_our_own_words_stand_for_sqlites(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        try:
            raise sqlite3.OperationalError("unable to open database file")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"it cannot be read as a gallery: {error}") from None

    with pytest.raises(ValueError, match="cannot be read") as caught:
        fail()
    assert fulldisk.of_database(caught.value) and not fulldisk.of_database(ValueError("no such dataset"))
    assert fulldisk.full_disk(caught.value) == ""
    monkeypatch.setattr(fulldisk, "free_bytes", lambda _place: 0)
    assert "no space is left in CONVOY_HOME (" in fulldisk.full_disk(caught.value)
    for error, is_told in ((OSError(errno.ENOSPC, "no space"), True), (KeyError("of another cause"), False)):
        assert (", and this may have come of it; " in fulldisk.full_disk(error)) != is_told


def test_help_names_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name in ("data", "train", "evaluate", "compare", "predict", "models", "parameters", "doctor", "demo"):
        assert name in out


@pytest.mark.parametrize(
    "command",
    [("data", "add"), ("data", "list"), ("data", "show"), ("data", "check"), ("train",), ("evaluate",), ("compare",),
     ("predict",), ("models", "list"), ("models", "show"), ("models", "combine"), ("parameters",), ("doctor",),
     ("demo",), ("explain", "units"), ("explain", "prediction")],
)  # fmt: skip
def test_every_command_explains_itself_and_takes_json(command: tuple[str, ...], run: Run) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "--json" in out


def test_the_help_of_a_command_has_its_example_and_fills_its_lines_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("train", "--help")
    assert code == 0
    assert "\n\nExample: ./convoy train classification --dataset digits" in out
    cells = [" ".join(line.strip("│").split()) for line in out.splitlines() if line.startswith("│")]
    assert "or promote (everything); otherwise everything, and with" in cells


def words_of_help(run: Run, *command: str) -> str:
    """The help of a command as one line, without the frames that stand around it."""
    code, out, _ = run(*command, "--help")
    assert code == 0
    return " ".join(out.replace("│", " ").split())


def test_the_help_names_every_dataset_that_is_built_in(run: Run) -> None:
    told = words_of_help(run, "data", "add")
    assert [name for name in SAMPLES if name not in told] == []


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_the_help_says_which_views_are_for_which_family(command: str, run: Run) -> None:
    told = words_of_help(run, command)
    assert f"detectors {', '.join(get_args(DetectionView))}; " in told
    assert f"embedders of faces {', '.join(get_args(FaceView))}; other models single" in told


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        (("compare",), "convoy compare [OPTIONS] [RUNS...] "),
        (("train",), "convoy train [OPTIONS] [FAMILY] "),
        (("data", "diff"), "convoy data diff [OPTIONS] NAME [BEFORE] [AFTER] "),
        (("faces", "enrol"), "convoy faces enrol [OPTIONS] [NAME] [IMAGES...] "),
        (("explain", "prediction"), "convoy explain prediction [OPTIONS] MODEL [IMAGES...] "),
    ],
)
def test_the_usage_names_the_words_that_may_be_left_out(
    command: tuple[str, ...], usage: str, run: Run
) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert f"Usage: {usage}" in " ".join(out.split()) + " "


@pytest.mark.parametrize("command", ["enrol", "recognise"])
def test_the_example_of_a_command_of_faces_stands_alone(
    command: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run("faces", command, "--help")
    lines = out.splitlines()
    [place] = [i for i, line in enumerate(lines) if line.startswith("Example: ./convoy faces")]
    assert code == 0 and not lines[place - 1].strip() and not lines[place + 1].strip()


def commands_below(app: App, chain: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command."""
    for name in app:
        if not name.startswith("-"):
            yield (*chain, name)
            yield from commands_below(app[name], (*chain, name))


def test_no_help_shows_what_cyclopts_makes_up(run: Run) -> None:
    found = list(commands_below(commands.app))
    assert len(found) > 50 and ("faces", "gallery", "list") in found
    for command in found:
        code, out, _ = run(*command, "--help")
        assert code == 0, command
        assert not re.search(r"\[ARGS|--empty-|--no-(?!synthesis)|NONETYPE", out), (command, out)


def test_help_is_quick_because_it_imports_no_engine() -> None:
    code = "import sys; from pipelines.commands import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(child.stderr.split())
    assert not loaded & {"torch", "ray", "prefect", "mlflow", "dvc", "pyarrow", "numpy", "pydantic"}


@pytest.mark.parametrize(
    ("words", "without"),
    [
        (("faces",), ("numpy", "pydantic", "pyarrow")),
        (("faces", "enrol"), ("numpy", "pydantic", "pyarrow")),
        (("faces", "verify"), ("numpy", "pydantic", "pyarrow")),
        (("faces", "recognise"), ("numpy", "pydantic", "pyarrow")),
        (("faces", "gallery"), ()),
        (("faces", "gallery", "re-embed"), ()),
        (("faces", "gallery", "list"), ()),
    ],
    ids=str,
)
def test_help_on_faces_is_quick_because_it_imports_no_engine(
    words: tuple[str, ...], without: tuple[str, ...]
) -> None:
    arguments = [*words, "--help"]
    code = f"import sys; from pipelines.commands import main; main({arguments!r}); print(*sys.modules, file=sys.stderr)"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(child.stderr.split())
    assert f"convoy {' '.join(words)}" in child.stdout
    assert not loaded & ({"torch", "ray", "prefect", "mlflow", "dvc", *without})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trane",), "trane"),
        (("elucidate",), "…; ./convoy --help lists them all"),
        (
            ("models", "show", "vgg16", "--input", "16"),
            "--input (=16) is too small for vgg16: it takes pictures of at least 32 px",
        ),
        (("models", "show", "vgg16", "--input", "0"), "--input (=0) is too small"),
        (("train", "detecton", "--dataset", "x"), 'Invalid value "detecton"'),
        (("train",), "train needs a family and --dataset NAME"),
        (("train", "classification", "--dataset", "digits", "--stop-after", "lunch"), '"lunch"'),
        (("train", "classification", "--dataset", "digits", "--set", "optim.lr"), "must be KEY.PATH=VALUE"),
        (("train", "classification", "--resume", "k"), "--resume goes on with the parameters of that run"),
        (("data", "add", "/no/such/folder", "--name", "x"), "no such source: /no/such/folder"),
        (("data", "add", "x"), "--name"),
        (("data", "show", "nope"), "no dataset named 'nope'"),
        (("data", "check", "nope"), "no dataset named 'nope'"),
        (("evaluate", "models:/nope@champion"), "no registered model 'nope'"),
        (("predict", "models:/nope@champion"), "no images: give files or folders after the model"),
        (
            ("explain", "prediction", "models:/nope@champion"),
            "no images: give files or folders after the model",
        ),
        (("predict", "models:/nope@champion", "no.jpg"), "no file or folder no.jpg"),
        (("models", "show", "nope"), "no model 'nope'"),
        (("models", "show", "VGG-16"), "did you mean vgg16?"),
        (("models", "show", "lenet5", "--classes", "0"), "--classes (=0) must be at least 1"),
        (("models", "show", "lenet5", "--channels", "-2"), "--channels (=-2) must be at least 1"),
        (("parameters", "classification", "--recipe", "nope"), "no recipe 'nope'"),
        (("parameters", "classification", "--recipe", "finetun"), "did you mean finetune?"),
    ],
)
def test_bad_input_gets_one_clear_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, run: Run
) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert err.startswith("convoy: ")
    assert err.count("\n") == 1, err


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.lrr=1", r"convoy: optim.lrr is not a parameter; known here: "),
        ("optim.lr=fast", "convoy: optim.lr (='fast'): "),
        ("train.batch_size=0", "convoy: train.batch_size (=0): "),
        ("transfer.weights=nope.pth", "convoy: transfer.weights (=nope.pth): there is no such file"),
        ("transfer.weights=package:nope", "convoy: transfer.weights (=package:nope): no such package"),
        ("transfer.weights=models:/nope@champion", "convoy: no registered model 'nope'"),
        ("distil.teacher=nope", "convoy: no model 'nope'"),
    ],
)
def test_a_bad_parameter_is_named_before_anything_starts(
    change: str, message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.server.start", lambda: None)
    monkeypatch.setattr(
        "pipelines.runner.start_engines", lambda _executor: pytest.fail("an engine was started")
    )
    code, _, err = run("train", "classification", "--dataset", "digits", "--set", change)
    assert code == 2
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (("train",), "run"),
        (("retrain",), "run"),
        (("ensemble",), "ensemble"),
        (("search",), "search"),
        (("learning-curve",), "learning curve"),
        (("explain", "units"), "look at units"),
        (("stylize",), "style transfer"),
    ],
)
def test_a_key_that_is_none_is_told_before_anything_starts(
    command: tuple[str, ...], what: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.server.start", lambda: pytest.fail("an engine was started"))
    code, _, err = run(*command, "--resume", "nosuchkey")
    assert code == 2
    assert err.startswith(f"convoy: no {what} 'nosuchkey' in {runs()}; known: ")
    assert err.count("\n") == 1
    code, _, err = run(*command, "--resume", "../runs")
    assert code == 2 and err.startswith("convoy: run key '../runs' must be the name of a folder in ")


def test_debug_shows_the_traceback(run: Run) -> None:
    code, _, err = run("--debug", "data", "show", "nope")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("convoy: no dataset named 'nope'")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (Stopped(signal.SIGTERM), 143, "stopped"),
        (RuntimeError("it broke\nhere"), 1, "it broke (--debug shows where)"),
        (ConnectionError("h refuses the connection"), 1, "h refuses the connection"),
        (KeyError("x"), 1, "KeyError: 'x' (--debug shows where)"),
        (ValueError("one\ntwo"), 2, "one"),
    ],
)
def test_each_kind_of_end_has_its_exit_code(
    error: BaseException, code: int, line: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("pipelines.commands_data.list_names", lambda _store: fail())
    got, _, err = run("data", "list")
    assert got == code
    assert err.splitlines()[0] == f"convoy: {line}"


def test_a_signal_to_stop_unwinds() -> None:
    with pytest.raises(Stopped, match="SIGTERM"):
        raise_stopped(signal.SIGTERM, None)
    assert first_line(RuntimeError()) == "RuntimeError"


def test_a_folder_of_photographs_is_added_listed_shown_and_checked(run: Run, tmp_path: Path) -> None:
    source = photographs(tmp_path / "photos")
    (source / "dark" / "broken.png").write_bytes(b"no picture")
    code, out, _ = run("data", "add", str(source), "--name", "photos", "--licence", "CC0", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["num_images"] == 24
    assert [image["id"] for image in report["set_aside"]] == ["dark/broken.png"]
    assert report["dvc_digest"].endswith(".dir")

    listed = json.loads(run("data", "list", "--json")[1])["datasets"]
    row = next(row for row in listed if row["name"] == "photos")
    assert row["train"] + row["val"] + row["test"] == 24
    assert row["dvc_digest"] == report["dvc_digest"]

    shown = json.loads(run("data", "show", "photos", "--json")[1])
    assert shown["classes"] == ["dark", "light"]
    assert shown["licence"] == "CC0"

    code, out, _ = run("data", "check", "photos", "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])
    for command in (("list",), ("show", "photos"), ("check", "photos")):
        code, out, err = run("data", *command)
        assert (code, err) == (0, "")
        assert "photos" in out


def test_a_dataset_that_was_damaged_fails_its_check(run: Run, tmp_path: Path) -> None:
    run("data", "add", str(photographs(tmp_path / "photos")), "--name", "damaged")
    shard = Dataset.open(store() / "damaged").shards("train")[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    code, out, _ = run("data", "check", "damaged", "--json")
    assert code == 1
    assert any(shard.name in problem for problem in json.loads(out)["problems"])


def test_evaluate_writes_the_report_that_it_prints(model: Path, run: Run, tmp_path: Path) -> None:
    out_folder = tmp_path / "report"
    code, out, _ = run("evaluate", str(model), "--views", "single", "--out", str(out_folder), "--json")
    document = json.loads(out)
    assert code == 0
    assert json.loads((out_folder / "metrics.json").read_text()) == pytest.approx(document["metrics"])
    assert len(document["per_class"]) == 10
    code, out, _ = run("evaluate", str(model), "--views", "single")
    assert f"{document['metrics']['accuracy']:.4g}" in out


def test_several_models_are_evaluated_as_an_ensemble(model: Path, run: Run) -> None:
    alone = json.loads(run("evaluate", str(model), "--views", "single", "--json")[1])
    twice = json.loads(run("evaluate", str(model), str(model), "--views", "single", "--json")[1])
    assert len(twice["models"]) == 2
    same = f"{model}, {model} are one and the same model, which counts 2 times"
    assert same in twice["notes"] and not any("same model" in note for note in alone["notes"])
    uncalibrated = "nll_uncalibrated"  # the model was not calibrated, several are when they are tested
    assert twice["metrics"][uncalibrated] == pytest.approx(alone["metrics"][uncalibrated], rel=1e-5)
    assert "validation pictures of digits, view single" in twice["temperature_fitted_to"]


def test_predict_reads_files_and_folders_and_reports_what_it_cannot_read(
    model: Path, digits: Dataset, run: Run, tmp_path: Path
) -> None:
    rows = digits.table("test", ["image", "label"]).slice(0, 5).to_pylist()
    for i, row in enumerate(rows):
        (tmp_path / f"{i}.png").write_bytes(row["image"])
    code, out, _ = run("predict", str(model), str(tmp_path), "--json")
    predictions = json.loads(out)["predictions"]
    assert code == 0
    assert [Path(row["image"]).name for row in predictions] == [f"{i}.png" for i in range(5)]
    assert all(sum(row["probabilities"]) == pytest.approx(1, abs=1e-5) for row in predictions)

    broken = tmp_path / "broken.png"
    broken.write_bytes(rows[0]["image"][:40])
    code, out, _ = run("predict", str(model), str(broken), str(tmp_path / "0.png"), "--json")
    first, second = json.loads(out)["predictions"]
    assert code == 1
    assert first["error"]
    assert first["label"] is None
    code, out, _ = run("predict", str(model), str(tmp_path / "gone.png"), str(tmp_path / "0.png"), "--json")
    gone, there = json.loads(out)["predictions"]
    assert (code, gone["error"]) == (1, "cannot be read: No such file or directory")
    assert there["label"] == predictions[0]["label"]
    assert second["label"] == predictions[0]["label"]
    assert second["probabilities"] == pytest.approx(predictions[0]["probabilities"], abs=1e-6)
    code, out, _ = run("predict", str(model), str(tmp_path / "0.png"))
    assert code == 0
    assert str(predictions[0]["label"]) in out


def test_an_empty_folder_is_no_input(model: Path, run: Run, tmp_path: Path) -> None:
    code, _, err = run("predict", str(model), str(tmp_path))
    assert code == 2
    assert "no images in the folder" in err


def test_a_network_of_the_catalogue_is_shown_layer_by_layer(run: Run, tmp_path: Path) -> None:
    code, out, err = run("models", "show", "lenet5", "--classes", "10", "--channels", "1", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["input_px"], document["totals"]["parameters"]) == (32, 61_706)
    assert [layer["shape"] for layer in document["layers"]][-1] == [10]
    pooled = next(layer for layer in document["layers"] if layer["name"] == "features.5")
    assert pooled["field"]["rows"] == pooled["field"]["columns"] == {"start": 0, "side": 16, "stride": 4}
    code, out, _ = run("models", "show", "vgg11", "--input", "64", "--png", str(tmp_path / "vgg.png"))
    assert code == 0
    assert "132,863,336" in out
    assert out.endswith(f"wrote {tmp_path / 'vgg.png'}\n")
    assert (tmp_path / "vgg.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run("models", "show", "alexnet", "--input", "16")
    assert (code, err.count("\n")) == (2, 1)
    assert "--input (=16) is too small for alexnet: it takes pictures of at least 63 px" in err


def test_registered_models_are_listed_and_shown(registered: str, run: Run) -> None:
    (row,) = json.loads(run("models", "list", "--json")[1])["models"]
    assert (row["name"], row["version"], row["accuracy"]) == ("classifier-digits", 1, 0.5)
    shown = json.loads(run("models", "show", registered, "--json")[1])
    assert shown["card"]["dataset"] == "digits"
    assert "classifier-digits" in run("models", "list")[1]
    told = run("models", "show", registered)[1]
    assert "champion" in told and "On the test split" in told and "{" not in told
    assert re.search(r"classes +10: 0, 1, 2", told) and re.search(r"networks +lenet5", told)
    code, out, err = run("models", "show", registered, "--input", "64", "--png", "x.png")
    assert (code, out) == (2, "")
    assert f"only networks of the catalogue take --input, --png, and {registered} is a trained model" in err


@pytest.mark.parametrize(
    "command",
    [("evaluate", "{}", "--dataset", "photos"), ("data", "label-errors", "photos", "--model", "{}")],
)
def test_a_model_of_other_classes_is_named_as_it_was_typed(
    command: tuple[str, ...], registered: str, run: Run, tmp_path: Path
) -> None:
    run("data", "add", str(photographs(tmp_path / "photos")), "--name", "photos")
    code, _, err = run(*(text.format(registered) for text in command))
    told = err.splitlines()[-1]
    assert code == 2 and told.startswith(f"convoy: the model {registered} and the dataset 'photos'")
    assert "artifacts" not in err


def test_the_catalogue_lists_every_network_with_its_size(run: Run) -> None:
    rows = json.loads(run("models", "list", "--catalogue", "--json")[1])["catalogue"]
    sizes = {row["name"]: row["num_parameters"] for row in rows}
    assert set(sizes) == {name for networks, _channels in CATALOGUES.values() for name in networks}
    assert len(sizes) == len(rows)
    assert sizes["voxnet"] == 917_866
    assert sizes["resnet20_cifar"] == 269_722
    assert sizes["airnet94"] == 1_971_640
    least = {row["name"]: row["least_side"] for row in rows}
    assert (least["lenet5"], least["vgg16"], least["resnet20_cifar"]) == (16, 32, 1)
    assert (least["m5"], least["resnet_ts"], least["voxnet"], least["resnet8_3d"]) == (
        least_length("m5"),
        1,
        11,
        1,
    )


def test_every_network_of_the_catalogue_cites_its_paper(run: Run) -> None:
    rows = json.loads(run("models", "list", "--catalogue", "--json")[1])["catalogue"]
    papers = {row["name"]: row["paper"] for row in rows}
    assert all(re.fullmatch(r"\D+ (19|20)\d\d, https?://\S+", paper) for paper in papers.values())
    assert papers["resnet_ts"].startswith("Wang") and papers["plain56_cifar"].startswith("He")
    assert "1905.11946" in papers["efficientnet_lite1"]


def test_parameters_explains_each_key_of_a_recipe(run: Run) -> None:
    document = json.loads(run("parameters", "classification", "--recipe", "digits", "--json")[1])
    keys = {row["key"]: row for row in document["parameters"]}
    assert keys["model.name"]["value"] == "lenet5"
    assert all(row["description"] for row in keys.values())
    assert "optim.lr" in run("parameters", "classification")[1]


def test_the_shell_command_runs_anywhere_and_is_not_misled_by_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("raise SystemExit('the wrong data')")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('the wrong models')")
    started = time.perf_counter()
    command = [str(ROOT / "convoy"), "data", "list", "--json"]
    child = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "datasets" in json.loads(child.stdout)
    assert time.perf_counter() - started < 60


def test_what_libraries_print_does_not_reach_the_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_stdout(True):
        sys.stdout.write("a chatty library")
    assert capsys.readouterr() == ("", "a chatty library")


def test_a_parameter_given_like_an_option_is_told_where_it_belongs(run: Run) -> None:
    command = ("train", "classification", "--dataset", "digits")
    code, _out, err = run(*command, "--set", "train.epochs", "3")
    assert code == 2 and "--set KEY.PATH=VALUE, in one word" in err
    code, _out, err = run(*command, "--epochs", "3")
    assert code == 2 and "parameters of a recipe are changed by --set KEY.PATH=VALUE" in err
    code, _out, err = run(*command, "--set", "epochs=3")
    assert code == 2 and err.endswith("did you mean train.epochs?\n")
    code, _out, err = run(*command, "--set", "optim.wieght_decay=3")
    assert code == 2 and err.endswith("did you mean optim.weight_decay?\n")
    code, _out, err = run(*command, "--set", "optim.learning_rate=0.1")
    assert code == 2 and err.endswith("did you mean optim.lr?\n")
    code, _out, err = run(*command, "--set", "optim.wd=0.1")
    assert code == 2 and err.endswith("did you mean optim.weight_decay?\n")
    code, _out, err = run(*command, "--set", "optim.quickening_rate=0.1")
    assert code == 2 and "did you mean" not in err
    code, _out, err = run(*command, "--set", "model.name=ResNet18")
    assert code == 2 and err.endswith("did you mean resnet18?\n")


def test_a_registered_model_that_is_not_there_is_answered_by_the_one_most_like_it(
    run: Run, registered: str
) -> None:
    assert registered == "models:/classifier-digits@champion"
    for wrong, meant in (
        ("models:/clasifier-digits@champion", "classifier-digits"),
        ("models:/classifier-digits@champoin", "champion"),
        ("classifier-digits@champion", registered),
    ):
        code, _out, err = run("evaluate", wrong)
        assert code == 2 and err.endswith(f"did you mean {meant}?\n"), err


def test_pictures_that_do_not_fit_the_network_are_refused_before_anything_starts(
    run: Run, digits: Dataset
) -> None:
    command = ("train", "classification", "--dataset", digits.info.name, "--recipe", "digits")
    code, _out, err = run(*command, "--set", "input.crop_px=30")
    assert code == 2 and "lenet5 needs crop_px to be a multiple of 4" in err


def test_gpus_that_this_machine_lacks_are_refused_before_a_run_begins(
    run: Run, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = list(runs().glob("*"))
    command = ("train", "classification", "--dataset", digits.info.name, "--recipe", "digits")
    code, _out, err = run(*command, "--set", "train.gpus_per_worker=1")
    assert code == 2 and "has no GPU: set train.gpus_per_worker=0, or connect to one that has" in err
    assert list(runs().glob("*")) == before


ROOM = r"convoy: train.num_workers (=64) with train.cpus_per_worker (=1) and train.gpus_per_worker (=0) do not fit: "


@pytest.mark.parametrize(
    "words", [("train",), ("retrain",), ("ensemble",), ("search", "--space", "optim.lr=0.1,0.2")]
)
@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("RAY_ADDRESS=127.0.0.1:9", "convoy: no Ray cluster answers at RAY_ADDRESS (=127.0.0.1:9): "),
        (
            "MLFLOW_TRACKING_URI=http://127.0.0.1:9",
            "convoy: MLflow at http://127.0.0.1:9 (MLFLOW_TRACKING_URI) does not answer: ",
        ),
        ("", ROOM),
    ],
)
def test_engines_that_are_not_there_or_too_small_are_told_before_a_run_begins(
    variable: str,
    told: str,
    words: tuple[str, ...],
    run: Run,
    digits: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.server.start", lambda: None)
    monkeypatch.setattr("pipelines.commands_search.start_engines", lambda _executor: None)
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda: 63)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv(*variable.split("=", 1))
    before = list(runs().glob("*"))
    command, *rest = words
    name = digits.info.name
    code, _out, err = run(
        command, "classification", "--dataset", name, *rest, "--recipe", "digits", "--set=train.num_workers=64",
        "--set=train.cpus_per_worker=1", "--set=train.batch_size=64",
    )  # fmt: skip
    assert code == (1 if variable else 2)
    assert err.startswith(told) and err.count("\n") == 1
    assert variable or "63 such workers do; nodes of the cluster (embedded): 63 CPUs and 0 GPUs" in err
    assert list(runs().glob("*")) == before


def test_training_in_process_needs_no_room_on_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    config = tiny_config("classification", train__num_workers=64, train__batch_size=64)
    require_engines([config], "in_process")
    with pytest.raises(ConnectionError, match="no Ray cluster answers"):
        require_engines([config], "ray")


def test_a_pattern_that_matches_nothing_is_called_one(run: Run, model: Path) -> None:
    code, _out, err = run("predict", str(model), "new/*.jpg")
    assert code == 2 and "nothing matches the pattern" in err


def test_of_a_report_without_a_page_its_folder_is_told(tmp_path: Path) -> None:
    assert about_report(tmp_path) == str(tmp_path)
    (tmp_path / "report.html").write_text("")
    assert about_report(tmp_path).startswith(f"{tmp_path}/report.html, ")


def test_a_report_goes_into_a_folder_of_its_own(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    code, _out, err = run("evaluate", str(model), "--out", str(tmp_path))
    assert code == 2 and "holds other files than a report" in err
    code, _out, err = run("evaluate", str(model), "--out", str(tmp_path / "thesis.txt"))
    assert code == 2 and "is a file; give a folder" in err
    report = str(tmp_path / "report")
    code, out, _err = run("evaluate", str(model), "--recipe", "digits", "--views", "single", "--out", report)
    assert code == 0 and f"wrote {report}/report.html" in out and Path(report, "report.html").is_file()
    assert run("evaluate", str(model), "--recipe", "digits", "--views", "single", "--out", report)[0] == 0


def test_a_model_of_another_version_of_the_data_is_tested_with_a_warning(
    run: Run, model: Path, tmp_path: Path
) -> None:
    code, out, err = run("evaluate", str(model), "--recipe", "digits", "--views", "single", "--json")
    notes = json.loads(out)["notes"]
    assert code == 0 and len(notes) == 1
    assert notes[0].startswith("lenet5 was trained on another version of digits (d, now ") and notes[0] in err
    other = tmp_path / "other"
    shutil.copytree(model, other)
    card = json.loads((other / "model.json").read_text())
    (other / "model.json").write_text(json.dumps({**card, "dataset_digest": ""}))
    code, out, _err = run("evaluate", str(other), "--recipe", "digits", "--views", "single", "--json")
    assert code == 0 and json.loads(out)["notes"] == []


def test_an_ingest_says_what_it_replaces(run: Run, tmp_path: Path) -> None:
    first, second = photographs(tmp_path / "first"), photographs(tmp_path / "second", num=14)
    code, out, _err = run("data", "add", str(first), "--name", "again", "--json")
    assert code == 0 and json.loads(out)["replaces"] == ""
    digest = json.loads(out)["dvc_digest"]
    code, out, _err = run("data", "add", str(first), "--name", "again")
    assert code == 0 and "replaces" not in out
    code, out, _err = run("data", "add", str(second), "--name", "again")
    assert code == 0 and f"replaces again ({digest}): 24 pictures of 2 classes, from first" in " ".join(
        out.split()
    )


def test_a_rollback_that_was_stopped_before_it_told_is_told_of_when_it_is_typed_again(
    module_home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with_versions(module_home, "typed", 2)
    assert run("promote", "typed", "2")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(commands_aliases, "emit_move", stop)
        assert run("rollback", "typed")[0] == 130
    code, out, err = run("rollback", "typed", "--json")
    assert (code, json.loads(out)["after"]["champion"]) == (0, 1), err
    code, _, err = run("rollback", "typed")  # who was told, and types it once more, must say what is meant
    assert code == 2 and "typed was rolled back already" in err and "give --to 2" in err
    assert ledger.aliases("typed")["champion"] == 1
    assert run("rollback", "typed", "--to", "2")[0] == 0
    assert ledger.aliases("typed")["champion"] == 2


@pytest.mark.parametrize("words", ["demo", "train classification --dataset x", "data add {source} --name x"])
@pytest.mark.parametrize("below", ["", "new"])
def test_a_home_that_cannot_be_written_to_is_told_alike_by_all_commands(
    below: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    source, home = photographs(tmp_path / "source"), tmp_path / "file" / below
    environment = {**os.environ, "CONVOY_HOME": str(home), "PYTHONPATH": str(ROOT)}
    for name in ("PREFECT_HOME", "PREFECT_API_URL"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pipelines", *words.format(source=source).split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    told = f"convoy: CONVOY_HOME (={home}) cannot be made or written to (not a directory); set it to a folder that can"
    assert done.stderr.startswith(told) and "PREFECT_HOME (" not in done.stderr


def test_the_home_is_blamed_for_what_is_in_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    inside = FileNotFoundError(errno.ENOENT, "no such file", str(tmp_path / "file" / "runs" / "x"))
    elsewhere = FileNotFoundError(errno.ENOENT, "no such file", str(tmp_path / "photos"))
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "file"))
    assert homefolder.unwritable_home(inside) and not homefolder.unwritable_home(elsewhere)
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "new"))
    assert homefolder.why_unwritable() == "" and not (tmp_path / "new").exists()  # it only looked


def test_commands_that_only_read_need_no_folder_to_write_to(run: Run, tmp_path: Path) -> None:
    assert run("data", "add", str(photographs(tmp_path / "source")), "--name", "read")[0] == 0
    (tmp_path / "file").write_text("")  # below it nobody can make a folder, not even root
    nowhere = {name: str(tmp_path / "file" / name) for name in ("HOME", "PREFECT_HOME", "XDG_CACHE_HOME")}
    environment = {**os.environ, **nowhere, "PYTHONPATH": str(ROOT)}
    for words in ("list", "show read", "versions read", "diff read 1 current", "check read --quick"):
        command = [sys.executable, "-m", "pipelines", "data", *words.split()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), words
        assert "read" in done.stdout
