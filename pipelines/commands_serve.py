"""`./convoy serve`: a model over HTTP."""

import time
from contextlib import ExitStack
from typing import Annotated, Any

from cyclopts import Parameter

from data.address import is_loopback
from pipelines.options import Changes
from pipelines.parameters import parse_changes, section
from pipelines.render import ConsoleReporter
from tasks import registry
from tasks.serveconfig import ServeConfig

LISTEN_EVERY_S = 0.5


def serve(
    model: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    record: Annotated[bool, Parameter(negative=())] = False,
    changes: Changes = None,
) -> None:
    """Answer predictions over HTTP, and follow the model's alias: a new champion takes over without a lost request.

    Example: ./convoy serve models:/classifier-digits@champion
    Then: curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
    Ctrl-C ends it; what was taken is answered first.

    Parameters
    ----------
    model
        A registered model (models:/NAME@ALIAS follows the alias, models:/NAME/VERSION stays), a run key, or a folder.
    host
        Where to listen. Only this machine reaches the loopback; nobody is asked for a password.
    port
        Likewise.
    record
        Keep features of what is asked, and no picture, below recordings/, for ./convoy drift.
    changes
        A parameter of section `serve` of params.yaml, such as max_requests=8.
    """
    config = section("serve", ServeConfig, parse_changes(changes or []))
    if not 1 <= port <= 65535:
        raise ValueError(f"--port (={port}) must lie in 1…65535")
    registry.resolve_model(model)  # what is wrong with it is told before anything starts
    serve_until_stopped(model, config, host, port, record)


def serve_until_stopped(model: str, config: ServeConfig, host: str, port: int, record: bool) -> None:
    """Serve, say what happens on stderr, and end with the signal that ends the process."""
    # Only now, for Ray and torch take seconds.
    from tasks.cluster import disconnect, untold
    from tasks.recordings import RecordConfig
    from tasks.serve import serving

    reporter = ConsoleReporter()
    keep = section("record", RecordConfig, {}) if record else None
    with ExitStack() as ending:
        try:
            with serving(model, config, keep, host, port) as server:
                try:
                    reporter.note(
                        f"{model} answers at {server.address} (POST /predict, GET /version); Ctrl-C ends it"
                    )
                    if not is_loopback(host):
                        reporter.note(
                            f"{host} is not the loopback: whoever reaches it may ask, and nobody is asked who"
                        )
                    tell(server, reporter)
                finally:
                    reporter.note("stopping: what was taken is answered first")
                    # Serve's controller ends itself when it is told to, which Ray reports as a failure.
                    ending.enter_context(untold())
        finally:
            disconnect()


def tell(server: Any, reporter: ConsoleReporter) -> None:
    """Say what the replicas say, until a signal ends it."""
    while True:
        for note in server.notes():
            reporter.note(note)
        time.sleep(LISTEN_EVERY_S)
