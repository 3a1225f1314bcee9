"""A Prefect server for one command, where there is no other: it starts beside our imports, and dies with us.

Prefect would start one itself, but only when the flow is called (five seconds later than here), in our process
group (Ctrl-C would end it before the flow has said goodbye to it), and it would outlive us if we were killed.
"""

import atexit
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from data.files import locked
from pipelines import environment
from tasks.paths import ROOT

START_TIMEOUT_S = 600.0  # five seconds on a quiet machine; minutes where twenty commands start on two cores
STOP_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 10.0

_server: subprocess.Popen[bytes] | None = None


def start() -> None:
    """Start a server and point PREFECT_API_URL at it, unless one is configured. Returns at once.

    To be called before Prefect is imported, since it reads its settings then. Raises ConnectionError where the
    configured one does not answer.
    """
    global _server
    environment.make_prefect_home()
    if _server is not None:
        return
    if is_named():
        require_answer()
        return
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    with socket.create_server(("127.0.0.1", 0)) as listener, log_file().open("wb") as log:
        # The child gets the listening socket itself: no other process can take the port in between. Its standard
        # input is the lifeline: it ends when we do, however that happens.
        _server = subprocess.Popen(
            [sys.executable, "-m", "pipelines.server", str(listener.fileno())],
            stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[listener.fileno()], start_new_session=True,
            # no web page's script is to call it, as Prefect would allow
            env={**os.environ, "PYTHONPATH": path, "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://127.0.0.1"},
        )  # fmt: skip
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
    atexit.register(stop)


def log_file() -> Path:
    """What the newest server has to say, which is nothing while all is well."""
    return Path(os.environ["PREFECT_HOME"]) / "server.log"


def has_profile() -> bool:
    """Whether a Prefect profile may name a server; Prefect reads it itself."""
    return (Path(os.environ["PREFECT_HOME"]) / "profiles.toml").is_file()


def is_named() -> bool:
    """Whether the environment, or a profile, names a server of somebody's that stays."""
    return "PREFECT_API_URL" in os.environ or has_profile()


def require_answer() -> None:
    """Raise ConnectionError at once where Prefect's client would ask PREFECT_API_URL in vain for most of a minute."""
    if "PREFECT_API_URL" not in os.environ:  # a profile's, which Prefect alone reads
        return
    url = os.environ["PREFECT_API_URL"]
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in is for the first request to say
    except TimeoutError:
        return  # it took the connection, and is busy: Prefect's client waits longer
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # Prefect has settings of its own for whom to trust
        raise ConnectionError(
            f"Prefect at {url} (PREFECT_API_URL) does not answer: {reason}; start that server, or unset "
            "PREFECT_API_URL: the command then starts one of its own"
        ) from None


def wait() -> None:
    """Return when the server that `start` started answers; raises RuntimeError if it ended or takes too long."""
    if _server is None:
        return
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s:
        if _server.poll() is not None:
            raise RuntimeError(
                f"Prefect's server ended while it started (code {_server.returncode}); {log_file()} says why; "
                "or set PREFECT_API_URL to a server that runs"
            )
        try:
            with urllib.request.urlopen(f"{os.environ['PREFECT_API_URL']}/health", timeout=10):
                return
        except OSError:  # not there yet, or not ready
            time.sleep(0.05)
    raise RuntimeError(f"Prefect's server does not answer after {START_TIMEOUT_S:.0f} s")


def stop() -> None:
    """End the server that `start` started; waits until it has written what it was told."""
    global _server
    server, _server = _server, None
    if server is None:
        return
    del os.environ["PREFECT_API_URL"]
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def end_with_parent() -> None:
    """Ask this process to stop when standard input closes: when the parent closes it, or is no more."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def serve(listener: int) -> None:
    """The child: Prefect's API on an inherited socket. Without UI and schedules, for nobody would see them."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    import uvicorn  # after the thread: a parent that ends at once is noticed during these seconds
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        """Makes the tables, or brings them up to date, while no other server of this home does: Prefect has no lock."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            with locked(log_file().with_name("server.lock")):
                await super().startup(sockets)

    app = create_app(ephemeral=True, final=True)
    config = uvicorn.Config(
        app, fd=listener, log_level="critical", lifespan="on", timeout_graceful_shutdown=2
    )
    Server(config).run()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
