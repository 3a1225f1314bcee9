"""Commands use the platform that `./convoy up` started below the same home folder, without being told.

`up` leaves the addresses of its servers in `.platform/env.sh`; `adopt` fills in those that the shell has not set. It is
for the command line: a flow that a worker runs has them from the worker. CONVOY_PLATFORM=off keeps a command to itself.
"""

import os
import shlex
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tasks.paths import home

ENVIRONMENT_FILE = "env.sh"
SWITCH = "CONVOY_PLATFORM"
ANSWER_S = 1.0
SERVERS = {"PREFECT_API_URL": "Prefect", "MLFLOW_TRACKING_URI": "MLflow", "RAY_ADDRESS": "Ray"}


def folder() -> Path:
    """Where the platform keeps its plan, records and logs."""
    return home() / ".platform"


def adopt() -> None:
    """Point this process at the platform, unless it is switched off, or one of its servers does not answer.

    A server that is away is said on stderr; then the command runs as if there were no platform. Raises ValueError for
    a switch that is none.
    """
    switch = os.environ.get(SWITCH, "auto")
    if switch not in ("auto", "off"):
        raise ValueError(f"{SWITCH} (={switch}) must be auto (use a platform that runs) or off")
    file = folder() / ENVIRONMENT_FILE
    if switch == "off" or not file.is_file():
        return
    values = {name: value for name, value in read_exports(file).items() if name not in os.environ}
    away = [
        f"{SERVERS[name]} ({value})"
        for name, value in values.items()
        if name in SERVERS and not listens(value)
    ]
    if away:
        sys.stderr.write(
            f"convoy: the platform of {folder()} is not all there, so this command runs without it: "
            f"{', '.join(away)} does not answer; mend it by ./convoy up, or end it by ./convoy down\n"
        )
        return
    os.environ.update(values)


def server_away() -> str:
    """A sentence that says which server of this process does not answer any more, and what to do; "" for none.

    For a command that failed: the engines tell that in many ways, and few of them name the server.
    """
    away = [
        f"{title} ({os.environ[name]})"
        for name, title in SERVERS.items()
        if "://" in os.environ.get(name, "") and not listens(os.environ[name])
    ]
    if not away:
        return ""
    return (
        f"{', '.join(away)} does not answer any more: start it again where it is a server of yours (./convoy up), and "
        "go on: a run that had a key by --resume KEY, anything else by the same command"
    )


def read_exports(file: Path) -> dict[str, str]:
    """The variables that a file of `export NAME=value` lines sets."""
    words = [shlex.split(line, comments=True) for line in file.read_text().splitlines()]
    pairs = [line[1].partition("=") for line in words if len(line) == 2 and line[0] == "export"]
    return {name: value for name, _, value in pairs}


def listens(address: str) -> bool:
    """Whether anything takes connections at a URL, or at host:port."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True
