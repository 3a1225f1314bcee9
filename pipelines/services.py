"""The services of the platform, one table: how each is started, and how one sees that it works.

`./convoy up` starts them, `./convoy status` looks at them: pipelines.commands_platform. docs/platform.md.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data.files import write_whole
from pipelines import processes
from pipelines.adoption import SWITCH, folder, listens
from pipelines.keeper import record_file
from pipelines.plan import RAY_CLUSTERS, Plan, mlflow_files, mlflow_records
from pipelines.ports import next_free
from tasks.paths import ROOT, home

POOL = "local"  # prefect.yaml names it
WORKER = "convoy"
ASK_S, BUSY_S = 5.0, 60.0
MB = 1_000_000
# of parts of Ray that cannot be left out; or the next ones that are free
CLIENT_PORT, AGENT_PORT = 20001, 52365
# What a shell may have set for other servers; a service of ours gets what the plan says.
FOREIGN = (
    "PREFECT_PROFILE", "PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI",
    "MLFLOW_BACKEND_STORE_URI", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", RAY_CLUSTERS,
    "PYTHONDONTWRITEBYTECODE",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service of the platform."""

    name: str
    title: str
    ports: tuple[str, ...]  # the parameters of the plan that say where it listens
    command: Callable[[Plan], list[str]]
    environment: Callable[[Plan], dict[str, str]]
    answers: Callable[[Plan], bool]
    version: Callable[[Plan], str]
    address: Callable[[Plan], str]
    stop_s: float  # seconds that it is given to end


def ask(
    url: str, body: dict[str, Any] | None = None, method: str | None = None, timeout_s: float = ASK_S
) -> Any:
    """What a server of ours answers, JSON or a text; None for nothing. Raises OSError where it does not answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    with opener.open(request, timeout=timeout_s) as answer:
        text = answer.read().decode()
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def insist(url: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
    """As `ask`, asked again while the server is there and busy: Prefect says 503 when its SQLite file is locked."""
    end_s = time.monotonic() + BUSY_S
    while True:
        try:
            return ask(url, body, method, timeout_s=BUSY_S)
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > end_s:
                raise
            time.sleep(1)


def healthy(url: str) -> bool:
    """Whether a GET of the address succeeds."""
    try:
        ask(url)
    except OSError:
        return False
    return True


def asked(url: str) -> str:
    """A short answer as a text; "" where there is none."""
    try:
        answer = ask(url)
    except OSError:
        return ""
    return str(answer.get("ray_version", "")) if isinstance(answer, dict) else str(answer)


def worker_answers(plan: Plan) -> bool:
    """Whether the worker has reported to the server since it was started; an older report says nothing."""
    record = processes.read_record(folder(), "worker")
    try:
        workers = ask(f"{plan.prefect_api()}/work_pools/{POOL}/workers/filter", {})
    except OSError:
        return False
    times = [
        datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp()
        for worker in workers
        if worker["name"] == WORKER and worker["status"] == "ONLINE"
    ]
    return record is not None and any(time_s >= record.started_at for time_s in times)


def token_file(plan: Plan) -> Path:
    """The secret that lets a process of this user use the platform's Ray; made on first use."""
    file = Path(plan.client_environment()["RAY_AUTH_TOKEN_PATH"])
    if not file.is_file():
        write_whole(file, secrets.token_hex(32))
        file.chmod(0o600)
    return file


def prefect_environment(plan: Plan) -> dict[str, str]:
    own = {
        "PREFECT_SERVER_UI_API_URL": f"{plan.prefect_ui()}/api",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    }
    if plan.loopback():  # Prefect itself lets the scripts of any web page call it
        near = {
            plan.prefect_ui(),
            *(f"http://{host}:{plan.prefect_port}" for host in ("127.0.0.1", "localhost")),
        }
        own["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(sorted(near))
    if plan.prefect_database:
        own["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = plan.prefect_database
    return own


def mlflow_command(plan: Plan) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", plan.host, "--port", str(plan.mlflow_port)]
    if not plan.serves_files():
        place = (home() / "mlflow").as_uri()
        return [*command, "--workers", "1", "--no-serve-artifacts", "--default-artifact-root", place]
    hosts = {plan.host, plan.near(), plan.far(), socket.gethostname(), "localhost", "127.0.0.1"}
    allowed = ",".join(sorted(f"{host}:{plan.mlflow_port}" for host in hosts))
    return [
        *command, "--workers", "1", "--artifacts-destination", mlflow_files(plan), "--allowed-hosts", allowed,
    ]  # fmt: skip


def mlflow_environment(plan: Plan) -> dict[str, str]:
    return {
        # not in the command, where others could read a password
        "MLFLOW_BACKEND_STORE_URI": mlflow_records(plan),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 1.4 GB less
    }


def ray_command(plan: Plan) -> list[str]:
    client, agent = next_free(plan.host, CLIENT_PORT), next_free(plan.host, AGENT_PORT)
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
        "--port", str(plan.ray_port), "--ray-client-server-port", str(client),
        "--dashboard-agent-listen-port", str(agent), "--include-dashboard", "true",
        "--dashboard-host", plan.host, "--dashboard-port", str(plan.dashboard_port),
    ]  # fmt: skip
    if plan.loopback():
        command += ["--node-ip-address", plan.host]
    return [*command, "--num-cpus", str(plan.ray_cpus)] if plan.ray_cpus else command


def ray_environment(plan: Plan) -> dict[str, str]:
    # here, for they take seconds to import, and status needs none
    from tasks.cluster import ALLOCATOR, SETTINGS

    own = plan.client_environment()
    auth = {name: own[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", RAY_CLUSTERS)}
    logs = {"RAY_ROTATION_MAX_BYTES": str(int(plan.log_mb * MB)), "RAY_ROTATION_BACKUP_COUNT": "1"}
    return {**SETTINGS, **ALLOCATOR, **auth, **logs}


def ray_answers(plan: Plan) -> bool:
    return listens(plan.ray_address()) and listens(f"{plan.near()}:{plan.dashboard_port}")


def worker_command(_plan: Plan) -> list[str]:
    return [
        sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", WORKER,
    ]  # fmt: skip


def worker_environment(plan: Plan) -> dict[str, str]:
    return {
        **plan.client_environment(),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
    }


SERVICES = (
    Service(
        name="prefect", title="Prefect server", ports=("prefect_port",), stop_s=20,
        command=lambda plan: [sys.executable, "-m", "prefect", "server", "start", "--host", plan.host,
                              "--port", str(plan.prefect_port)],
        environment=prefect_environment,
        answers=lambda plan: healthy(f"{plan.prefect_api()}/health"),
        version=lambda plan: asked(f"{plan.prefect_api()}/admin/version"),
        address=Plan.prefect_ui,
    ),
    Service(
        name="mlflow", title="MLflow server", ports=("mlflow_port",), stop_s=20,
        command=mlflow_command, environment=mlflow_environment,
        answers=lambda plan: healthy(f"{plan.mlflow_url()}/health"),
        version=lambda plan: asked(f"{plan.mlflow_url()}/version"),
        address=lambda plan: f"http://{plan.far()}:{plan.mlflow_port}",
    ),
    Service(
        name="ray", title="Ray head", ports=("ray_port", "dashboard_port"), stop_s=30,
        command=ray_command, environment=ray_environment, answers=ray_answers,
        version=lambda _plan: version("ray"), address=Plan.ray_address,
    ),
    Service(
        name="worker", title="Prefect worker", ports=(), stop_s=30,
        command=worker_command, environment=worker_environment,
        answers=worker_answers,
        version=lambda _plan: version("prefect"), address=lambda _plan: f"pool {POOL}",
    ),
)  # fmt: skip


def service_environment(service: Service, plan: Plan) -> dict[str, str]:
    """The environment of a service: ours, without other servers' addresses, marked so that it is known again."""
    ours = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    modules = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {
        **ours, "PATH": path, "PYTHONPATH": modules, "PYTHONSAFEPATH": "1", "CONVOY_HOME": str(home()),
        SWITCH: "off", processes.MARK: processes.mark(folder(), service.name), **service.environment(plan),
    }  # fmt: skip


def start(service: Service, plan: Plan) -> None:
    """Start a service with its keeper; returns at once. It outlives us."""
    record_file(folder(), service.name).unlink(missing_ok=True)  # of the one before
    keeper = [
        sys.executable, "-m", processes.KEEPER, str(folder()), service.name, str(int(plan.log_mb * MB)),
        *service.command(plan),
    ]  # fmt: skip
    subprocess.Popen(
        keeper, env=service_environment(service, plan), cwd=ROOT, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
