"""The listening socket of a server's tcp worker, behind the handshake limiter. Other tcp workers have it as well.

A connection from a proxy (`proxy_protocol_from`) passes, and so does one from the server's own bridge, which has a
listening socket of its own. The limiter is asked once the proxy or the bridge has said who its client is.

accept() never blocks. A connection that the limiter rejects is reset at once and counted. That leaves nothing behind in
the kernel, and costs no socket object. Accepting goes on until no connection waits any more, until the caller's time is
over, or until another worker has fewer connections (`workers.tcp.accept_share`). If any was rejected, accepting then
pauses for REJECTED_PAUSE_NS: a flood waits in the kernel's queue meanwhile, and is rejected in batches.

A server without a free descriptor cannot even reject: clients would wait for ever, and epoll would report them for
ever. It makes room, as where all handshakes are in use. If that fails, there is one descriptor in reserve. It is given
up to accept and reset the clients that wait, and is taken again. After that, or after any other failure, accepting
pauses for FAILED_PAUSE_NS.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from pipeline.counters import ID
from pipeline.policy.handshake_limiter import HandshakeLimiter
from pipeline.runtime.plan import WorkerSettings
from pipeline.transport.address import SocketAddress, plain_host
from pipeline.wire.proxy_protocol import ProxyHeader
from workers.tcp.accept_share import LOOK_AGAIN_NS

FAILED_PAUSE_NS = 200_000_000
REJECTED_PAUSE_NS = 10_000_000

UNLIMITED_RATE = 1_000_000  # connections a second

NOTHING_WAITS = errno.EAGAIN
GIVEN_UP = errno.ECONNABORTED  # by a client, while it waited
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)

RESET_ON_CLOSE, SHUT_DOWN_ON_CLOSE = struct.pack("=ii", 1, 0), struct.pack("=ii", 0, 0)
"""SO_LINGER. An accepted socket inherits it from the listening one."""


class Listener(NamedTuple):
    """A listening socket."""

    socket: socket.socket
    accept: Callable[[], tuple[int, SocketAddress]]  # a descriptor without an object around it
    is_bridged: bool  # the server's own bridge connects here


class Arrival(NamedTuple):
    """A connection. `header`: that it begins with, of a proxy or of our own bridge; None if it is a client's."""

    socket: socket.socket
    address: SocketAddress
    header: ProxyHeader | None


class Acceptor:
    """`workers`: how many share the limits; `make_room`: see HandshakeLimiter; `is_our_turn`: see AcceptShare. Times
    are CLOCK_MONOTONIC ns. `bridged`: the listening socket for the server's own bridge; -1: there is none."""

    def __init__(
        self,
        fd: int,
        settings: WorkerSettings,
        workers: int,
        counters: memoryview,
        epoll: select.epoll,
        make_room: Callable[[], bool] = lambda: False,
        is_our_turn: Callable[[int], bool] = lambda now: True,
        bridged: int = -1,
    ) -> None:
        self._listeners = [_listener(fd, is_bridged=False)]
        if bridged >= 0:
            self._listeners.append(_listener(bridged, is_bridged=True))
        self._limiter = HandshakeLimiter(*_limits(settings), workers)
        self._proxies = [ip_network(text) for text in settings.proxies]
        self._bridge_token = bytes.fromhex(settings.bridge_token)
        self._counters = counters
        self._epoll = epoll
        self._make_room = make_room
        self._is_our_turn = is_our_turn
        self.resume_at_ns = 0  # of a pause; 0: there is none
        self._reserve = -1
        self._take_reserve()
        for each in self._listeners:
            epoll.register(each.socket.fileno(), select.EPOLLIN)

    @property
    def fd(self) -> int:
        return self._listeners[0].socket.fileno()

    def set_limits(self, settings: WorkerSettings) -> None:
        self._limiter.set_limits(*_limits(settings))

    def accept(self, now: int, until: int) -> Iterator[Arrival]:
        """The connections that wait and may begin a handshake. After `until` no further one is looked at."""
        for each in self._listeners:
            if self.resume_at_ns:
                return
            yield from self._accept_at(each, now, until)

    def _accept_at(self, listener: Listener, now: int, until: int) -> Iterator[Arrival]:
        rejected = False
        while True:
            if not self._is_our_turn(now):
                self._pause(now + LOOK_AGAIN_NS)
                return
            try:
                fd, address = listener.accept()
            except OSError as error:
                if error.errno == GIVEN_UP or (error.errno in NO_DESCRIPTOR and self._make_room()):
                    continue
                if error.errno != NOTHING_WAITS:
                    self._on_failed(listener, error, now, until)
                    return
                break
            header = self._expect_header(listener, address[0])
            if header is None and not self.admit(address[0], now):
                rejected = True
                os.close(fd)
            else:
                sock = socket.socket(listener.socket.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=fd)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, SHUT_DOWN_ON_CLOSE)
                yield Arrival(sock, address, header)
            if time.monotonic_ns() > until:
                return
        if rejected:
            self._pause(now + REJECTED_PAUSE_NS)

    def _expect_header(self, listener: Listener, host: str) -> ProxyHeader | None:
        """Of the PROXY protocol; None if a connection from there begins with the client's first byte."""
        if listener.is_bridged:
            return ProxyHeader(self._bridge_token)
        if not self._proxies:
            return None
        address = ip_address(plain_host(host).partition("%")[0])
        return ProxyHeader() if any(address in network for network in self._proxies) else None

    def admit(self, host: str, now: int) -> bool:
        """Whether the client of a proxy may begin its handshake; a rejection is counted."""
        rejection = self._limiter.try_begin(host, now, self._make_room)
        if rejection:
            self._counters[ID[rejection]] += 1
        return not rejection

    def _on_failed(self, listener: Listener, error: OSError, now: int, until: int) -> None:
        """Accepting has failed, most likely for want of descriptors."""
        count = self._reset_waiting(listener, until) if error.errno in NO_DESCRIPTOR else 0
        self._counters[ID["tcp.accepts_failed"]] += count or 1
        self._pause(now + FAILED_PAUSE_NS)

    def _reset_waiting(self, listener: Listener, until: int) -> int:
        """Reset the connections that wait, on the descriptor that is in reserve. Their number."""
        count = 0
        while self._reserve >= 0 and time.monotonic_ns() <= until:
            os.close(self._reserve)
            self._reserve = -1
            try:
                fd, _ = listener.accept()
            except OSError:
                fd = -1  # nobody waits any more, or another process has taken the descriptor
            if fd >= 0:
                os.close(fd)
                count += 1
            self._take_reserve()
            if fd < 0:
                break
        return count

    def _take_reserve(self) -> None:
        if self._reserve < 0:
            try:
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                pass  # no descriptor is free: again after the next pause

    def handshake_done(self, host: str, proved: bool) -> None:
        """The handshake of an accepted connection is over: the client has proved who it is, or the connection has
        ended."""
        self._limiter.handshake_done(host, proved)

    def resume(self) -> None:
        """End a pause."""
        self.resume_at_ns = 0
        self._take_reserve()
        self._watch(select.EPOLLIN)

    def _pause(self, until: int) -> None:
        self.resume_at_ns = until
        self._watch(0)

    def _watch(self, events: int) -> None:
        for each in self._listeners:
            self._epoll.modify(each.socket.fileno(), events)

    def close(self) -> None:
        for each in self._listeners:
            each.socket.close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1


def _listener(fd: int, *, is_bridged: bool) -> Listener:
    sock = socket.socket(fileno=fd)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    return Listener(sock, sock._accept, is_bridged)  # type: ignore[attr-defined]  # accept() is built on this method


def _limits(settings: WorkerSettings) -> tuple[int, int, int]:
    """Of HandshakeLimiter. Browsers open many connections at once, and hold them for long."""
    if settings.fallback is None:
        return settings.max_handshakes, settings.max_handshakes_per_address, settings.connects_per_address
    return settings.fallback.connections, settings.fallback.connections, UNLIMITED_RATE
