"""The environment that the engines read when they are imported: quiet, private, and below one home folder.

`prepare` runs before anything that imports Prefect, Ray, MLflow or DVC. What a person has set already stays. It writes
nothing: commands that only read work where nothing may be written.
"""

import os
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pipelines.homefolder import unwritable_home
from tasks.paths import home

STARTED_AT = time.time()  # `__main__` imports this first: close to when a person pressed Enter

SETTINGS = {
    # Logs go to Prefect's server, where its UI shows them; the terminal has our own progress and errors.
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The ephemeral server needs 5 s on a quiet machine, and more than the default 20 s on a busy one.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "DO_NOT_TRACK": "true",
    # Threads of torch that wait should spin for some 0.3 ms, as long as a small operation takes, and then sleep.
    # Sleeping at once, LeNet-5 trains at half the speed on two idle cores; spinning for long, as is the default, they
    # keep each other from the processor when others work on it too (LeNet-5 at a load of 10: 85 images/s, not 1,785).
    "GOMP_SPINCOUNT": "30000",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server that is started again is waited for, for a minute; by default it would be four, several times over.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "DVC_NO_ANALYTICS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def prepare() -> None:
    """Fill in the settings that are not set, for this process and its children."""
    part_credentials()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_HOME", str(home() / ".prefect"))


def part_credentials() -> None:
    """Take users and passwords out of the servers' addresses, to where the engines look for them.

    An address is shown, logged and recorded with runs; these variables are not.
    """
    address, user, password = parted(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if user:
        os.environ["MLFLOW_TRACKING_URI"] = address
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = user, password
    address, user, password = parted(os.environ.get("PREFECT_API_URL", ""))
    if user:
        os.environ["PREFECT_API_URL"] = address
        os.environ["PREFECT_API_AUTH_STRING"] = f"{user}:{password}"


def parted(url: str) -> tuple[str, str, str]:
    """An http address without user and password, and these two; "" where there are none."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https") or not at:
        return url, "", ""
    name, _, password = user.partition(":")
    return urlunsplit(parts._replace(netloc=host)), unquote(name), unquote(password)


def make_prefect_home() -> None:
    """Make the folder in which Prefect keeps its record; to be called before it is imported, when a flow is to run.

    Raises a ValueError where it cannot be made. Prefect itself would go on without it, and fail later.
    """
    folder = Path(os.environ["PREFECT_HOME"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        own = f"PREFECT_HOME (={folder}) cannot be made ({error.strerror}); set it to a folder that can"
        raise ValueError(unwritable_home(error) or own) from error
