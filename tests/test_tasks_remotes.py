"""DVC remotes of SSH and S3, against servers of their own: what was pushed there comes back in another checkout."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import asyncssh
import pytest

from tasks import versioning
from tasks.folders import Place, open_source, places_of, read_items
from tasks.paths import ROOT

KEYS = {"AWS_ACCESS_KEY_ID": "name", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two checkouts; the first is the current one."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "one"))
    return tmp_path / "one", tmp_path / "two"


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """The address of an object store with the bucket `photos`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, **KEYS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urlopen(Request(f"{url}/photos", method="PUT"), timeout=10).close()
                break
            except OSError:
                assert server.poll() is None, "moto's server ended"
                assert time.monotonic() < deadline, "moto's server does not answer"
                time.sleep(0.2)
        yield url
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def ssh_port() -> Iterator[int]:
    """The port of an SSH server that serves files to `someone`, whose password is `hush`."""

    class Door(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:  # noqa: ARG002
            return True

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return (username, password) == ("someone", "hush")

    loop = asyncio.new_event_loop()
    started: threading.Event = threading.Event()
    found: dict[str, int] = {}

    async def serve() -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")
        server = await asyncssh.create_server(
            Door, "127.0.0.1", 0, server_host_keys=[key], sftp_factory=True, encoding=None
        )
        found["port"] = server.get_port()
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            await server.wait_closed()

    task: list[asyncio.Task[None]] = []

    def run() -> None:
        asyncio.set_event_loop(loop)
        task.append(loop.create_task(serve()))
        try:
            loop.run_until_complete(task[0])
        except asyncio.CancelledError:
            pass
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(30)
    yield found["port"]
    loop.call_soon_threadsafe(task[0].cancel)
    thread.join(30)


def make_folder(home: Path) -> Path:
    folder = home / "data" / "store" / "set"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"name": "set"}))
    (folder / "train-0.parquet").write_bytes(os.urandom(300_000))
    return folder


def require_round_trip(
    homes: tuple[Path, Path], url: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first checkout pushes, the second, which has nothing in its cache, gets byte for byte."""
    one, two = homes
    folder = make_folder(one)
    recorded = versioning.save(folder)
    versioning.set_remote(url, options, local=True)
    assert versioning.push([recorded]) == 3  # two files, and the list of them
    assert versioning.push([recorded]) == 0
    monkeypatch.setenv("CONVOY_HOME", str(two))
    make_folder(two)  # makes a repository of DVC there
    versioning.save(two / "data" / "store" / "set")
    versioning.set_remote(url, options, local=True)
    target = two / "restored"
    target.mkdir()
    versioning.restore(recorded, target)
    assert versioning.measure(target) == recorded
    assert (target / "train-0.parquet").read_bytes() == (folder / "train-0.parquet").read_bytes()


def test_an_s3_remote_gives_back_what_was_pushed(
    homes: tuple[Path, Path], s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    require_round_trip(homes, "s3://photos/convoy", {"endpointurl": s3_url}, monkeypatch)


def test_an_s3_remote_without_its_bucket_is_one_line(
    homes: tuple[Path, Path], s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    recorded = versioning.save(make_folder(homes[0]))
    versioning.set_remote("s3://nowhere/convoy", {"endpointurl": s3_url}, local=True)
    with pytest.raises(
        RuntimeError, match=r"remote s3://nowhere/convoy is not to be reached: .*(?i:bucket)"
    ) as caught:
        versioning.push([recorded])
    assert "\n" not in str(caught.value)


def test_an_ssh_remote_gives_back_what_was_pushed(
    homes: tuple[Path, Path], ssh_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"port": str(ssh_port), "password": "hush"}
    require_round_trip(homes, f"ssh://someone@127.0.0.1{tmp_path}/remote", options, monkeypatch)
    assert "hush" not in (homes[0] / ".dvc" / "config").read_text()


def test_an_ssh_remote_that_refuses_the_password_is_one_line(
    homes: tuple[Path, Path], ssh_port: int, tmp_path: Path
) -> None:
    recorded = versioning.save(make_folder(homes[0]))
    options = {"port": str(ssh_port), "password": "wrong"}
    versioning.set_remote(f"ssh://someone@127.0.0.1{tmp_path}/remote", options, local=True)
    with pytest.raises(
        RuntimeError,
        match=r"remote ssh://someone@127\.0\.0\.1.* refuses the password or key; set it: \./convoy",
    ):
        versioning.push([recorded])


def test_a_bucket_is_listed_and_read(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3_url}.items():
        monkeypatch.setenv(name, value)
    odd = "new/50% a#b?.png"
    for name in ("new/b.png", "new/deep/a.png", odd, "new/notes.txt", "newer/c.png"):
        kind = {"Content-Type": "application/octet-stream"}
        urlopen(
            Request(f"{s3_url}/photos/{quote(name)}", name.encode(), kind, method="PUT"), timeout=10
        ).close()
    source = open_source("s3://photos/new")
    places = places_of(source, frozenset({".png"}))
    assert [place.name for place in places] == ["50% a#b?.png", "b.png", "deep/a.png"]
    blobs, faults = read_items(source, [*places, Place("gone.png", 3)])
    assert faults[:3] == [None] * 3
    assert blobs[:3] == [odd.encode(), b"new/b.png", b"new/deep/a.png"]
    assert "there is no such object" in str(faults[3])
    with pytest.raises(ValueError, match="there is no such bucket"):
        places_of(open_source("s3://nobodys/new"), frozenset({".png"}))
