"""The search flow and its command: what they leave, how a search that was cut off goes on, what is refused."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.dataset import Dataset
from pipelines import search as flows
from pipelines.classification import search_classifier
from pipelines.commands_search import trials_table
from pipelines.families import PIPELINES
from pipelines.reporting import set_reporter
from pipelines.search import require_measured, require_read
from pipelines.training import read_job
from tasks.cluster import disconnect
from tasks.cost import Cost, cost_of
from tasks.families import FAMILIES
from tasks.paths import ROOT, runs
from tasks.recordstore import connect
from tasks.runrecords import SEARCHES, costs_until
from tasks.space import SearchMetric, parse_space
from tests.conftest import Run
from tests.test_pipelines_training import Listener
from tests.tiny import TINY

SPACE = ("optim.lr=log:1e-3..1e-1", "train.batch_size=32,64")
HOW = {"trials": 3, "max_concurrent": 1}
TINY_RECIPE = {name: part for name, part in TINY["classification"].items() if name != "dataset"}
RECIPE = {**TINY_RECIPE, "train": {**TINY_RECIPE["train"], "epochs": 3.0}}


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    for module in ("pipelines.configuration", "pipelines.parameters"):
        monkeypatch.setattr(f"{module}.recipes", lambda family: {"default": RECIPE})
    monkeypatch.setattr(flows.run_trials, "retry_delay_seconds", 0)
    listener = Listener()
    set_reporter(listener)
    return listener


@pytest.fixture(scope="module")
def finished(digits: Dataset, prefect_api: str) -> Iterator[dict[str, Any]]:
    """The summary of one search to the registered winner."""
    assert prefect_api.startswith("http://127.0.0.1:")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("pipelines.configuration", "pipelines.parameters"):
            patch.setattr(f"{module}.recipes", lambda family: {"default": RECIPE})
        # Ray Train's follower would move it, a thread that does not know the settings of `prefect_api`
        patch.setattr("pipelines.artifacts.ProgressBar.show", lambda bar, share: None)
        set_reporter(Listener())
        yield search_classifier(digits.info.name, SPACE, search=HOW)
    disconnect()


def children_of(run_id: str) -> dict[str, Any]:
    """Runs of MLflow below a run, by the number of their trial."""
    client = connect()
    experiment = client.get_experiment_by_name(SEARCHES)
    found = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return {run.data.tags["search.trial"]: run for run in found}


def test_a_search_leaves_a_record_with_a_run_for_each_trial(finished: dict[str, Any]) -> None:
    run = connect().get_run(finished["mlflow_run"])
    assert run.info.status == "FINISHED"
    assert run.data.params["space.optim.lr"] == "log:1e-3..1e-1" and run.data.params["search.trials"] == "3"
    assert run.data.params["optim.momentum"] == "0.9" and "optim.lr" not in run.data.params
    children = children_of(finished["mlflow_run"])
    assert sorted(children) == ["0", "1", "2"]
    for row in finished["trials"]:
        child = children[str(row["trial"])]
        assert child.info.status == "FINISHED" and child.data.tags["trial.state"] == row["state"]
        assert child.data.params == {key: str(value) for key, value in row["changes"].items()}
        history = connect().get_metric_history(child.info.run_id, "val_accuracy")
        assert [each.value for each in history][-1] == row["value"]
    steps = [each.step for each in connect().get_metric_history(children["0"].info.run_id, "val_accuracy")]
    assert len(steps) == 3 and steps == sorted(steps)  # an epoch each
    names = {file.path for file in connect().list_artifacts(finished["mlflow_run"], "search")}
    assert names == {"search/trials.csv", "search/history.png", "search/slices.png"}


def test_a_search_costs_what_its_trials_do_and_what_the_winner_does(finished: dict[str, Any]) -> None:
    own, winner = (connect().get_run(each["mlflow_run"]).data for each in (finished, finished["winner"]))
    trials, training = cost_of(own.metrics, own.tags), cost_of(winner.metrics, winner.tags)
    assert trials and training
    in_loops = [run.data.metrics["train_cpu_s"] for run in children_of(finished["mlflow_run"]).values()]
    assert all(in_loops) and own.metrics["train_cpu_s"] == pytest.approx(sum(in_loops))
    # Ray was started by the search, whose meter sees the trials' processes
    assert trials.cpu_s > sum(in_loops)
    assert finished["cost"] == asdict(
        Cost(2, trials.cpu_s + training.cpu_s, 0, trials.wall_s + training.wall_s)
    )
    assert costs_until("classification", "digits", [datetime.now(UTC)]) == [Cost(**finished["cost"])]
    assert costs_until("detection", "digits", [datetime.now(UTC)]) == [Cost(0, 0, 0, 0)]


def test_the_best_is_a_finished_trial_of_the_table(finished: dict[str, Any]) -> None:
    ended = [row for row in finished["trials"] if row["state"] == "finished"]
    assert finished["best"]["value"] == max(row["value"] for row in ended)
    assert finished["trials"][0]["changes"] == {"optim.lr": 0.05, "train.batch_size": 64}  # the recipe's own
    with (Path(finished["folder"]) / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [row["value"] for row in finished["trials"]]
    table = trials_table(finished)
    assert [column.header for column in table.columns][-2:] == ["optim.lr", "train.batch_size"]
    assert table.row_count == 3


def test_the_winner_is_an_ordinary_run_whose_model_names_the_search(finished: dict[str, Any]) -> None:
    winner = finished["winner"]
    assert winner["key"] == f"{finished['key']}-winner"
    assert (winner["model"], winner["version"], winner["alias"]) == ("classifier-digits", 1, "champion")
    config = read_job(runs() / winner["key"]).config
    assert config.optim.lr == finished["best"]["changes"]["optim.lr"]
    assert config.train.batch_size == finished["best"]["changes"]["train.batch_size"]
    [version] = connect().search_model_versions("name = 'classifier-digits'")
    assert version.tags["search.run_id"] == finished["mlflow_run"]
    assert version.tags["search.trial"] == str(finished["best"]["trial"])
    run = connect().get_run(winner["mlflow_run"])
    assert run.data.tags["search.run_id"] == finished["mlflow_run"]
    assert run.data.metrics["test.accuracy"] == winner["metrics"]["accuracy"]
    assert connect().get_run(finished["mlflow_run"]).data.tags["winner.run_id"] == winner["mlflow_run"]
    assert run.data.metrics["val_accuracy"] == pytest.approx(finished["best"]["value"], abs=0.02)


def test_a_finished_search_is_resumed_without_a_trial_or_a_training(
    finished: dict[str, Any], listener: Listener
) -> None:
    assert flows.read_job(runs() / finished["key"]).stop_after == "promote"
    again = search_classifier("digits", resume=finished["key"])
    assert again["trials"] == finished["trials"] and again["winner"]["version"] == 1
    assert not any(status.step in ("trials", "train") for status in listener.statuses)
    assert f"--resume {finished['key']}" in listener.notes[0]


@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize("what", ["data", "teacher"])
def test_a_search_does_not_go_on_with_another_dataset_or_teacher(finished: dict[str, Any], what: str) -> None:
    begun = Path(finished["folder"]) / "begun-with.json"
    before = begun.read_text()
    begun.write_text(json.dumps({**json.loads(before), what: "another"}))
    try:
        with pytest.raises(
            ValueError, match=rf"began with {what} of digest another, and now it is .*start anew"
        ):
            search_classifier("digits", resume=finished["key"])
    finally:
        begun.write_text(before)


@pytest.mark.usefixtures("listener", "prefect_api")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classification", "--dataset", "digits"), "needs at least one --space"),
        (("classification", "--dataset", "digits", "--space", "optim.lr=-1..1"), "optim.lr (=-1.0): Input should be"),
        (("classification", "--dataset", "digits", "--space", "optim.rl=0..1"), "optim.rl is not a parameter"),
        (("classification", "--dataset", "digits", "--space", "optim.lr=0.1,0.2", "--trials", "0"), "trials (=0)"),
        (("classification", "--space", "optim.lr=0.1,0.2"), "needs a family and --dataset"),
        (("--resume", "nothing"), "no search 'nothing' in"),
        (("--resume", "nothing", "--trials", "3"), "--resume goes on with the parameters of that search"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_before_anything_starts(
    arguments: tuple[str, ...], message: str, digits: Dataset, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.commands_search.start_engines", lambda executor: None)
    assert digits.info.name == "digits"
    code, out, err = run("search", *arguments)
    assert code == 2 and message in err and not out


@pytest.mark.parametrize(
    ("family", "metric", "fitting"),
    [
        ("detection", "val_accuracy", "val_ap or val_loss"),
        ("landmarks", "val_accuracy", "val_loss"),
        ("style", "val_ap", "val_loss"),
        ("classification", "val_ap", "val_accuracy or val_loss"),
    ],
)
def test_a_metric_that_no_validation_measures_is_refused(
    family: str, metric: SearchMetric, fitting: str
) -> None:
    with pytest.raises(ValueError, match=rf"search\.metric \(={metric}\) is not .* {family}: .* {fitting}$"):
        require_measured(family, metric)
    require_measured(family, "val_loss")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (("optim.lr=0.1,0.2", "model.pooling=align,max"), "model.pooling=…: it would change nothing"),
        (("model.num_anchors=2,3",), "model.assignment (=task_aligned) has no anchors"),
        (("model.num_anchors=2,3", "model.assignment=midpoint,task_aligned"), ""),
        (("model.pooling=align,max", "model.name=yolo,fast_rcnn"), ""),
    ],
)  # fmt: skip
def test_a_space_that_no_trial_reads_is_refused(space: tuple[str, ...], message: str) -> None:
    config = FAMILIES["detection"].config.parse(TINY["detection"], "")
    with pytest.raises(ValueError, match=re.escape(message)) if message else nullcontext():
        require_read("detection", parse_space(space, config), config)


def test_each_family_has_a_deployment_of_its_search() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    entries = {entry["entrypoint"] for entry in deployments}
    assert {pipeline.search for pipeline in PIPELINES.values()} <= entries


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"CONVOY_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "search", *arguments], env=environment, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.chaos
def test_a_search_that_is_killed_goes_on_and_runs_no_ended_trial_again(
    module_home: Path, digits: Dataset
) -> None:
    """SIGKILL to the driver when two trials have ended and one has been validated."""
    process = start(
        module_home, "classification", "--dataset", digits.info.name, "--space", "optim.lr=log:1e-4..1e-2",
        "--trials", "4", "--max-concurrent", "1", "--stop-after", "search", "--set", "train.epochs=40",
        "--set", "train.validate_every_epochs=2", "--set", "train.checkpoint_every_steps=20",
    )  # fmt: skip
    assert process.stderr is not None
    key = next(line.split()[1].rstrip(":") for line in process.stderr if line.startswith("search "))
    journal, end = runs() / key / "trials.journal", time.monotonic() + 400
    trials = runs() / key / "trials"
    while not (trials / "2").is_dir() or not list((trials / "2").glob("step-*.pt")):
        assert time.monotonic() < end and process.poll() is None, "no third trial began"
        time.sleep(0.1)
    process.kill()
    process.communicate()
    before = [json.loads(line) for line in journal.read_text().splitlines()]
    done = start(module_home, "--resume", key, "--json")
    out, err = done.communicate(timeout=500)
    assert done.returncode == 0, err
    summary = json.loads(out)
    after = [json.loads(line) for line in journal.read_text().splitlines()]
    assert after[: len(before)] == before
    assert [row["trial"] for row in summary["trials"]] == [0, 1, 2, 3]
    assert "winner" not in summary  # it ends where it was to end at first
    children = children_of(summary["mlflow_run"])
    assert {run.info.status for run in children.values()} == {"FINISHED"} and len(children) == 4
    # what a trial had said of itself is not said again, whether it had ended or goes on
    for child in children.values():
        history = connect().get_metric_history(child.info.run_id, "val_accuracy")
        steps = [each.step for each in history]
        assert len(steps) == len(set(steps)) and steps
