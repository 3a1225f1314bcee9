"""Two doors, one result: the same recipe by `dvc repro` and by a deployment on a worker, of one commit and one dataset.

Whatever differs is named here: what names the run, and what a clock or the system's memory measured.
"""

import csv
import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.checkouts import Checkout
from tests.platforms import running

pytestmark = [pytest.mark.slow, pytest.mark.chaos]
RUN_TAGS = {"convoy.key", "prefect.flow_run_id", "ray.job_id", "ray.address"}  # which run it was, and where
VALIDATED = ("step", "num_steps", "epoch", "lr", "val_accuracy", "val_loss")  # of the course of training
MEASURED = ("images_per_s", "memory_mb", "latency_ms")  # ends of the names of metrics
# pages and figures of the test that have rates in them
SPEAKS_OF_TIME = {"report.html", "pareto.png", "pareto.csv", "views.csv"}


@dataclass
class Doors:
    """What each door left: the model's folder, the course of training, the test's folder, and the MLflow run."""

    models: list[Path]
    histories: list[Path]
    tests: list[Path]
    runs: list[dict[str, dict[str, Any]]]  # tags and params


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Doors:
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    home = checkout.folder
    checkout.commit()
    checkout.dvc("repro", "evaluate")
    [first] = keys(home)
    with running(home, home) as platform:
        run = platform.run(dataset="digits")
        platform.await_training(run)
    folder, out = home / "runs" / run, home / "out" / "digits"
    return Doors(
        [out / "model", folder / "model"], [out / "history.csv", folder / "history.csv"],
        [out / "test", folder / "evaluation"], [record(home, first), record(home, run)],
    )  # fmt: skip


def query(home: Path, text: str, *values: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        return database.execute(text, values).fetchall()


def keys(home: Path) -> list[str]:
    return [row[0] for row in query(home, "select value from tags where key = 'convoy.key'")]


def record(home: Path, key: str) -> dict[str, dict[str, Any]]:
    [(run,)] = query(home, "select run_uuid from tags where key = 'convoy.key' and value = ?", key)
    return {table: dict(query(home, f"select key, value from {table} where run_uuid = ?", run))
            for table in ("tags", "params")}  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_weights_are_the_same_and_the_card_but_for_the_run_that_it_names(doors: Doors) -> None:
    first, second = (hashes(model) for model in doors.models)
    assert set(first) == set(second)
    assert {name for name in first if first[name] != second[name]} == {"model.json"}
    cards = [json.loads((model / "model.json").read_text()) for model in doors.models]
    for card in cards:
        [member] = card["members"]
        assert member.pop("run")
    assert cards[0] == cards[1]


def test_training_took_the_same_course(doors: Doors) -> None:
    """By what was validated: of the other steps a clock decides which are told, and loss is the mean since the last."""
    courses = []
    for file in doors.histories:
        with file.open() as opened:
            rows = [row for row in csv.DictReader(opened) if row["val_accuracy"]]
        courses.append([{name: row[name] for name in VALIDATED} for row in rows])
    assert courses[0] == courses[1]
    assert courses[0][-1]["step"] == courses[0][-1]["num_steps"]


def test_the_test_gave_the_same_files_and_metrics(doors: Doors) -> None:
    first, second = (hashes(folder) for folder in doors.tests)
    assert set(first) == set(second)
    known = {"metrics.json", "about.json", *SPEAKS_OF_TIME}
    assert {name for name in first if first[name] != second[name]} <= known
    assert first["predictions.parquet"] == second["predictions.parquet"]
    assert {Path(name).suffix for name in first} >= {".png", ".csv", ".parquet", ".html"}
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in doors.tests]
    kept = [{name: value for name, value in each.items() if not name.endswith(MEASURED)} for each in metrics]
    assert kept[0] == kept[1]
    assert kept[0]["accuracy"] > 0.5
    told = [json.loads((folder / "about.json").read_text()) for folder in doors.tests]
    for about in told:
        assert about.pop("models") and about.pop("runs")
    assert told[0] == told[1]


def test_mlflow_says_the_same_of_both_but_which_run_it_was(doors: Doors) -> None:
    first, second = (run["tags"] for run in doors.runs)
    assert set(first) == set(second)
    assert {name for name in first if first[name] != second[name]} <= RUN_TAGS
    assert first["git.commit"] and first["git.dirty"] == "false"
    assert first["dvc.digest"].endswith(".dir")
    assert doors.runs[0]["params"] == doors.runs[1]["params"]
