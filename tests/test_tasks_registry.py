import contextlib
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.rest_utils import MlflowHostCreds, http_request

from tasks import ledger, modellist, recordstore, registry, runrecords
from tasks.modelfile import load_card
from tasks.paths import ROOT
from tests.platforms import wait_for
from tests.recording import CLASSES, DIGEST, make_model, pictures, start
from tests.servers import serve

WRITER = """
import sys
from pathlib import Path
from tasks import registry
from tests.recording import start
run_id = start(sys.argv[1], Path("pets"))
for step in range(50):
    registry.log_progress(run_id, step, {"loss": 1.0 / (step + 1)})
registry.finish_run(run_id, "FINISHED")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for the module: its database takes seconds to make. Tests keep apart by their keys."""
    folder = tmp_path_factory.mktemp("records") / "a home with spaces, é"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVOY_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        yield folder


@pytest.fixture
def client(home: Path) -> MlflowClient:
    assert registry.tracking_uri().endswith(f"{home}/mlflow.db")
    return registry.connect()


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def registered(home: Path, key: str, name: str, seed: int = 0) -> tuple[str, int, Path]:
    """A run with a model in the registry: run id, version, the model's folder."""
    run_id = start(key, home / "pets")
    folder = make_model(home / "runs" / key / "model", seed)
    return (
        run_id,
        registry.register(run_id, folder, name=name, example=pictures(1), tags={"seed": str(seed)}),
        folder,
    )


def aliases_of(client: MlflowClient, name: str) -> dict[str, int]:
    return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}


# where records are


def test_records_are_in_home_unless_a_server_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.tracking_uri() == f"sqlite:///{home}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://records:5000")
    assert registry.tracking_uri() == "http://records:5000"


def test_a_fresh_home_gets_one_database_and_artifacts_below_it(home: Path) -> None:
    run_id = start("place", home / "pets")
    (home / "note.txt").write_text("hello")
    registry.log_folder(run_id, home / "note.txt", "notes")
    assert [path.name for path in home.glob("mlflow*")] == ["mlflow", "mlflow.db"]
    stored = list((home / "mlflow" / "convoy" / "classification").rglob("note.txt"))
    assert len(stored) == 1
    assert stored[0].read_text() == "hello"
    assert not (home / "mlruns").exists()


def test_a_database_whose_making_was_cut_short_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(uri: str) -> MlflowClient:
        Path(uri.removeprefix("sqlite:///")).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setenv("CONVOY_HOME", str(tmp_path))
    monkeypatch.setattr(recordstore, "_open", fail)
    with pytest.raises(KeyboardInterrupt):
        registry.connect()
    assert list(tmp_path.glob("mlflow*")) == []


@pytest.mark.slow
def test_two_processes_may_start_on_a_fresh_home_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    writers = [run_python(WRITER, key) for key in ("one", "two")]
    outputs = [writer.communicate(timeout=300) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], outputs
    assert [text for output in outputs for text in output] == ["", "", "", ""], "records are kept quietly"

    client = registry.connect()
    experiment = client.get_experiment_by_name("convoy/classification")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.tags["convoy.key"] for run in runs} == {"one", "two"}
    assert all(len(client.get_metric_history(run.info.run_id, "loss")) == 50 for run in runs)


def test_a_server_that_is_away_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started_s = time.monotonic()
    with pytest.raises(ConnectionError, match=f"MLflow at {uri} .* does not answer: .*refused"):
        registry.connect()
    assert time.monotonic() - started_s < 5


def test_a_file_that_is_no_database_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path))
    (tmp_path / "mlflow.db").write_text("this is no database" * 100)
    with pytest.raises(RuntimeError, match=r"cannot be opened: .*file is not a database") as error:
        registry.connect()
    assert "\n" not in str(error.value)


def test_a_database_of_another_mlflow_is_refused_with_the_way_on(
    client: MlflowClient, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.search_experiments()
    shutil.copyfile(home / "mlflow.db", tmp_path / "mlflow.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = 'older'")
        database.commit()
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"cannot be opened: .*mlflow db upgrade"):
        registry.connect()


# runs


def test_a_run_holds_its_key_tags_parameters_and_dataset(home: Path, client: MlflowClient) -> None:
    run_id = start("whole", home / "pets")
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "pets-lenet5-01234567"
    assert client.get_experiment(run.info.experiment_id).name == "convoy/classification"
    assert {"convoy.key": "whole", "git.commit": "c0ffee", "seed": "0"}.items() <= run.data.tags.items()
    assert run.data.params == {"model.name": "lenet5", "optim.lr": "0.1"}
    [given] = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("pets", DIGEST)
    assert json.loads(given.dataset.source) == {"uri": str(home / "pets")}
    assert json.loads(given.dataset.profile)["train"] == 9


def test_a_dataset_that_dvc_does_not_track_says_so_in_its_digest(home: Path, client: MlflowClient) -> None:
    run = client.get_run(start("untracked", home / "pets", digest=""))
    assert run.inputs.dataset_inputs[0].dataset.digest == "untracked-" + "ab" * 12


@pytest.mark.parametrize("ended", ["FINISHED", "FAILED", "KILLED"])
def test_the_same_key_goes_on_with_the_same_run(home: Path, client: MlflowClient, ended: Any) -> None:
    run_id = start(f"again-{ended}", home / "pets")
    registry.log_progress(run_id, 5, {"loss": 0.5})
    assert registry.finish_run(run_id, ended) == ended
    assert client.get_run(run_id).info.status == ended

    assert start(f"again-{ended}", home / "pets", tags={"ray.job_id": "02"}) == run_id
    registry.log_progress(run_id, 5, {"loss": 0.25})

    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert {"ray.job_id": "02", "seed": "0"}.items() <= run.data.tags.items()
    assert len(run.inputs.dataset_inputs) == 1
    assert [m.value for m in client.get_metric_history(run_id, "loss")] == [0.5, 0.25]
    assert registry.finish_run(run_id, "FINISHED") == "FINISHED"


def test_a_run_that_has_ended_keeps_its_status(home: Path, client: MlflowClient) -> None:
    run_id = start("ended", home / "pets")
    registry.finish_run(run_id, "FINISHED")
    assert registry.finish_run(run_id, "KILLED") == "FINISHED"
    assert client.get_run(run_id).info.status == "FINISHED"


def test_the_same_key_with_other_parameters_is_refused(home: Path) -> None:
    start("other", home / "pets")
    with pytest.raises(
        ValueError, match=r"'other' was started with other parameters \(optim\.lr 0\.1 → 0\.2\)"
    ):
        start("other", home / "pets", parameters={"model.name": "lenet5", "optim.lr": 0.2})


def test_a_run_that_died_before_its_parameters_gets_them_later(home: Path, client: MlflowClient) -> None:
    run_id = start("many", home / "pets", parameters={})
    many = {f"p{i}": i for i in range(250)}
    assert start("many", home / "pets", parameters=many) == run_id
    assert client.get_run(run_id).data.params == {name: str(value) for name, value in many.items()}


@pytest.mark.parametrize("key", ["", "a/b", "../up", "it's", "-dash", "x" * 201])
def test_a_key_that_is_no_file_name_is_refused(home: Path, key: str) -> None:
    with pytest.raises(ValueError, match="run key"):
        start(key, home / "pets")


def test_a_deleted_experiment_is_told_with_the_way_back(home: Path, client: MlflowClient) -> None:
    start("gone", home / "pets", experiment="convoy/gone")
    client.delete_experiment(client.get_experiment_by_name("convoy/gone").experiment_id)
    with pytest.raises(ValueError, match=r"was deleted in MLflow; restore it: mlflow experiments restore"):
        start("gone", home / "pets", experiment="convoy/gone")


def test_metrics_that_a_server_does_not_take_are_sent_later(
    home: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = start("away", home / "pets")

    def away(*arguments: object, **options: object) -> None:
        raise MlflowException(f"connection refused\n {arguments} {options}")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(client, "log_batch", away)
        registry.log_progress(run_id, 1, {"loss": 3.0})
        registry.log_progress(run_id, 2, {"loss": 2.0})
        for _ in range(2):  # a step of a flow is tried twice
            with pytest.raises(MlflowException):
                registry.log_metrics(run_id, {"test.accuracy": 0.5})
    assert "connection refused" in caplog.text

    registry.log_progress(run_id, 3, {"loss": 1.0})
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")] == [
        (1, 3.0),
        (2, 2.0),
        (3, 1.0),
    ]
    assert [metric.value for metric in client.get_metric_history(run_id, "test.accuracy")] == [0.5]


def test_what_a_run_has_already_is_not_logged_again(home: Path, client: MlflowClient) -> None:
    run_id = start("repeated", home / "pets")
    for values in ({"test.accuracy": 0.5, "ap.a?": 0.25}, {"test.accuracy": 0.5, "ap.a?": 0.75}):
        registry.log_metrics(run_id, values)
        registry.log_metrics(run_id, values)
    registry.log_metrics(run_id, {"test.accuracy": 0.5}, step=3)
    accuracies = client.get_metric_history(run_id, "test.accuracy")
    assert [(metric.step, metric.value) for metric in accuracies] == [(0, 0.5), (3, 0.5)]
    assert [metric.value for metric in client.get_metric_history(run_id, "ap.a_")] == [0.25, 0.75]
    assert registry.latest(run_id) == {"test.accuracy": (3, 0.5), "ap.a_": (0, 0.75)}


def test_what_an_earlier_attempt_has_logged_includes_what_was_not_sent_yet(
    home: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = start("before", home / "pets")
    assert registry.logged_before(run_id) == {}

    def away(*arguments: object, **options: object) -> None:
        raise MlflowException(f"connection refused\n {arguments} {options}")

    with monkeypatch.context() as patch:
        patch.setattr(client, "log_batch", away)
        registry.log_progress(run_id, 7, {"loss": 2.0})
        assert registry.logged_before(run_id) == {}  # and raises nothing
    assert registry.logged_before(run_id) == {"loss": (7, 2.0)}


def test_classes_of_any_name_have_their_metrics(home: Path, client: MlflowClient) -> None:
    run_id = start("classes", home / "pets")
    values = {
        "ap.a:b, c?": 0.1, "ap.a:b; c?": 0.2, "ap.a:b_ c_": 0.3, "ap.日本 ü": 0.4, "ap.a//b/..": 0.5,
        "ap.a/b": 0.6, "ap.$": 0.7, f"ap.{'x' * 300}1": 0.8, f"ap.{'x' * 300}2": 0.9, "ap.\n": 1.0,
    }  # fmt: skip
    registry.log_metrics(run_id, values)
    kept = client.get_run(run_id).data.metrics
    assert sorted(kept.values()) == sorted(values.values())
    assert kept["ap.a:b_ c_"] == 0.3  # its own name
    assert kept["ap.a:b_ c_.2"] == 0.1 and kept["ap.a:b_ c_.3"] == 0.2
    assert kept["ap.日本 ü"] == 0.4 and kept["ap.a/b"] == 0.6 and kept["ap.a__b_.."] == 0.5


def test_a_folder_is_kept_with_its_run(home: Path, client: MlflowClient, tmp_path: Path) -> None:
    run_id = start("folder", home / "pets")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "confusion.png").write_bytes(b"png")
    registry.log_folder(run_id, tmp_path / "figures", "evaluation")
    assert [file.path for file in client.list_artifacts(run_id, "evaluation")] == ["evaluation/confusion.png"]


def test_files_that_a_run_has_whole_are_not_sent_again(
    home: Path, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, log = start("missing", home / "pets"), client.log_artifact
    sent: list[str] = []

    def watch(run: str, file: str, artifact_path: str) -> None:
        sent.append(Path(file).name)
        log(run, file, artifact_path)

    monkeypatch.setattr(client, "log_artifact", watch)
    (tmp_path / "1.png").write_bytes(b"one")
    registry.log_missing(run_id, tmp_path, "pictures")
    (tmp_path / "2.png").write_bytes(b"tw")
    registry.show_folder(run_id, tmp_path, "pictures")
    (tmp_path / "2.png").write_bytes(b"two")  # what was sent of it was cut off
    registry.show_folder(run_id, tmp_path, "pictures")
    assert sent == ["1.png", "2.png", "2.png"]
    registry.log_missing(run_id, tmp_path, "pictures")
    assert len(sent) == 3


def test_system_metrics_are_sampled_while_the_body_runs(
    home: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    run_id = start("system", home / "pets")

    def history() -> list[Any]:
        return list(client.get_metric_history(run_id, "system/system_memory_usage_megabytes"))

    for enough in (2, 4):  # a resumed run goes on counting
        with registry.system_metrics(run_id):
            wait_for(lambda enough=enough: len(history()) >= enough, 60, "samples")  # type: ignore[misc]
    steps = [metric.step for metric in history()]
    assert steps == list(range(len(steps)))
    assert all(metric.value > 0 for metric in history())


def test_without_a_server_the_way_to_a_run_is_a_command(home: Path) -> None:
    run_id = start("link", home / "pets")
    program, *arguments = shlex.split(registry.run_url(run_id))
    assert os.access(program, os.X_OK)
    assert arguments == ["ui", "--backend-store-uri", f"sqlite:///{home}/mlflow.db"]


# models


def test_the_first_version_is_champion_and_the_next_challenger(home: Path, client: MlflowClient) -> None:
    _, first, _ = registered(home, "first", "ranks")
    assert (first, ledger.promote_first("ranks", first)) == (1, "champion")
    assert aliases_of(client, "ranks") == {"champion": 1, "challenger": 1}

    _, second, _ = registered(home, "second", "ranks", seed=1)
    assert (second, ledger.promote_first("ranks", second)) == (2, "challenger")
    assert aliases_of(client, "ranks") == {"champion": 1, "challenger": 2}
    assert ledger.promote_first("ranks", first) == "champion", "tried again, it is what it was"


def test_a_model_is_registered_once_however_often_it_is_tried(home: Path) -> None:
    run_id, version, folder = registered(home, "once", "once")
    again = registry.register(run_id, folder, name="once", example=pictures(1), tags={})
    assert (version, again) == (1, 1)

    make_model(folder, seed=9)  # the run goes on and ends with other weights
    assert registry.register(run_id, folder, name="once", example=pictures(1), tags={}) == 2


def test_a_model_that_cannot_be_stored_is_no_version(
    home: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, f"No space left on device {arguments}")

    monkeypatch.setattr(client, "log_model_artifacts", full)
    with pytest.raises(OSError, match="No space left"):
        registered(home, "full", "full")
    assert [row for row in modellist.list_models() if row["name"] == "full"] == []


def test_what_the_server_made_twice_is_there_once(
    home: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client sends a request again whose answer was lost on its way."""
    for method in ("create_run", "create_model_version"):
        original = getattr(client, method)
        monkeypatch.setattr(
            client, method, lambda *each, call=original, **named: [call(*each, **named) for _ in "12"][1]
        )
    run_id, version, _ = registered(home, "asked-twice", "asked-twice")
    assert version == 1
    assert [int(each.version) for each in registry.find_versions(client, "name = 'asked-twice'")] == [1]
    runs = client.search_runs(
        [client.get_run(run_id).info.experiment_id], "tags.`convoy.key` = 'asked-twice'"
    )
    assert [run.info.run_id for run in runs] == [run_id]


def test_a_registered_model_holds_no_pickle_and_no_more_code_than_it_needs(home: Path) -> None:
    _, version, _ = registered(home, "package", "package")
    package = registry.resolve_model(f"models:/package/{version}").parent.parent
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {"MLmodel", "artifacts/model/model.json", "artifacts/model/member-0.safetensors"} <= files
    assert {path.rsplit(".")[-1] for path in files} == {"MLmodel", "json", "safetensors", "py", "txt", "yaml"}
    code = {path.removeprefix("code/") for path in files if path.startswith("code/")}
    assert {"tasks/predict.py", "tasks/pyfunc.py", "models/lenet.py", "data/decode.py"} <= code
    assert not {path for path in code if "store" in path or path.startswith("pipelines")}
    assert code.isdisjoint({"tasks/train.py", "tasks/cluster.py", "tasks/registry.py", "tasks/versioning.py"})


def test_every_way_to_name_a_model_finds_its_files(home: Path) -> None:
    run_id, version, folder = registered(home, "named", "named")
    ledger.promote_first("named", version)
    card = load_card(folder)
    for uri in (
        "models:/named/1",
        "models:/named@champion",
        f"runs:/{run_id}",
        "named",
        str(folder),
        folder.parent,
    ):
        found = registry.resolve_model(uri)
        assert load_card(found) == card, uri
        assert found.is_relative_to(home), uri


def test_a_model_of_a_local_registry_is_used_where_it_lies(home: Path) -> None:
    registered(home, "lies", "lies")
    found = registry.resolve_model("models:/lies/1")
    assert found.is_relative_to(home / "mlflow")
    assert not (home / ".cache" / "models").exists()


def test_a_key_whose_folder_is_gone_leads_to_what_was_registered(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, folder = registered(home, "moved", "moved")
    folder.rename(folder.with_name("elsewhere"))
    monkeypatch.chdir("/")
    assert registry.resolve_model("moved").is_relative_to(home / "mlflow")


def test_changed_files_of_a_registered_model_are_noticed(home: Path) -> None:
    registered(home, "changed", "changed")
    weights = registry.resolve_model("models:/changed/1") / "member-0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ValueError, match="not those that were registered"):
        registry.resolve_model("models:/changed/1")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("models:/nobody@champion", r"no registered model 'nobody'; known: .*known"),
        ("models:/known/7", "no such version; known has the version 1 and the aliases challenger, champion"),
        (
            "models:/known@best",
            "no such alias; known has the version 1 and the aliases challenger, champion",
        ),
        ("models:/known", "must be models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("runs:/0123", "no run with the id '0123'"),
        ("runs:/it's", """no run with the id "it's\""""),
        ("nowhere", "neither a folder nor the key of a run"),
        ("it's", "neither a folder nor the key of a run"),
        ("/", "no model in /"),
        ("", "the model's name is empty: give a folder, a run key"),
    ],
)
def test_a_model_that_is_not_there_is_told_with_what_is(home: Path, uri: str, says: str) -> None:
    if not any(row["name"] == "known" for row in modellist.list_models()):
        ledger.promote_first("known", registered(home, "known", "known")[1])
    with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
        registry.resolve_model(uri)
    assert "\n" not in str(error.value)


def test_a_model_without_aliases_is_said_to_have_none(home: Path) -> None:
    registered(home, "plain", "plain")
    with pytest.raises(ValueError, match="no such alias; plain has the version 1 and no alias"):
        registry.resolve_model("models:/plain@best")


def test_a_run_without_a_model_is_told_so(home: Path) -> None:
    run_id = start("empty", home / "pets")
    with pytest.raises(FileNotFoundError, match="neither a registered model nor one in"):
        registry.resolve_model(f"runs:/{run_id}")


def test_lists_show_versions_with_aliases_and_accuracy(home: Path, client: MlflowClient) -> None:
    client.create_registered_model("of somebody else")
    run_id, version, folder = registered(home, "listed", "listed")
    ledger.promote_first("listed", version)
    registry.log_metrics(run_id, {"test.accuracy": 0.75})
    registered(home, "listed2", "listed", seed=1)

    rows = [row for row in modellist.list_models() if row["name"] in ("listed", "of somebody else")]

    assert [(row["version"], row["aliases"], row["accuracy"]) for row in rows] == [
        (2, [], None),
        (1, ["challenger", "champion"], 0.75),
    ]
    assert rows[1]["dataset"] == "pets"
    assert rows[1]["run_id"] == run_id
    assert rows[1]["created"].endswith("+00:00")

    shown = modellist.show_model("models:/listed@champion")
    assert shown.items() >= rows[1].items()
    assert shown["card"]["classes"] == list(CLASSES)
    assert shown["parameters"]["model.name"] == "lenet5"
    assert shown["tags"]["seed"] == "0"
    assert json.dumps(shown)
    assert set(modellist.show_model(str(folder))) == {"uri", "folder", "card"}


def test_a_champion_is_compared_with_a_version_that_was_tested_on_the_same_data(
    home: Path, client: MlflowClient
) -> None:
    tested = [registered(home, f"beside{number}", "beside", seed=number)[:2] for number in (1, 2)]
    for (run_id, version), accuracy in zip(tested, (0.25, 0.75), strict=True):
        ledger.promote_first("beside", version)
        registry.log_metrics(run_id, {"test.accuracy": accuracy, f"test.only{version}": 1})
    unknown = {"version": 1, "metric": None, "value": None}
    assert modellist.champion_beside("beside", 1) is None
    assert modellist.champion_beside("beside", 2) == unknown, "on which data neither was tested"
    for version, digest in ((1, "d"), (2, "other")):
        client.set_model_version_tag("beside", str(version), "dvc.digest", digest)
    assert modellist.champion_beside("beside", 2) == unknown
    client.set_model_version_tag("beside", "2", "dvc.digest", "d")
    assert modellist.champion_beside("beside", 2) == {"version": 1, "metric": "accuracy", "value": 0.25}


def test_a_version_whose_run_is_gone_is_still_listed_and_usable(home: Path, client: MlflowClient) -> None:
    run_id, _, _ = registered(home, "purged", "purged")
    client.delete_run(run_id)
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database:  # what `mlflow gc` does
        for table in ("latest_metrics", "metrics", "params", "tags", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run_id,))
        database.commit()
    [row] = [row for row in modellist.list_models() if row["name"] == "purged"]
    assert (row["accuracy"], row["run_id"]) == (None, run_id)
    assert modellist.show_model("models:/purged/1")["metrics"] == {}


# a server


@pytest.mark.parametrize("scheme", ["http", "ftp", "mlflow-artifacts"])
def test_a_run_does_not_send_us_to_another_host_for_its_files(
    scheme: str, client: MlflowClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONVOY_PRIVATE_URLS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        port = elsewhere.getsockname()[1]
        place = f"{scheme}://127.0.0.1:{port}/api/2.0/mlflow-artifacts/artifacts/x"
        run_id = client.create_run(client.create_experiment(scheme, place)).info.run_id

        def fetch() -> None:
            with runrecords.fetched(run_id, "x/y"):
                pass

        acts = (
            fetch, lambda: runrecords.kept_files(run_id, "x"),
            lambda: registry.log_folder(run_id, home / "mlflow.db", "x"),
        )  # fmt: skip
        for act in acts:
            with pytest.raises(ValueError, match=r"has its files at 127\.0\.0\.1, which is not its server"):
                act()
        with pytest.raises(BlockingIOError):  # nobody has connected
            elsewhere.accept()


def test_an_answer_of_the_server_does_not_send_us_to_another(client: MlflowClient) -> None:
    assert client is registry.connect()
    with serve(b"{}") as elsewhere, serve(b"", location=elsewhere.url) as own:
        answer = http_request(MlflowHostCreds(own.url.removesuffix("/x.tar")), "/x.tar", "GET")
        assert (answer.status_code, len(own.asked), elsewhere.asked) == (302, 1, [])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real MLflow server on a free port of the loopback, with a store of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path / "server"
    folder.mkdir()
    command = [
        sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(
        command, env={**os.environ, **quiet}, cwd=folder, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "home"))
    try:
        await_server(process)
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def await_server(process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + 180
    while True:
        assert process.poll() is None, "the server ended"
        try:
            registry.connect()
            return
        except ConnectionError:
            assert time.monotonic() < end_s
            time.sleep(0.5)


@pytest.mark.slow
def test_records_and_models_on_a_server_are_those_of_a_local_file(server: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    run_id, version, folder = registered(home, "remote", "remote")
    assert start("remote", home / "pets") == run_id
    registry.log_progress(run_id, 1, {"loss": 1.0})
    registry.log_folder(run_id, folder, "files")
    ledger.promote_first("remote", version)
    assert registry.run_url(run_id).startswith(f"{server}/#/experiments/")

    fetched = registry.resolve_model("models:/remote@champion")

    assert fetched.parent == home / ".cache" / "models"
    for name in ("model.json", "member-0.safetensors"):
        assert (fetched / name).read_bytes() == (folder / name).read_bytes()
    changed_s = fetched.stat().st_mtime
    assert registry.resolve_model(f"runs:/{run_id}") == fetched
    assert fetched.stat().st_mtime == changed_s, "fetched once"
    (fetched / "model.json").write_text((fetched / "model.json").read_text().replace("pets", "pots"))
    with pytest.raises(ValueError, match="delete that folder"):
        registry.resolve_model("models:/remote/1")
    assert registry.finish_run(run_id, "FINISHED") == "FINISHED"
    assert not (home / "mlflow.db").exists()
