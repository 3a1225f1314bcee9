"""`./convoy doctor`: can this machine run everything, and if not, what to do.

Each check is a function that returns one finding; none changes anything, and none reaches beyond the addresses
that the environment names.
"""

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import torch

from data.address import without_password
from data.dataset import list_names
from pipelines.configuration import configuration
from pipelines.finding import Finding
from pipelines.homefolder import why_unwritable
from pipelines.options import Json
from pipelines.parameters import recipes
from pipelines.render import emit, table
from pipelines.traps import TRAPS
from tasks import versioning
from tasks.families import FAMILIES
from tasks.paths import ROOT, home, store
from tasks.precision import resolve_precision

FREE_GB = 5.0  # below it a run may not end: checkpoints, MLflow's copies, Ray's spilled objects
SHARED_MEMORY_GB = 1.0
CONNECT_S = 3.0


def doctor(*, as_json: Json = False) -> int:
    """Check that this machine can run everything: versions, disk, memory, servers, settings, leftovers, datasets."""
    findings = [check() for check in CHECKS]
    rows = [(finding.state, finding.check, finding.seen, finding.advice) for finding in findings]
    healthy = all(finding.state != "fail" for finding in findings)
    document = {"healthy": healthy, "findings": [asdict(finding) for finding in findings]}
    emit(document, [table("", ("", "check", "seen", "what to do"), rows)], as_json)
    return int(not healthy)


def check_python() -> Finding:
    seen = f"Python {platform.python_version()} at {sys.executable}"
    if Path(sys.prefix) != ROOT / ".venv":
        return Finding(
            "python", "warn", seen, "this is not the checkout's .venv; start commands with ./convoy"
        )
    return Finding("python", "ok", seen)


def locked_versions(lock: Path) -> dict[str, str]:
    """Names and versions that a lock file pins."""
    lines = [line.strip() for line in lock.read_text().splitlines()]
    pairs = [line.split("==", 1) for line in lines if "==" in line and not line.startswith("#")]
    return dict(pairs)


def check_packages() -> Finding:
    """Local versions (2.13.0+cpu) are the same release as the pinned one."""
    wrong = []
    pinned = locked_versions(ROOT / "requirements.lock")
    for name, number in pinned.items():
        try:
            have = version(name).partition("+")[0]
        except PackageNotFoundError:
            have = "absent"
        if have != number.partition("+")[0]:
            wrong.append(f"{name} {have} (lock: {number})")
    if wrong:
        return Finding(
            "packages", "fail", ", ".join(wrong[:5]), "rm .venv/.convoy-lock && ./convoy --install"
        )
    return Finding("packages", "ok", f"{len(pinned)} as in requirements.lock")


def check_processor() -> Finding:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores, no GPU"
    precision = str(resolve_precision("auto", device)).removeprefix("torch.")
    return Finding("processor", "ok", f"{name}; precision auto is {precision}")


def check_disk() -> Finding:
    folder = home()
    while not folder.exists():
        folder = folder.parent
    free_gb = shutil.disk_usage(folder).free / 1e9
    seen = f"{free_gb:.1f} GB free for {home()}"
    if free_gb < FREE_GB:
        return Finding("disk", "fail", seen, f"free {FREE_GB:g} GB, or set CONVOY_HOME to a folder elsewhere")
    return Finding("disk", "ok", seen)


def check_writable() -> Finding:
    if reason := why_unwritable():
        advice = "make it writable, or set CONVOY_HOME to one that is"
        return Finding("home folder", "fail", f"{home()}: {reason}", advice)
    return Finding("home folder", "ok", f"{home()} can be written to")


def check_shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "ok", "no /dev/shm here; Ray uses the temporary folder")
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < SHARED_MEMORY_GB:
        advice = "Ray keeps decoded images there; in a container, start it with --shm-size=4g"
        return Finding("shared memory", "warn", f"{free_gb:.2f} GB free in /dev/shm", advice)
    return Finding("shared memory", "ok", f"{free_gb:.1f} GB free in /dev/shm")


def check_git() -> Finding:
    if shutil.which("git") is None:
        return Finding("git", "warn", "no git", "install it: runs cannot name the code they were made with")
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        return Finding("git", "warn", "no commit here", "runs cannot name the code they were made with")
    return Finding("git", "ok", f"at commit {answer.stdout.strip()}")


def check_parameters() -> Finding:
    try:
        names = [
            f"{family} {name}" for family in FAMILIES for name in recipes(family)
            if configuration(family, "any", name, {})
        ]  # fmt: skip
    except ValueError as error:
        return Finding("params.yaml", "fail", str(error), "mend it, or restore it: git checkout params.yaml")
    return Finding("params.yaml", "ok", f"{len(names)} recipes: {', '.join(names)}")


def check_datasets() -> Finding:
    names = list_names(store())
    if not names:
        return Finding("datasets", "ok", f"none in {store()} yet", "./convoy data add, or ./convoy demo")
    untracked = [name for name in names if not versioning.is_tracked(store() / name)]
    if untracked:
        advice = versioning.advice(store() / untracked[0])
        return Finding("datasets", "warn", f"not tracked by DVC: {', '.join(untracked)}", advice)
    return Finding("datasets", "ok", ", ".join(names))


def check_ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        return Finding("Ray", "ok", "embedded, started by each command (RAY_ADDRESS is not set)")
    if ":" not in address:  # "auto" and "local" name no place to knock at
        return Finding("Ray", "ok", f"RAY_ADDRESS={address}; not tried")
    return check_address("Ray", "RAY_ADDRESS", address, 6379, "ray start --head")


def check_prefect() -> Finding:
    address = os.environ.get("PREFECT_API_URL")
    if address is None:
        return Finding("Prefect", "ok", "a server of its own for each command (PREFECT_API_URL is not set)")
    return check_address("Prefect", "PREFECT_API_URL", address, 4200, "prefect server start")


def check_mlflow() -> Finding:
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if address is None:
        return Finding("MLflow", "ok", f"SQLite at {home() / 'mlflow.db'} (MLFLOW_TRACKING_URI is not set)")
    if not address.startswith(("http://", "https://")):
        return Finding("MLflow", "ok", f"MLFLOW_TRACKING_URI={without_password(address)}")
    return check_address("MLflow", "MLFLOW_TRACKING_URI", address, 5000, "mlflow server")


def check_address(name: str, variable: str, address: str, port: int, start: str) -> Finding:
    """Whether anything listens at the address that an environment variable gives."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        target = (parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme == "https" else port))
        with socket.create_connection(target, timeout=CONNECT_S):
            return Finding(name, "ok", f"answers at {variable}={address}")
    except (OSError, ValueError) as error:
        advice = f"start it ({start}), correct {variable}, or unset it to do without"
        return Finding(name, "fail", f"nothing answers at {variable}={address}: {error}", advice)


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python, check_packages, check_processor, check_disk, check_writable, check_shared_memory, check_git,
    check_parameters, check_datasets, check_ray, check_prefect, check_mlflow, *TRAPS,
)  # fmt: skip
