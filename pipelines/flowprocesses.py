"""Flow runs as processes: which run belongs to which process, and how a run is cut off so that it can go on.

A worker starts one process a flow run. A worker that is told to end does not end them, and one that is killed leaves
them to themselves; Prefect then believes that they run for ever.
"""

from contextlib import suppress
from typing import Any

import psutil

from pipelines import processes
from pipelines.adoption import folder
from pipelines.plan import Plan
from pipelines.registration import AGAIN, CANCELLED, UNDER_WAY, end_tasks, flow_runs, set_state, wait_for_end

RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
SUSPENDED = "Suspended"  # such a run has no process, and is meant to have none
NOTED_S = 15.0  # for Prefect to note how a process ended


def flow_processes() -> dict[str, list[psutil.Process]]:
    """The processes of each flow run that was started by the platform's worker."""
    found: dict[str, list[psutil.Process]] = {}
    for process in processes.find(folder(), "worker"):
        try:
            run = process.environ().get(RUN_VARIABLE, "")
        except psutil.Error:
            continue
        if run:
            members = found.setdefault(run, [])
            members.append(process)
            with suppress(psutil.Error):
                # some hide their environment (pipelines.processes)
                members += process.children(recursive=True)
    return {run: list(dict.fromkeys(members)) for run, members in found.items()}


def cut_off(plan: Plan, seconds: float) -> list[str]:
    """Stop all flow runs so that they leave a checkpoint; their ids.

    A run that has not ended after `seconds` is killed; its newest checkpoint is the one before.
    """
    running = flow_processes()
    heads = [head for members in running.values() for head in processes.roots(members)]
    processes.end(heads, seconds)
    processes.end([process for members in flow_processes().values() for process in members], 0)
    wait_for_end(plan, set(running), NOTED_S)
    return list(running)


def unended(plan: Plan, *types: str) -> list[dict[str, Any]]:
    """Flow runs that Prefect believes to have a process, and those in states of these types."""
    paused = [run for run in flow_runs(plan, "PAUSED") if run["state_name"] != SUSPENDED]
    return flow_runs(plan, *UNDER_WAY, *types) + paused


def let_go_on(plan: Plan, runs: list[str]) -> list[str]:
    """Put runs that were stopped back into the queue, for the next worker; those that were done by then are left out.

    To be called when no worker runs that could note yet how their processes ended.
    """
    unfinished = {str(run["id"]) for run in unended(plan, "CRASHED")}
    stopped = [run for run in runs if run in unfinished]
    for run in stopped:
        end_tasks(plan, run, "the platform was stopped")
        set_state(plan, run, AGAIN, "the platform was stopped; the run goes on when it is started again")
    return stopped


def take_up(plan: Plan) -> list[str]:
    """Let runs go on whose process is gone although Prefect believes that they run; their ids.

    A run that was being cancelled is cancelled. To be called while no worker of the pool runs.
    """
    living = flow_processes()
    lost = [run for run in unended(plan) if str(run["id"]) not in living]
    for run in lost:
        end_tasks(plan, str(run["id"]), "its process was gone")
        if run["state_type"] == "CANCELLING":
            set_state(plan, str(run["id"]), CANCELLED, "its process was gone")
        else:
            set_state(plan, str(run["id"]), AGAIN, "its process was gone when the platform was started")
    return [str(run["id"]) for run in lost if run["state_type"] != "CANCELLING"]
