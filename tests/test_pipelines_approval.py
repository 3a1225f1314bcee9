"""A retraining on a worker that waits for a person: the form in Prefect's UI, and nobody who answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.dataset import Dataset
from tests.platforms import CHANGES, Platform, running, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.chaos]
RUN_S = 400
DEPLOYMENT = "retrain-classifier/retrain-classifier"
# what a busy machine measures decides nothing here
GATE = {"latency_ratio": 0, "memory_ratio": 0, "num_draws": 200}


@pytest.fixture(scope="module")
def platform(module_home: Path, versioned_digits: Dataset) -> Iterator[Platform]:
    assert versioned_digits.info.name == "digits"
    with running(module_home) as platform:
        first = retrain(platform, 1, executor="in_process")
        platform.await_end(first, "Promoted")
        yield platform


def retrain(platform: Platform, epochs: float, **options: Any) -> str:
    changes = {**CHANGES, "train": {**CHANGES["train"], "epochs": epochs}}
    parameters = {"dataset": "digits", "refresh": "none", "changes": changes, "gate": GATE, **options}
    return platform.trigger(DEPLOYMENT, parameters)


def waits(platform: Platform, run: str) -> None:
    def waits_or_is_over() -> bool:
        return platform.state(run) == "Suspended" or platform.is_over(run)

    wait_for(waits_or_is_over, RUN_S, "the run waits for a person")
    platform.require_state(run, "Suspended")


def answer(platform: Platform, run: str, form: dict[str, Any]) -> str:
    """Send the form as the UI does; what the server makes of it."""
    return str(platform.ask(f"/flow_runs/{run}/resume", {"run_input": form})["status"])


def moves(platform: Platform) -> list[dict[str, Any]]:
    return list(platform.convoy("history", "classifier-digits")["moves"])


def test_nobody_who_answers_is_a_no_and_the_champion_stays(platform: Platform) -> None:
    late = {**GATE, "approval_timeout_h": 4 / 3600}
    run = retrain(platform, 11, approval="ask", executor="in_process", gate=late)
    platform.await_end(run, "Declined")
    message = platform.ask(f"/flow_runs/{run}")["state"]["message"]
    assert "nobody answered in 0.00111111 hours" in message
    assert moves(platform)[0]["after"]["champion"] == 1


def test_a_run_that_waits_goes_on_by_its_form_alone_and_the_ledger_has_who_and_why(
    platform: Platform,
) -> None:
    run = retrain(platform, 12, approval="ask", executor="ray")
    waits(platform, run)
    wait_for(lambda: not processes_of(platform, run), 60, "the run that waits has no process")
    keys = platform.ask(f"/flow_runs/{run}")["state"]["state_details"]["run_input_keyset"]
    asked = {name: platform.ask(f"/flow_runs/{run}/input/{keys[name]}") for name in ("schema", "description")}
    schema = asked["schema"]
    assert set(schema["properties"]) == {"approve", "because", "who"}
    assert all(field["description"] for field in schema["properties"].values())
    assert "Verdict: **promote**" in asked["description"]
    assert answer(platform, run, {"approve": "perhaps"}) == "REJECT"
    assert platform.call("down").returncode == 0
    platform.convoy("up")
    assert platform.state(run) == "Suspended"
    assert [each["state_type"] for each in closings(platform, run)] == ["SCHEDULED"]
    assert answer(platform, run, {"approve": True, "because": "seen in the UI", "who": "dora"}) == "ACCEPT"
    platform.await_end(run, "Promoted")
    move = moves(platform)[0]
    assert (move["who"], move["key"]) == ("dora", run)
    assert move["because"].endswith("approved: seen in the UI")
    assert closings(platform, run) == []


def processes_of(platform: Platform, run: str) -> list[int]:
    """The processes of a flow run."""
    return [
        process.pid
        for process in platform.processes()
        if run in process.environ().get("PREFECT__FLOW_RUN_ID", "")
    ]


def closings(platform: Platform, run: str) -> list[dict[str, Any]]:
    """The flow runs that would close the approval of a run."""
    found = platform.ask("/deployments/name/close-approval/close-approval")
    made = platform.ask("/flow_runs/filter", {"deployments": {"id": {"any_": [found["id"]]}}})
    return [each for each in made if each["parameters"]["run"] == run]
