"""The deployments of prefect.yaml on a fresh server, as `./convoy up` registers them: forms, runs, cancellation."""

import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from data.checklist import NAMES
from data.dataset import Dataset
from pipelines.families import PIPELINES
from pipelines.parameters import recipes
from tasks.paths import ROOT
from tasks.settings import ViewName
from tests.platforms import CHANGES, DEPLOYMENT, ENDLESS, Platform, running, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.chaos]
RUN_S, CANCEL_S = 400, 120
LISTED = {each["name"]: each for each in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}


@pytest.fixture(scope="module")
def platform(module_home: Path, digits: Dataset) -> Iterator[Platform]:
    assert digits.info.name == "digits"
    with running(module_home) as platform:
        yield platform


@pytest.fixture(scope="module")
def deployments(platform: Platform) -> dict[str, Any]:
    return {each["name"]: each for each in platform.ask("/deployments/filter", {"limit": 200})}


def fields_of(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a form with its path, those of sections too."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}{name}", field
        yield from fields_of(field, f"{path}{name}.")


def test_every_deployment_of_the_file_is_on_the_server(deployments: dict[str, Any]) -> None:
    assert set(deployments) == set(LISTED)
    for name, listed in LISTED.items():
        found = deployments[name]
        assert found["description"] == listed["description"]
        assert found["tags"] == listed["tags"]
        assert found["entrypoint"] == listed["entrypoint"]
        assert found["work_pool_name"] == "local"
        # its lease would be lost with the server, and end the run
        assert found["global_concurrency_limit"] is None
        assert found["work_queue_name"] == listed["work_pool"].get("work_queue_name", "default")


@pytest.mark.parametrize("name", LISTED)
def test_every_field_of_a_form_explains_itself(name: str, deployments: dict[str, Any]) -> None:
    schema = deployments[name]["parameter_openapi_schema"]
    fields = dict(fields_of(schema))
    sections = {path for path, field in fields.items() if field.get("properties")}
    assert [
        path for path, field in fields.items() if path not in sections and not field.get("description")
    ] == []
    given = deployments[name]["parameters"]
    assert set(given) <= set(schema["properties"])
    asked = {"model", "version", "because"} if "aliases" in LISTED[name]["tags"] else set()  # of a person
    asked |= {"run", "hours"} if name == "close-approval" else set()  # of the retraining that schedules it
    assert set(schema.get("required", ())) <= {*given, *asked}  # what must be there is filled in


@pytest.mark.parametrize("name", [name for name in LISTED if name.startswith(("train-", "search-"))])
def test_a_form_offers_the_recipes_and_its_defaults(name: str, deployments: dict[str, Any]) -> None:
    fields = deployments[name]["parameter_openapi_schema"]["properties"]
    family = {"ensemble": "classification"}.get(name.partition("-")[2], LISTED[name]["tags"][1])
    assert fields["recipe"]["enum"] == ["auto", *recipes(family)]
    assert fields["recipe"]["default"] == "auto"
    assert fields["stop_after"]["default"] == fields["stop_after"]["enum"][-1] == "promote"


def test_forms_offer_families_splits_views_and_checks(deployments: dict[str, Any]) -> None:
    fields = {
        name: deployments[name]["parameter_openapi_schema"]["properties"] for name in ("ingest", "evaluate")
    }
    assert set(fields["ingest"]["family"]["enum"]) == set(PIPELINES)
    assert fields["ingest"]["accept"]["items"]["enum"] == sorted(NAMES)
    assert fields["evaluate"]["split"]["enum"] == ["train", "val", "test"]
    assert fields["evaluate"]["views"]["items"]["enum"] == list(get_args(ViewName))
    maintain = deployments["maintain"]["parameter_openapi_schema"]["properties"]
    assert maintain["dry_run"]["default"] is True
    assert maintain["changes"]["properties"]["keep_days"]["minimum"] == 0


def test_every_schedule_waits_for_somebody_to_turn_it_on(deployments: dict[str, Any]) -> None:
    scheduled = {name for name, found in deployments.items() if found["schedules"]}
    assert scheduled == {name for name, listed in LISTED.items() if "schedules" in listed}
    assert not any(each["active"] for name in scheduled for each in deployments[name]["schedules"])


def test_limits_of_parameters_are_limits_of_the_form(deployments: dict[str, Any]) -> None:
    fields = deployments["train-classifier"]["parameter_openapi_schema"]["properties"]
    assert fields["changes"]["properties"]["optim"]["properties"]["lr"]["exclusiveMinimum"] == 0
    assert fields["executor"]["enum"] == ["auto", "ray", "in_process"]


def test_a_queue_that_a_deployment_has_to_itself_runs_one_at_a_time(platform: Platform) -> None:
    queues = {each["name"]: each for each in platform.ask("/work_pools/local/queues/filter", {"limit": 200})}
    own = {name for name, listed in LISTED.items() if "work_queue_name" in listed["work_pool"]}
    assert {name for name, queue in queues.items() if queue["concurrency_limit"] == 1} == own
    assert own == set(LISTED) - {"stylize", "close-approval"}


def test_the_pool_runs_as_many_at_once_as_the_plan_says(platform: Platform) -> None:
    pool = platform.ask("/work_pools/local")
    assert (pool["type"], pool["concurrency_limit"], pool["is_paused"]) == ("process", 2, False)


def test_the_server_refuses_what_the_parameters_do_not_allow(platform: Platform) -> None:
    with pytest.raises(urllib.error.HTTPError, match="409") as refused:
        platform.run(dataset="digits", changes={"optim": {"lr": -1}})
    assert "-1 is less than or equal to the minimum of 0" in refused.value.read().decode()


@pytest.mark.parametrize("executor", ["in_process", "ray"])
def test_a_worker_runs_the_deployment_to_a_registered_model(executor: str, platform: Platform) -> None:
    untouched = {
        "recipe": "auto", "stop_after": "promote", "resume": None, "executor": executor, "accept": [],
    }  # as the form sends them  # fmt: skip
    run = platform.run(dataset="digits", changes=CHANGES, **untouched)
    platform.await_training(run)
    assert (platform.home / "runs" / run / "model" / "model.json").is_file()
    names = {task["name"].rsplit("-", 1)[0] for task in platform.ask(
        "/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}}
    )}  # fmt: skip
    assert {"check dataset", "train", "evaluate", "register", "promote if first", "publish result"} <= names


def test_a_cancelled_run_leaves_no_process_and_is_marked_killed(platform: Platform) -> None:
    before = {process.pid for process in platform.processes()}
    run = platform.run(dataset="digits", changes=ENDLESS, executor="in_process")
    history = platform.home / "runs" / run / "history.jsonl"
    wait_for(lambda: history.is_file() and history.stat().st_size > 0, RUN_S, "the run trains")
    assert {process.pid for process in platform.processes()} - before
    platform.prefect("flow-run", "cancel", run)
    wait_for(lambda: platform.state(run) == "Cancelled", CANCEL_S, "the run is cancelled")
    wait_for(
        lambda: not {process.pid for process in platform.processes()} - before, 10, "its processes are gone"
    )
    assert platform.mlflow(run) == ["KILLED"]


def test_the_deployment_that_tests_run_is_listed() -> None:
    assert DEPLOYMENT.partition("/")[2] in LISTED
