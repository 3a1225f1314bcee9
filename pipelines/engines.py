"""Starts the engines beside each other, and beside our imports."""

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator

from pipelines import server
from pipelines.families import Executor

SIGACTION_BYTES = 512  # more than the structure has anywhere

_ray: threading.Thread | None = None


def start_engines(executor: Executor) -> None:
    """Start Prefect's server and Ray, unless they are there; returns at once.

    The server needs five seconds, Ray four, and our imports three. To be called before Prefect is imported.
    """
    server.start()
    if executor == "ray":
        start_ray()


def start_ray() -> None:
    """Connect to Ray in a thread; returns at once."""
    global _ray
    if _ray is None or not _ray.is_alive():
        _ray = threading.Thread(target=keep_ray, name="ray", daemon=True)
        _ray.start()


@contextlib.contextmanager
def same_handler(number: signal.Signals) -> Iterator[None]:
    """Put the process's handler of a signal back at the end.

    Ray's core installs one of its own that aborts, in whatever thread it starts, and Python can set handlers in the
    main thread alone: hence the C library's own call. The structure is only kept, never looked into.
    """
    library = ctypes.CDLL(None)
    action = ctypes.create_string_buffer(SIGACTION_BYTES)
    library.sigaction(int(number), None, action)
    try:
        yield
    finally:
        library.sigaction(int(number), action, None)


def keep_ray() -> None:
    """Connect, and stay; where connecting fails, training tries again and says why."""
    from tasks.cluster import connect

    with contextlib.suppress(Exception):
        with same_handler(signal.SIGTERM):
            connect()
        # The kernel ends Ray's processes with the thread that started them, so this one must not end.
        threading.Event().wait()
