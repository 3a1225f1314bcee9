"""Events start what follows: a dataset that changed, or predictions that drift, one retraining of the family; another
champion of an embedder the re-embedding of its galleries.

The pool is closed once a watcher has run, so that what the triggers create stays in the queue and nothing is trained.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.ingest import IngestConfig
from pipelines.families import PIPELINES
from pipelines.parameters import flatten
from tasks import versioning, versions
from tasks.gallerynames import open_gallery
from tasks.paths import ROOT, store
from tests.pictures import class_tree, write_tree
from tests.platforms import Platform, running, wait_for
from tests.tiny import TINY, tiny_dataset

pytestmark = [pytest.mark.slow, pytest.mark.chaos]
CONFIG = IngestConfig(val_fraction=0.2, test_fraction=0.3, near_duplicate_distance=0, max_source_gb=1)
RUN_S, EVENT_S = 180, 60
QUIET_S = 5.0  # in which a run too many would have come
DRIFT = """
from pipelines.events import tell_drift
from tests.test_pipelines_training import Listener
tell_drift("detector-set", "detection", "set", "detector-set drifts", {"effect": 0.4}, Listener())
"""


def add(images: int, folder: Path) -> str:
    source = write_tree(folder / f"source-{images}", class_tree("ab", images))
    return versions.add(source, name="set", family="classification", config=CONFIG).digest


@pytest.fixture(scope="module")
def first(module_home: Path) -> str:
    """The digest of the first version."""
    assert store().is_relative_to(module_home)
    return add(8, module_home)


@pytest.fixture(scope="module")
def platform(module_home: Path, first: str) -> Iterator[Platform]:
    assert first
    with running(module_home) as platform:
        yield platform


def runs_of(platform: Platform, deployment: str) -> list[dict[str, Any]]:
    """All flow runs of a deployment."""
    found = platform.ask(f"/deployments/name/{deployment}/{deployment}")
    body = {"deployments": {"id": {"any_": [found["id"]]}}, "limit": 200}
    return list(platform.ask("/flow_runs/filter", body))


def look(platform: Platform, settle_s: float) -> Any:
    return platform.convoy("data", "watch", f"--set=settle_s={settle_s:g}")


def test_every_family_has_a_trigger_for_data_and_for_drift(platform: Platform) -> None:
    automations = platform.ask("/automations/filter", {"limit": 200})
    found = {each["name"]: each for each in automations}
    flows = {pipeline.retrain.partition(":")[2].replace("_", "-") for pipeline in PIPELINES.values()}
    retrainings = {f"{flow}: {what}" for flow in flows for what in ("new data", "drift")}
    assert set(found) == {*retrainings, "re-embed-galleries: new champion"}
    for family, pipeline in PIPELINES.items():
        flow = pipeline.retrain.partition(":")[2].replace("_", "-")
        for what in ("new data", "drift"):
            each = found[f"{flow}: {what}"]
            assert each["enabled"] and each["trigger"]["match"]["convoy.family"] == family
            deployment = platform.ask(f"/deployments/{each['actions'][0]['deployment_id']}")
            assert deployment["name"] == flow


def gallery_version() -> str:
    with open_gallery("default") as gallery:
        return gallery.embedder.version


def test_another_champion_by_hand_re_embeds_the_galleries_of_that_model(
    platform: Platform, module_home: Path
) -> None:
    dataset = tiny_dataset("faces", store())
    versioning.add(dataset.path)
    values = flatten({name: part for name, part in TINY["faces"].items() if name != "dataset"})

    def train(seed: int) -> Any:
        changes = (
            f"--set={name}={json.dumps(value)}" for name, value in {**values, "train.seed": seed}.items()
        )
        where = ("--dataset", dataset.info.name, "--executor", "in_process")
        return platform.convoy("train", "faces", *where, *changes)

    model = train(0)["model"]
    assert train(1)["version"] == 2
    picture = module_home / "ann.jpg"
    picture.write_bytes(dataset.rows("test", [0], ["image"])["image"][0].as_py())
    platform.convoy("faces", "enrol", "ann", str(picture), "--model", f"models:/{model}/1")

    moved = platform.convoy("promote", model, "2", "--because", "a trial")
    assert moved["galleries_behind"] == {"default": "1"}
    wait_for(lambda: gallery_version() == "2", RUN_S, "the gallery has the vectors of the new champion")
    platform.convoy("rollback", model, "--because", "it was one")
    wait_for(lambda: gallery_version() == "1", RUN_S, "the gallery has those of the old one again")
    made = runs_of(platform, "re-embed-galleries")
    assert [run["parameters"] for run in made] == [{"model": model}] * 2
    wait_for(
        lambda: {platform.state(run["id"]) for run in made} == {"Completed"}, RUN_S, "both runs end well"
    )


def test_a_new_version_starts_one_retraining_of_that_dataset_and_two_quick_ones_start_one(
    platform: Platform, first: str, module_home: Path
) -> None:
    platform.await_end(platform.trigger("watch-data/watch-data", {}))
    assert json.loads((store() / ".watched.json").read_text())["set"]["digest"] == first
    platform.prefect("work-pool", "pause", "local")

    second = add(9, module_home)
    assert [each["after"] for each in look(platform, 0)["changed"]] == [second]
    wait_for(lambda: runs_of(platform, "retrain-classifier"), EVENT_S, "the trigger has fired")
    add(10, module_home)
    assert set(look(platform, 3600)["waiting"]) == {"set"}
    fourth = add(11, module_home)
    [change] = look(platform, 0)["changed"]
    assert (change["before"], change["after"]) == (second, fourth)
    assert change["difference"]["counts"]["added"] == 4  # of both changes together
    assert look(platform, 0)["changed"] == []
    wait_for(lambda: len(runs_of(platform, "retrain-classifier")) > 1, EVENT_S, "it has fired again")
    time.sleep(QUIET_S)
    made = runs_of(platform, "retrain-classifier")
    assert [each["parameters"] for each in made] == [{"dataset": "set", "refresh": "dvc"}] * 2
    others = {flow.retrain.partition(":")[2].replace("_", "-") for flow in PIPELINES.values()}
    for other in others - {"retrain-classifier"}:
        assert runs_of(platform, other) == []


def test_drift_starts_one_retraining_of_the_models_family_with_new_data(platform: Platform) -> None:
    environment = {**platform.environment, "PREFECT_API_URL": platform.api}
    subprocess.run([sys.executable, "-c", DRIFT], env=environment, cwd=ROOT, check=True)
    wait_for(lambda: runs_of(platform, "retrain-detector"), EVENT_S, "the trigger has fired")
    time.sleep(QUIET_S)
    [run] = runs_of(platform, "retrain-detector")
    assert run["parameters"] == {"dataset": "set", "refresh": "source"}


def test_a_change_that_nobody_would_hear_of_is_not_looked_for(tmp_path: Path) -> None:
    environment = {**os.environ, "CONVOY_HOME": str(tmp_path), "CONVOY_PLATFORM": "off"}
    environment.pop("PREFECT_API_URL", None)
    environment["PREFECT_HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "data", "watch"], env=environment, cwd=ROOT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "nobody would hear of a change" in done.stderr
