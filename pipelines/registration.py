"""What Prefect's server must know before a form can start a run: the work pool, its limit, the deployments.

Everything may be done again: a pool that is there is changed, a deployment is written over.

`python -m pipelines.registration` sets the limits at the server of PREFECT_API_URL where another than `./convoy up` has
made the pool and registered the deployments: `prefect deploy` sets none.
"""

import hashlib
import os
import subprocess
import sys
import time
from typing import Any

import yaml

from data.files import file_sha256, write_whole
from pipelines.adoption import folder
from pipelines.keeper import log_file
from pipelines.parameters import section
from pipelines.plan import Plan, PlatformConfig
from pipelines.processes import MARK
from pipelines.services import POOL, SERVICES, insist, service_environment
from tasks.paths import ROOT

DEPLOY_LOG = "deploy"
DEPLOYED_FILE = "deployed"  # the digest of what was registered last
LAYERS = ("data", "models", "tasks", "pipelines")
LAST_LINES = 8
UNDER_WAY = ("RUNNING", "PENDING", "CANCELLING")
AGAIN = {"type": "SCHEDULED", "name": "AwaitingRetry"}
CANCELLED = {"type": "CANCELLED", "name": "Cancelled"}
CRASHED = {"type": "CRASHED", "name": "Crashed"}


def open_pool(api: str, flows_at_once: int) -> None:
    """Let the pool hand out work, so many runs at once; it must be there, as the worker makes it."""
    change_pool(api, {"is_paused": False, "concurrency_limit": flows_at_once})


def close_pool(plan: Plan) -> None:
    """Let the pool hand out nothing more."""
    change_pool(plan.prefect_api(), {"is_paused": True})


def change_pool(api: str, values: dict[str, Any]) -> None:
    insist(f"{api}/work_pools/{POOL}", values, "PATCH")


def limit_queues(api: str) -> None:
    """Have each queue that a deployment has to itself run one at a time; registering the deployment has made it."""
    for queue in sorted({each["work_pool"].get("work_queue_name", "") for each in deployments()} - {""}):
        insist(f"{api}/work_pools/{POOL}/queues/{queue}", {"concurrency_limit": 1}, "PATCH")


def deploy_all(plan: Plan) -> bool:
    """Register the deployments of prefect.yaml, unless the server has them as they are; whether it did not.

    Importing the flows takes most of the time. Raises RuntimeError with Prefect's last words where it refuses.
    """
    mark, now = folder() / DEPLOYED_FILE, digest(plan)
    if mark.is_file() and mark.read_text() == now and listed() <= names_on_server(plan):
        return False
    environment = {**service_environment(SERVICES[-1], plan), "NO_COLOR": "1", "COLUMNS": "120"}
    del environment[MARK]  # it ends with us
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    file = log_file(folder(), DEPLOY_LOG)
    file.write_text(text)
    if done.returncode:
        raise RuntimeError(
            f"the deployments of prefect.yaml were not registered (code {done.returncode}): "
            f"{last_words(text)}; {file} has all of it"
        )
    limit_queues(plan.prefect_api())
    write_whole(mark, now)
    return True


def digest(plan: Plan) -> str:
    """What the forms are made of: the code, the recipes, the deployments; and the database that they are in."""
    files = [ROOT / "prefect.yaml", ROOT / "params.yaml"]
    files += sorted(file for layer in LAYERS for file in (ROOT / layer).rglob("*.py"))
    hashes = "".join(file_sha256(file) for file in files)
    return hashlib.sha256(f"{plan.prefect_database} {hashes}".encode()).hexdigest()


def deployments() -> list[dict[str, Any]]:
    """What prefect.yaml has."""
    return list(yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"])


def listed() -> set[str]:
    """The names in prefect.yaml."""
    return {each["name"] for each in deployments()}


def names_on_server(plan: Plan) -> set[str]:
    """The names of the deployments that the server has."""
    return {each["name"] for each in insist(f"{plan.prefect_api()}/deployments/filter", {"limit": 200})}


def last_words(text: str) -> str:
    """The last lines of an output that say anything, as one."""
    lines = [line.strip(" │╭╰╮╯─") for line in text.splitlines()]
    return " | ".join([line for line in lines if line][-LAST_LINES:])


def flow_runs(plan: Plan, *types: str, name: str = "") -> list[dict[str, Any]]:
    """The pool's flow runs in states of these types, newest first."""
    states: dict[str, Any] = {"type": {"any_": list(types)}}
    if name:
        states["name"] = {"any_": [name]}
    body = {
        "work_pools": {"name": {"any_": [POOL]}}, "flow_runs": {"state": states}, "limit": 200,
        "sort": "START_TIME_DESC",
    }  # fmt: skip
    runs: list[dict[str, Any]] = insist(f"{plan.prefect_api()}/flow_runs/filter", body)
    return runs


def set_state(plan: Plan, run: str, state: dict[str, str], why: str) -> None:
    """Put a flow run into a state, whatever it was in. Run again, it has the same key and goes on where it was."""
    insist(
        f"{plan.prefect_api()}/flow_runs/{run}/set_state",
        {"state": {**state, "message": why}, "force": True},
    )


def end_tasks(plan: Plan, run: str, why: str) -> None:
    """Put tasks of a flow run whose process is gone, and that would run for ever in Prefect's UI, into Crashed."""
    body = {
        "flow_runs": {"id": {"any_": [run]}},
        "task_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}},
    }
    for task in insist(f"{plan.prefect_api()}/task_runs/filter", body):
        insist(
            f"{plan.prefect_api()}/task_runs/{task['id']}/set_state",
            {"state": {**CRASHED, "message": why}, "force": True},
        )


def wait_for_end(plan: Plan, runs: set[str], seconds: float) -> None:
    """Return when Prefect no longer believes that any of the runs is under way, or the time is over."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if not runs & {str(run["id"]) for run in flow_runs(plan, *UNDER_WAY)}:
            return
        time.sleep(0.2)


def main() -> None:
    """Set the limits of params.yaml; raises ValueError without PREFECT_API_URL, OSError where the server refuses."""
    api = os.environ.get("PREFECT_API_URL", "")
    if not api:
        raise ValueError(
            "PREFECT_API_URL must name the server that has the pool; ./convoy up does this by itself"
        )
    open_pool(api, section("platform", PlatformConfig, {}).flows_at_once)
    limit_queues(api)


if __name__ == "__main__":
    main()
