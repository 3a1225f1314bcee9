"""The stages of dvc.yaml, in a copy of the checkout: what runs, what it leaves, and what runs again."""

import json
import shutil
from typing import Any

import pytest
import yaml

from tests.checkouts import Checkout

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which all stages have run once."""
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    checkout.dvc("repro")
    checkout.commit()
    return checkout


def test_all_stages_leave_what_they_declare(reproduced: Checkout) -> None:
    stages = yaml.safe_load((reproduced.folder / "dvc.lock").read_text())["stages"]
    digits = {"ingest", "train", "evaluate"}
    assert set(stages) == digits | {f"{stage}_scenes" for stage in digits}
    assert reproduced.metrics()["accuracy"] > 0.5
    scenes = reproduced.folder / "out" / "digit_scenes" / "test" / "metrics.json"
    assert json.loads(scenes.read_text())["ap50"] > 0.5
    for name in ("model/model.json", "history.csv", "test/confusion.csv", "test/reliability.csv"):
        assert (reproduced.folder / "out" / "digits" / name).stat().st_size > 0


def test_the_model_names_the_version_of_its_data(reproduced: Checkout) -> None:
    card = json.loads((reproduced.folder / "out" / "digits" / "model" / "model.json").read_text())
    stages = yaml.safe_load((reproduced.folder / "dvc.lock").read_text())["stages"]
    assert card["dataset_digest"] == stages["ingest"]["outs"][0]["md5"]


def test_a_second_repro_does_nothing(reproduced: Checkout) -> None:
    before = (reproduced.folder / "dvc.lock").read_bytes()
    said = reproduced.dvc("repro")
    assert "Running stage" not in said
    assert (reproduced.folder / "dvc.lock").read_bytes() == before
    assert reproduced.changed() == set()


@pytest.mark.parametrize(
    ("section", "key", "value", "stages"),
    [
        ("evaluate", "num_worst", 3, {"evaluate"}),
        ("optim", "lr", 0.004, {"train"}),
        ("train", "seed", 7, {"train"}),
    ],
)
def test_a_changed_parameter_concerns_only_what_reads_it(
    section: str, key: str, value: Any, stages: set[str], reproduced: Checkout
) -> None:
    reproduced.change(section, key, value)
    try:
        assert reproduced.changed() == stages
    finally:
        reproduced.call("git", "checkout", "--quiet", "params.yaml")
    assert reproduced.changed() == set()


def test_metrics_and_plots_are_shown_and_compared(reproduced: Checkout) -> None:
    shown = json.loads(reproduced.dvc("metrics", "show", "--json"))
    assert "accuracy" in json.dumps(shown)
    reproduced.dvc("plots", "show", "--out", "plots")
    page = (reproduced.folder / "plots" / "index.html").read_text()
    assert all(title in page for title in ("Confusion", "Reliability", "Training loss"))
    shutil.rmtree(reproduced.folder / "plots")

    before = reproduced.metrics()
    reproduced.change("evaluate", "views", ["single"])
    said = reproduced.dvc("repro")
    assert "Running stage 'evaluate'" in said
    assert "Running stage 'train'" not in said
    assert "five_crop.accuracy" in before
    assert "five_crop.accuracy" not in reproduced.metrics()
    assert reproduced.metrics()["accuracy"] == before["accuracy"]
    difference = json.loads(reproduced.dvc("metrics", "diff", "--json"))
    assert "single.images_per_s" in json.dumps(difference)
