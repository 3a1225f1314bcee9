"""Where MLflow's records are, and a client that is ready to use them.

A server if MLFLOW_TRACKING_URI names one, else a SQLite file, which is made whole or not at all.
"""

import logging
import os
import threading
import urllib.error
import urllib.request
from functools import cache, wraps
from pathlib import Path
from typing import Any

import mlflow.telemetry
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories
from mlflow.store.artifact.host_policy import HOST_ADDRESSED_ARTIFACT_SCHEMES, host_addressed_uri_targets
from sqlalchemy.exc import SQLAlchemyError

from data.address import without_password
from data.files import locked, scratch
from data.hosts import ALLOWED, is_allowed, literal
from tasks.paths import home

PROBE_TIMEOUT_S, BRIEFLY_S = 10.0, 2.0

_connecting = threading.Lock()
_clients: dict[str, MlflowClient] = {}


def tracking_uri() -> str:
    """Where the records are: MLFLOW_TRACKING_URI, else SQLite in `home()`, with artifacts below `home()/mlflow`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def shown_uri() -> str:
    """`tracking_uri` as it may be shown and recorded: a database's has a password in it."""
    return without_password(tracking_uri())


def connect() -> MlflowClient:
    """Open the records, once per process and address; later calls answer at once. May be called from any thread.

    The first use of a home makes its SQLite file, which takes seconds: call this early, beside other work. Raises
    ConnectionError if a server does not answer, RuntimeError if the database cannot be used.
    """
    uri = tracking_uri()
    with _connecting:
        if uri not in _clients:
            _be_quiet()
            keep_to_server()
            if uri.startswith(("http:", "https:")):
                _probe(uri, PROBE_TIMEOUT_S)
            try:
                _clients[uri] = _open(uri) if uri.startswith(("http:", "https:")) else open_database(uri)
            except (MlflowException, SQLAlchemyError) as error:
                raise RuntimeError(
                    f"MLflow's records at {shown_uri()} cannot be opened: {first_line(error)}"
                ) from None
        return _clients[uri]


def aliases_of(name: str) -> dict[str, int]:
    """The versions of a registered model that have an alias; {} for one that is not there."""
    try:
        found = connect().get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {alias: int(version) for alias, version in found.items()}


def _be_quiet() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    mlflow.telemetry.set_telemetry_client()  # looks again: MLflow looked first when it was imported
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        for name in ("store.db.utils", "system_metrics.system_metrics_monitor"):
            # a page of traceback for what is raised too, or what costs no more than a sample
            logging.getLogger(f"mlflow.{name}").setLevel(logging.CRITICAL)


@cache
def keep_to_server() -> None:
    """Have this process's MLflow open files at its server's host alone, whatever a record says: see `require_own`.

    Nor does it go where an answer sends it to.
    """
    os.environ.setdefault("MLFLOW_ALLOW_HTTP_REDIRECTS", "false")
    openers = get_registered_artifact_repositories()
    openers |= {
        scheme: _of_own(openers[scheme]) for scheme in HOST_ADDRESSED_ARTIFACT_SCHEMES & openers.keys()
    }


def _of_own(opener: Any) -> Any:
    @wraps(opener)
    def opened(artifact_uri: str, *arguments: Any, **options: Any) -> Any:
        require_own(artifact_uri)
        return opener(artifact_uri, *arguments, **options)

    return opened


def require_own(place: str) -> None:
    """Raise ValueError where files lie at another host than MLflow's server, unless CONVOY_PRIVATE_URLS names that."""
    asked, own = (host_addressed_uri_targets(uri) or frozenset() for uri in (place, tracking_uri()))
    if not asked or asked & own:
        return
    [host] = {host for _scheme, host, _port in asked}
    if not is_allowed(host, literal(host)):
        raise ValueError(
            f"a record of MLflow's has its files at {host}, which is not its server ({shown_uri()}) and might be told "
            f"that server's password; if that is meant, allow it where this runs: {ALLOWED}={host}"
        )


def require_answer(timeout_s: float = BRIEFLY_S) -> None:
    """Raise ConnectionError where the records are on a server that is away, for what must not wait for it.

    One that is there and has too much to do is waited for, for so many seconds.
    """
    if tracking_uri().startswith(("http:", "https:")):
        _probe(tracking_uri(), timeout_s)


def _probe(uri: str, timeout_s: float) -> None:
    """Raise ConnectionError at once where MLflow's own client would try for minutes."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=timeout_s).close()
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in is for the first request to say
    except OSError as error:
        raise ConnectionError(
            f"MLflow at {shown_uri()} (MLFLOW_TRACKING_URI) does not answer: {getattr(error, 'reason', error)}; "
            "start that server, or unset MLFLOW_TRACKING_URI to keep records in a local file"
        ) from None


def _open(uri: str) -> MlflowClient:
    client = MlflowClient(uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    return client


def open_database(uri: str) -> MlflowClient:
    """Open the database at `uri`, whose tables are made first if they are not there.

    MLflow's migrations survive neither two processes at once nor a kill half-way. So one process makes them while the
    others of this home wait, and a SQLite file under another name.
    """
    file = Path(uri.removeprefix("sqlite:///"))
    cache = home() / ".cache"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "mlflow.lock"):
        if uri.startswith("sqlite:") and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            # one file system, so that replace is atomic
            beside = cache if file.parent == home() else file.parent
            with scratch("mlflow", beside) as folder:
                fresh = folder / "mlflow.db"
                _open(f"sqlite:///{fresh}")
                fresh.replace(file)
        return _open(uri)


def first_line(error: Exception) -> str:
    """An engine's message without what it appends: SQL, links, traces; and without passwords of addresses."""
    return without_password((str(error).strip().splitlines() or [type(error).__name__])[0])
