"""Brings the platform up and down: what `./convoy up` and `./convoy down` do, step by step.

Both may be killed at any moment: the plan is written before anything starts, processes are known by their environment,
and each step looks at what there is.
"""

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from data.address import without_password
from data.files import locked
from pipelines import environment, flowprocesses, processes, registration
from pipelines.adoption import ENVIRONMENT_FILE, folder
from pipelines.keeper import log_file, record_file
from pipelines.parameters import section
from pipelines.plan import (
    PLAN_FILE,
    Plan,
    mlflow_records,
    read_plan,
    write_environment,
    write_plan,
)
from pipelines.ports import describe_holder, is_free, next_free
from pipelines.services import SERVICES, Service, start, token_file
from tasks.paths import home

START_S = 180.0
CONNECT_S = 3.0
Say = Callable[[str], None]
DRIVERS = {"prefect_database": "postgresql+asyncpg", "mlflow_database": "postgresql+psycopg"}
POSTGRES = ("postgresql", "postgres")


@contextmanager
def exclusive() -> Iterator[None]:
    """Be the only `up` or `down` of this home; raises ValueError while another is at work."""
    folder().mkdir(parents=True, exist_ok=True)

    def refuse(who: str) -> None:
        raise ValueError(f"another ./convoy up or down is at work here ({who}); wait for it to end") from None

    with locked(folder() / "lock", refuse):
        yield


def something_runs() -> bool:
    """Whether any service of this home is kept running."""
    return any(processes.is_kept(folder(), service.name) for service in SERVICES)


def choose_plan(changes: dict[str, Any], wishes: dict[str, str | None]) -> Plan:
    """The plan of what runs, else a new one from params.yaml, the changes, and what the command line asked for.

    Raises ValueError where something runs and another plan is asked for.
    """
    asked = {name: value for name, value in wishes.items() if value}
    for name, driver in DRIVERS.items():
        if name in asked:
            asked[name] = database_url(name, asked[name], driver)
    old = read_plan() if something_runs() else None
    if old is None:
        return section("platform", Plan, {**changes, **asked})
    wished = section("platform", Plan, {**old.model_dump(), **changes, **asked})
    different = [
        f"{name} {without_password(str(value))} → {without_password(str(getattr(wished, name)))}"
        for name, value in old.model_dump().items()
        if getattr(wished, name) != value
    ]
    if different:
        raise ValueError(
            f"the platform runs with other settings ({', '.join(different)}): ./convoy down ends it first"
        )
    return old


def database_url(name: str, url: str, driver: str) -> str:
    """A database's URL with the driver that we have; raises ValueError for one that is of no use, or silent."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in POSTGRES:
        raise ValueError(
            f"--{name.replace('_', '-')} (={without_password(url)}) must be "
            "postgresql://USER:PASSWORD@HOST:PORT/NAME; without it, SQLite is used"
        )
    parts = urlsplit(url)
    try:
        socket.create_connection(
            (parts.hostname or "localhost", parts.port or 5432), timeout=CONNECT_S
        ).close()
    except OSError as error:
        raise ConnectionError(
            f"no PostgreSQL answers at {without_password(url)}: {error}; start it, or correct the URL"
        ) from None
    return f"{driver}://{rest}"


def check_ports(plan: Plan, services: Iterable[Service]) -> None:
    """Raise ValueError where another program listens where a service is to, naming it and a port that is free."""
    taken = []
    for service in services:
        for name in service.ports:
            port = getattr(plan, name)
            if not is_free(plan.host, port):
                free = next_free(plan.host, port + 1)
                taken.append(
                    f"port {port}, for {service.title}, is taken by {describe_holder(port)}: stop that, or choose "
                    f"another port: ./convoy up --set {name}={free}"
                )
    if taken:
        raise ValueError("\n".join(taken))


def bring_up(plan: Plan, say: Say) -> list[str]:
    """Start what is missing, wait until all of it answers, register the deployments; names of what was started.

    Raises ValueError for ports that are taken, RuntimeError for a service that does not come up.
    """
    missing = [service for service in SERVICES if not processes.is_kept(folder(), service.name)]
    for service in missing:
        sweep(service)
    check_ports(plan, missing)
    environment.make_prefect_home()
    write_plan(plan)
    token_file(plan)
    make_records(plan)
    prefect, mlflow, ray, worker = SERVICES
    for service in (prefect, mlflow, ray):
        if service in missing:
            say(f"starting {service.title}: {service.address(plan)}")
            start(service, plan)
    wait_for(prefect, plan, (prefect, mlflow, ray))
    if worker in missing:
        start_worker(worker, plan, say)
    wait_for(worker, plan, SERVICES)
    registration.open_pool(plan.prefect_api(), plan.flows_at_once)
    with ThreadPoolExecutor(1) as pool:
        deployed: Future[bool] = pool.submit(registration.deploy_all, plan)
        for service in (mlflow, ray):
            wait_for(service, plan, SERVICES)
        if deployed.result():
            say(f"registered the {len(registration.listed())} deployments of prefect.yaml")
    write_environment(plan)
    return [service.name for service in missing]


def start_worker(worker: Service, plan: Plan, say: Say) -> None:
    """Start the worker, after runs that its predecessor left behind are put back in the queue."""
    for run in flowprocesses.take_up(plan):
        say(f"flow run {run} goes on: its process was gone")
    say(f"starting {worker.title}: {worker.address(plan)}")
    start(worker, plan)


def make_records(plan: Plan) -> None:
    """Make MLflow's SQLite file, or its folder, if it is not there; see tasks.recordstore for why not by the server."""
    if not plan.mlflow_database and plan.serves_files():
        (home() / "mlflow").mkdir(parents=True, exist_ok=True)
    elif not plan.mlflow_database and not (home() / "mlflow.db").is_file():
        from tasks.recordstore import open_database  # here, for MLflow takes a second to import

        open_database(mlflow_records(plan))


def sweep(service: Service) -> None:
    """End what a service that has died left behind. The worker's flow runs are not: they end by themselves."""
    left = processes.find(folder(), service.name)
    if service.name == "worker":
        running = {process.pid for some in flowprocesses.flow_processes().values() for process in some}
        left = [process for process in left if process.pid not in running]
    processes.end(left, service.stop_s)


def wait_for(service: Service, plan: Plan, watched: Sequence[Service]) -> None:
    """Return when a service answers; raises RuntimeError with last words if one has ended, or it takes too long."""
    end_s = time.monotonic() + START_S
    while not service.answers(plan):
        for each in watched:
            if not processes.is_kept(folder(), each.name):
                record = processes.read_record(folder(), each.name)
                code = "" if record is None or record.code is None else f" (code {record.code})"
                raise RuntimeError(f"{each.title} ended while it started{code}: {last_words(each)}")
        if time.monotonic() > end_s:
            raise RuntimeError(
                f"{service.title} does not answer after {START_S:.0f} s: {last_words(service)}"
            )
        time.sleep(0.2)


def last_words(service: Service) -> str:
    """The end of a service's log, and where the rest is."""
    file = log_file(folder(), service.name)
    text = file.read_text(errors="replace") if file.is_file() else ""
    return f"{registration.last_words(text) or 'it said nothing'}; its log is {file}"


def bring_down(say: Say) -> int:
    """End everything: flows first, which leave a checkpoint, then the worker, then servers; processes ended."""
    (folder() / ENVIRONMENT_FILE).unlink(missing_ok=True)  # from now on, commands do without
    plan = read_plan_or_none(say)
    there = len(processes.find(folder()))
    prefect, mlflow, ray, worker = SERVICES
    if plan is not None and prefect.answers(plan):
        runs = end_flows(plan, say)
        end_service(worker, say)
        for run in flowprocesses.let_go_on(plan, runs):
            say(f"flow run {run} was stopped; it goes on with the next ./convoy up")
    for service in (worker, ray, mlflow, prefect):
        end_service(service, say)
    processes.end(processes.find(folder()), CONNECT_S)
    for service in SERVICES:
        record_file(folder(), service.name).unlink(missing_ok=True)
    for name in (PLAN_FILE, "ray-token"):
        (folder() / name).unlink(missing_ok=True)
    return there


def read_plan_or_none(say: Say) -> Plan | None:
    """The plan; None where it is of no use, for what runs is ended all the same."""
    try:
        return read_plan()
    except ValueError as error:
        say(str(error))
        return None


def end_flows(plan: Plan, say: Say) -> list[str]:
    """Stop flow runs, before the worker, which must not start others meanwhile; their ids."""
    with suppress(OSError):  # there may be no pool yet
        registration.close_pool(plan)
    running = flowprocesses.flow_processes()
    if running:
        say(f"{len(running)} flow runs have {plan.stop_flows_s:.0f} s to leave a checkpoint")
    return flowprocesses.cut_off(plan, plan.stop_flows_s)


def end_service(service: Service, say: Say) -> None:
    """End a service and all that it has started; says where force was needed."""
    members = processes.find(folder(), service.name)
    if not members:
        return
    say(f"ending {service.title}")
    record = processes.read_record(folder(), service.name)
    main = record.process() if record is not None else None
    first = [main] if main is not None else processes.roots(members)
    if processes.end(first, service.stop_s):
        say(f"{service.title} did not end within {service.stop_s:.0f} s, and was killed")
    processes.wait_until_gone(folder(), service.name, CONNECT_S)
    processes.end(processes.find(folder(), service.name), CONNECT_S)
