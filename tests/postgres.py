"""A PostgreSQL of a test's own: a cluster in a temporary folder, on a free port, that is gone at the end.

Debian's programs, the newest, or those in PATH. They refuse to run as root, who starts them as `postgres` or `nobody`.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

START_S = 60.0
USERS = ("postgres", "nobody")
DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class Postgres:
    """A server that runs, with a database for each engine."""

    port: int
    password: str

    def url(self, database: str, driver: str = "") -> str:
        """A database's URL; `driver` as SQLAlchemy names it."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://convoy:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def mlflow(self) -> str:
        return self.url("mlflow", "psycopg")

    @property
    def prefect(self) -> str:
        return self.url("prefect", "asyncpg")

    def query(self, database: str, text: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(text)  # type: ignore[call-overload]
            return list(cursor.fetchall()) if cursor.description else []

    def size(self, database: str) -> int:
        """Bytes that a database takes."""
        [(size,)] = self.query(database, f"select pg_database_size('{database}')")
        return int(size)


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, None where there are none."""
    known = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda file: int(file.parts[-3].split(".")[0]))
    found = known[-1] if known else shutil.which("initdb")
    return Path(found).parent if found and (Path(found).parent / "postgres").exists() else None


def other_user() -> str | None:
    """Who is to run it where we are root; None where we are not."""
    if os.geteuid():
        return None
    there = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in USERS if name in there)


needs_postgres = pytest.mark.skipif(
    programs() is None,
    reason="PostgreSQL's programs (initdb, postgres) are neither in /usr/lib/postgresql nor in PATH",
)


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """A cluster with the empty databases `mlflow` and `prefect`, until the end of the block."""
    place, user = programs(), other_user()
    assert place is not None
    folder = Path(tempfile.mkdtemp(prefix="convoy-postgres-", dir="/tmp"))  # which another user can reach
    folder.chmod(0o755)
    secret, log = folder / "password", folder / "log"
    secret.write_text(secrets.token_hex(8))
    if user is not None:
        for each in (folder, secret):
            shutil.chown(each, user)
    as_user: dict[str, Any] = {"user": user, "cwd": folder} if user else {"cwd": folder}
    try:
        with log.open("wb") as said:
            subprocess.run(
                [place / "initdb", "-D", folder / "data", "-U", "convoy", "-A", "scram-sha-256", "-E", "UTF8",
                 "--locale=C", "--no-sync", f"--pwfile={secret}"],
                check=True, stdout=said, stderr=said, **as_user,
            )  # fmt: skip
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = int(probe.getsockname()[1])
            options = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", f"port={port}")
            server = subprocess.Popen(
                [place / "postgres", "-D", folder / "data", *(word for text in options for word in ("-c", text))],
                stdout=said, stderr=said, start_new_session=True, **as_user,
            )  # fmt: skip
        try:
            postgres = Postgres(port, secret.read_text())
            wait_until_it_answers(postgres, server, log)
            for name in ("mlflow", "prefect"):
                postgres.query("postgres", f"create database {name}")
            yield postgres
        finally:
            server.send_signal(signal.SIGINT)  # a "fast" shutdown: clients are not waited for
            server.wait(30)
    finally:
        shutil.rmtree(folder)


def wait_until_it_answers(postgres: Postgres, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end_s = time.monotonic() + START_S
    while True:
        try:
            postgres.query("postgres", "select 1")
            return
        except psycopg.OperationalError:
            assert server.poll() is None and time.monotonic() < end_s, log.read_text()
            time.sleep(0.1)
