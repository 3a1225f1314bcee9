"""What opens a door is in the environment, in addresses and in parameters, and in nothing that we write or say."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.address import has_secret, public_url, without_password
from data.parameters import Parameters
from pipelines import environment
from pipelines.ingestion import ingest_dataset
from pipelines.render import document_text
from pipelines.reporting import shown
from tasks.detection import DetectionTransfer
from tasks.faces import FaceTransfer
from tasks.paths import ROOT
from tasks.recordstore import shown_uri
from tasks.styleconfig import StyleNetConfig
from tasks.transfer import TransferConfig
from tests.corpus import pack
from tests.pictures import class_tree
from tests.platforms import tiny_changes
from tests.servers import Site, serve

HUSH = "h0sh-h0sh"  # begins every secret; found nowhere else
SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": f"{HUSH}-mlflow",
    "MLFLOW_TRACKING_TOKEN": f"{HUSH}-token",
    "AWS_ACCESS_KEY_ID": f"{HUSH}-id",
    "AWS_SECRET_ACCESS_KEY": f"{HUSH}-aws",
    "AWS_SESSION_TOKEN": f"{HUSH}-session",
    "PREFECT_API_KEY": f"{HUSH}-prefect",
    "RAY_AUTH_TOKEN": f"{HUSH}-ray",
    "CONVOY_WEBHOOK_URL": f"http://127.0.0.1:9/{HUSH}-webhook",
    "CONVOY_PREFECT_DATABASE": f"postgresql://me:{HUSH}-db@127.0.0.1:9/prefect",
    "CONVOY_MLFLOW_DATABASE": f"postgresql://me:{HUSH}-db@127.0.0.1:9/mlflow",
    "https_proxy": f"http://me:{HUSH}-proxy@127.0.0.1:9",
    "no_proxy": "127.0.0.1,localhost",
    "GITHUB_TOKEN": f"{HUSH}-github",
    "HF_TOKEN": f"{HUSH}-hf",
}
DOORS = [
    "https://me:hush@example.org/w.pth#sha256=0",
    "https://token@example.org/w.pth",
    "https://example.org/w.pth?X-Amz-Signature=hush&X-Amz-Credential=me",
    "https://example.org/w.pth?token=hush#sha256=0",
    "https://example.org/w.pth?code=hush",
    "https://example.org/w.pth?v=2&pwd=hush",
    "https://example.org/w.pth?pass=hush",
    "https://example.org/w.pth?jwt=hush",
]


# in parameters, which are recorded


@pytest.mark.parametrize("url", DOORS)
@pytest.mark.parametrize("section", [TransferConfig, DetectionTransfer, FaceTransfer, StyleNetConfig])
def test_a_url_in_parameters_may_not_hold_a_secret_and_the_refusal_does_not_say_it(
    section: type[Parameters], url: str
) -> None:
    with pytest.raises(
        ValueError, match=r"weights \(='https://example\.org/w\.pth.*parameters are recorded"
    ) as caught:
        section.parse({"weights": url}, "transfer")
    assert "hush" not in str(caught.value) and "token@" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["w.pth", "package:lpips", "https://example.org/w.pth?v=2#sha256=0", "C:/w.pth", ""]
)
def test_a_source_without_a_secret_stands_as_it_was_given(source: str) -> None:
    assert not has_secret(source)


@given(st.from_regex(r"https?://[a-z]{1,9}(:[0-9]{1,4})?/[a-z/]{0,9}(\?[a-z&=]{0,20})?", fullmatch=True))
def test_a_public_url_has_no_secret(url: str) -> None:
    assert not has_secret(public_url(url))


def test_a_flow_is_not_given_a_source_with_a_password() -> None:
    with pytest.raises(
        ValueError, match=r"source \(=https://example\.org/x\.tar\): Prefect keeps what a flow is given"
    ):
        ingest_dataset.fn("https://me:hush@example.org/x.tar", "x", "classification")


# in addresses


def test_an_address_is_parted_from_its_user_and_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:p%40ss@mlflow.example:5000/x")
    monkeypatch.setenv("PREFECT_API_URL", "http://bob:hush@prefect.example/api")
    environment.part_credentials()
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://mlflow.example:5000/x"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ann", "p@ss")
    assert os.environ["PREFECT_API_URL"] == "http://prefect.example/api"
    assert os.environ["PREFECT_API_AUTH_STRING"] == "bob:hush"
    environment.part_credentials()  # again, in a child
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "p@ss"


@pytest.mark.parametrize("uri", ["", "sqlite:////home/a@b/mlflow.db", "databricks", "http://127.0.0.1:5000"])
def test_an_address_without_user_stays(uri: str) -> None:
    assert environment.parted(uri) == (uri, "", "")


def test_a_database_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:hu@sh@db.example/mlflow")
    assert shown_uri() == "postgresql://ann:…@db.example/mlflow"
    assert without_password("sqlite:////home/a:b@c/mlflow.db") == "sqlite:////home/a:b@c/mlflow.db"
    assert without_password("GET https://t0ken@example.org/x: 401") == "GET https://…@example.org/x: 401"


def test_a_name_does_not_steer_the_terminal() -> None:
    assert shown("a\x1b]0;owned\x07\x9b31m.png") == "a\\x1b]0;owned\\x07\\x9b31m.png"
    assert shown(os.fsdecode(b"caf\xe9.png")) == "caf\\udce9.png"
    assert shown("images.\u2028.x\u2029") == "images.\\u2028.x\\u2029"  # which begin a line
    assert shown("gnp.\u202eexe") == "gnp.\\u202eexe"
    assert shown("é 日本\n\tx") == "é 日本\n\tx"


def test_what_a_command_says_has_no_password_with_debug_and_json_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pipelines.commands import complain

    url = "postgresql://ann:hush@db.example/x"
    try:
        raise ValueError(f"{url} \x1b[31mowned")
    except ValueError:
        assert complain(f"no {url}", 1, debug=True) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and r"//ann:…@db.example/x \x1b[31mowned" in said
    assert "hush" not in said and "\x1b" not in said
    document = {"url": url, "all": [url], "path": Path("a:b@c"), "number": 1, "is": True}
    assert json.loads(document_text(document)) == {
        "url": shown(url), "all": [shown(url)], "path": "a:b@c", "number": 1, "is": True,
    }  # fmt: skip


# in all that is written and said from a picture to a champion


@pytest.fixture
def tracking(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server, by an address with a user and a password, which it does not ask for."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path / "home" / "server"  # so that it is searched too
    folder.mkdir(parents=True)
    command = [
        sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **quiet}, cwd=folder, start_new_session=True, stdout=log, stderr=log
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://ann:{HUSH}-uri@127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + 180
    while True:
        assert process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < end_s
            time.sleep(0.3)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sessions: a short path, for its sockets lie there."""
    folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def chain(site: Site) -> list[tuple[str, ...]]:
    """The commands from a picture to a champion, and those that look at what became of it, by `--json` too."""
    source = source_of(site)
    train = ("train", "classification", "--dataset", "shots", *tiny_changes())
    other = (*(each for each in train if not each.startswith("--set=train.seed=")), "--set", "train.seed=1")
    champion = "models:/classifier-shots@champion"
    return [
        ("data", "add", source, "--name", "shots"),
        ("data", "remote", "s3://bucket/convoy", "--option", f"secret_access_key={HUSH}-remote"),
        ("data", "versions", "shots"), ("data", "check", "shots", "--html", "checks.html"), train,
        other, ("promote", "classifier-shots", "2"),
        ("evaluate", champion, "--out", "report"), ("explain", champion),
        ("models", "list"), ("models", "show", champion),
        ("data", "show", "shots", "--json"), ("explain", champion, "--json"), ("models", "show", champion, "--json"),
    ]  # fmt: skip


def source_of(site: Site) -> str:
    return site.url.replace("//", f"//me:{HUSH}-source@") + f"?token={HUSH}-signature"


def failing(site: Site) -> list[tuple[str, ...]]:
    """Commands that cannot do what they are told, most of them for what a secret is in, and that show where."""
    train = ("train", "classification", "--dataset", "shots", *tiny_changes())
    return [
        ("doctor",), ("status",),
        ("data", "add", f"{source_of(site)}#sha256={'0' * 64}", "--name", "other", "--debug"),
        ("data", "add", source_of(site).replace("http:", "https:"), "--name", "other", "--debug"),
        ("data", "push", "shots", "--debug"),  # through a proxy that has a password and is not there
        ("data", "remote", f"s3://me:{HUSH}-address@bucket/convoy", "--debug"),
        (*train, f"--set=transfer.weights=https://me:{HUSH}-weights@127.0.0.1:9/w.pth", "--debug"),
        ("promote", "classifier-shots", "9", "--debug"), ("up", "--debug"), ("up", "--json"),
    ]  # fmt: skip


@pytest.mark.slow
def test_no_secret_is_in_anything_that_is_written_or_said(
    tmp_path: Path, tracking: str, ray_folder: Path
) -> None:
    home = tmp_path / "home"
    work = home / "work"
    work.mkdir()
    settings = {**SECRETS, "MLFLOW_TRACKING_URI": tracking, "RAY_TMPDIR": str(ray_folder)}
    settings |= {"TMPDIR": str(ray_folder / "tmp"), "DVC_SITE_CACHE_DIR": str(ray_folder / "dvc")}
    (ray_folder / "tmp").mkdir()
    shared = set(Path("/dev/shm").iterdir())
    foreign = ("PREFECT_HOME", "PREFECT_LOGGING_TO_API_ENABLED")  # logs are to be searched as well
    own = {name: value for name, value in os.environ.items() if name not in foreign} | settings
    own |= {"CONVOY_HOME": str(home), "PYTHONPATH": str(ROOT)}
    with serve(pack(class_tree("ab", 12), "tar")) as site:
        must_end_well = chain(site)
        for number, arguments in enumerate([*must_end_well, *failing(site)]):
            done = subprocess.run(
                [sys.executable, "-m", "pipelines", *arguments],
                env=own,
                cwd=work,
                capture_output=True,
                check=False,
            )
            (work / f"said-{number}").write_bytes(done.stdout + done.stderr)
            told = f"{arguments[:2]}: {done.stderr.decode()}"
            if arguments[0] not in ("doctor", "status"):
                assert (done.returncode == 0) == (number < len(must_end_well)), told
            assert ("--debug" in arguments) == (b"Traceback" in done.stderr), told
        assert site.headers[0]["Authorization"].startswith("Basic ")  # they were used
    left = sorted(set(Path("/dev/shm").iterdir()) - shared)
    found = [str(file) for file in files_with(HUSH.encode(), home, ray_folder, *left)]
    assert found == [str(home / ".dvc" / "config.local")]  # which git does not see
    searched = {file.name for file in home.rglob("*")}
    assert {"prefect.db", "server.db", "checks.html", "job.json", "MLmodel"} <= searched, (
        "nothing was written"
    )


def files_with(secret: bytes, *folders: Path) -> list[Path]:
    """Files at or below the folders in whose bytes, rows or name the secret is."""
    return [
        file
        for folder in folders
        for file in sorted([folder, *folder.rglob("*")])
        if secret.decode() in file.name or (file.is_file() and secret in contents(file))
    ]


def contents(file: Path) -> bytes:
    """A file's bytes; of Parquet also what its compressed columns hold."""
    rows = pq.read_table(file).to_pylist() if file.suffix == ".parquet" else ""
    return file.read_bytes() + repr(rows).encode()


def test_the_search_finds_what_was_planted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.db").write_bytes(b"\0\xff" + HUSH.encode())
    (tmp_path / "a" / f"{HUSH}.txt").write_bytes(b"")
    rows = pa.table({"source": [f"{number} {HUSH}" for number in range(1000)]})
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    pq.write_table(rows, tmp_path / "a" / "x.parquet", **options)
    assert HUSH.encode() not in (tmp_path / "a" / "x.parquet").read_bytes()
    found: list[Any] = files_with(HUSH.encode(), tmp_path)
    assert sorted(file.name for file in found) == [f"{HUSH}.txt", "x.db", "x.parquet"]
