"""The stages of dvc.yaml, in a copy of the checkout: what runs, what it leaves, and what runs again."""

import json
import shutil
from typing import Any

import pytest
import yaml

from tests.checkouts import Checkout

pytestmark = pytest.mark.slow
DIGITS, FACES, STYLE = ("classification", "digits"), ("faces", "default"), ("style", "default")
LANDMARKS = ("landmarks", "face_points")


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which all stages have run once."""
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    checkout.dvc("repro")
    checkout.commit()
    return checkout


def test_all_stages_leave_what_they_declare(reproduced: Checkout) -> None:
    stages = yaml.safe_load((reproduced.folder / "dvc.lock").read_text())["stages"]
    assert set(stages) == {
        stage + of
        for stage in ("ingest", "train", "evaluate")
        for of in ("", "_scenes", "_faces", "_landmarks", "_style")
    }
    assert reproduced.metrics()["accuracy"] > 0.5
    assert reproduced.metrics("digit_scenes")["ap50"] > 0.5
    assert reproduced.metrics("synthetic_faces")["auc"] > 0.5
    assert reproduced.metrics("face_points")["nme"] < 0.2  # of the mean shape 0.28
    assert reproduced.metrics("skimage_photos")["num_styles"] == 2
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
    ("recipe", "section", "key", "value", "stages"),
    [
        (DIGITS, "evaluate", "num_worst", 3, {"evaluate"}),
        (DIGITS, "optim", "lr", 0.004, {"train"}),
        (DIGITS, "train", "seed", 7, {"train"}),
        (FACES, "evaluate", "num_worst", 3, {"evaluate_faces"}),
        (FACES, "evaluate", "false_accept_rates", [0.1], {"train_faces", "evaluate_faces"}),
        (FACES, "loss", "margin", 0.2, {"train_faces"}),
        (LANDMARKS, "evaluate", "normalise_by", "box", {"evaluate_landmarks"}),
        (LANDMARKS, "augment", "rotation_deg", 10.0, {"train_landmarks"}),
        (STYLE, "evaluate", "longer_px", 256, {"evaluate_style"}),
        (STYLE, "cost", "style_weight", 5.0, {"train_style"}),
    ],
)
def test_a_changed_parameter_concerns_only_what_reads_it(
    recipe: tuple[str, str], section: str, key: str, value: Any, stages: set[str], reproduced: Checkout
) -> None:
    reproduced.change(section, key, value, recipe)
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
    shown_there = ("Confusion", "Reliability", "Training loss", "roc.png", "distances.png", "sheet.png")
    assert all(title in page for title in (*shown_there, "cumulative.png", "pictures.png"))
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
