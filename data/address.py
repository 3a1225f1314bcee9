"""Where a source lies: paths and URLs, the checksum that belongs to one, and what of it may be shown and kept."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

SCHEMES = ("https", "http", "s3", "file")
# of a query's parameter: what opens a door, as in signed URLs of Amazon, Google and Microsoft
_SECRET = re.compile(
    r"sig|token|key|secret|pass|pwd|jwt|credential|auth|policy|expires|^code$|^x-(amz|goog|ms)-", re.I
)
_CHECKSUM = "sha256="
_WEB_USER = re.compile(r"(https?://)[^/\s]+@", re.I)
_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):[^/\s]*@")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A source that was downloaded. Its text is what is shown and kept: the URL without secrets, and the checksum."""

    path: Path
    url: str  # without secrets
    sha256: str

    def __str__(self) -> str:
        return f"{self.url}#{_CHECKSUM}{self.sha256}"


def is_url(source: str) -> bool:
    """Whether a source is a URL rather than a path, of whatever scheme."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def public_url(url: str) -> str:
    """The URL without what opens a door: user and password, the parameters of a signature, the fragment."""
    parts = urlsplit(url)
    query = "&".join(
        part for part in parts.query.split("&") if not _SECRET.search(unquote(part.partition("=")[0]))
    )
    return urlunsplit((parts.scheme.lower(), parts.netloc.rpartition("@")[2], parts.path, query, ""))


def has_secret(source: str) -> bool:
    """Whether a source is a URL that holds what opens a door."""
    return is_url(source) and public_url(source) != urlunsplit(urlsplit(source)._replace(fragment=""))


def without_password(text: str) -> str:
    """A URL, or a text that cites some, as it may be shown: without passwords, and users of http, who may be tokens."""
    return _PASSWORD.sub(r"\1:…@", _WEB_USER.sub(r"\1…@", text))


def split_checksum(source: str, sha256: str | None) -> tuple[str, str | None]:
    """The URL alone, and the SHA-256 that `sha256` or its end `#sha256=...` gives; a ValueError if that is none."""
    url, _, fragment = source.partition("#") if is_url(source) else (source, "", "")
    there = fragment.removeprefix(_CHECKSUM) if fragment.startswith(_CHECKSUM) else None
    for value in (sha256, there):
        if value is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise ValueError(f"sha256 (={value!r}) must be 64 hexadecimal digits, as sha256sum prints them")
    if sha256 and there and sha256.lower() != there.lower():
        raise ValueError(f"--sha256 (={sha256}) and the URL's #sha256= (={there}) differ; give one of them")
    wanted = sha256 or there
    return url, wanted.lower() if wanted else None


def check_scheme(url: str, sha256: str | None) -> None:
    """Raise a ValueError for a scheme that is not read, or one that needs a checksum and has none."""
    parts = urlsplit(url)
    if parts.scheme.lower() not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"{public_url(url)}: {parts.scheme}:// is not supported; known: {known}, and paths")
    if parts.scheme.lower() == "http" and sha256 is None and not is_loopback(parts.hostname or ""):
        raise ValueError(
            f"{public_url(url)}: http:// is not encrypted, so anybody on the way may change the file; "
            "give --sha256 with its checksum, or an https:// address"
        )


def is_loopback(host: str) -> bool:
    """Whether a host or address is this machine, and what listens there is reached by this machine alone."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return False
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (inner or address).is_loopback


def file_name(url: str) -> str:
    """What a downloaded file is called: the URL's last part, in letters that every file system takes."""
    last = unquote(urlsplit(url).path).rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._+-]", "_", last)[-100:].lstrip(".") or "download"
