"""Transfer learning through the flow: from a registered model, and by the recipes that start from published weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.checks import file_sha256
from data.ingest import IngestConfig, ingest
from models.classification import build
from models.stages import parameters_of, stages_of
from pipelines import steps
from pipelines.classification import train_classifier
from pipelines.configuration import configuration
from pipelines.parameters import section
from pipelines.reporting import set_reporter
from tasks import registry
from tasks.modelfile import load_card
from tasks.paths import store
from tasks.recordstore import connect
from tests.published import PACKAGE, efficientnet_lite0
from tests.test_pipelines_training import RECIPE, Listener

CHAMPION = "models:/classifier-digits@champion"
WEIGHTS = "member-0.safetensors"
pytestmark = pytest.mark.usefixtures("prefect_api", "module_home")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pipelines.configuration", "pipelines.parameters"):
        monkeypatch.setattr(f"{module}.recipes", lambda family: {"default": RECIPE})
    monkeypatch.setattr(steps.train_model, "retry_delay_seconds", 0)
    set_reporter(Listener())


@pytest.mark.usefixtures("tiny", "digits")
@pytest.mark.slow
def test_training_starts_from_the_champion_of_the_registry() -> None:
    first = train_classifier("digits", changes={"train": {"epochs": 1.0}}, executor="in_process")
    assert first["alias"] == "champion"
    changes = {"train": {"epochs": 0.5}, "transfer": {"weights": CHAMPION, "mode": "stages", "num_stages": 1}}
    second = train_classifier("digits", changes=changes, stop_after="evaluate", executor="in_process")
    champion = registry.resolve_model(CHAMPION)
    begun = load_card(Path(second["folder"]) / "model").initial_weights
    assert begun is not None
    assert (begun.source, begun.trained) == (CHAMPION, "stages")
    assert begun.sha256 == file_sha256(champion / WEIGHTS)
    tags = connect().get_run(second["mlflow_run"]).data.tags
    assert tags["weights.source"] == CHAMPION and tags["weights.sha256"] == begun.sha256
    before, after = load_file(champion / WEIGHTS), load_file(Path(second["folder"]) / "model" / WEIGHTS)
    net = build("lenet5", 10, 1, {"input_px": 16}, (0.0,), (1.0,)).net
    frozen = {f"net.{name}" for name in parameters_of(net, stages_of(net)[:-2])}
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert frozen and changed == set(after) - frozen - {"mean", "std"}


@pytest.mark.usefixtures("tiny", "digits")
def test_a_registered_model_that_is_not_there_is_named_before_training() -> None:
    changes = {"transfer": {"weights": "models:/classifier-digits@nobody"}}
    with pytest.raises(ValueError, match=r"no such alias|no registered model"):
        train_classifier("digits", changes=changes, executor="in_process")


def test_the_recipes_of_transfer_learning_fit_their_network() -> None:
    head = configuration("classification", "x", "finetune_head", {})
    every = configuration("classification", "x", "finetune", {})
    for config in (head, every):
        values = config.model_dump()
        assert values["transfer"]["weights"] == f"package:{PACKAGE}"
        assert values["model"]["name"] == "efficientnet_lite0"
    assert head.model_dump()["transfer"]["cache_features"]
    assert (every.model_dump()["transfer"]["mode"], every.model_dump()["transfer"]["body_lr_factor"]) == (
        "all",
        0.1,
    )


@pytest.mark.data
@pytest.mark.parametrize(
    ("recipe", "changes", "least"),
    [
        ("finetune_head", {"train": {"epochs": 15}}, 0.8),
        ("finetune", {"train": {"epochs": 1, "batch_size": 16}}, 0.7),
    ],
)
def test_a_newcomer_trains_ants_and_bees_by_a_recipe(
    recipe: str, changes: dict[str, Any], least: float, datasets_folder: Path
) -> None:
    weights = efficientnet_lite0()
    if not (store() / "hymenoptera").is_dir():
        ingest(
            str(datasets_folder / "hymenoptera_240.tar"), name="hymenoptera", family="classification",
            store=store(), config=section("ingest", IngestConfig, {}),
        )  # fmt: skip
    set_reporter(Listener())
    small = {"transfer": {"weights": str(weights)}, "input": {"stored_px": 128, "crop_px": 112}}
    summary = train_classifier(
        "hymenoptera", recipe, {**small, **changes}, stop_after="evaluate", executor="in_process"
    )
    run = connect().get_run(summary["mlflow_run"])
    assert run.data.metrics["val_accuracy"] > least
    assert summary["metrics"]["num_images"] == 48
