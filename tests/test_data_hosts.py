"""A URL leads to the public internet, or to where the operator allows it; however the address is written or reached."""

import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from data import download, transfer
from data.address import is_loopback
from data.download import fetch
from data.hosts import (
    ALLOWED,
    PrivateAddressError,
    check_host,
    is_public,
    literal,
    require_public,
)
from tests.servers import Site, serve

LARGE = 1 << 20
SHA256 = "0" * 64
PRIVATE = [
    "127.0.0.1",
    "127.8.9.1",
    "127.1",
    "2130706433",  # 127.0.0.1 as one number
    "0x7f000001",
    "017700000001",
    "localhost",
    "LOCALHOST.",
    "any.localhost",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",  # carriers' NAT, RFC 6598
    "169.254.169.254",  # a cloud's metadata
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",  # metadata once more
    "ff02::1",
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "64:ff9b::a9fe:a9fe",  # NAT64 of 169.254.169.254
]


@pytest.fixture(autouse=True)
def _nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOWED)
    monkeypatch.setattr(transfer, "RETRY_DELAY_S", 0.0)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(b"what only this machine may read") as running:
        yield running


def test_what_is_a_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "example.org")))


def resolving_to(*addresses: str) -> Callable[..., list[Any]]:
    """A resolver that gives `addresses` one after the other, the last for ever; whatever it is asked."""
    waiting = list(addresses)

    def getaddrinfo(_host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        address = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(kind, socket.SOCK_STREAM, 6, "", (address, port))]

    return getaddrinfo


@pytest.mark.parametrize("host", PRIVATE)
def test_a_private_address_is_refused_however_it_is_written(host: str, tmp_path: Path) -> None:
    shown = f"[{host}]" if ":" in host else host
    with pytest.raises(
        ValueError, match=f"a private network, and a URL may not lead there.*{ALLOWED}="
    ) as caught:
        fetch(f"https://{shown}/latest/x.tar", tmp_path, max_bytes=LARGE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["93.184.215.14", "2606:2800:21f:cb07::1", "example.org", "64:ff9b::808:808"]
)
def test_a_public_address_or_a_name_passes_the_first_look(host: str) -> None:
    check_host(host)
    address = literal(host)
    assert is_public(address) if address is not None else host == "example.org"


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_inside_of_an_ipv6_one_is_judged_as_itself(number: int) -> None:
    plain = ip_address(number)
    assert is_public(ip_address(f"::ffff:{plain}")) == is_public(plain)
    assert is_public(ip_address(f"64:ff9b::{plain}")) == is_public(plain)
    assert literal(str(number)) == literal(hex(number)) == plain


@pytest.mark.parametrize("answers", [("127.0.0.1",), ("::ffff:127.0.0.1",), ("8.8.8.8", "127.0.0.1")])
def test_a_name_that_resolves_to_a_private_address_is_never_asked(
    answers: tuple[str, ...], site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the last: between the look and the call
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to(*answers))
    with pytest.raises(
        ValueError, match=r"files\.example is .*127\.0\.0\.1, which is an address of this machine"
    ):
        fetch(site.url.replace("127.0.0.1", "files.example"), tmp_path, sha256=SHA256, max_bytes=LARGE)
    assert site.asked == []


@pytest.mark.parametrize(
    "place",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://localhost:1/x",
        "http://[::ffff:10.0.0.1]/x",
        "http://2130706433/x",
    ],
)
def test_a_redirect_from_a_public_to_a_private_address_is_not_followed(place: str) -> None:
    response = requests.Response()
    response.status_code, response.url = 302, "http://example.org/x.tar"
    response.headers["Location"] = place
    with pytest.raises(PrivateAddressError, match="a URL may not lead there"):
        download._Session(SHA256).get_redirect_target(response)


@pytest.mark.parametrize("place", ["file:///etc/passwd", "s3://bucket/key", "gopher://example.org/x"])
def test_a_redirect_to_another_scheme_reads_nothing(
    place: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED, "127.0.0.1")
    site.location = place
    with pytest.raises(ValueError, match=r"not an address that can be asked|is not supported"):
        fetch(site.url, tmp_path, max_bytes=LARGE)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert left == []  # but for the lock, which says whose it was


@pytest.mark.parametrize("allowed", ["127.0.0.1", " 10.0.0.0/8, 127.0.0.0/8", "files.example,127.0.0.1"])
def test_what_is_allowed_is_asked(
    allowed: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED, allowed)
    fetch(site.url, tmp_path, max_bytes=LARGE)
    assert site.asked == [""]
    with pytest.raises(PrivateAddressError):
        check_host("192.168.1.1")


def test_a_name_that_is_allowed_may_have_a_private_address(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to("127.0.0.1"))
    monkeypatch.setenv(ALLOWED, "files.lab")
    url = site.url.replace("127.0.0.1", "files.lab")
    with pytest.raises(ValueError, match="wrong checksum"):
        fetch(url, tmp_path, sha256=SHA256, max_bytes=LARGE)
    with pytest.raises(ValueError, match=r"files\.example is 127\.0\.0\.1"):
        fetch(url.replace("files.lab", "files.example"), tmp_path, sha256=SHA256, max_bytes=LARGE)


@pytest.mark.parametrize("entry", ["*", "10.0.0.0/99", "127.0.0.1:8000", "*.lab"])
def test_an_entry_that_cannot_be_meant_is_named(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED, entry)
    with pytest.raises(ValueError, match=f"{ALLOWED} .* must be addresses, networks such as"):
        require_public("files.example", ip_address("127.0.0.1"))


def test_through_a_proxy_a_private_address_in_the_url_is_refused_all_the_same(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", site.url.removesuffix("/x.tar"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ValueError, match="a URL may not lead there"):
        fetch("http://10.0.0.1/x.tar", tmp_path, sha256=SHA256, max_bytes=LARGE)
    assert site.asked == []
    with pytest.raises(ValueError, match="wrong checksum"):  # the proxy is asked, and it may be private
        fetch("http://files.example/x.tar", tmp_path, sha256=SHA256, max_bytes=LARGE)
    assert site.asked == [""]
