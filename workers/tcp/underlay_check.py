"""The check of the network beneath a client's connections: the kernel is asked once a second.

For a second after any news of the kernel's about links, addresses or routes, it is asked ten times a second. The check
asks for the way to each address of the server, and whether the local address of each connection is still ours.
`pipeline.policy.underlay` decides what a change means. While the server's name is not resolved yet, the ways to two
addresses of the Internet tell whether there is a network at all.

Each of several uplinks has a check of its own. The ways are those by its interface then.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Collection

from pipeline.log import LOG
from pipeline.policy.server_addresses import ServerAddress
from pipeline.policy.underlay import Changes, Path, Underlay, Way
from pipeline.transport.connection import Connection
from pipeline.transport.kernel_route import KernelRoutes, RouteNews, is_ours
from workers.tcp.connection_checks import RETRANSMITS_MAX

STALLS_NS = 500_000_000  # between two looks at them
LOOK_NS = 1_000_000_000  # between two looks at the ways, while the kernel has no news
NEWS_NS = 1_000_000_000  # after news: a change has to settle, and its consequences may have to wait
PROBES_MAX = 16  # of a name with more addresses, the first ones are watched, and those of connections

SOMEWHERE = (
    ServerAddress(socket.AF_INET, ("192.0.2.1", 9)),  # RFC 5737: nobody has it
    ServerAddress(socket.AF_INET6, ("2001:db8::1", 9, 0, 0)),  # RFC 3849
)
"""Watched while no address of the server is known; no packet is sent there."""


class UnderlayCheck:
    """`tun_name`: our own device. A way into it leads nowhere, since its packets would need the connection.

    `interface`: that connections are bound to; "": the routes decide.
    """

    def __init__(self, tun_name: str, interface: str = "") -> None:
        self._tun_name = tun_name
        self._interface = interface
        self._underlay = Underlay()
        self._paths: dict[int, Path] = {}  # by the serial number of the connection
        self._sources: dict[str, tuple[str | int, ...]] = {}  # local addresses of connections, as sockets name them
        self._targets: dict[str, ServerAddress] = {}  # addresses that connections were dialed at
        self._stalled: set[int] = set()  # serial numbers of connections on which the kernel sends in vain
        self._next_stalls_ns = 0
        self._next_look_ns = 0
        self._routes: KernelRoutes | None = None
        self._news: RouteNews | None = None
        self._news_until_ns = 0
        try:
            self._routes = KernelRoutes()
            self._news = RouteNews()
        except OSError as error:
            how = "by asking once a second" if self._routes else "by timeouts alone"
            LOG.warning("changes of the network are noticed %s: no netlink: %s", how, error.strerror)

    def close(self) -> None:
        for netlink in (self._routes, self._news):
            if netlink is not None:
                netlink.close()

    @property
    def fd(self) -> int:
        """Readable when the kernel has news; -1: there will be none."""
        return self._news.fd if self._news is not None else -1

    # -- one uplink of several

    def register(self, epoll: select.epoll) -> None:
        """Let the news of the kernel wake the worker."""
        if self._news is not None:
            epoll.register(self._news.fd, select.EPOLLIN)

    def cut_off(self) -> str:
        """Why nothing can be sent by the interface, or ""."""
        if self._routes is None:
            return ""
        device, up, running = self._routes.link(self._interface)
        if not device:
            return f"this machine has no interface {self._interface}"
        return "" if running else f"{self._interface} has no carrier" if up else f"{self._interface} is down"

    def lose(self) -> None:
        """The interface is cut off, and its connections are closed: what comes next is news."""
        self._underlay.lose()

    def _hindrance_of_uplink(self, routes: KernelRoutes, address: ServerAddress) -> str:
        if why := self.cut_off():
            return why
        device = routes.link(self._interface).device
        if address.zone not in (0, device):
            return f"it is on another link than {self._interface}"
        way, _, source = routes.find(address, device)
        if way is None:
            return f"this machine has no route to it by {self._interface}"
        if source and not routes.has(device, source):
            return f"{self._interface} has no address of this family"
        return ""

    # --

    def hindrance(self, address: ServerAddress) -> str:
        """Why a connection to an address would be of no use, or ""."""
        if self._routes is not None and self._interface:
            return self._hindrance_of_uplink(self._routes, address)
        if self._routes is None or self._routes.find(address).interface != self._tun_name:
            return ""
        return (
            f"the way there leads into the tunnel itself ({self._tun_name}): "
            f"add a route to {address.host} around the tunnel"
        )

    def begin(self, connection: Connection, address: ServerAddress) -> None:
        """Note the path of a connection that has just been made."""
        if self._routes is None:
            return
        try:
            local = connection.socket.getsockname()
        except OSError:
            return  # it has ended already
        source = str(local[0])
        self._sources[source] = local
        self._targets[address.host] = address
        self._paths[connection.serial] = Path(address.host, source, self._find(address))

    def end(self, connection: Connection) -> None:
        self._stalled.discard(connection.serial)
        path = self._paths.pop(connection.serial, None)
        if path is None:
            return
        if not any(other.source == path.source for other in self._paths.values()):
            self._sources.pop(path.source, None)
        if not any(other.destination == path.destination for other in self._paths.values()):
            self._targets.pop(path.destination, None)

    def hear(self, now: int) -> None:
        """Take the kernel's news: for a moment it is asked at each call."""
        if self._news is not None and self._news.take():
            self._news_until_ns = now + NEWS_NS

    def changes(self, known: Collection[ServerAddress], now: int) -> Changes:
        """Ask the kernel if it is time, and say what is to be done. `known`: the addresses of the server."""
        self.hear(now)
        if self._routes is None or (now >= self._news_until_ns and now < self._next_look_ns):
            return Changes()
        self._next_look_ns = now + LOOK_NS
        watched = {address.host: address for address in list(known or SOMEWHERE)[:PROBES_MAX]} | self._targets
        ways = {host: self._find(address) for host, address in watched.items()}
        gone = {source for source, local in self._sources.items() if not is_ours(local)}
        asleep = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        changes = self._underlay.observe(ways, gone, self._paths, now, asleep)
        for serial in changes.renew:
            path = self._paths[serial]
            self._paths[serial] = path._replace(way=self._underlay.ways.get(path.destination))
        return changes

    def stalls(self, established: Collection[Connection], now: int) -> list[tuple[Connection, bool]]:
        """The connections that have begun to stall (True), or do so no longer (False).

        A connection stalls if a router between the ends has forgotten it, or no longer lets it pass. For a moment after
        news of the kernel's, one timeout is enough: the link may have been down, and the kernel may wait for seconds
        before it sends again.
        """
        has_news = now < self._news_until_ns
        if now < self._next_stalls_ns and not has_news:
            return []
        self._next_stalls_ns = now + STALLS_NS
        most = 1 if has_news else RETRANSMITS_MAX
        changed = []
        for connection in established:
            retransmits = connection.tcp_info().retransmits
            if retransmits >= most and connection.serial not in self._stalled:
                self._stalled.add(connection.serial)
                changed.append((connection, True))
            elif not retransmits and connection.serial in self._stalled:
                self._stalled.discard(connection.serial)
                changed.append((connection, False))
        return changed

    def _find(self, address: ServerAddress) -> Way | None:
        if self._routes is None:
            return None
        if self._interface:
            device = self._routes.link(self._interface).device
            return self._routes.find(address, device).way if device else None
        way, interface, _ = self._routes.find(address)
        return None if interface == self._tun_name else way
