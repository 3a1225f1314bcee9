"""Sources by URL: brought once into a folder of downloads, checked, and kept by their checksum.

    downloads/<SHA-256>/<file name>     what came
    downloads/.<key>.part, .json        what is on its way; `key` is a hash of the URL

http and https go through `requests`, which obeys HTTPS_PROXY, REQUESTS_CA_BUNDLE and ~/.netrc, to hosts that
`data.hosts` allows; s3 is `data.s3`, at the endpoint of the environment.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError, IncompleteRead, NameResolutionError

from data.address import Fetched, check_scheme, file_name, is_url, public_url, split_checksum
from data.files import file_sha256, locked
from data.hosts import PrivateAddressError, PublicAdapter, check_host
from data.s3 import open_s3
from data.transfer import (
    CHUNK_BYTES,
    BrokenTransferError,
    Hear,
    Opener,
    Reply,
    StaleTransferError,
    discard,
    transfer,
)

CONNECT_TIMEOUT_S = 20
IDLE_TIMEOUT_S = 60  # without a byte
_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
_HINTS = {
    401: "it needs credentials: https://USER:PASSWORD@..., or ~/.netrc",
    403: "access is refused; check credentials, or whether a signed address has expired",
    404: "there is no such file; check the address",
}


def fetch(
    source: str,
    downloads: Path,
    *,
    sha256: str | None = None,
    max_bytes: int,
    hear: Hear = lambda done, total: None,
) -> str | Fetched:
    """Bring a URL's file into `downloads` if it is not there; a path or a file:// URL gives the path.

    With `sha256` (or the URL's end `#sha256=...`) a file that is there is not asked for again, and one that is
    another is refused. `hear` is told bytes done and all bytes. Raises a ValueError or OSError of one line.
    """
    url, wanted = split_checksum(source, sha256)
    if is_url(url):
        check_scheme(url, wanted)
    if not is_url(url) or urlsplit(url).scheme.lower() == "file":
        return _local(url, wanted)
    shown = public_url(url)
    if file_name(url).lower().endswith(".csv"):
        raise ValueError(
            f"{shown}: a table names pictures that lie beside it, so it needs a local folder; download both, or give "
            "an archive"
        )
    if wanted and (kept := _kept(downloads, wanted, file_name(url))):
        return Fetched(kept, shown, wanted)
    downloads.mkdir(parents=True, exist_ok=True)
    partial = downloads / f".{hashlib.sha256(shown.encode()).hexdigest()[:32]}.part"
    with _alone(partial, shown):
        transfer(
            _opener(url, wanted), partial, shown, verified=wanted is not None, max_bytes=max_bytes, hear=hear
        )
        found = file_sha256(partial)
        if wanted and found != wanted:
            discard(partial)
            raise ValueError(f"{shown}: wrong checksum: expected {wanted}, got {found}; the file was removed")
        target = downloads / found / file_name(url)
        target.parent.mkdir(exist_ok=True)
        partial.replace(target)
        discard(partial)
    return Fetched(target, shown, found)


def _local(source: str, wanted: str | None) -> str:
    """The path of a local source, checked where there is something to check it against."""
    if is_url(source):
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"{source}: file:// is for this machine; write file:///FOLDER/FILE")
        source = unquote(parts.path)
    path = Path(source)
    if wanted and path.is_dir():
        raise ValueError(f"{source}: a folder has no SHA-256; leave out --sha256, or give an archive")
    if wanted and path.is_file() and (found := file_sha256(path)) != wanted:
        raise ValueError(f"{source}: wrong checksum: expected {wanted}, got {found}")
    return source


def _kept(downloads: Path, sha256: str, name: str) -> Path | None:
    """The file with this checksum, if it is there and whole."""
    target = downloads / sha256 / name
    there = [path for path in [target, *target.parent.glob("*")] if path.is_file()]
    if not there:
        return None
    if file_sha256(there[0]) != sha256:
        there[0].unlink()
        return _kept(downloads, sha256, name)
    if there[0] != target:
        target.hardlink_to(there[0])
    return target


@contextmanager
def _alone(partial: Path, shown: str) -> Iterator[None]:
    """Keep others from the same partial file."""

    def refuse(who: str) -> None:
        raise ValueError(f"{shown}: {who} is downloading it; wait until it is done") from None

    with locked(partial.with_suffix(".lock"), refuse):
        yield


def _opener(url: str, sha256: str | None) -> Opener:
    if urlsplit(url).scheme.lower() == "s3":
        return lambda start, validator: open_s3(url, start, validator)
    return lambda start, validator: _open_http(url, sha256, start, validator)


class _Session(requests.Session):
    """Does not let a redirect take away what https gives, nor lead to a private address."""

    def __init__(self, sha256: str | None) -> None:
        super().__init__()
        self.sha256 = sha256
        for scheme in ("http://", "https://"):
            self.mount(scheme, PublicAdapter())

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target is not None:
            there = urljoin(resp.url, target)
            if urlsplit(resp.url).scheme == "https" and urlsplit(there).scheme != "https":
                raise ValueError(
                    f"{public_url(resp.url)}: it redirects from https to {public_url(there)}, which is not "
                    "encrypted; refused"
                )
            check_scheme(there, self.sha256)
            check_host(urlsplit(there).hostname or "")
        return target


@contextmanager
def _open_http(url: str, sha256: str | None, start: int, validator: str) -> Iterator[Reply]:
    """Ask for a file from byte `start` on. Source: RFC 9110, sections 13.1.5 (If-Range) and 14 (Range)."""
    headers = {"Accept-Encoding": "identity"}  # the file's own bytes, which have their own compression
    if start:
        headers["Range"] = f"bytes={start}-"
    if start and validator:
        headers["If-Range"] = validator
    with _one_line(url), _Session(sha256) as session:
        check_host(urlsplit(url).hostname or "")
        timeout = (CONNECT_TIMEOUT_S, IDLE_TIMEOUT_S)
        with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            yield _reply(response, start, public_url(url))


def _reply(response: requests.Response, start: int, shown: str) -> Reply:
    status = f"HTTP {response.status_code} {response.reason or ''}".rstrip()
    if response.status_code == 416:
        raise StaleTransferError
    if response.status_code in _MAY_PASS:
        raise BrokenTransferError(f"{status}: the server cannot give it now")
    if response.status_code not in (200, 206):
        hint = _HINTS.get(response.status_code, "the server does not give it")
        raise ValueError(f"{shown}: {status}: {hint}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise ValueError(f"{shown}: it is a web page, not a file; give the address of the file itself")
    etag = response.headers.get("ETag", "")
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")  # W/ is too weak
    length = response.headers.get("Content-Length", "")
    total_bytes = int(length) if length.isdecimal() else None
    if response.status_code == 206:
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if place is None or int(place[1]) != start:
            raise StaleTransferError
        total_bytes = int(place[2]) if place[2] != "*" else None
    else:
        start = 0
    chunks = iter(lambda: response.raw.read1(CHUNK_BYTES, decode_content=False), b"")
    return Reply(start, total_bytes, validator, chunks)


@contextmanager
def _one_line(url: str) -> Iterator[None]:
    """Errors of the network, without the query that they cite, which may hold a signature."""
    host = urlsplit(url).hostname
    shown = public_url(url)
    try:
        yield
    except PrivateAddressError as error:
        raise ValueError(f"{shown}: {error}") from None
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema):
        raise ValueError(f"{shown}: not an address that can be asked") from None
    except requests.exceptions.TooManyRedirects:
        raise ValueError(f"{shown}: it redirects in a circle") from None
    except requests.exceptions.SSLError as error:
        raise ConnectionError(f"{shown}: no safe connection (TLS): {_innermost(error)}") from None
    except requests.exceptions.ProxyError as error:
        raise ConnectionError(f"{shown}: the proxy does not connect: {_innermost(error)}") from None
    except requests.exceptions.ConnectTimeout:
        raise ConnectionError(f"{shown}: no answer from {host} in {CONNECT_TIMEOUT_S} s") from None
    except requests.exceptions.ConnectionError as error:
        if any(isinstance(cause, NameResolutionError) for cause in _causes(error)):
            raise ConnectionError(f"{shown}: no such host: {host}") from None
        if any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error)):
            raise ConnectionError(f"{shown}: {host} refuses the connection; is the server running?") from None
        raise BrokenTransferError(f"the connection broke: {_innermost(error)}") from None
    except requests.exceptions.ReadTimeout:
        raise BrokenTransferError(f"no data for {IDLE_TIMEOUT_S} s") from None
    except (requests.exceptions.RequestException, HTTPError) as error:
        if "timed out" in str(error):
            raise BrokenTransferError(f"no data for {IDLE_TIMEOUT_S} s") from None
        if any(isinstance(cause, IncompleteRead) for cause in _causes(error)):
            raise BrokenTransferError("truncated: the server stopped before the end") from None
        raise BrokenTransferError(f"the connection broke: {_innermost(error)}") from None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised for, outermost first."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        cause = waiting.pop(0)
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            waiting += [*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__]


def _innermost(error: BaseException) -> str:
    """What the system or the TLS library said."""
    causes = [cause for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror]
    said = causes[-1].strerror if causes else type(list(_causes(error))[-1]).__name__
    return " ".join(str(said).split())[:200]
