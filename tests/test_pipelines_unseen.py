"""A champion of an older version of the data is not asked what it has learnt by heart; what is not known is said."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.dataset import Dataset
from pipelines.approval import Answer, set_asker
from pipelines.classification import retrain_classifier
from pipelines.reporting import set_reporter
from tasks import placing, versioning, versions
from tasks.paths import home, store
from tests.test_pipelines_retraining import FREE, RECIPE
from tests.test_pipelines_training import Listener
from tests.tiny import ingest_config

pytestmark = pytest.mark.usefixtures("prefect_api")


@dataclass
class Redrawn:
    """A model was trained on the first version; the second has three times as many test pictures."""

    before: str  # digests
    after: str
    fitted: set[str]  # sha256 of what the model was fitted to


@pytest.fixture(scope="module")
def redrawn(module_home: Path, prefect_api: str) -> Iterator[Redrawn]:
    assert prefect_api and store().is_relative_to(module_home)
    config = ingest_config()
    larger = config.model_copy(update={"test_fraction": 0.6})
    with pytest.MonkeyPatch.context() as patch:
        for place in ("pipelines.configuration.recipes", "pipelines.parameters.recipes"):
            patch.setattr(place, lambda family: {"default": RECIPE})
        patch.setattr("pipelines.parameters.load", lambda: {"gate": FREE})
        set_reporter(Listener())
        set_asker(lambda evidence: Answer("left out" in evidence, "anna", "fair"))
        first = versions.add("sklearn:digits", name="digits", family="classification", config=config)
        dataset = Dataset.open(store() / "digits")
        fitted = {key for side in ("train", "val") for key in keys(dataset, side)}
        retrain(3.0)
        second = versions.add(
            "sklearn:digits", name="digits", family="classification", config=larger, fresh_splits=True
        )
        yield Redrawn(first.digest, second.digest, fitted)


def keys(dataset: Dataset, split: Any) -> list[str]:
    return [str(key) for key in dataset.table(split, ["sha256"])["sha256"].to_pylist()]


def retrain(epochs: float, **options: Any) -> dict[str, Any]:
    changes = {"train": {"epochs": epochs}}
    return dict(retrain_classifier("digits", changes=changes, executor="in_process", **options))


def test_test_pictures_that_the_champion_was_fitted_to_are_left_out_and_counted(redrawn: Redrawn) -> None:
    test = keys(Dataset.open(store() / "digits"), "test")
    seen = sum(key in redrawn.fitted for key in test)
    assert 0 < seen < len(test)
    summary = retrain(12.0, approval="ask")
    verdict = json.loads((Path(summary["folder"]) / "gate" / "verdict.json").read_text())
    assert verdict["num_samples"] == len(test) - seen
    about = verdict["about"]["samples that the champion was fitted to"]
    assert about == f"{seen:,} of {len(test):,}, which are left out"
    said = f"{seen:,} of {len(test):,} test pictures are left out: the champion was fitted to them"
    assert any(said in reason for reason in verdict["reasons"])
    assert said in (Path(summary["folder"]) / "gate" / "gate.html").read_text()
    assert summary["outcome"] == "promoted", summary["reason"]
    again = retrain(3.0)
    about = json.loads((Path(again["folder"]) / "gate" / "verdict.json").read_text())["about"]
    assert about["samples that the champion was fitted to"] == "none: it was trained on this version"
    assert about["samples"] == len(test)


@pytest.mark.slow
def test_where_the_champions_version_is_gone_that_is_said_and_all_samples_count(redrawn: Redrawn) -> None:
    assert placing.checkout("digits", "1").md5 == redrawn.before
    lost = home() / ".dvc" / "cache" / "files" / "md5" / redrawn.after[:2] / redrawn.after[2:]
    shutil.move(lost, lost.with_suffix(".away"))
    assert not versioning.is_cached(redrawn.after)
    summary = retrain(4.0)
    assert summary["champion"] == 2
    verdict = json.loads((Path(summary["folder"]) / "gate" / "verdict.json").read_text())
    assert verdict["num_samples"] == Dataset.open(store() / "digits").info.num_images("test")
    assert verdict["about"]["samples that the champion was fitted to"].startswith(
        "not known: the version of digits"
    )
    assert any(f"{redrawn.after[:8]} is not in DVC's cache" in reason for reason in verdict["reasons"])
