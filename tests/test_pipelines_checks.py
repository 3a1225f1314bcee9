"""The checks as people meet them: `data check`, `data label-errors`, training that stops or keeps what it accepted."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.checklist import NAMES
from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from pipelines import checks
from pipelines.classification import train_classifier
from pipelines.reporting import Reporter, set_reporter
from pipelines.runfolders import run_folder
from pipelines.training import read_job
from tasks import modellist
from tasks.paths import store
from tasks.recordstore import connect
from tasks.train import train
from tests.conftest import Run
from tests.faulty import PLANTED, classification, stock
from tests.pictures import write_tree
from tests.test_pipelines_training import Listener, artifacts_of, newest_key, runs_with_key
from tests.tiny import INGEST, TINY, tiny_config, tiny_dataset

RECIPE = {name: part for name, part in TINY["classification"].items() if name != "dataset"}
QUICK = {"train": {"epochs": 1.0, "batch_size": 16}}
pytestmark = pytest.mark.usefixtures("faulty")


@pytest.fixture(scope="module")
def faulty(module_home: Path) -> Dataset:
    """A dataset with one error (class-missing), one warning and one that is good to know."""
    files = PLANTED["class-missing"].files() | PLANTED["cmyk"].add | PLANTED["wrong-extension"].add
    files |= {"train/a/copy.png": stock(0)}
    source = write_tree(module_home / "source", files)
    config = IngestConfig.parse(INGEST, "ingest")
    ingest(source, name="faulty", family="classification", store=store(), config=config, workers=1)
    return Dataset.open(store() / "faulty")


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    for module in ("configuration", "parameters"):
        monkeypatch.setattr(f"pipelines.{module}.recipes", lambda family: {"default": RECIPE})
    listener = Listener()
    set_reporter(listener)
    return listener


# ------------------------------------------------------------------------------- data check


def test_the_report_names_each_fault_and_fails_for_an_error(run: Run) -> None:
    code, out, _ = run("data", "check", "faulty")
    assert code == 1
    for text in (
        "class-missing",
        "duplicates",
        "wrong-extension",
        "--accept class-missing",
        "all as ingest wrote",
    ):
        assert text in out


def test_an_accepted_error_does_not_fail_the_report_and_what_is_not_there_is_told(run: Run) -> None:
    code, out, _ = run(
        "data", "check", "faulty", "--accept", "class-missing,alpha", "--accept", "deep", "--json"
    )
    report = json.loads(out)
    assert code == 0
    assert report["problems"] == []
    assert (report["stopped_by"], report["accepted"], report["not_found"]) == (
        [],
        ["class-missing"],
        ["alpha", "deep"],
    )
    by_name = {finding["name"]: finding for finding in report["findings"]}
    assert by_name["class-missing"]["severity"] == "error"
    assert set(by_name["duplicates"]["examples"][0]) == {"train/a/0.png", "train/a/copy.png"}


def test_the_page_is_written_and_quick_decodes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.commands_checks.check_bytes", None)
    file = tmp_path / "checks.html"
    code, out, _ = run("data", "check", "faulty", "--quick", "--html", str(file))
    assert code == 1
    assert f"wrote {file}" in out
    assert 'id="class-missing"' in file.read_text()


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_a_damaged_dataset_is_said_to_be_damaged_and_nothing_else(
    run: Run, faulty: Dataset, options: tuple[str, ...]
) -> None:
    shutil.copytree(faulty.path, store() / "damaged")
    try:
        with (store() / "damaged" / faulty.shards("test")[0].name).open("ab") as file:
            file.write(b"x")
        code, out, _ = run("data", "check", "damaged", *options, "--json")
        told = run("data", "check", "damaged", *options)[1]
    finally:
        shutil.rmtree(store() / "damaged")
    report = json.loads(out)
    assert code == 1
    assert "its bytes have changed" in report["problems"][0]
    assert report["findings"] is None
    assert "damaged away and fetch it again (./convoy data pull damaged)" in told


def test_an_unknown_check_lists_the_known_ones(run: Run) -> None:
    for command in (("data", "check", "faulty"), ("train", "classification", "--dataset", "faulty")):
        code, _, err = run(*command, "--accept", "nope")
        assert code == 2
        assert "--accept nope: no such check; known: alpha, " in err


# ------------------------------------------------------------------------------- training


def test_training_from_the_command_line_is_refused_before_anything_starts(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.server.start", lambda: None)
    monkeypatch.setattr("pipelines.commands_train.run_flow", None)
    code, _, err = run("train", "classification", "--dataset", "faulty")
    assert code == 2
    assert err.count("\n") == 1
    assert "class-missing: 1 of 3 classes (33%) (c)" in err
    assert "--accept class-missing" in err


@pytest.mark.usefixtures("listener")
def test_the_flow_is_refused_leaves_no_record_and_shows_why(prefect_api: str) -> None:
    with pytest.raises(ValueError, match="faults that stop training: class-missing"):
        train_classifier("faulty", changes=QUICK, executor="in_process")
    key = newest_key()
    assert runs_with_key(key) == []
    rows = json.loads(artifacts_of(key, prefect_api)["table"])
    assert {row["check"]: row["severity"] for row in rows} == {
        "class-missing": "error", "duplicates": "warning", "cmyk": "warning", "wrong-extension": "info",
    }  # fmt: skip


def test_what_was_accepted_is_kept_with_the_run_its_model_and_its_job(
    listener: Listener, prefect_api: str
) -> None:
    summary = train_classifier(
        "faulty", changes=QUICK, executor="in_process", accept=("class-missing", "alpha")
    )
    (record,) = runs_with_key(summary["key"])
    assert record.data.tags["checks.accepted"] == "class-missing=1"
    assert record.data.tags["checks.found"] == "class-missing=1, cmyk=1, duplicates=1"
    assert modellist.show_model("models:/classifier-faulty/1")["tags"]["checks.accepted"] == "class-missing=1"
    assert read_job(run_folder(summary["key"])).accept == ("alpha", "class-missing")
    kept = {item.path for item in connect().list_artifacts(summary["mlflow_run"], "checks")}
    assert kept == {"checks/findings.json", "checks/checks.html"}
    folder = Path(summary["folder"])
    findings = json.loads((folder / "checks" / "findings.json").read_text())
    assert findings["accepted"] == ["class-missing"]
    assert "with class-missing accepted" in (folder / "checks" / "checks.html").read_text()
    assert (folder / "evaluation" / "label_errors.csv").is_file()
    assert "accepted and not found: alpha" in listener.notes
    rows = json.loads(artifacts_of(summary["key"], prefect_api)["table"])
    assert rows[0]["severity"] == "accepted"


def test_a_resumed_run_keeps_what_it_accepted(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_arguments: Any, **_options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.steps.train", stop)
        with pytest.raises(KeyboardInterrupt):
            train_classifier("faulty", changes=QUICK, executor="in_process", accept=("class-missing",))
    key = newest_key()
    summary = train_classifier("faulty", resume=key, stop_after="train", executor="in_process")
    assert summary["key"] == key
    assert (run_folder(key) / "checks" / "checks.html").is_file()
    assert listener.statuses


@pytest.mark.usefixtures("prefect_api")  # its server has to be there first
def test_a_page_that_cannot_be_made_does_not_end_the_training(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("tasks.checkpage.write_check_page", fail)
    summary = train_classifier(
        "faulty", changes=QUICK, stop_after="train", executor="in_process", accept=("class-missing",)
    )
    assert summary["num_steps"] > 0
    assert "the report of the checks was not kept (OSError: no space left on device)" in listener.notes


@pytest.mark.usefixtures("prefect_api")  # its server has to be there first
def test_a_dataset_that_is_replaced_while_training_leaves_no_page_of_other_pictures(
    faulty: Dataset, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store() / "moving"
    shutil.copytree(faulty.path, folder)
    described = folder / "dataset.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"name": "moving"}))
    leave = checks.CheckPage.leave

    def leave_late(page: checks.CheckPage, reporter: Reporter) -> None:
        described.write_text(json.dumps(json.loads(described.read_text()) | {"source": "another"}))
        leave(page, reporter)

    monkeypatch.setattr(checks.CheckPage, "leave", leave_late)
    summary = train_classifier(
        "moving", changes=QUICK, stop_after="train", executor="in_process", accept=("class-missing",)
    )
    kept = {item.path for item in connect().list_artifacts(summary["mlflow_run"], "checks")}
    assert kept == {"checks/findings.json"}
    assert [file.name for file in (Path(summary["folder"]) / "checks").iterdir()] == ["findings.json"]
    assert any("dataset 'moving' was replaced while it was read" in note for note in listener.notes)


def test_the_form_offers_the_names_of_the_checks() -> None:
    schema = train_classifier.parameters.model_dump()
    field = schema["properties"]["accept"]
    assert field["items"]["enum"] == sorted(NAMES)
    assert "accept" not in schema["required"]


def test_counts_are_one_line() -> None:
    assert checks.tally({"class-missing": 2, "truncated": 7}) == "class-missing=2, truncated=7"


# ------------------------------------------------------------------------------- label errors


@pytest.fixture(scope="module")
def model(module_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of the digits."""
    digits = tiny_dataset("classification", module_home / "data" / "store")
    config, folder = tiny_config("classification", train__epochs=4.0), tmp_path_factory.mktemp("run")
    return train(
        "classification", config, digits, folder=folder, key="k", digest="", executor="in_process"
    ).model_folder


def test_label_errors_are_listed_written_and_drawn(run: Run, model: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "new" / "suspects.csv", tmp_path / "suspects.html"
    code, stdout, err = run(
        "data", "label-errors", "digits", "--model", str(model), "--split", "train",
        "--out", str(out), "--html", str(page), "--json",
    )  # fmt: skip
    assert code == 0
    assert "repeats them" in err
    report = json.loads(stdout)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [row["id"] for row in report["suspects"]]
    assert rows, "a model of four epochs has some doubts"
    assert rows[0]["label"] != rows[0]["suggested"]
    assert [float(row["margin"]) for row in rows] == sorted(float(row["margin"]) for row in rows)
    text = page.read_text()
    assert text.count('<div class="tile">') == min(120, len(rows))
    assert all(row["id"] in text for row in rows[:120])
    assert sum(pair["estimated"] for pair in report["pairs"]) <= report["estimated_errors"] + 1e-9
    assert 0 <= report["noise_rate"] <= 1


def test_label_errors_of_another_dataset_are_refused(run: Run, model: Path) -> None:
    code, _, err = run("data", "label-errors", "faulty", "--model", str(model))
    assert (code, err.count("\n")) == (2, 1)
    assert "the model alone has 10 (0, 1, 2, 3, 4, 5, 6, 7, …), the dataset alone has" in err
    assert "a model of this dataset's: ./convoy train classification --dataset faulty" in err


def test_a_weak_model_is_warned_of_on_the_console_on_the_page_and_in_the_document(
    run: Run, module_home: Path, tmp_path: Path
) -> None:
    digits = tiny_dataset("classification", module_home / "data" / "store")
    config, page = tiny_config("classification", train__epochs=0.1), tmp_path / "suspects.html"
    folder = train(
        "classification", config, digits, folder=tmp_path / "run", key="k", digest="", executor="in_process"
    ).model_folder
    command = ("data", "label-errors", "digits", "--model", str(folder), "--html", str(page), "--json")
    code, out, err = run(*command)
    report = json.loads(out)
    assert code == 0 and report["accuracy"] < 0.8
    said = f"the model disagrees with {1 - report['accuracy']:.0%} of these labels"
    assert said in " ".join(err.split()) and said in page.read_text() and said in report["notes"][-1]


def test_the_sound_source_needs_no_accepting(run: Run, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", classification())
    assert run("data", "add", str(source), "--name", "sound")[0] == 0
    code, out, _ = run("data", "check", "sound")
    assert code == 0
    assert "no check found anything\nsee what is in it: ./convoy data check sound --html" in out
