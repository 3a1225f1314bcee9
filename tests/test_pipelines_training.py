"""The training flow, called in this process: what it leaves behind when it ends well, badly, or is stopped."""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.client.orchestration import get_client
from prefect.utilities.callables import parameter_schema

from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from pipelines import steps, training
from pipelines.classification import train_classifier
from pipelines.commands_train import summary_views
from pipelines.render import emit
from pipelines.reporting import Status, set_reporter
from pipelines.runfolders import run_folder
from pipelines.training import exclusive, read_job
from tasks import modellist, registry
from tasks.paths import runs, store
from tasks.recordstore import connect
from tasks.runrecords import kept_files
from tests.conftest import Run
from tests.tiny import INGEST, TINY

RECIPE = {name: part for name, part in TINY["classification"].items() if name != "dataset"}
QUICK = {"train": {"epochs": 0.5}}
pytestmark = pytest.mark.usefixtures("digits", "prefect_api", "listener")


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.statuses: list[Status] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self, status: Status) -> None:
        self.statuses.append(status)


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    monkeypatch.setattr("pipelines.configuration.recipes", lambda family: {"tiny": RECIPE, "default": RECIPE})
    monkeypatch.setattr("pipelines.parameters.recipes", lambda family: {"tiny": RECIPE, "default": RECIPE})
    monkeypatch.setattr(steps.train_model, "retry_delay_seconds", 0)
    listener = Listener()
    set_reporter(listener)
    return listener


@pytest.fixture(scope="module")
def finished(digits: Dataset, prefect_api: str) -> dict[str, Any]:
    """The summary of one run to the end."""
    assert prefect_api.startswith("http://127.0.0.1:")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.configuration.recipes", lambda family: {"default": RECIPE})
        patch.setattr("pipelines.parameters.recipes", lambda family: {"default": RECIPE})
        set_reporter(Listener())
        return train_classifier(digits.info.name, changes={"train": {"epochs": 3.0}}, executor="in_process")


def status_of(run_id: str) -> str:
    return str(connect().get_run(run_id).info.status)


def runs_with_key(key: str) -> list[Any]:
    client = connect()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`convoy.key` = '{key}'"))


def newest_key() -> str:
    return max(runs().iterdir(), key=lambda folder: folder.stat().st_mtime).name


def test_one_key_names_the_flow_run_the_folder_and_the_mlflow_run(finished: dict[str, Any]) -> None:
    key = finished["key"]
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(key).state_name == "Completed"
    assert (runs() / key / "model" / "model.json").is_file()
    (run,) = runs_with_key(key)
    assert run.info.status == "FINISHED"
    assert run.data.tags["prefect.flow_run_id"] == key
    assert run.data.params["train.epochs"] == "3.0"
    assert run.info.run_name == "digits-lenet5-untracked"


def test_the_summary_says_what_was_measured(finished: dict[str, Any]) -> None:
    metrics = json.loads((Path(finished["folder"]) / "evaluation" / "metrics.json").read_text())
    assert metrics["accuracy"] == finished["metrics"]["accuracy"]
    (run,) = runs_with_key(finished["key"])
    assert run.data.metrics["test.accuracy"] == finished["metrics"]["accuracy"]
    assert set(finished["phases_s"]) == {"prepare", "train", "calibrate", "evaluate", "register"}


def test_the_record_keeps_the_job_the_cost_and_what_it_was_computed_on(finished: dict[str, Any]) -> None:
    (run,) = runs_with_key(finished["key"])
    assert run.data.metrics["cost.cpu_s"] >= run.data.metrics["train_cpu_s"] > 0
    assert run.data.metrics["cost.wall_s"] >= finished["train_time_s"]
    assert run.data.metrics["cost.gpu_s"] == 0
    kept = {name: run.data.tags[f"trained.{name}"] for name in ("executor", "device", "torch", "threads")}
    assert kept == {
        "executor": "in_process",
        "device": "cpu",
        "torch": str(torch.__version__),
        "threads": "1",
    }
    assert kept_files(finished["mlflow_run"], "job") == {"job/job.json"}


def test_the_first_model_becomes_champion_and_the_next_a_challenger(
    finished: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (finished["model"], finished["version"], finished["alias"]) == ("classifier-digits", 1, "champion")
    second = train_classifier("digits", changes=QUICK, executor="in_process")
    assert (second["version"], second["alias"]) == (2, "challenger")
    assert finished["champion"] is None
    assert second["champion"] == {"version": 1, "metric": None, "value": None}, "the data are untracked"
    compared = {"version": 1, "metric": "accuracy", "value": 0.5}
    for summary, told in (
        (finished, ""),
        (second, "version 1, with which no figure of a test on the same data is shared; "),
        ({**second, "champion": compared}, "version 1, accuracy 0.5 on the same test data, this one "),
    ):
        emit(summary, summary_views(summary | {"to_first_step_s": None}), as_json=False)
        out = " ".join(capsys.readouterr().out.split())
        assert told in out
        assert ("to promote this one: ./convoy promote classifier-digits 2" in out) == bool(told)
    assert registry.resolve_model("models:/classifier-digits@champion").is_dir()
    assert {row["version"]: row["aliases"] for row in modellist.list_models()} == {
        1: ["champion"],
        2: ["challenger"],
    }


def artifacts_of(flow_run_id: str, prefect_api: str) -> dict[str, Any]:
    """The data of a flow run's artifacts, by type."""
    query = json.dumps({"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}}).encode()
    request = urllib.request.Request(
        f"{prefect_api}/artifacts/filter", query, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return {artifact["type"]: artifact["data"] for artifact in json.load(answer)}


def test_the_runs_page_shows_progress_the_result_and_the_way_to_mlflow(
    finished: dict[str, Any], prefect_api: str
) -> None:
    artifacts = artifacts_of(finished["key"], prefect_api)
    assert artifacts["progress"] == 100.0
    assert f"MLflow run `{finished['mlflow_run']}`" in artifacts["markdown"]
    assert "models:/classifier-digits/1" in artifacts["markdown"]
    assert f"| accuracy | {finished['metrics']['accuracy']:.4g} |" in artifacts["markdown"]


def test_progress_is_told_to_the_end_of_each_step(listener: Listener) -> None:
    summary = train_classifier("digits", changes=QUICK, stop_after="evaluate", executor="in_process")
    assert summary["version"] == 0
    last = {status.step: status for status in listener.statuses}
    assert last["train"].done == last["train"].total == summary["num_steps"]
    assert [status.over for status in listener.statuses if status.step == "train"].count(True) == 1
    assert last["evaluate"].done == last["evaluate"].total
    assert f"--resume {summary['key']}" in listener.notes[0]


def test_a_run_that_goes_on_ends_where_it_was_to_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = train_classifier("digits", changes=QUICK, stop_after="train", executor="in_process")
    monkeypatch.setattr("pipelines.runner.start_engines", lambda _executor: None)
    monkeypatch.setattr("pipelines.server.wait", lambda: None)
    command = ("train", "--resume", summary["key"], "--executor", "in_process", "--json")
    code, out, err = run(*command)
    assert code == 0, err
    assert not (Path(summary["folder"]) / "evaluation").exists()
    code, out, err = run(*command, "--stop-after", "evaluate")
    assert code == 0, err
    assert json.loads(out)["version"] == 0 and (Path(summary["folder"]) / "evaluation").is_dir()


def test_a_run_that_its_time_budget_ended_says_so(
    prefect_api: str, capsys: pytest.CaptureFixture[str], listener: Listener
) -> None:
    changes = {"train": {"epochs": 1000.0, "time_budget_s": 0.5}}
    summary = train_classifier("digits", changes=changes, stop_after="train", executor="in_process")
    last = [status for status in listener.statuses if status.step == "train"][-1]
    assert last.ended and last.done == summary["num_steps"] and "val_accuracy" in last.text
    why = summary["ended_early"]
    assert re.fullmatch(r"by its time budget of 0\.5 s, at epoch [\d.]+ of 1000", why)
    (run,) = runs_with_key(summary["key"])
    assert run.data.tags["trained.ended_early"] == why
    assert f"images/s. Ended early {why}." in artifacts_of(summary["key"], prefect_api)["markdown"]
    emit(summary, summary_views(summary | {"to_first_step_s": None}), as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"ended early {why}" in shown
    assert "digits, not tested: what begins with val_ is of the validation split" in shown


def test_a_run_that_took_all_its_epochs_says_nothing_of_an_early_end(
    finished: dict[str, Any], prefect_api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = runs_with_key(finished["key"])
    assert finished["ended_early"] == "" and "trained.ended_early" not in run.data.tags
    assert "nded early" not in artifacts_of(finished["key"], prefect_api)["markdown"]
    emit(finished, summary_views(finished | {"to_first_step_s": None}), as_json=False)
    assert "ended early" not in capsys.readouterr().out


def test_the_metrics_of_a_run_are_said_to_be_of_the_test_split_in_the_words_of_evaluate(
    finished: dict[str, Any], prefect_api: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    view = read_job(Path(finished["folder"])).config.evaluate.registered_view
    title = f"digits, test split: the registered view is {view}"
    emit(finished, summary_views(finished | {"to_first_step_s": None}), as_json=False)
    assert title in " ".join(capsys.readouterr().out.split())
    assert f"\n\n{title}\n\n| metric |" in artifacts_of(finished["key"], prefect_api)["markdown"]
    code, out, err = run("evaluate", finished["key"], "--views", "single")
    assert code == 0 and title in " ".join(out.split()), err


def test_a_batch_larger_than_the_training_split_is_told_of(listener: Listener, digits: Dataset) -> None:
    num = digits.info.num_images("train")
    changes = {"train": {"batch_size": num + 100, "epochs": 0.01}}
    summary = train_classifier("digits", changes=changes, stop_after="train", executor="in_process")
    told = f"note: train.batch_size (={num + 100}) is more than the {num:,} training pictures: a step takes {num:,}"
    assert told in listener.notes
    listener.notes.clear()
    train_classifier("digits", resume=summary["key"], stop_after="train", executor="in_process")
    train_classifier("digits", changes=QUICK, stop_after="train", executor="in_process")
    assert [note for note in listener.notes if "batch_size" in note] == [told]


def test_a_fault_that_may_pass_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails_once(*arguments: Any, **options: Any) -> Any:
        calls.append(options["key"])
        if len(calls) == 1:
            raise OSError("no space left on device")
        return train(*arguments, **options)

    train = steps.train
    monkeypatch.setattr(steps, "train", fails_once)
    summary = train_classifier("digits", changes=QUICK, stop_after="train", executor="in_process")
    assert calls == [summary["key"]] * 2
    assert len(runs_with_key(summary["key"])) == 1
    assert status_of(summary["mlflow_run"]) == "FINISHED"


def test_who_only_trains_needs_no_test_split() -> None:
    config = IngestConfig.parse({**INGEST, "test_fraction": 0}, "ingest")
    ingest("sklearn:digits", name="untested", family="classification", store=store(), config=config)
    waived = {"accept": ("no-test-split",), "changes": QUICK, "executor": "in_process"}
    summary = train_classifier("untested", stop_after="train", **waived)
    assert (Path(summary["folder"]) / "model").is_dir()
    with pytest.raises(ValueError, match=r"'untested' has no test pictures"):
        train_classifier("untested", stop_after="evaluate", **waived)


@pytest.mark.parametrize(
    "error", [ValueError("it does not fit"), FloatingPointError("the loss is not finite")]
)
def test_a_fault_of_the_input_is_not_tried_again_and_marks_the_run_failed(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fails(*_arguments: Any, **options: Any) -> Any:
        calls.append(options["key"])
        raise error

    monkeypatch.setattr(steps, "train", fails)
    with pytest.raises(type(error), match=str(error)):
        train_classifier("digits", changes=QUICK, executor="in_process")
    assert len(calls) == 1
    (run,) = runs_with_key(calls[0])
    assert run.info.status == "FAILED"


def test_a_stopped_run_is_killed_and_resumes_by_its_own_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_arguments: Any, **_options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            train_classifier("digits", changes=QUICK, executor="in_process")
    key = newest_key()
    (run,) = runs_with_key(key)
    assert run.info.status == "KILLED"

    assert read_job(run_folder(key)).stop_after == "promote"
    summary = train_classifier("digits", resume=key, stop_after="train", executor="in_process")
    assert read_job(run_folder(key)).stop_after == "train"
    assert summary["key"] == key and summary["first_step_at"] is not None
    assert read_job(run_folder(key)).config.train.epochs == 0.5
    (run,) = runs_with_key(key)
    assert run.info.status == "FINISHED"

    again = train_classifier("digits", resume=key, stop_after="train", executor="in_process")
    assert again["first_step_at"] is None  # it was trained already, and took none


def stopped_in_process(monkeypatch: pytest.MonkeyPatch) -> str:
    """Begin a run in this process that is told to stop at its first step; its key."""
    train = steps.train
    with monkeypatch.context() as patch:
        patch.setattr(
            steps, "train", lambda *words, **options: train(*words, **options | {"stopping": lambda: True})
        )
        with pytest.raises(KeyboardInterrupt):
            train_classifier("digits", changes=QUICK, stop_after="train", executor="in_process")
    return newest_key()


def test_a_run_goes_on_where_it_was_begun_and_another_executor_leaves_its_record_alone(
    listener: Listener, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = stopped_in_process(monkeypatch)
    assert listener.notes[0].endswith(f"if cut off: ./convoy train --resume {key}")
    assert any((run_folder(key) / "checkpoints").iterdir())

    started: list[str] = []
    monkeypatch.setattr("pipelines.runner.start_engines", started.append)
    monkeypatch.setattr("pipelines.server.wait", lambda: None)
    monkeypatch.setattr(training, "start_ray", lambda: None)
    code, _, err = run("train", "--resume", key, "--executor", "ray")
    assert code == 2 and f"run {key} was begun with executor in_process; go on with it" in err
    (record,) = runs_with_key(key)
    assert record.info.status == "KILLED"

    code, out, err = run("train", "--resume", key, "--json")
    assert code == 0, err
    assert started == ["ray", "in_process"]
    assert json.loads(out)["resumed_from_step"] > 0
    assert status_of(json.loads(out)["mlflow_run"]) == "FINISHED"


def test_the_form_as_it_stands_goes_on_with_a_run_where_it_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    form = parameter_schema(train_classifier).model_dump()["properties"]
    assert form["executor"]["default"] == "auto"
    key = stopped_in_process(monkeypatch)
    monkeypatch.setattr(training, "start_ray", lambda: pytest.fail("Ray was started"))
    summary = train_classifier("digits", resume=key, stop_after="train", executor="auto")
    assert summary["resumed_from_step"] > 0 and read_job(Path(summary["folder"])).executor == "in_process"


def test_a_dataset_that_was_changed_is_refused_before_training(digits: Dataset) -> None:
    file = digits.shards("test")[0]
    before = file.read_bytes()
    try:
        file.write_bytes(before + b"x")
        with pytest.raises(
            ValueError,
            match=r"its bytes have changed .*; move .*digits away and fetch it again \(./convoy data pull digits\)",
        ):
            train_classifier("digits", changes=QUICK, executor="in_process")
        file.unlink()
        with pytest.raises(ValueError, match=r"is missing; move .*digits away"):
            train_classifier("digits", changes=QUICK, executor="in_process")
    finally:
        file.write_bytes(before)


def test_two_processes_never_train_the_same_run(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "key"),
        pytest.raises(ValueError, match=r"run key is being trained by process \d+"),
        exclusive(tmp_path / "key"),
    ):
        pass
    with exclusive(tmp_path / "key"):
        pass


@pytest.mark.parametrize("key", ["", "..", "a/b", "/etc"])
def test_a_run_key_never_leaves_the_folder_of_runs(key: str) -> None:
    with pytest.raises(ValueError, match="must be the name of a folder"):
        run_folder(key)


def test_an_unknown_run_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no run 'nope' in"):
        training.read_job(run_folder("nope"))
