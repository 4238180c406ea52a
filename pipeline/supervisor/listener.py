"""The server's listening socket: the supervisor makes it, all tcp workers share it, and it outlives them."""

from __future__ import annotations

import errno
import socket

from pipeline.config.values import Endpoint
from pipeline.errors import LocalError, PermissionDenied
from pipeline.transport.address import format_address

LISTEN_BACKLOG = 128


def listen(endpoint: Endpoint) -> socket.socket:
    """Listen at the endpoint; "::" accepts IPv4 too. LocalError or PermissionDenied says why that is impossible."""
    where = format_address((endpoint.host, endpoint.port))
    try:
        family, _, _, _, address = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise LocalError(f"local_addr {where}: {error.strerror or error}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(LISTEN_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EACCES:
            raise PermissionDenied(
                f"local_addr {where}: {error.strerror}: needs root or CAP_NET_BIND_SERVICE"
            ) from None
        if error.errno == errno.EADDRINUSE:
            raise LocalError(f"local_addr {where}: another program listens there; set another port") from None
        raise LocalError(f"local_addr {where}: {error.strerror}") from None
    return sock
