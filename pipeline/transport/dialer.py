"""The dialer of a client's tcp worker: the sockets that connect to the server. It never gives up.

`pipeline.policy.dialing` decides when each dial slot is dialed, and at which address; the sockets, the resolver and
the log are here. A socket belongs to the dialer until TCP is connected, and through a proxy until the approach is done:
then it leads to the server. The caller gets it, and reports what became of it: established, failed, lost. The
descriptor `fd` is readable when step() has something to do.

With a proxy, all addresses here are those of the proxy. With several uplinks, each has a dialer of its own.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterable, Set
from typing import NamedTuple

from pipeline.log import LEVELS, LOG, printable
from pipeline.policy.backoff import Backoff
from pipeline.policy.dialing import CONNECT_NS, Abandon, Connect, Dialing, Resolve
from pipeline.policy.server_addresses import ServerAddress
from pipeline.policy.server_news import PresentTrouble, ServerNews
from pipeline.transport.approach import advance, make_approach
from pipeline.transport.connection import WOULD_BLOCK
from pipeline.transport.failure_words import WITHOUT_NEWS, of_errno, of_error
from pipeline.transport.resolver import Resolver
from pipeline.transport.settings import DialSettings
from pipeline.transport.socket_options import bind_to_interface, configure
from pipeline.wire.approach import SILENT, Approach, Proxy

STEP_NS = 20_000_000  # between two steps: a small part of the delay after which the next address is tried
REST_NS = 200_000_000  # the same while nothing is dialed: then there are lines of the log at most

UNBOUND = "only Linux 5.7 and newer let a worker choose the interface of a connection (setting: uplinks)"

FAILED = select.EPOLLERR | select.EPOLLHUP


class Dialed(NamedTuple):
    """A socket that leads to the server."""

    dial_index: int  # of the dial slot
    sock: socket.socket
    address: ServerAddress


class Connecting(NamedTuple):
    """A non-blocking socket that is connecting."""

    dial_index: int
    sock: socket.socket
    address: ServerAddress


class Approaching(NamedTuple):
    """A socket that is connected to the proxy, which has not let us through yet."""

    connecting: Connecting
    approach: Approach
    until: int


class Dialer:
    """`hindrance` says why a connection to an address would be of no use, or "". `interface`: that connections are
    bound to; "": the routes decide."""

    def __init__(
        self,
        host: str,
        port: int,
        dialing: Dialing,
        settings: DialSettings,
        hindrance: Callable[[ServerAddress], str] = lambda address: "",
        interface: str = "",
    ) -> None:
        self.failures = 0  # attempts, all their addresses included; the caller counts them and sets this to 0
        self.next_step_ns = 0  # when step() is due, without any event
        self._dialing = dialing
        self._settings = settings
        self._hindrance = hindrance
        self._interface = interface
        self._host, self._port = host, port
        proxy = settings.proxy
        dialed = (host, port) if proxy is None else (proxy.host, proxy.port)
        way = f"server {host} port {port}" if proxy is None else f"{proxy} to server {host} port {port}"
        way += f" by {interface}" if interface else ""
        self._resolver = Resolver(*dialed, asks_around=settings.asks_around)
        self._news = ServerNews(way, dialed[0], len(dialing.slots))
        self._connecting: dict[int, Connecting] = {}  # by descriptor
        self._approaching: dict[int, Approaching] = {}  # by descriptor
        self._winners: dict[int, ServerAddress] = {}  # connected for this slot, their handshake under way
        self._epoll = select.epoll()
        self._epoll.register(self._resolver.wake, select.EPOLLIN)

    @property
    def fd(self) -> int:
        return self._epoll.fileno()

    @property
    def known(self) -> list[ServerAddress]:
        """The addresses of the server, or of the proxy."""
        return self._dialing.addresses.known

    @property
    def trouble(self) -> PresentTrouble:
        """Why not all connections stand."""
        return self._news.present

    def use(self, settings: DialSettings) -> None:
        """Another login at the proxy, for connections that begin from now on."""
        self._settings = settings

    # -- connecting

    def step(self, now: int) -> list[Dialed]:
        """Do what is due. The sockets that have connected."""
        dialed: list[Dialed] = []
        rests = self._dialing.is_idle and not self._connecting
        self.next_step_ns = now + (REST_NS if rests else STEP_NS)
        if not rests:
            self._handle_events(now, dialed)
            self._end_overdue(now)
            self._carry_out(now, dialed)
        self._report(now)
        return dialed

    def _handle_events(self, now: int, dialed: list[Dialed]) -> None:
        for answer in self._resolver.answers():
            self._dialing.resolved(answer.addresses, answer.why, now)
        for fd, events in self._epoll.poll(0):
            for index, address in self._dialing.take_abandoned():  # these have no race any more, and no news of it
                self._abandon(index, address)
            if fd in self._approaching:
                self._approach(self._approaching[fd], dialed)
                continue
            connecting = self._connecting.get(fd)
            if connecting is None:
                continue  # the resolver's, or closed by an event before this one
            error = connecting.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error or events & FAILED:
                self._close(connecting)
                self._dialing.failed(connecting.dial_index, connecting.address, of_errno(error))
            else:
                self._connected(connecting, now, dialed)

    def _carry_out(self, now: int, dialed: list[Dialed]) -> None:
        while actions := self._dialing.step(now):
            for action in actions:
                match action:
                    case Resolve():
                        self._resolver.begin()
                    case Connect(index, address):
                        self._connect(index, address, now, dialed)
                    case Abandon(index, address):
                        self._abandon(index, address)
            for answer in self._resolver.answers():
                self._dialing.resolved(answer.addresses, answer.why, now)

    def _connect(self, index: int, address: ServerAddress, now: int, dialed: list[Dialed]) -> None:
        why = self._hindrance(address)
        if why:
            self._dialing.failed(index, address, why)
            return
        try:
            sock = self._make_socket(address)
        except OSError as error:
            self._dialing.failed(index, address, of_error(error))
            return
        connecting = Connecting(index, sock, address)
        result = sock.connect_ex(address.sockaddr)
        if result not in (0, *WOULD_BLOCK):
            sock.close()
            self._dialing.failed(index, address, of_errno(result))
            return
        self._connecting[sock.fileno()] = connecting
        self._epoll.register(sock.fileno(), select.EPOLLOUT)
        if not result:
            self._connected(connecting, now, dialed)

    def _make_socket(self, address: ServerAddress) -> socket.socket:
        sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        configure(sock, self._settings)
        try:
            if self._interface:
                bind_to_interface(sock, self._interface)
        except OSError as error:
            sock.close()
            raise OSError(UNBOUND) if isinstance(error, PermissionError) else error from None
        return sock

    def _connected(self, connecting: Connecting, now: int, dialed: list[Dialed]) -> None:
        self._forget(connecting)
        self._winners[connecting.dial_index] = connecting.address
        self._dialing.connected(connecting.dial_index, connecting.address, now)
        if self._settings.proxy is None:
            dialed.append(Dialed(*connecting))
        else:
            self._begin_approach(connecting, self._settings.proxy, now)

    def _abandon(self, index: int, address: ServerAddress) -> None:
        for connecting in list(self._connecting.values()):
            if (connecting.dial_index, connecting.address) == (index, address):
                self._close(connecting)

    def _close(self, connecting: Connecting) -> None:
        self._forget(connecting)
        connecting.sock.close()

    def _forget(self, connecting: Connecting) -> None:
        del self._connecting[connecting.sock.fileno()]
        self._epoll.unregister(connecting.sock.fileno())

    # -- the approach through a proxy

    def _begin_approach(self, connecting: Connecting, proxy: Proxy, now: int) -> None:
        approach = make_approach(proxy, self._host, self._port)
        until = now + int(self._settings.handshake_timeout * 1e9)
        try:
            connecting.sock.send(approach.begin())
        except OSError as error:
            connecting.sock.close()
            self.failed(connecting.dial_index, of_error(error))
            return
        self._approaching[connecting.sock.fileno()] = Approaching(connecting, approach, until)
        self._epoll.register(connecting.sock.fileno(), select.EPOLLIN)

    def _approach(self, approaching: Approaching, dialed: list[Dialed]) -> None:
        connecting = approaching.connecting
        try:
            step = advance(connecting.sock, approaching.approach)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail_approach(approaching, of_error(error))
            return
        if step.failure:
            self._fail_approach(approaching, printable(step.failure))
        elif step.done:
            self._end_approach(approaching)
            dialed.append(Dialed(*connecting))

    def _end_overdue(self, now: int) -> None:
        for approaching in list(self._approaching.values()):
            if now >= approaching.until:
                self._fail_approach(approaching, SILENT)

    def _fail_approach(self, approaching: Approaching, why: str) -> None:
        self._end_approach(approaching)
        approaching.connecting.sock.close()
        self.failed(approaching.connecting.dial_index, why)

    def _end_approach(self, approaching: Approaching) -> None:
        del self._approaching[approaching.connecting.sock.fileno()]
        self._epoll.unregister(approaching.connecting.sock.fileno())

    # -- what became of a connected socket

    def established(self, index: int, address: str, now: int) -> None:
        """The handshake is over."""
        self.next_step_ns = 0  # it may be the turn of the next slot
        host = self._winners.pop(index).host
        beaten = self._dialing.established(index, now)
        self._news.fell_back({other.host: why for other, why in beaten.items()}, host, WITHOUT_NEWS)
        self._news.established(address, now)

    def failed(self, index: int, why: str) -> None:
        """The handshake has failed."""
        self.next_step_ns = 0
        self._dialing.failed(index, self._winners.pop(index), why)

    def lost(self, index: int, why: str, now: int) -> None:
        """An established connection has ended."""
        self.next_step_ns = 0
        self._dialing.lost(index, now)
        self._news.ended(why, now)

    def keeps(self, index: int) -> bool:
        """Whether this slot is kept up."""
        return index in self._dialing.slots

    def want(self, indexes: Set[int], now: int) -> None:
        """Keep up these slots and no others: what becomes of the connections of those is not reported any more."""
        self.next_step_ns = 0
        for connecting in [each for each in self._connecting.values() if each.dial_index not in indexes]:
            self._close(connecting)
        for approaching in [each for each in self._approaching.values() if each.connecting.dial_index not in indexes]:
            self._end_approach(approaching)
            approaching.connecting.sock.close()
        self._winners = {index: address for index, address in self._winners.items() if index in indexes}
        self._dialing.want(indexes, now)
        self._news.want(len(indexes), self._dialing.established_count)

    # -- the network beneath

    def renew(self, index: int, wanted: bool, now: int) -> None:
        """Dial a slot anew although its connection stands; or, if that is not `wanted` any more, do not."""
        self.next_step_ns = 0
        if wanted:
            self._dialing.renew(index, now)
        else:
            self._dialing.keep(index)

    def hurry(self, now: int) -> None:
        """The network has changed: begin every attempt anew that is not connected."""
        self.next_step_ns = 0
        for approaching in list(self._approaching.values()):
            self._fail_approach(approaching, "the network has changed meanwhile")
        self._dialing.hurry(now)

    def close(self) -> None:
        """Close every descriptor."""
        approaching = [each.connecting for each in self._approaching.values()]
        for connecting in [*self._connecting.values(), *approaching]:
            connecting.sock.close()
        self._resolver.close()
        self._epoll.close()

    # -- the log

    def _report(self, now: int) -> None:
        for attempt in self._dialing.failed_attempts:
            self.failures += 1
            failures = {address.host: why for address, why in attempt.failures.items()}
            LOG.debug("attempt failed: %s", failures or attempt.why)
            self._news.failed(failures, attempt.why, now)
        self._dialing.failed_attempts.clear()
        for level, text in self._news.lines(now):
            LOG.log(LEVELS[level], "%s", text)


def make_dialing(indexes: Iterable[int], lane: int, lanes: int, settings: DialSettings) -> Dialing:
    """The dialing of one worker, or of one uplink of it, with the settings' pauses and time limits."""
    backoff = Backoff(settings.reconnect_min, settings.reconnect_max)
    return Dialing(indexes, lane, lanes, backoff, min(CONNECT_NS, int(settings.timeout * 1e9)))
