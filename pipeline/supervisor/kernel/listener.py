"""The listening sockets: the supervisor makes them, workers or the exporter use them, and they outlive these."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from pipeline.config.values import EVERY_ADDRESS, Endpoint
from pipeline.errors import LocalError, PermissionDenied, TunnelError
from pipeline.log import LOG
from pipeline.transport.address import format_address

LISTEN_BACKLOG = 4096
"""Connections that may wait for a tcp worker: a second of a flood. The kernel allows net.core.somaxconn at most."""
EVERY_IPV4_ADDRESS = "0.0.0.0"

NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""A kernel without IPv6 has no sockets of that family, or no address for them."""

SOMAXCONN = Path("/proc/sys/net/core/somaxconn")


def listen(endpoint: Endpoint, setting: str = "local_addr", backlog: int = LISTEN_BACKLOG) -> socket.socket:
    """Listen at the endpoint that a setting names. LocalError or PermissionDenied says why that is impossible.

    "::" accepts IPv4 too, whatever net.ipv6.bindv6only says. On a machine without IPv6 it is every IPv4 address.
    """
    try:
        return _listen(endpoint.host, endpoint.port, backlog)
    except OSError as error:
        if endpoint.host != EVERY_ADDRESS or error.errno not in NO_IPV6:
            raise _explained(error, endpoint, setting) from None
    LOG.info("this machine has no IPv6: listening on every IPv4 address")
    try:
        return _listen(EVERY_IPV4_ADDRESS, endpoint.port, backlog)
    except OSError as error:
        raise _explained(error, endpoint, setting) from None


def _listen(host: str, port: int, backlog: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(backlog)
        _warn_of_short_backlog(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def _explained(error: OSError, endpoint: Endpoint, setting: str) -> TunnelError:
    where = f"{setting} {format_address((endpoint.host, endpoint.port))}"
    if error.errno == errno.EACCES:
        return PermissionDenied(f"{where}: {error.strerror}: needs root or CAP_NET_BIND_SERVICE")
    if error.errno == errno.EADDRINUSE:
        return LocalError(f"{where}: another program listens there; set another port")
    return LocalError(f"{where}: {error.strerror or error}")


def _warn_of_short_backlog(backlog: int) -> None:
    try:
        allowed = int(SOMAXCONN.read_text())
    except (OSError, ValueError):
        return  # no /proc: nothing is known
    if allowed < backlog:
        LOG.warning(
            "net.core.somaxconn is %d: no more connections can wait to be accepted, and a flood of them keeps new "
            "clients out sooner; set it to %d or more",
            allowed,
            backlog,
        )
