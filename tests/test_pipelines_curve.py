"""The learning-curve flow and its command: what they leave, and how a curve that was cut off goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from pipelines import curve as flows
from pipelines.commands_curve import about, points_table
from pipelines.curve import learning_curve
from pipelines.reporting import set_reporter
from tasks import features
from tasks.paths import runs, store
from tasks.recordstore import connect
from tests.conftest import Run
from tests.test_pipelines_training import Listener
from tests.test_tasks_transfer import network, state_of
from tests.tiny import INGEST, PLAIN, TINY

TINY_RECIPE = {name: part for name, part in TINY["classification"].items() if name != "dataset"}
RECIPE = {**TINY_RECIPE, "model": {"name": "resnet8_cifar"}, "augment": PLAIN}
CURVE = {"shots": [1, 2], "modes": ["head", "scratch"], "num_seeds": 2, "num_steps": 2}
pytestmark = pytest.mark.usefixtures("digits", "prefect_api", "listener")


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(state_of(network()), file)
    return {"transfer": {"weights": str(file)}}


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    for module in ("pipelines.configuration", "pipelines.parameters"):
        monkeypatch.setattr(f"{module}.recipes", lambda family: {"default": RECIPE})
    monkeypatch.setattr(flows.run_cells, "retry_delay_seconds", 0)
    listener = Listener()
    set_reporter(listener)
    return listener


def test_a_curve_leaves_its_files_a_record_and_a_table(
    changes: dict[str, Any], listener: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(features, "features", lambda: tmp_path)
    summary = learning_curve("digits", changes=changes, curve=CURVE, executor="in_process")
    ended = [status.step for status in listener.statuses if status.over]
    assert [step for step in ended if step in ("features", "cells")] == ["features", "cells"]
    folder = Path(summary["folder"])
    assert folder == runs() / summary["key"]
    assert all((folder / name).is_file() for name in ("cells.csv", "curve.json", "curve.png"))
    assert len(list((folder / "cells").iterdir())) == 8
    assert [(row["shots"], row["mode"]) for row in summary["points"]] == [
        (1, "head"), (1, "scratch"), (2, "head"), (2, "scratch"),
    ]  # fmt: skip
    run = connect().get_run(summary["mlflow_run"])
    assert run.info.status == "FINISHED" and run.data.params["learning_curve.shots"] == "[1, 2]"
    assert run.data.tags["weights.sha256"] == summary["weights_sha256"]
    history = connect().get_metric_history(summary["mlflow_run"], "val_accuracy.head")
    assert {each.step: each.value for each in history} == {
        row["shots"]: row["accuracy"] for row in summary["points"] if row["mode"] == "head"
    }
    assert {file.path for file in connect().list_artifacts(summary["mlflow_run"], "curve")} == {
        "curve/cells.csv", "curve/curve.json", "curve/curve.png",
    }  # fmt: skip
    assert "note" not in about({**summary, "notes": []})
    assert about({**summary, "notes": ["a", "b"]})["note"] == "a; b"
    columns = [str(column.header) for column in points_table(summary).columns]
    assert columns == ["a class", "pictures", "head", "scratch", "best"]


def test_a_curve_that_was_stopped_goes_on_by_its_own_parameters(
    changes: dict[str, Any], listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, stopped = flows.measure, []

    def stop_after_three(*arguments: Any) -> Any:
        *others, hear, hear_features = arguments

        def hear_and_stop(done: int, total: int, result: Any) -> None:
            hear(done, total, result)
            if done == 3:
                stopped.append(done)
                raise KeyboardInterrupt

        return measure(*others, hear_and_stop, hear_features)

    with monkeypatch.context() as patch:
        patch.setattr(flows, "measure", stop_after_three)
        with pytest.raises(KeyboardInterrupt):
            learning_curve("digits", changes=changes, curve=CURVE, executor="in_process")
    key = max(runs().iterdir(), key=lambda folder: folder.stat().st_mtime).name
    assert stopped and len(list((runs() / key / "cells").iterdir())) == 3
    summary = learning_curve("digits", resume=key, executor="in_process")
    assert summary["key"] == key and len(summary["points"]) == 4
    assert "goes on after 3 of 8 cells" in listener.notes
    assert connect().get_run(summary["mlflow_run"]).info.status == "FINISHED"


def test_a_curve_needs_no_test_split(changes: dict[str, Any], run: Run) -> None:
    config = IngestConfig.parse({**INGEST, "test_fraction": 0, "val_fraction": 0.2}, "ingest")
    ingest("sklearn:digits", name="untested", family="classification", store=store(), config=config)
    code, out, err = run(
        "learning-curve", "classification", "--dataset", "untested", "--weights", changes["transfer"]["weights"],
        "--shots", "1", "--modes", "head", "--seeds", "1", "--steps", "1", "--executor", "in_process", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["num_validation"] == Dataset.open(store() / "untested").info.num_images("val") > 0


def test_a_curve_needs_a_validation_split(changes: dict[str, Any], run: Run) -> None:
    config = IngestConfig.parse({**INGEST, "val_fraction": 0}, "ingest")
    ingest("sklearn:digits", name="unvalidated", family="classification", store=store(), config=config)
    arguments = ("--dataset", "unvalidated", "--weights", changes["transfer"]["weights"])
    code, out, err = run("learning-curve", "classification", *arguments, "--executor", "in_process")
    assert (code, out) == (2, "") and "dataset 'unvalidated' has no val pictures" in err


def test_a_curve_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="the recipe default begins with none: give --weights"):
        learning_curve("digits", curve=CURVE, executor="in_process")


def test_a_curve_has_no_teacher(changes: dict[str, Any]) -> None:
    taught = {**changes, "distil": {"teacher": "models:/x@champion"}}
    with pytest.raises(
        ValueError, match=r"by labels alone: leave distil.teacher \(=models:/x@champion\) empty"
    ):
        learning_curve("digits", changes=taught, curve=CURVE, executor="in_process")


def test_an_unknown_key_lists_the_curves_there_are() -> None:
    with pytest.raises(ValueError, match="no learning curve 'nope' in"):
        learning_curve("digits", resume="nope", executor="in_process")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classification",), "needs a family and --dataset NAME"),
        (("--resume", "k", "--shots", "1"), "give nothing else that decides it"),
        (("classification", "--dataset", "digits", "--modes", "nothing"), '"nothing"'),
        (("classification", "--dataset", "digits", "--weights", "w.pth", "--seeds", "0"), "num_seeds (=0)"),
        (("classification", "--dataset", "digits", "--weights", "w.pth", "--shots", "0"), "shots"),
        (("classification", "--dataset", "digits"), "give --weights"),
    ],
)
def test_bad_input_gets_one_clear_line(arguments: tuple[str, ...], message: str, run: Run) -> None:
    code, out, err = run("learning-curve", "--executor", "in_process", *arguments)
    assert code == 2 and out == ""
    assert message in err and err.startswith("convoy: ") and err.count("\n") == 1, err


def test_the_command_prints_the_winners_and_copies_the_files(
    changes: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    code, out, err = run(
        "learning-curve", "classification", "--dataset", "digits", "--weights", changes["transfer"]["weights"],
        "--shots", "1", "--modes", "head", "scratch", "--seeds", "1", "--steps", "1", "--executor", "in_process",
        "--out", str(tmp_path / "out"), "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert len(document["points"]) == 2 and document["num_steps"] == 1
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"cells.csv", "curve.json", "curve.png"}


def test_a_curve_does_not_go_on_with_other_data(changes: dict[str, Any]) -> None:
    summary = learning_curve("digits", changes=changes, curve=CURVE, executor="in_process")
    begun = Path(summary["folder"]) / "begun-with.json"
    begun.write_text(json.dumps({**json.loads(begun.read_text()), "data": "another"}))
    with pytest.raises(ValueError, match=r"began with data of digest another, and now it is .*start anew"):
        learning_curve("digits", resume=summary["key"], executor="in_process")
