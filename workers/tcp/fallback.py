"""The web server to which clients of a server go that do not prove to be a peer (setting `fallback`).

    expect(connection)              a client has connected: so does the web server's connection for it
    take(connection, first, now)    it has proved nothing: the connection is the web server's, `first` ahead of the rest
    let_go(connection)              its knock is right, or it has ended
    serve(fds, until)               descriptors with an event: those of this object are dealt with, the others ignored
    end_longest_idle(...)           make room for another client
    check(now)                      time limits

So that a web server's own patience counts, its connection begins with the client's. When it ends that connection before
the client has said anything, the client's ends as well: neither the limit of a handshake nor any other time of ours
shows. Its connection is of no use for a client that speaks no TLS, or HTTP/2: there is an address for each, and another
connection then.

The connection manager owns a client's connection until take(), and this object from then on. A web server that hangs
leaves clients waiting, as it would do without us; IDLE_NS and the limit on such clients bound that. One that cannot be
reached costs its clients the connection, is counted and said; peers do not notice.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from errno import EINPROGRESS

from pipeline.counters import ID
from pipeline.transport.address import SocketAddress, plain_host
from pipeline.transport.connection import Connection
from pipeline.transport.failure_words import of_error
from pipeline.transport.settings import FallbackSettings
from pipeline.wire import proxy_protocol
from workers.tcp.acceptor import RESET_ON_CLOSE
from workers.tcp.counted_warning import CountedWarning
from workers.tcp.splice import Splice, WebServerFailed

CONNECT_NS = 10_000_000_000
IDLE_NS = 3_600_000_000_000
"""A web server ends a silent connection after a minute or two. A connection that is silent for an hour has no living
end."""

HTTP_2 = "h2"
ENDED_BY_WEB_SERVER = select.EPOLLRDHUP

_OPENED, _ENDED, _FAILED = (ID[f"tcp.fallbacks_{what}"] for what in ("opened", "ended", "failed"))
_BYTES_SENT, _BYTES_RECEIVED = ID["tcp.bytes_fallback_sent"], ID["tcp.bytes_fallback_received"]


class Fallback:
    """`epoll`: of the unauthenticated clients. `close`: ends a connection that is not taken, with the reason. `ended`:
    called when one that was taken has ended. Times are CLOCK_MONOTONIC ns."""

    def __init__(
        self,
        settings: FallbackSettings,
        epoll: select.epoll,
        counters: memoryview,
        close: Callable[[Connection, str], object],
        ended: Callable[[Connection], object],
    ) -> None:
        self._settings = settings
        self._epoll = epoll
        self._counters = counters
        self._close = close
        self._ended = ended
        self._waiting: dict[Connection, socket.socket] = {}  # the web server's connections for clients not taken
        self._waiting_by_fd: dict[int, Connection] = {}
        self._splices: dict[int, Splice] = {}  # by the descriptors of both sockets
        self._watched: dict[int, int] = {}  # events of those descriptors
        self._failures = CountedWarning(
            "the web server at %s, to which `fallback` leads, takes no connection: %s (%d clients since the last such "
            "line)"
        )

    def __len__(self) -> int:
        return len({id(splice) for splice in self._splices.values()})

    # -- clients that are not taken

    def expect(self, connection: Connection) -> None:
        with suppress(OSError):  # it may be there by the time that it is needed
            web = self._dial(self._settings.address)
            self._waiting[connection] = web
            self._waiting_by_fd[web.fileno()] = connection
            self._epoll.register(web.fileno(), ENDED_BY_WEB_SERVER)

    def expects(self, connection: Connection) -> bool:
        """Whether the web server waits for what this client has to say."""
        return connection in self._waiting

    def let_go(self, connection: Connection) -> None:
        web = self._release(connection)
        if web is not None:
            web.close()

    def _release(self, connection: Connection) -> socket.socket | None:
        web = self._waiting.pop(connection, None)
        if web is not None:
            del self._waiting_by_fd[web.fileno()]
            self._epoll.unregister(web.fileno())
        return web

    def _on_waiting(self, connection: Connection) -> None:
        """The web server has ended its connection, or has not taken it."""
        web = self._waiting[connection]
        failed = web.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.let_go(connection)
        if not failed:
            with suppress(OSError):
                connection.shutdown()
            self._close(connection, "the web server has ended it")

    # -- clients that are taken

    def take(self, connection: Connection, first: bytes, now: int) -> None:
        self._counters[_OPENED] += 1
        self._counters[_BYTES_RECEIVED] += len(first)
        self._epoll.unregister(connection.fd)
        web = self._release(connection)
        address = self._address_for(connection)
        try:
            if web is None or address != self._settings.address:
                if web is not None:
                    web.close()
                web = self._dial(address)
            head = self._head(connection) if self._settings.tells_address else b""
        except OSError as error:
            self._fail(address, error, now)
            self._end(connection, reset=True)
            return
        splice = Splice(connection, web, head + first, now)
        self._splices[connection.fd] = self._splices[web.fileno()] = splice
        self._step(splice, now)

    def _address_for(self, connection: Connection) -> str:
        channel = connection.channel
        if channel is None:
            return self._settings.plain
        return self._settings.h2 if channel.selected_alpn == HTTP_2 else self._settings.address

    def _head(self, connection: Connection) -> bytes:
        own: SocketAddress = connection.socket.getsockname()
        client, server = (
            proxy_protocol.Client(plain_host(host), port) for host, port in (connection.end, (own[0], own[1]))
        )
        return proxy_protocol.header(client, server)

    def _dial(self, address: str) -> socket.socket:
        """A connection that is under way. WebServerFailed if it has failed; another OSError: no descriptor is left."""
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        web = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        web.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = web.connect_ex((host, int(port)))
        if error not in (0, EINPROGRESS):
            web.close()
            raise WebServerFailed(error, os.strerror(error))
        return web

    def serve(self, fds: Collection[int], until: int) -> None:
        """After `until` no further one is dealt with: epoll reports it again."""
        for fd in fds:
            now = time.monotonic_ns()
            if now > until:
                return
            if fd in self._waiting_by_fd:
                self._on_waiting(self._waiting_by_fd[fd])
            elif fd in self._splices:
                self._step(self._splices[fd], now)

    def _step(self, splice: Splice, now: int) -> None:
        sent, received = splice.web_bytes, splice.client_bytes
        try:
            goes_on = splice.step(now)
        except OSError as error:
            if isinstance(error, WebServerFailed):
                self._fail(self._address_for(splice.connection), error, now)
            self._end_splice(splice, reset=True)
            return
        finally:
            self._counters[_BYTES_SENT] += splice.web_bytes - sent
            self._counters[_BYTES_RECEIVED] += splice.client_bytes - received
        if not goes_on:
            self._end_splice(splice)
            return
        watch = splice.watch
        self._watch(splice.connection.fd, watch.client)
        self._watch(splice.web.fileno(), watch.web)

    def _watch(self, fd: int, events: int) -> None:
        """A descriptor that is to be watched for nothing is not watched: epoll would tell of its end for ever."""
        before = self._watched.get(fd, 0)
        if events == before:
            return
        if not events:
            self._epoll.unregister(fd)
        elif before:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = events

    # -- the end

    def _fail(self, address: str, error: OSError, now: int) -> None:
        self._counters[_FAILED] += 1
        self._failures.record(now, address, of_error(error))

    def _end_splice(self, splice: Splice, *, reset: bool = False) -> None:
        for fd in (splice.connection.fd, splice.web.fileno()):
            self._watch(fd, 0)
            self._watched.pop(fd, None)
            del self._splices[fd]
        splice.web.close()
        self._end(splice.connection, reset=reset)

    def _end(self, connection: Connection, *, reset: bool) -> None:
        self._counters[_ENDED] += 1
        if reset:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        connection.socket.close()
        self._ended(connection)

    def end_longest_idle(self, before_ns: int) -> bool:
        """End the client that was idle for longest, if that is since before this time."""
        splice = min(self._splices.values(), key=lambda each: each.last_ns, default=None)
        if splice is None or splice.last_ns >= before_ns:
            return False
        self._end_splice(splice)
        return True

    def check(self, now: int) -> None:
        for fd, splice in list(self._splices.items()):
            if fd != splice.connection.fd:
                continue
            idle = now - splice.last_ns
            if splice.is_connecting and idle > CONNECT_NS:
                self._fail(self._address_for(splice.connection), TimeoutError("no answer"), now)
                self._end_splice(splice, reset=True)
            elif idle > IDLE_NS or splice.is_over(now):
                self._end_splice(splice)

    def close_all(self) -> None:
        """Close every descriptor and say nothing."""
        for web in self._waiting.values():
            web.close()
        for splice in self._splices.values():
            splice.web.close()
            splice.connection.socket.close()
