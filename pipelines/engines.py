"""Starts the engines beside each other, and beside our imports."""

import contextlib
import threading

from pipelines import server
from pipelines.families import Executor

_ray: threading.Thread | None = None


def start_engines(executor: Executor) -> None:
    """Start Prefect's server and Ray, unless they are there; returns at once.

    The server needs five seconds, Ray four, and our imports three. To be called before Prefect is imported.
    """
    server.start()
    if executor == "ray":
        start_ray()


def start_ray() -> None:
    """Connect to Ray in a thread, outside of which Ray would take over the signal handlers; returns at once."""
    global _ray
    if _ray is None or not _ray.is_alive():
        _ray = threading.Thread(target=keep_ray, name="ray", daemon=True)
        _ray.start()


def keep_ray() -> None:
    """Connect, and stay; where connecting fails, training tries again and says why."""
    from tasks.cluster import connect

    with contextlib.suppress(Exception):
        connect()
        # The kernel ends Ray's processes with the thread that started them, so this one must not end.
        threading.Event().wait()
