"""Which machines a URL may lead to: those of the public internet, and private ones that are allowed by name.

A URL comes from a form, a parameter or a redirect, and this machine may reach what its author does not: its own
servers, the network behind a firewall, a cloud's metadata at 169.254.169.254 ("server-side request forgery",
https://owasp.org/www-community/attacks/Server_Side_Request_Forgery). So a name is resolved, and every address that it
has must be public; the address that was connected to is looked at once more, since a name may change meanwhile.

    CONVOY_PRIVATE_URLS=127.0.0.1,10.1.0.0/16,files.lab    addresses, networks and host names that may be asked anyway

A variable of the environment, not a parameter: who fills in the form of a flow must not be able to allow it. Through a
proxy (HTTPS_PROXY) it is the proxy that resolves names and connects; a private address in the URL itself is refused.
"""

import ipaddress
import os
import re
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

ALLOWED = "CONVOY_PRIVATE_URLS"
LOOPBACK = IPv4Address("127.0.0.1")
NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


class PrivateAddressError(ValueError):
    """A URL leads to a machine that only this one reaches."""


def meant(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The address that is reached: the IPv4 one inside of an IPv6 one, where there is one."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether anybody could reach the address."""
    reached = meant(address)
    return reached.is_global and not reached.is_multicast


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a URL's host is, however it is written (2130706433, 0x7f.1, ::1%lo); None for a name."""
    if re.fullmatch(r"(.+\.)?localhost\.?", host, re.IGNORECASE):  # RFC 6761, section 6.3
        return LOOPBACK
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))  # as the C library reads 127.1 and its like
    except (OSError, UnicodeError, ValueError):
        return None


def require_public(host: str, address: IPv4Address | IPv6Address) -> None:
    """Raise PrivateAddressError for a private address of `host` that CONVOY_PRIVATE_URLS does not allow."""
    if is_public(address) or is_allowed(host, address):
        return
    where = host if literal(host) == address else f"{host} is {meant(address)}, which"
    raise PrivateAddressError(
        f"{where} is an address of this machine or of a private network, and a URL may not lead there; if that is "
        f"meant, allow it where this runs: {ALLOWED}={host}"
    )


def is_allowed(host: str, address: IPv4Address | IPv6Address | None) -> bool:
    """Whether CONVOY_PRIVATE_URLS names the host, its address, or a network that the address, if known, lies in.

    Raises ValueError for an entry that cannot be one.
    """
    for entry in filter(None, (part.strip() for part in os.environ.get(ALLOWED, "").split(","))):
        if entry.lower() == host.lower():
            return True
        try:
            network = ipaddress.ip_network(entry)
        except ValueError:
            if "/" in entry or ":" in entry or "*" in entry:
                raise ValueError(
                    f"{ALLOWED} (={entry!r}) must be addresses, networks such as 10.1.0.0/16, or host names, "
                    "without ports, separated by commas"
                ) from None
            continue  # another host's name
        if address is not None and (meant(address) in network or address in network):
            return True
    return False


def check_host(host: str) -> None:
    """Raise PrivateAddressError for a URL's host that is a private address itself; a name is looked up later."""
    address = literal(host)
    if address is not None:
        require_public(host, address)


class _Watched:
    """A connection of urllib3's that goes to public or allowed addresses alone."""

    host: str
    port: int
    _dns_host: str

    def _new_conn(self) -> socket.socket:
        host = self.host
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            found = []  # it is asked again below, where urllib3 says what is wrong
        for *_, place in found:
            require_public(host, _address(place))
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]
        try:
            require_public(host, _address(sock.getpeername()))
        except ValueError:
            sock.close()
            raise
        return sock


def _address(place: Any) -> IPv4Address | IPv6Address:
    """The IP address of a socket's place, without an IPv6 zone."""
    return ipaddress.ip_address(str(place[0]).partition("%")[0])


class _WatchedHTTP(_Watched, HTTPConnection):
    pass


class _WatchedHTTPS(_Watched, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedHTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedHTTPS


class PublicAdapter(HTTPAdapter):
    """For `requests`: direct connections are watched; those through a proxy go where the proxy lets them."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
