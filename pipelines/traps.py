"""What the doctor knows of traps: what makes something fail later, or slow, without a word.

Each was met by running. As in pipelines.doctor, a check returns one finding and changes nothing.
"""

import os
import re
import resource
import sqlite3
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from pipelines import processes
from pipelines.adoption import ENVIRONMENT_FILE, folder
from pipelines.finding import Finding
from pipelines.parameters import section
from pipelines.plan import Plan, read_plan
from pipelines.ports import describe_holder, is_free
from pipelines.services import SERVICES
from tasks import leftovers
from tasks.memory import ALLOCATOR
from tasks.paths import home

FASTAPI_BELOW = (0, 151)  # from there on it refuses the nulls that Prefect's client sends
SQLITE_FROM = (3, 35, 0)  # Prefect's and MLflow's statements have RETURNING
OPEN_FILES = 4096  # Ray opens some hundred for each worker
LEFT_GB, LEFT_SESSIONS = 0.5, 500  # below them, what was left behind does not matter
NETWORK_DISKS = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "afs",
    "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.juicefs",
}  # fmt: skip


def numbers(text: str) -> tuple[int, ...]:
    """A version as numbers that can be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def check_fastapi() -> Finding:
    have = version("fastapi")
    if numbers(have) >= FASTAPI_BELOW:
        return Finding(
            "fastapi", "fail", f"{have}: Prefect's server refuses deployments under it (422)",
            "rm .venv/.convoy-lock && ./convoy --install",
        )  # fmt: skip
    return Finding("fastapi", "ok", have)


def check_sqlite() -> Finding:
    if sqlite3.sqlite_version_info < SQLITE_FROM:
        return Finding(
            "SQLite", "fail", f"{sqlite3.sqlite_version}, and Prefect needs 3.35",
            "use a Python that is built with a newer one (CONVOY_PYTHON), or PostgreSQL: ./convoy up --help",
        )  # fmt: skip
    return Finding("SQLite", "ok", sqlite3.sqlite_version)


def check_torch() -> Finding:
    """A build for CPUs on a machine with a GPU trains, slowly, and says nothing."""
    has_gpu = Path("/dev/nvidia0").exists()
    seen = f"torch {torch.__version__}"
    if has_gpu and not torch.cuda.is_available():
        why = (
            "it is a build for CPUs"
            if torch.version.cuda is None
            else "it finds no driver that is new enough, or CUDA_VISIBLE_DEVICES hides it"
        )
        return Finding(
            "torch", "warn", f"{seen} does not use this machine's GPU: {why}",
            "install a build for CUDA into .venv, or update the driver (nvidia-smi names it)",
        )  # fmt: skip
    return Finding("torch", "ok", seen)


def check_threads() -> Finding:
    """Settings of threads and of the allocator that the shell has, and that ours give way to."""
    odd = []
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None and threads.isdigit() and not 1 <= int(threads) <= (os.cpu_count() or 1):
        odd.append(f"OMP_NUM_THREADS={threads} on {os.cpu_count()} cores")
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active":
        odd.append("OMP_WAIT_POLICY=active, under which threads keep each other from the processor")
    if "malloc" in os.environ.get("LD_PRELOAD", ""):
        odd.append(f"LD_PRELOAD={os.environ['LD_PRELOAD']}, which the MALLOC_ settings do not reach")
    odd += [
        f"{name}={os.environ[name]}, where {value} is 15-30% faster"
        for name, value in ALLOCATOR.items()
        if os.environ.get(name, value) != value
    ]
    if odd:
        return Finding("threads, memory", "warn", "; ".join(odd), "unset them, unless you mean them")
    return Finding(
        "threads, memory", "ok", f"OMP_NUM_THREADS={threads}" if threads else "as Convoy sets them"
    )


def check_open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = f"{soft} files may be open at once"
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        return Finding("open files", "warn", seen, f"ulimit -n {max(soft, hard if hard > 0 else 65536)}")
    return Finding("open files", "ok", seen)


def check_home_disk() -> Finding:
    """SQLite's locks do not hold on network disks: records are lost, or everything waits."""
    places = {
        "PREFECT_HOME": Path(os.environ.get("PREFECT_HOME", home() / ".prefect")),
        "CONVOY_HOME": home(),
    }
    remote = [
        f"{name} (={place}) is on {kind}" for name, place in places.items() if (kind := network_disk(place))
    ]
    if remote:
        return Finding(
            "records' disk", "warn", "; ".join(remote),
            "SQLite needs a local disk: set PREFECT_HOME and CONVOY_HOME to one, or use PostgreSQL: ./convoy up --help",
        )  # fmt: skip
    return Finding("records' disk", "ok", "local")


def network_disk(place: Path) -> str:
    """The kind of network disk that a path lies on; "" for a local one."""
    place = place.resolve()
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda part: len(part.mountpoint))
    kinds = [part.fstype for part in mounts if place.is_relative_to(part.mountpoint)]
    return kinds[-1] if kinds and kinds[-1] in NETWORK_DISKS else ""


def check_environment() -> Finding:
    """Variables of this shell that change what engines do, in ways that nobody remembers."""
    odd = list(odd_variables())
    if odd:
        return Finding(
            "environment", "warn", "; ".join(odd), "unset them in this shell, unless you mean them"
        )
    return Finding("environment", "ok", "nothing that changes what engines do")


def odd_variables() -> Iterator[str]:
    own = os.environ
    if own.get("PREFECT_PROFILE"):
        yield f"PREFECT_PROFILE={own['PREFECT_PROFILE']}: its server may be used"
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        if own.get(name):
            yield f"{name}={own[name]}: of another run's process"
    if own.get("MLFLOW_DISABLE_TELEMETRY", "true") != "true":
        yield f"MLFLOW_DISABLE_TELEMETRY={own['MLFLOW_DISABLE_TELEMETRY']}: MLflow knows true alone"
    if "RAY_ADDRESS" not in own and own.get("RAY_AUTH_MODE", "disabled") != "disabled":
        yield f"RAY_AUTH_MODE={own['RAY_AUTH_MODE']} without RAY_ADDRESS: an embedded Ray asks for a token"
    if own.get("PYTHONDONTWRITEBYTECODE"):
        yield "PYTHONDONTWRITEBYTECODE: each process compiles all that it imports, for seconds"
    proxies = [name for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY") if own.get(name)]
    direct = own.get("no_proxy", own.get("NO_PROXY", ""))
    if proxies and not any(name in direct for name in ("127.0.0.1", "*")):
        yield f"{proxies[0]} without 127.0.0.1 in no_proxy: servers on this machine are asked through the proxy"


def check_ports() -> Finding:
    """Whether the platform could be started."""
    if read_plan() is not None:
        return Finding("ports", "ok", "of the platform that was started here: ./convoy status")
    plan = section("platform", Plan, {})
    taken = [
        f"{port} ({name}) by {describe_holder(port)}"
        for name, port in plan.ports().items()
        if not is_free(plan.host, port)
    ]
    if taken:
        return Finding(
            "ports", "warn", f"taken: {'; '.join(taken)}",
            "./convoy up needs them: stop what has them, or choose others, as --set prefect_port=4201",
        )  # fmt: skip
    return Finding("ports", "ok", f"{', '.join(str(port) for port in plan.ports().values())} are free")


def check_platform() -> Finding:
    """What `up` started and is no more, or was never told to end."""
    advice = "./convoy up starts what is missing, ./convoy down ends the rest"
    plan = read_plan()
    left = processes.find(folder())
    if plan is None:
        if left:
            return Finding("platform", "warn", f"{len(left)} processes without a plan", "./convoy down")
        stale = (folder() / ENVIRONMENT_FILE).is_file()
        return (
            Finding("platform", "warn", f"{folder() / ENVIRONMENT_FILE} of one that is gone", "./convoy down")
            if stale
            else Finding("platform", "ok", "none was started; ./convoy up would")
        )
    dead = [service.title for service in SERVICES if not processes.is_kept(folder(), service.name)]
    if dead:
        return Finding("platform", "warn", f"does not run: {', '.join(dead)}", advice)
    return Finding("platform", "ok", f"runs, {len(left)} processes; ./convoy status")


def check_leftovers() -> Finding:
    """Shared memory, Ray's folders of logs and processes, and DVC's locks, of processes that have ended."""
    memory = [item.num_bytes for item in leftovers.left_memory()]
    sessions = list(leftovers.ended_sessions())
    told = [f"DVC's lock {item.path}: {item.why}" for item in leftovers.stale_dvc_lock()]
    if hung := list(leftovers.orphaned_processes()):
        told.append(f"{len(hung)} processes of Ray that have outlived them")
    if sum(memory) / 1e9 > LEFT_GB:
        told.append(f"{sum(memory) / 1e9:.1f} GB of shared memory ({leftovers.SHARED_MEMORY}/torch_PID_…)")
    if len(sessions) > LEFT_SESSIONS:
        told.append(f"{len(sessions)} sessions of Ray ({leftovers.RAY_SESSIONS}/session_…_PID)")
    if told:
        advice = "./convoy maintain lists them, and with --apply removes them"
        return Finding("leftovers", "warn", f"of processes that have ended: {', '.join(told)}", advice)
    return Finding("leftovers", "ok", "none that matter")


TRAPS = (
    check_fastapi, check_sqlite, check_torch, check_threads, check_open_files, check_home_disk, check_environment,
    check_leftovers, check_ports, check_platform,
)  # fmt: skip
