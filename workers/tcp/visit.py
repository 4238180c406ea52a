"""A visit: one server to which a client's tcp worker keeps up connections, with the dialers that make them.

There is one dialer, or one for each of several uplinks. They know nothing of each other, so that an uplink in
trouble harms no other.

A client with one server has one visit for ever. Of several servers there is the current one, and perhaps a reserve, to
which connections are made that carry nothing yet (pipeline.policy.server_choice). When the supervisor says so, the
reserve becomes the current visit. The one before is left: its connections carry what was under way, and then end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from pipeline.policy.server_addresses import ServerAddress
from pipeline.policy.server_choice import Server, VisitReport
from pipeline.policy.silence import Silence
from pipeline.policy.standstill import Arrival, Spoken, Standstill
from pipeline.runtime.plan import WorkerSettings
from pipeline.transport.connection import ESTABLISHED, Connection
from pipeline.transport.dialer import Dialer, make_dialing
from pipeline.transport.resolver import known_addresses
from pipeline.transport.tcp_info import read_arrival, read_outstanding

Hindrance = Callable[[ServerAddress], str]
"""Why a connection to an address would be of no use, or ""."""

LINGER_NS = 1_000_000_000
"""A connection of a visit that is left stays for so long: for packets that are under way. That is twice the round trip
of a satellite."""


class Target(NamedTuple):
    """A server that is to be visited. `indexes`: of the dial slots that this worker keeps up."""

    session: int
    host: str
    port: int
    known_servers: list[str]
    indexes: tuple[int, ...]

    @property
    def key(self) -> tuple[int, str, int]:
        """It tells this visit from others."""
        return self.session, self.host, self.port


def targets(settings: WorkerSettings, lane: int, lanes: int) -> list[Target]:
    """The current one, and the reserve if there is one."""
    every = tuple(range(lane, settings.connections + settings.light_connections, lanes))
    first = {uplink_number(settings, index): index for index in reversed(every if lane == 0 else ())}
    found = [Target(settings.session, settings.remote_host, settings.remote_port, settings.known_servers, every)]
    if settings.reserve is not None:
        host, port, session, known_servers, is_complete = settings.reserve
        found.append(
            Target(session, host, port, known_servers, every if is_complete else tuple(sorted(first.values())))
        )
    return found


def uplink_number(settings: WorkerSettings, dial_index: int) -> int:
    """Of the uplink that a dial slot has; 0 if the routes decide."""
    uplink = settings.uplink_of(dial_index)
    return uplink.number if uplink is not None else 0


class Visit:
    """`left_ns`: when it was left; 0: it is the current one, or the reserve. `hindrances`: of each uplink."""

    def __init__(
        self,
        target: Target,
        lane: int,
        lanes: int,
        settings: WorkerSettings,
        hindrances: Sequence[Hindrance],
    ) -> None:
        self.key = target.key
        self.session = target.session
        self.server_name = Server(target.host, target.port).certificate_name
        self.connections: dict[int, Connection] = {}  # by serial number; those in a handshake as well
        self.left_ns = 0
        self.silence = Silence()
        self.standstill = Standstill()
        self._settings = settings
        self._indexes = set(target.indexes)
        self.dialers = [
            self._make_dialer(target, number, lane, lanes, hindrance) for number, hindrance in enumerate(hindrances)
        ]
        self._failures = [0] * len(self.dialers)

    def _make_dialer(self, target: Target, number: int, lane: int, lanes: int, hindrance: Hindrance) -> Dialer:
        """The dialers of all lanes and uplinks share the number of dials at a time among them."""
        settings, uplinks = self._settings, max(1, len(self._settings.uplinks))
        dialing = make_dialing(self._of_uplink(number), lane * uplinks + number, lanes * uplinks, settings)
        port = target.port if settings.proxy is None else settings.proxy.port
        dialing.addresses.take(known_addresses(target.known_servers, port))
        interface = settings.uplinks[number].name if settings.uplinks else ""
        return Dialer(target.host, target.port, dialing, settings, hindrance, interface)

    def _of_uplink(self, number: int) -> set[int]:
        return {index for index in self._indexes if uplink_number(self._settings, index) == number}

    def dialer_of(self, dial_index: int) -> Dialer:
        return self.dialers[uplink_number(self._settings, dial_index)]

    def want(self, indexes: Iterable[int], now: int) -> list[Connection]:
        """Keep up these dial slots and no others. The connections of the others."""
        self._indexes = set(indexes)
        for number, dialer in enumerate(self.dialers):
            dialer.want(self._of_uplink(number), now)
        return [each for each in self.connections.values() if each.dial_index not in self._indexes]

    def take_failures(self) -> int:
        """How many attempts have failed since the last call."""
        new = [dialer.failures for dialer in self.dialers]
        for number, dialer in enumerate(self.dialers):
            self._failures[number] += dialer.failures
            dialer.failures = 0
        return sum(new)

    def leave(self, now: int) -> None:
        """Dial no more."""
        self.left_ns = now
        for dialer in self.dialers:
            dialer.close()

    def has_lingered(self, now: int) -> bool:
        return bool(self.left_ns) and now - self.left_ns >= LINGER_NS

    @property
    def established(self) -> list[Connection]:
        return [each for each in self.connections.values() if each.state is ESTABLISHED]

    def look(self, now: int) -> None:
        """Ask the kernel what is outstanding, ten times a second."""
        established = self.established
        self.silence.update({each.serial: read_outstanding(each.socket) for each in established}, now)
        self.standstill.update({each.serial: self._spoken(each) for each in established if each.can_be_asked}, now)

    def _spoken(self, connection: Connection) -> Spoken:
        arrival = read_arrival(connection.socket) if self.standstill.is_asked else Arrival()
        return Spoken(connection.send.last_ns, connection.receive.last_ns, arrival)

    def demand(self, since: int) -> None:
        """The server has to show that it is there; 0: it need not."""
        self.silence.ask(since)
        self.standstill.demand(since)

    def is_silent(self, now: int) -> bool:
        return self.silence.is_silent(now) or self.standstill.is_silent(now)

    def report(self, now: int) -> VisitReport:
        """The server is said to fail as often as it fails on the best of the uplinks."""
        established = self.established
        in_use = [number for number in range(len(self.dialers)) if self._of_uplink(number)]
        troubles = [self.dialers[number].trouble.reason for number in in_use]
        return VisitReport(
            len(established),
            len(self._indexes),
            bool(established) and self.is_silent(now),
            any(each.receive.scanner is not None and each.receive.scanner.leaving for each in established),
            min((self._failures[number] for number in in_use), default=0),
            next(filter(None, troubles), ""),
        )
