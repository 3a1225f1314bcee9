"""A URL's file is brought once, whole and checked, however often the way breaks; or one line says why not."""

import errno
import hashlib
import io
import os
import shutil
import socket
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from data import download, s3, transfer
from data.address import Fetched, file_name, public_url, split_checksum
from data.download import fetch
from data.files import file_sha256
from data.ingest import IngestConfig, ingest
from tests.pictures import class_tree
from tests.servers import Site, serve
from tests.test_data_archive import pack_tar

DATA = bytes(range(256)) * 4000  # about a megabyte, in several pieces
SHA256 = hashlib.sha256(DATA).hexdigest()
LARGE = 1 << 40


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RETRY_DELAY_S", 0.0)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(DATA) as running:
        yield running


def get(url: str, folder: Path, sha256: str | None = None, max_bytes: int = LARGE) -> Fetched:
    found = fetch(url, folder, sha256=sha256, max_bytes=max_bytes)
    assert isinstance(found, Fetched)
    return found


def left(folder: Path) -> list[str]:
    """What lies in a folder of downloads, but for the locks."""
    return sorted(path.name for path in folder.glob("*") if path.suffix != ".lock")


def test_a_file_comes_whole_and_with_its_checksum_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    found = get(site.url, tmp_path)
    assert found.path.read_bytes() == DATA
    assert (found.sha256, str(found)) == (SHA256, f"{site.url}#sha256={SHA256}")
    assert left(tmp_path) == [SHA256]
    assert get(site.url, tmp_path, SHA256.upper()) == get(str(found), tmp_path) == found
    assert site.asked == [""]
    assert get(site.url, tmp_path) == found
    assert site.asked == ["", ""]  # without a checksum nobody knows whether it is still the same


def test_a_kept_file_that_was_damaged_is_fetched_again(site: Site, tmp_path: Path) -> None:
    found = get(site.url, tmp_path)
    found.path.write_bytes(DATA[:-1])
    assert get(site.url, tmp_path, SHA256).path.read_bytes() == DATA
    assert site.asked == ["", ""]


@pytest.mark.parametrize("cuts", [[300_000], [1, 2, 3], [500_000, 0, 0, 0]])
def test_an_interrupted_transfer_goes_on_where_it_broke(site: Site, tmp_path: Path, cuts: list[int]) -> None:
    site.cut_at = list(cuts)
    assert get(site.url, tmp_path).path.read_bytes() == DATA
    starts = [sum(cuts[:i]) for i in range(len(cuts) + 1)]
    assert site.asked == [f"bytes={start}-" if start else "" for start in starts]


def test_what_one_command_left_the_next_goes_on_with(site: Site, tmp_path: Path) -> None:
    site.cut_at = [700_000] + [0] * 10
    with pytest.raises(ConnectionError, match=r"700,000 bytes are kept for the same command") as caught:
        get(site.url, tmp_path)
    assert "\n" not in str(caught.value)
    site.cut_at = []
    assert get(site.url, tmp_path).path.read_bytes() == DATA
    assert site.asked[-1] == "bytes=700000-"


def test_a_file_that_changed_meanwhile_is_not_mixed_of_two(site: Site, tmp_path: Path) -> None:
    site.cut_at = [700_000] + [0] * 10
    with pytest.raises(ConnectionError):
        get(site.url, tmp_path)
    site.cut_at, site.data, site.etag = [], DATA[::-1], '"two"'
    assert get(site.url, tmp_path).path.read_bytes() == DATA[::-1]


def test_a_server_without_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    site.ranges, site.cut_at = False, [400_000, 500_000]
    assert get(site.url, tmp_path).path.read_bytes() == DATA


def test_a_file_without_validator_is_continued_only_if_it_is_checked(site: Site, tmp_path: Path) -> None:
    site.etag, site.cut_at = "", [400_000]
    get(site.url, tmp_path / "a")
    assert site.asked == ["", ""]
    site.asked, site.cut_at = [], [400_000]
    get(site.url, tmp_path / "b", SHA256)
    assert site.asked == ["", "bytes=400000-"]


def test_a_partial_file_longer_than_the_servers_is_begun_again(site: Site, tmp_path: Path) -> None:
    site.cut_at = [700_000] + [0] * 10
    with pytest.raises(ConnectionError):
        get(site.url, tmp_path)
    site.cut_at, site.data = [], DATA[:700_000]  # 416: there is nothing from there on
    assert get(site.url, tmp_path).path.read_bytes() == DATA[:700_000]


def test_a_file_that_always_ends_early_is_truncated(site: Site, tmp_path: Path) -> None:
    site.ranges, site.cut_at = False, [1000] * 50
    with pytest.raises(ConnectionError, match="truncated: the server stopped before the end"):
        get(site.url, tmp_path)
    assert len(site.asked) == transfer.ATTEMPTS + 1


def test_a_wrong_checksum_names_both_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(ValueError, match=f"expected {wrong}, got {SHA256}"):
        get(site.url, tmp_path, wrong)
    assert left(tmp_path) == []


def test_a_file_above_the_limit_is_refused_whether_or_not_the_server_says_its_length(
    site: Site, tmp_path: Path
) -> None:
    for says in (True, False):
        site.says_length = says
        with pytest.raises(ValueError, match=r"larger than 0\.0001 GB; raise ingest\.max_source_gb"):
            get(site.url, tmp_path, max_bytes=100_000)
    site.says_length = False
    assert get(site.url, tmp_path).path.read_bytes() == DATA


def test_a_server_that_falls_silent_is_not_waited_for(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "IDLE_TIMEOUT_S", 0.1)
    site.cut_at, site.stall_s = [1000] + [0] * 10, 0.5
    with pytest.raises(ConnectionError, match=r"no data for 0\.1 s"):
        get(site.url, tmp_path)


def test_redirects_are_followed_but_not_out_of_encryption(site: Site, tmp_path: Path) -> None:
    site.location = site.url.replace("x.tar", "other?X-Amz-Signature=secret")
    found = get(site.url, tmp_path)
    assert found.path.read_bytes() == DATA
    assert "secret" not in str(found)
    response = requests.Response()
    response.status_code, response.url = 302, "https://example.org/x.tar"
    response.headers["Location"] = "http://example.org/x.tar"
    with pytest.raises(ValueError, match=r"redirects from https to http://example\.org/x\.tar"):
        download._Session(SHA256).get_redirect_target(response)
    response.url = "http://example.org/x.tar"
    with pytest.raises(ValueError, match="give --sha256"):
        download._Session(None).get_redirect_target(response)
    assert download._Session(SHA256).get_redirect_target(response) == "http://example.org/x.tar"
    site.location = site.url
    with pytest.raises(ValueError, match="in a circle"):
        get(site.url, tmp_path)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_one_line_with_its_status(site: Site, tmp_path: Path, status: int) -> None:
    site.status = status
    with pytest.raises(ValueError, match=f"HTTP {status} ") as caught:
        get(site.url, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(site.asked) == 1


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.status = 503
    with pytest.raises(ConnectionError, match="HTTP 503"):
        get(site.url, tmp_path)
    assert len(site.asked) == transfer.ATTEMPTS


def test_a_web_page_is_no_archive(site: Site, tmp_path: Path) -> None:
    site.kind = "text/html; charset=utf-8"
    with pytest.raises(ValueError, match="web page"):
        get(site.url, tmp_path)


def test_who_cannot_be_reached_is_named(tmp_path: Path, site: Site) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/x.tar"
    with pytest.raises(ConnectionError, match="refuses the connection"):
        get(closed, tmp_path)
    with pytest.raises(ConnectionError, match=r"no such host: nowhere\.invalid"):
        get("https://nowhere.invalid/x.tar", tmp_path)
    with pytest.raises(ConnectionError, match=r"no safe connection \(TLS\)"):
        get(site.url.replace("http:", "https:"), tmp_path)
    with pytest.raises(ValueError, match="not an address"):
        get("https://:0x/x.tar", tmp_path)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
        with pytest.raises(OSError, match="no space left in"):
            get(site.url, tmp_path)

    def full(done: int, _total: int | None) -> None:
        if done > 500_000:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="no space left in") as caught:
        fetch(site.url, tmp_path, max_bytes=LARGE, hear=full)
    assert caught.value.errno == errno.ENOSPC
    assert left(tmp_path) == []


def test_two_processes_do_not_write_one_file(site: Site, tmp_path: Path) -> None:
    def second(_done: int, _total: int | None) -> None:
        with pytest.raises(ValueError, match=rf"process {os.getpid()} is downloading it"):
            get(site.url, tmp_path)

    fetch(site.url, tmp_path, max_bytes=LARGE, hear=second)


@pytest.mark.parametrize(
    ("source", "sha256", "said"),
    [
        (
            "ftp://example.org/x.tar",
            None,
            r"ftp:// is not supported; known: https://, http://, s3://, file://",
        ),
        ("http://example.org/x.tar", None, "not encrypted"),
        ("https://example.org/x.csv", None, "needs a local folder"),
        ("https://example.org/x.tar", "12", "64 hexadecimal digits"),
        (f"https://example.org/x.tar#sha256={SHA256}", "0" * 64, "differ"),
        ("file://elsewhere/x.tar", None, "file:///"),
        ("s3://bucket", None, "s3://BUCKET/KEY"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_asked(
    tmp_path: Path, source: str, sha256: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        fetch(source, tmp_path, sha256=sha256, max_bytes=LARGE)


def test_local_files_are_used_where_they_lie_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "a b.tar"
    path.write_bytes(DATA)
    downloads = tmp_path / "downloads"
    for source in (str(path), f"file://{str(path).replace(' ', '%20')}"):
        assert fetch(source, downloads, sha256=SHA256, max_bytes=LARGE) == str(path)
        with pytest.raises(ValueError, match=r"wrong checksum: expected 0+, got"):
            fetch(source, downloads, sha256="0" * 64, max_bytes=LARGE)
    with pytest.raises(ValueError, match="a folder has no SHA-256"):
        fetch(str(tmp_path), downloads, sha256=SHA256, max_bytes=LARGE)
    assert not downloads.exists()


def test_secrets_are_neither_kept_nor_said(site: Site, tmp_path: Path) -> None:
    secret = site.url.replace("//127", "//user:hush@127", 1) + "?v=2&X-Amz-Signature=hush&token=hush"
    found = get(secret, tmp_path)
    assert str(found) == f"{site.url}?v=2#sha256={SHA256}"
    assert site.headers[0]["Authorization"].startswith("Basic ")
    for path in tmp_path.glob(".*"):
        assert b"hush" not in path.name.encode() + path.read_bytes()
    for status in (404, 503):
        site.status = status
        with pytest.raises((ValueError, ConnectionError)) as caught:
            get(secret, tmp_path)
        assert "hush" not in str(caught.value)


@given(st.text(), st.text(max_size=20), st.sampled_from(["X-Amz-Credential", "sig", "AccessKeyId", "token"]))
def test_no_url_shows_its_user_or_signature(path: str, user: str, name: str) -> None:
    quoted = requests.utils.quote(path), requests.utils.quote(user, safe="")
    shown = public_url(f"https://{quoted[1]}:h-u-s-h@example.org/{quoted[0]}?{name}=h-u-s-h&id=3#h-u-s-h")
    assert "h-u-s-h" not in shown.replace(quoted[0], "")
    assert shown.endswith("?id=3")
    assert public_url(shown) == shown
    assert "/" not in file_name(shown) and file_name(shown) not in ("", ".", "..")
    assert split_checksum(f"{shown}#sha256={SHA256}", None) == (shown, SHA256)


def test_a_dataset_from_a_url_differs_from_that_of_the_file_by_its_source_alone(tmp_path: Path) -> None:
    config = IngestConfig(val_fraction=0.2, test_fraction=0.2, near_duplicate_distance=4, max_source_gb=1)
    path = pack_tar(tmp_path / "x.tar", class_tree())
    with serve(path.read_bytes()) as site:
        found = get(site.url, tmp_path / "downloads")
    stores = {}
    for key, source in {"path": path, "url": found}.items():
        report = ingest(source, name="x", family="classification", store=tmp_path / key, config=config)
        folder = tmp_path / key / "x"
        stores[key] = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert report.source == ("x.tar" if key == "path" else str(found))
        told = f'"source": "{report.source}"'.encode()
        assert told in stores[key]["dataset.json"]
        stores[key]["dataset.json"] = stores[key]["dataset.json"].replace(told, b"")
    assert stores["path"] == stores["url"]


class Bucket:
    """As much of a botocore client as is used, over one object."""

    class exceptions:
        class ClientError(Exception):
            def __init__(self, status: int, code: str) -> None:
                self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}

    def __init__(self, data: bytes, etag: str = '"one"') -> None:
        self.data, self.etag, self.fault = data, etag, (0, "")
        self.asked: list[dict[str, Any]] = []
        self.stops = [len(data)]

    def get_object(self, **wanted: Any) -> dict[str, Any]:
        self.asked.append(wanted)
        if self.fault[0]:
            raise self.exceptions.ClientError(*self.fault)
        if wanted.get("IfMatch", self.etag) != self.etag:
            raise self.exceptions.ClientError(412, "PreconditionFailed")
        start = int(wanted.get("Range", "bytes=0-")[6:-1])
        part = self.data[start:]
        found = {"ContentLength": len(part), "ETag": self.etag, "Body": io.BytesIO(part[: self.stops.pop(0)])}
        if start:
            found["ContentRange"] = f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
        return found


def test_objects_of_a_store_come_whole_continued_and_unmixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(DATA)
    monkeypatch.setattr(s3, "_client", lambda: bucket)
    bucket.stops = [400_000, len(DATA)]
    found = get("s3://photos/a%20b/x.tar", tmp_path)
    assert found.path.read_bytes() == DATA
    assert str(found) == f"s3://photos/a%20b/x.tar#sha256={SHA256}"
    key = {"Bucket": "photos", "Key": "a b/x.tar"}
    assert bucket.asked == [key, {**key, "Range": "bytes=400000-", "IfMatch": '"one"'}]
    bucket.stops = [400_000] + [0] * 10
    with pytest.raises(ConnectionError, match="truncated: 400,000 of"):
        get("s3://photos/y.tar", tmp_path)
    bucket.data, bucket.etag, bucket.stops = DATA[::-1], '"two"', [len(DATA)]
    assert get("s3://photos/y.tar", tmp_path).path.read_bytes() == DATA[::-1]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ((404, "NoSuchKey"), "NoSuchKey: there is no such object"),
        ((403, "AccessDenied"), "access is refused; check the credentials"),
        ((400, "Odd"), "Odd: the object store does not give it"),
        ((503, "SlowDown"), "503 SlowDown"),
    ],
)
def test_what_an_object_store_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: tuple[int, str], said: str
) -> None:
    bucket = Bucket(DATA)
    bucket.fault = fault
    monkeypatch.setattr(s3, "_client", lambda: bucket)
    with pytest.raises((ValueError, ConnectionError), match=said):
        get("s3://photos/x.tar", tmp_path)


def test_botocore_itself_asks_the_endpoint_of_the_environment(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url.removesuffix("/x.tar"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    site.cut_at = [400_000]
    assert file_sha256(get("s3://photos/x.tar", tmp_path / "a").path) == SHA256
    assert site.asked == ["", "bytes=400000-"]
    assert "Authorization" not in site.headers[0]  # no credentials: a public bucket
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    get("s3://photos/x.tar", tmp_path / "b")
    assert site.headers[-1]["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=name/")
    site.status = 403
    with pytest.raises(ValueError, match="access is refused"):
        get("s3://photos/x.tar", tmp_path / "c")
