"""The flows beside training, called in this process: a dataset comes in, a model is tested, what is not needed goes."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from pipelines.classification import train_classifier
from pipelines.evaluation import evaluate_model
from pipelines.ingestion import ingest_dataset
from pipelines.maintain import maintain
from pipelines.reporting import set_reporter
from pipelines.watch import watch_data
from tasks import leftovers, versions
from tasks.paths import runs, store
from tests.pictures import class_tree, write_tree
from tests.test_pipelines_training import Listener
from tests.tiny import TINY, tiny_dataset

RECIPE = {name: part for name, part in TINY["classification"].items() if name != "dataset"}
SPLITS = {"val_fraction": 0.2, "test_fraction": 0.3, "near_duplicate_distance": 0}
pytestmark = pytest.mark.usefixtures("prefect_api", "module_home")


@pytest.fixture(autouse=True)
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other processes of this machine left is not touched."""
    monkeypatch.setattr(leftovers, "RAY_SESSIONS", tmp_path / "ray")
    monkeypatch.setattr(leftovers, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(leftovers, "SCRATCH", tmp_path / "scratch")


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    for place in ("configuration", "parameters", "scoring"):
        monkeypatch.setattr(f"pipelines.{place}.recipes", lambda _family: {"default": RECIPE})
    listener = Listener()
    set_reporter(listener)
    return listener


def tables_of(key: str) -> list[dict[str, Any]]:
    """The newest table that a key of Prefect's artifacts has."""
    with get_client(sync_client=True) as client:
        found = client.request(
            "POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": [key]}}}
        ).json()
    return list(json.loads(found[-1]["data"]))


def test_a_source_becomes_a_dataset_and_its_next_version_and_is_checked(
    tmp_path: Path, listener: Listener
) -> None:
    first = ingest_dataset(
        str(write_tree(tmp_path / "a", class_tree("ab", 20))), "letters", "classification", changes=SPLITS
    )
    assert (first["version"], first["new_version"], first["num_images"]) == (1, True, 40)
    assert versions.current("letters") == first["digest"]
    more = str(write_tree(tmp_path / "b", class_tree("ab", 25)))
    second = ingest_dataset(more, "letters", "classification", changes=SPLITS)
    assert (second["version"], second["num_images"]) == (2, 50)
    assert "letters: version 2: 50 pictures, 0 set aside" in listener.notes
    assert versions.history("letters")[-1].source == more


def test_a_dataset_that_training_would_stop_at_is_kept_and_the_run_says_so(
    tmp_path: Path, listener: Listener
) -> None:
    assert listener.notes == []
    pictures = {f"train/{name}": data for name, data in class_tree("ab", 20).items()}
    pictures |= {f"test/{name}": data for name, data in class_tree("ab", 5).items()}  # of them, every one
    source = str(write_tree(tmp_path / "a", pictures))
    with pytest.raises(ValueError, match="duplicates-across-splits") as stopped:
        ingest_dataset(source, "faulty", "classification", changes=SPLITS)
    assert "accept" in str(stopped.value) and versions.current("faulty")
    again = ingest_dataset(
        source, "faulty", "classification", changes=SPLITS, accept=("duplicates-across-splits",)
    )
    assert not again["new_version"]


def test_a_model_is_tested_and_its_report_is_kept_and_shown(listener: Listener) -> None:
    tiny_dataset("classification", store())
    trained = train_classifier("digits", stop_after="evaluate", executor="in_process")
    tested = evaluate_model(trained["key"], views=("single",))
    assert tested["metrics"]["accuracy"] == pytest.approx(trained["metrics"]["accuracy"])
    assert (tested["dataset"], tested["split"]) == ("digits", "test")
    out = Path(tested["out"])
    assert out.parent.parent == runs() and (out / "metrics.json").is_file()
    rows = {row["metric"]: row["value"] for row in tables_of("evaluation-digits")}
    assert rows["accuracy"] == f"{trained['metrics']['accuracy']:.4g}"
    with pytest.raises(ValueError, match="--tile is for detectors"):
        evaluate_model(trained["key"], tile=True)
    assert listener.notes


@pytest.mark.slow
def test_what_would_go_is_shown_and_stays_until_it_is_told_to_go(listener: Listener) -> None:
    tiny_dataset("classification", store())
    trained = train_classifier("digits", stop_after="train", executor="in_process")
    checkpoints = Path(trained["folder"]) / "checkpoints"
    assert any(checkpoints.iterdir())
    found = maintain(changes={"keep_days": 0})
    assert found["dry_run"] and str(checkpoints) in [item["path"] for item in found["items"]]
    assert any(checkpoints.iterdir()) and found["items"] == tables_of("maintain")
    freed = maintain(dry_run=False, changes={"keep_days": 0})
    assert freed["num_bytes"] > 0 and not checkpoints.exists()
    assert listener.notes[-1].startswith("freed ")
    again = train_classifier("digits", resume=trained["key"], stop_after="evaluate", executor="in_process")
    assert again["num_steps"] == trained["num_steps"] and "accuracy" in again["metrics"]


def test_a_look_at_datasets_tells_of_a_change(tmp_path: Path, listener: Listener) -> None:
    ingest_dataset(
        str(write_tree(tmp_path / "a", class_tree("ab", 20))), "seen", "classification", changes=SPLITS
    )
    assert "seen" in watch_data()["new"]
    ingest_dataset(
        str(write_tree(tmp_path / "b", class_tree("ab", 21))), "seen", "classification", changes=SPLITS
    )
    assert set(watch_data()["waiting"]) == {"seen"}
    [change] = watch_data({"settle_s": 0})["changed"]
    assert (change["name"], change["difference"]["counts"]["added"]) == ("seen", 2)
    assert listener.notes[-1].startswith("seen changed, ")
    assert watch_data({"settle_s": 0})["changed"] == []
