"""TCP ports of this machine: which are free, and who has those that are not."""

import socket
from contextlib import suppress

import psutil

from pipelines.processes import MARK

LAST = 65535


def is_free(host: str, port: int) -> bool:
    """Whether one could listen there; raises ValueError for a host that is not this machine's."""
    try:
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except PermissionError:
        raise ValueError(f"port {port} is for root alone; choose one above 1023") from None
    except socket.gaierror:
        raise ValueError(f"host (={host}) is not known; 127.0.0.1, or 0.0.0.0 for every interface") from None
    except OSError as error:
        if "assign" in str(error):
            raise ValueError(
                f"host (={host}) is no address of this machine; 127.0.0.1, or 0.0.0.0 for every interface"
            ) from None
        return False
    return True


def describe_holder(port: int) -> str:
    """The program that listens on a port, as far as the kernel tells us."""
    holder = port_holder(port)
    if holder is None:
        return "a process of another user"
    with suppress(psutil.Error):
        other = holder.environ().get(MARK, "").partition("@")[2]
        if other:
            return f"process {holder.pid}, of the platform in {other} (CONVOY_HOME)"
        return f"process {holder.pid} ({' '.join(holder.cmdline())[:80]})"
    return f"process {holder.pid}"


def next_free(host: str, first: int) -> int:
    """The lowest free port from `first` on."""
    return next(port for port in range(first, LAST + 1) if is_free(host, port))


def port_holder(port: int) -> psutil.Process | None:
    """The process that listens on a TCP port, where the kernel tells us."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return psutil.Process(connection.pid)
    return None
