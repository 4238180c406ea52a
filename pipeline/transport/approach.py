"""Approaches on sockets: which one a proxy needs, one step of it, and all of it for a caller that may wait.

    make_approach(proxy, host, port)    of a connection to this server
    advance(sock, approach)             the socket is readable
    connect(proxy, host, port, ...)     a socket that leads to the server

Bytes behind the proxy's answer stay in the socket: a look at them takes none away (MSG_PEEK).
"""

from __future__ import annotations

import socket
import time

from pipeline.errors import LocalError
from pipeline.transport.failure_words import of_error
from pipeline.wire.approach import BRIDGED, SILENT, Approach, Proxy, Step
from pipeline.wire.bridge_approach import BridgeApproach
from pipeline.wire.socks import SocksApproach

LOOK_BYTES = 65536  # at the answer of a proxy


class ApproachFailed(LocalError):
    """The proxy does not let us through, or cannot be reached; the words of its answer are not escaped."""


def make_approach(proxy: Proxy, host: str, port: int) -> Approach:
    if proxy.scheme == "socks5":
        return SocksApproach(host, port, proxy.login)
    if proxy.scheme == BRIDGED:
        return BridgeApproach(host, port, proxy.login[1] if proxy.login else "")
    from pipeline.wire.http_connect import ConnectApproach  # h11 is loaded where there is such a proxy alone

    return ConnectApproach(host, port, proxy.login)


def advance(sock: socket.socket, approach: Approach) -> Step:
    """BlockingIOError if nothing has come; another OSError ends the connection."""
    data = sock.recv(LOOK_BYTES, socket.MSG_PEEK)
    if not data:
        return Step(0, failure=approach.closed())
    step = approach.feed(data)
    if step.used:
        sock.recv(step.used)
    if step.send:
        sock.send(step.send)  # shorter than any socket's buffer, which is empty
    return step


def connect(proxy: Proxy, host: str, port: int, seconds: float) -> socket.socket:
    """A blocking socket that leads to the server. ApproachFailed says why there is none."""
    until = time.monotonic() + seconds
    try:
        sock = socket.create_connection((proxy.host, proxy.port), seconds)
    except OSError as error:
        raise ApproachFailed(f"{proxy}: {of_error(error)}") from None
    try:
        approach = make_approach(proxy, host, port)
        sock.sendall(approach.begin())
        step = Step(0)
        while not step.done:
            sock.settimeout(max(until - time.monotonic(), 0.001))
            step = advance(sock, approach)
            if step.failure:
                raise ApproachFailed(f"{proxy}: {step.failure}")
    except TimeoutError:
        sock.close()
        raise ApproachFailed(f"{proxy}: {SILENT}") from None
    except OSError as error:
        sock.close()
        raise ApproachFailed(f"{proxy}: {of_error(error)}") from None
    except BaseException:
        sock.close()
        raise
    return sock
