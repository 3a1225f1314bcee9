"""The retrain flow of families other than classification, on Ray: from a poor champion to the gate's verdict and on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.families import PIPELINES, load
from pipelines.reporting import set_reporter
from tasks import ledger, retrainings, versioning
from tasks.cluster import disconnect
from tasks.paths import store
from tasks.recordstore import connect
from tests.pairs import GATE
from tests.test_pipelines_training import Listener, runs_with_key
from tests.tiny import TINY, tiny_dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]
FREE = {**GATE, "latency_ratio": 0, "memory_ratio": 0}  # what a busy machine measures decides nothing here
OUTCOMES = {"promote": "promoted", "hold": "held", "inconclusive": "inconclusive"}
# epochs of a champion that has hardly begun, and of a challenger
EPOCHS = {"detection": (0.2, 6.0), "faces": (0.2, 12.0), "landmarks": (0.1, 8.0), "style": (0.1, 40.0)}
BEST = {"style": {"optim": {"name": "adamw", "lr": 0.01}}}  # what brings it far in so few epochs


@pytest.fixture(scope="module", autouse=True)
def parameters(module_home: Path) -> Iterator[None]:
    assert store().is_relative_to(module_home)

    def recipe(family: str) -> dict[str, Any]:
        return {"default": {name: part for name, part in TINY[family].items() if name != "dataset"}}

    with pytest.MonkeyPatch.context() as patch:
        for place in ("pipelines.configuration.recipes", "pipelines.parameters.recipes"):
            patch.setattr(place, recipe)
        patch.setattr("pipelines.parameters.load", lambda: {"gate": FREE})
        # Ray Train's follower would move it, a thread that does not know the settings of `prefect_api`
        patch.setattr("pipelines.artifacts.ProgressBar.show", lambda bar, share: None)
        set_reporter(Listener())
        yield
    disconnect()


@pytest.mark.parametrize("family", EPOCHS)
def test_a_retraining_on_ray_comes_to_a_verdict_that_decides_who_is_champion(family: str) -> None:
    dataset = tiny_dataset(family, store())
    versioning.add(dataset.path)
    flow, name = load(PIPELINES[family].retrain), dataset.info.name
    poor, good = EPOCHS[family]

    def retrain(epochs: float) -> dict[str, Any]:
        return flow(name, changes={**BEST.get(family, {}), "train": {"epochs": epochs}})

    first = retrain(poor)
    assert (first["outcome"], first["version"]) == ("first", 1)
    second = retrain(good)
    model = first["model"]
    verdict = json.loads((Path(second["folder"]) / "gate" / "verdict.json").read_text())
    # so few people tell two models apart by chance alone: then the champion stays
    outcome = "inconclusive" if family == "faces" else "promoted"
    assert second["outcome"] == OUTCOMES[verdict["decision"]] == outcome, second["reason"]
    champion, moved = (1, {"challenger": 2}) if family == "faces" else (2, {"previous": 1})
    assert ledger.aliases(model) == {"champion": champion, **moved}
    rules = FREE["families"][family]["metrics"]
    assert all(any(metric["name"].startswith(rule) for metric in verdict["metrics"]) for rule in rules)
    assert (
        verdict["about"]["samples that the champion was fitted to"] == "none: it was trained on this version"
    )
    files = {artifact.path for artifact in connect().list_artifacts(second["mlflow_run"], "gate")}
    assert files == {"gate/gate.html", "gate/gate.md", "gate/verdict.json"}
    [run] = runs_with_key(second["key"])
    assert run.info.status == "FINISHED" and run.data.tags["trained.executor"] == "ray"
    again = retrain(poor if champion == 1 else good)
    assert (again["outcome"], again["champion"]) == ("skipped", champion)
    assert [each.outcome for each in retrainings.retrainings(model)] == ["skipped", outcome, "first"]
