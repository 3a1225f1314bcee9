"""Sources in an object store, by `s3://BUCKET/KEY`, through botocore, which DVC's plug-in for S3 brings.

botocore finds credentials, the region and AWS_ENDPOINT_URL by itself (environment, ~/.aws, the machine's role); without
credentials the request is not signed, as public buckets want it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from botocore import UNSIGNED
from botocore.config import Config
from botocore.session import get_session

from data.address import public_url
from data.transfer import CHUNK_BYTES, BrokenTransferError, Reply, StaleTransferError

CONNECT_TIMEOUT_S = 20
IDLE_TIMEOUT_S = 60  # without a byte
_HINTS = {
    "NoSuchKey": "there is no such object; check the key",
    "NoSuchBucket": "there is no such bucket",
    "404": "there is no such bucket or object",
    "AccessDenied": "access is refused; check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID)",
    "403": "access is refused; check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID)",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
}

_MAY_PASS = ("ResponseStreamingError", "IncompleteReadError", "ConnectionClosedError")
_NO_WAY = ("EndpointConnectionError", "ConnectTimeoutError", "SSLError", "ProxyConnectionError")


@contextmanager
def open_s3(url: str, start: int, validator: str, client: Any = None) -> Iterator[Reply]:
    """Ask for an object from byte `start` on; `client` is a botocore client of s3, made here if not given."""
    shown = public_url(url)
    bucket, key = _bucket_and_key(url)
    if not bucket or not key:
        raise ValueError(f"{shown}: write s3://BUCKET/KEY")
    wanted = {"Range": f"bytes={start}-"} if start else {}
    if start and validator:
        wanted["IfMatch"] = validator
    client = client or _client()
    try:
        found = client.get_object(Bucket=bucket, Key=key, **wanted)
        place = found.get("ContentRange", "")
        total_bytes = found["ContentLength"]
        if start and place.startswith(f"bytes {start}-"):
            total_bytes = int(place.rpartition("/")[2])
        else:
            start = 0
        with found["Body"] as body:
            chunks = iter(lambda: body.read(CHUNK_BYTES), b"")
            yield Reply(start, total_bytes, found.get("ETag", ""), chunks)
    except client.exceptions.ClientError as error:
        raise _fault(error.response, shown) from None
    except Exception as error:
        if not type(error).__module__.startswith("botocore"):
            raise  # of whoever takes the bytes
        raise _failure(error, shown) from None


def list_s3(url: str, client: Any = None) -> Iterator[tuple[str, int]]:
    """Keys below `s3://BUCKET/PREFIX/`, relative to it, with their bytes; raises ValueError or ConnectionError."""
    bucket, prefix = _bucket_and_key(url)
    client = client or _client()
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):  # what stands for a folder
                    yield found["Key"].removeprefix(prefix), found["Size"]
    except client.exceptions.ClientError as error:
        raise _fault(error.response, public_url(url)) from None
    except Exception as error:
        if not type(error).__module__.startswith("botocore"):
            raise
        raise _failure(error, public_url(url)) from None


def read_s3(url: str, client: Any = None) -> bytes:
    """An object's bytes; raises what `open_s3` raises, and BrokenTransferError where they end early."""
    with open_s3(url, 0, "", client) as reply:
        data = b"".join(reply.chunks)
    if len(data) != reply.total_bytes:
        raise BrokenTransferError(f"the connection broke after {len(data):,} bytes")
    return data


def _bucket_and_key(url: str) -> tuple[str, str]:
    return urlsplit(url).netloc.rpartition("@")[2], unquote(urlsplit(url).path.removeprefix("/"))


def _failure(error: Exception, shown: str) -> Exception:
    """What botocore itself says, told by the name of its class."""
    name, text = type(error).__name__, " ".join(str(error).split())[:200]
    if name == "ReadTimeoutError":
        return BrokenTransferError(f"no data for {IDLE_TIMEOUT_S} s")
    if name in _MAY_PASS:
        return BrokenTransferError(f"the connection broke: {name}")
    if name in _NO_WAY:
        return ConnectionError(f"{shown}: no connection: {text}")
    return ValueError(f"{shown}: {text}")


def _fault(response: dict[str, Any], shown: str) -> Exception:
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status in (412, 416) or code in ("PreconditionFailed", "InvalidRange"):
        return StaleTransferError()
    if status >= 500 or code == "SlowDown":
        return BrokenTransferError(f"the object store answers {status} {code}")
    return ValueError(f"{shown}: {code}: {_HINTS.get(code, 'the object store does not give it')}")


def _client() -> Any:
    session = get_session()
    signed = {} if session.get_credentials() else {"signature_version": UNSIGNED}
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S, read_timeout=IDLE_TIMEOUT_S, retries={"max_attempts": 2}, **signed
    )
    return session.create_client("s3", config=config)
