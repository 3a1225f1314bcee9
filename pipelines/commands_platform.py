"""`./convoy up`, `down`, `status`: the servers on this machine, as one."""

import time
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

import psutil
from cyclopts import Parameter

from data.address import without_password
from pipelines import processes
from pipelines.adoption import ENVIRONMENT_FILE, folder
from pipelines.bringup import bring_down, bring_up, choose_plan, exclusive, something_runs
from pipelines.options import Changes, Json, quiet_stdout
from pipelines.parameters import parse_changes
from pipelines.plan import Plan, overridden, read_plan
from pipelines.registration import flow_runs
from pipelines.render import ConsoleReporter, emit, table
from pipelines.services import SERVICES, Service

TRAININGS = "workflowType=machine_learning"  # MLflow's UI shows pages for agents otherwise
RUNS, STOPPED, SILENT = "runs", "stopped", "does not answer"


def up(
    *,
    host: str | None = None,
    changes: Changes = None,
    prefect_database: Annotated[str | None, Parameter(env_var="CONVOY_PREFECT_DATABASE")] = None,
    mlflow_database: Annotated[str | None, Parameter(env_var="CONVOY_MLFLOW_DATABASE")] = None,
    artifacts: str | None = None,
    as_json: Json = False,
) -> None:
    """Start Prefect's server and worker, MLflow's server and Ray's head, and register the deployments.

    What runs already stays as it is: a second `up` starts only what is missing. Other commands then use these servers
    by themselves; CONVOY_PLATFORM=off keeps one to itself. Ports and limits: the section platform of params.yaml.

    Parameters
    ----------
    host
        Address to listen on. Anything but 127.0.0.1 lets others in: there are no passwords in front of these servers.
    prefect_database
        PostgreSQL for Prefect, as postgresql://USER:PASSWORD@HOST/NAME; SQLite without.
    mlflow_database
        PostgreSQL for MLflow, likewise.
    artifacts
        Where MLflow's server keeps files, a folder or s3://BUCKET/PATH; they then travel through it.
    """
    values = parse_changes(changes or [])
    asked = {
        "host": host, "prefect_database": prefect_database, "mlflow_database": mlflow_database,
        "artifacts": artifacts,
    }  # fmt: skip
    with exclusive(), quiet_stdout(as_json):
        plan = choose_plan(values, asked)
        reporter = ConsoleReporter()
        if not plan.loopback():
            reporter.note(
                f"note: {plan.host} lets other machines in, and nothing asks them who they are: whoever reaches "
                "Prefect can run code here"
            )
        try:
            started = bring_up(plan, reporter.note)
        except BaseException as error:
            if not isinstance(error, Exception) and something_runs():  # told to stop
                reporter.note("what was started stays: ./convoy up goes on, ./convoy down ends it")
            raise
    document = describe(plan)
    emit({"started": started, **document}, up_views(plan, document, started), as_json)


def up_views(plan: Plan, document: dict[str, Any], started: list[str]) -> list[Any]:
    """What a person needs to go on."""
    views = [
        services_table(document),
        f"Prefect   {plan.prefect_ui()}",
        f"MLflow    http://{plan.far()}:{plan.mlflow_port}/#/experiments?{TRAININGS}",
        f"Ray       {plan.dashboard()}",
        "",
        "./convoy uses these servers from now on (CONVOY_PLATFORM=off: not)."
        + ("" if started else " Everything ran already."),
        f"For prefect, mlflow and ray themselves: source {folder() / ENVIRONMENT_FILE}",
        f"Logs: {folder() / 'logs'}; Ray's own: {document['ray_logs'] or 'none, for it has ended'}",
    ]
    return views + [
        f"note: this shell has {setting}, which goes before the platform's: unset it"
        for setting in overridden(plan)
    ]


def down(*, as_json: Json = False) -> None:
    """Stop what `up` has started: flow runs first, which leave a checkpoint, then the worker, then the servers.

    Records, models and logs stay. Flow runs that were stopped go on with the next `up`.
    """
    if not folder().is_dir():
        emit({"ended": 0}, [f"no platform was started in {folder().parent}"], as_json)
        return
    with exclusive(), quiet_stdout(as_json):
        ended = bring_down(ConsoleReporter().note)
    text = f"stopped; {ended} processes have ended" if ended else "nothing ran"
    emit({"ended": ended}, [text], as_json)


def status(*, as_json: Json = False) -> int:
    """Show which services of the platform run, since when, where, and what is in the queue.

    The exit code is 1 where something is missing, or `up` has not finished.
    """
    plan = read_plan()
    if plan is None:
        emit({"services": [], "healthy": False}, ["no platform runs here; start one: ./convoy up"], as_json)
        return 1
    document = describe(plan)
    views: list[Any] = [services_table(document), queue_line(document["queue"])]
    if any(service["state"] != RUNS for service in document["services"]):
        views.append("not all of it runs: ./convoy up starts what is missing, ./convoy down ends the rest")
    elif not document["finished"]:
        views.append(
            "up has not finished, so that other commands do not use these servers: ./convoy up goes on, ./convoy down "
            "ends them"
        )
    emit(document, views, as_json)
    return int(not document["healthy"])


def describe(plan: Plan) -> dict[str, Any]:
    """The platform as one document."""
    services = [describe_service(service, plan) for service in SERVICES]
    # the last that `up` writes, and the first that `down` removes
    finished = (folder() / ENVIRONMENT_FILE).is_file()
    return {
        "healthy": finished and all(service["state"] == RUNS for service in services),
        "finished": finished,
        "services": services,
        "queue": queue(plan),
        "folder": folder(),
        "ray_logs": ray_logs(),
        "databases": {
            "prefect": without_password(plan.prefect_database) or "sqlite",
            "mlflow": without_password(plan.mlflow_database) or "sqlite",
        },
        "environment": plan.client_environment(),
    }


def describe_service(service: Service, plan: Plan) -> dict[str, Any]:
    """One service: whether it runs, since when, and what it takes."""
    record = processes.read_record(folder(), service.name)
    alive = record is not None and record.process() is not None
    state = STOPPED if not alive else RUNS if service.answers(plan) else SILENT
    members = processes.find(folder(), service.name)
    return {
        "service": service.name,
        "title": service.title,
        "state": state,
        "since": record.started_at if record is not None and alive else None,
        "ended": record.ended_at if record is not None else None,
        "code": record.code if record is not None else None,
        "pid": record.pid if record is not None and alive else None,
        "address": service.address(plan),
        "version": service.version(plan) if state == RUNS else "",
        "processes": len(members),
        "memory_mb": processes.memory_mb(members),
    }


def ray_logs() -> str | None:
    """The folder of the head's logs; session_latest is that of whichever Ray of this machine was started last."""
    option = "--log_dir="
    for process in processes.find(folder(), "ray"):
        with suppress(psutil.Error):  # gone meanwhile
            for argument in process.cmdline():
                if argument.startswith(option):
                    return argument.removeprefix(option)
    return None


def services_table(document: dict[str, Any]) -> Any:
    """A line a service."""
    rows = [
        (
            service["title"], state_of(service), moment(service["since"]), str(service["pid"] or "-"),
            service["address"], service["version"] or "-", f"{service['memory_mb']:,.0f} MB",
        )
        for service in document["services"]
    ]  # fmt: skip
    return table("Platform", ("service", "state", "since", "pid", "address", "version", "memory"), rows)


def state_of(service: dict[str, Any]) -> str:
    """The state, and how it came to it where it is not as it should be."""
    if service["state"] == STOPPED and service["ended"] is not None:
        return f"ended at {moment(service['ended'])}, code {service['code']}"
    return str(service["state"])


def moment(seconds: float | None) -> str:
    """A point in time as a clock shows it; with the date where it was another day."""
    if seconds is None:
        return "-"
    at = datetime.fromtimestamp(seconds)
    today = datetime.fromtimestamp(time.time()).date() == at.date()
    return at.strftime("%H:%M:%S" if today else "%d %b %H:%M")


def queue(plan: Plan) -> dict[str, int] | None:
    """Flow runs of the pool by what they do; None where Prefect does not answer."""
    try:
        return {
            "running": len(flow_runs(plan, "RUNNING", "CANCELLING")),
            "waiting": len(flow_runs(plan, "SCHEDULED", "PENDING")),
            "paused": len(flow_runs(plan, "PAUSED")),
        }
    except OSError:
        return None


def queue_line(counts: dict[str, int] | None) -> str:
    """What is in the queue, in words."""
    if counts is None:
        return "flow runs: not known, for Prefect does not answer"
    return "flow runs: " + ", ".join(f"{count} {what}" for what, count in counts.items())
