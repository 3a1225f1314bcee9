"""The plan of a platform: what `./convoy up` starts, where, and on which databases. docs/platform.md.

Values are the section `platform` of params.yaml. The plan is kept in `.platform/` below the home folder before anything
is started, so that whatever becomes of `up`, the next one and `down` know what there may be.
"""

import os
import shlex
import socket
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from data.address import is_loopback, without_password
from data.files import write_whole
from data.parameters import Parameters
from pipelines.adoption import ENVIRONMENT_FILE, folder
from tasks.paths import home

PLAN_FILE = "plan.json"
RAY_WORKERS = range(10002, 20000)
# Ray takes this machine's address in the network in place of 127.0.0.1 unless it is told that there are no clusters.
RAY_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
EVERY_INTERFACE = ("0.0.0.0", "::")


class PlatformConfig(Parameters):
    """Where the platform's services listen, and how much they may take."""

    host: str = Field(
        min_length=1, description="address to listen on; anything but 127.0.0.1 lets other machines in"
    )
    prefect_port: int = Field(ge=1, le=65535, description="port of Prefect's server and UI")
    mlflow_port: int = Field(ge=1, le=65535, description="port of MLflow's server and UI")
    ray_port: int = Field(ge=1, le=65535, description="port of Ray's head")
    dashboard_port: int = Field(ge=1, le=65535, description="port of Ray's dashboard")
    ray_cpus: int = Field(ge=0, description="CPUs that Ray hands out; 0: all there are")
    flows_at_once: int = Field(ge=1, description="flow runs that the worker runs at a time; others wait")
    log_mb: float = Field(gt=0, description="10^6 bytes that the log of a service keeps; older lines go")
    stop_flows_s: float = Field(ge=0, description="seconds that `down` gives flows to leave a checkpoint")

    @model_validator(mode="after")
    def _ports_do_not_meet(self) -> Self:
        ports = self.ports()
        for name, port in ports.items():
            if port in RAY_WORKERS:
                raise ValueError(
                    f"{name} (={port}) must lie outside {RAY_WORKERS[0]} to {RAY_WORKERS[-1]}, Ray's workers' ports"
                )
            if list(ports.values()).count(port) > 1:
                raise ValueError(f"{name} (={port}) is another service's port too; each needs one of its own")
        return self

    def ports(self) -> dict[str, int]:
        """The parameter that names each port, and the port."""
        return {name: value for name, value in self.model_dump().items() if name.endswith("_port")}


class Plan(PlatformConfig):
    """A platform as it was asked for; "" of a database: SQLite below the home folder."""

    prefect_database: str = ""
    mlflow_database: str = ""
    artifacts: str = ""  # where MLflow keeps files that travel through it; "": below the home folder

    def loopback(self) -> bool:
        """Whether only this machine can reach the servers."""
        return is_loopback(self.host)

    def serves_files(self) -> bool:
        """Whether the files of runs go through MLflow's server; else clients write them where they belong."""
        return bool(self.artifacts) or not self.loopback()

    def near(self) -> str:
        """The name by which this machine reaches the servers."""
        return "127.0.0.1" if self.host in EVERY_INTERFACE else self.host

    def far(self) -> str:
        """The name by which browsers and other machines reach them."""
        return socket.gethostname() if self.host in EVERY_INTERFACE else self.host

    def prefect_ui(self) -> str:
        return f"http://{bracketed(self.far())}:{self.prefect_port}"

    def prefect_api(self) -> str:
        return f"http://{bracketed(self.near())}:{self.prefect_port}/api"

    def mlflow_url(self) -> str:
        return f"http://{bracketed(self.near())}:{self.mlflow_port}"

    def ray_address(self) -> str:
        return f"{bracketed(self.near())}:{self.ray_port}"

    def dashboard(self) -> str:
        return f"http://{bracketed(self.far())}:{self.dashboard_port}"

    def client_environment(self) -> dict[str, str]:
        """What a process needs in order to use the platform."""
        return {
            "PREFECT_API_URL": self.prefect_api(),
            "MLFLOW_TRACKING_URI": self.mlflow_url(),
            "RAY_ADDRESS": self.ray_address(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder() / "ray-token"),
            RAY_CLUSTERS: "0" if self.loopback() else "1",
        }


def bracketed(host: str) -> str:
    """A host as URLs write it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def read_plan() -> Plan | None:
    """The plan of the platform that was started here, or None; raises ValueError for a file that is no plan."""
    file = folder() / PLAN_FILE
    if not file.is_file():
        return None
    try:
        return Plan.model_validate_json(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} is no plan of a platform ({error.__class__.__name__}); end what runs by ./convoy down, or "
            "delete it"
        ) from None


def write_plan(plan: Plan) -> None:
    """Keep the plan where its owner alone can read it, for databases' passwords may be in it."""
    folder().mkdir(parents=True, exist_ok=True)
    folder().chmod(0o700)
    write_whole(folder() / PLAN_FILE, plan.model_dump_json(indent=2) + "\n")


def write_environment(plan: Plan) -> Path:
    """Write what a shell needs to use the platform; `./convoy` reads it too (pipelines.adoption)."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in plan.client_environment().items()]
    file = folder() / ENVIRONMENT_FILE
    write_whole(
        file, "\n".join(["# Of the platform that runs: source it to use prefect, mlflow, ray.", *lines, ""])
    )
    return file


def overridden(plan: Plan) -> list[str]:
    """Variables of this shell that name another server than the platform's."""
    wanted = plan.client_environment()
    return [
        f"{name}={without_password(os.environ[name])}"
        for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")
        if os.environ.get(name, wanted[name]) != wanted[name]
    ]


def mlflow_files(plan: Plan) -> str:
    """Where MLflow's server puts files: a path or URI."""
    return plan.artifacts or str(home() / "mlflow" / "server")


def mlflow_records(plan: Plan) -> str:
    """The database of MLflow's server. On loopback it is the one that commands without a server use."""
    if plan.mlflow_database:
        return plan.mlflow_database
    file = home() / "mlflow" / "server.db" if plan.serves_files() else home() / "mlflow.db"
    return f"sqlite:///{file}"
