"""The loop of a client swarm, and its report.

All connections hang on one selector. Between its waits, attempts begin and silent connections are looked for; so a due
event waits TICK_SECONDS at most. Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

import random
import selectors
import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from pipeline.errors import PeerError
from pipeline.wire.framing import KEEPALIVE_FRAME
from tools.load.quantiles import quantile
from tools.load.swarm_client import ESTABLISHED, Invited, SwarmClient, SwarmConnection, SwarmSettings, SwarmSlot

TICK_SECONDS = 0.05
CHECK_SECONDS = 1.0  # between two checks for silent and overdue connections
REASONS_MAX = 20  # different reasons in a report


class Sample(msgspec.Struct):
    """The state at `time_ns`, and the counts until then."""

    time_ns: int
    clients: int
    """Clients with at least one connection."""
    complete: int
    """Clients with all of their connections."""
    connections: int
    attempts: int
    failed: int
    """Attempts that ended before the welcome."""
    lost: int
    """Established connections that ended."""
    echoes: int
    """Echo requests answered."""


class Outage(msgspec.Struct):
    """From the first client without a connection to the moment when all had one again."""

    time_ns: int
    seconds: float
    clients: int
    """Clients that had no connection for a while."""
    p50_seconds: float
    p99_seconds: float
    """From the loss of a client's last connection to its next one."""
    complete_seconds: float | None
    """Until all clients had all of their connections; None: they never had."""


class Summary(msgspec.Struct, kw_only=True):
    schema_version: int = 1
    clients: int
    connections_each: int
    invited_seconds: float
    """To get the keys."""
    first_seconds: float | None
    """From the start until all clients had a connection; None: they never had."""
    complete_seconds: float | None
    """From the start until all clients had all of their connections; None: they never had."""
    handshake_p50_ms: float
    handshake_p99_ms: float
    handshake_max_ms: float
    """From dialling to the welcome, TCP and TLS included, of each connection that was welcomed."""
    attempts: int
    lost: int
    failed: dict[str, int]
    """Attempts that ended before the welcome, by reason."""
    echoes: int
    other_packets: int
    outages: list[Outage]
    addresses: list[list[str]]


class ClientSwarm:
    """All clients and their one loop. `report` gets each Sample and Outage."""

    def __init__(
        self, invited: Sequence[Invited], settings: SwarmSettings, report: Callable[[dict[str, object]], None]
    ) -> None:
        session = time.time_ns()
        self.clients = [SwarmClient(number, each, settings, session) for number, each in enumerate(invited, start=1)]
        self._slots = [slot for client in self.clients for slot in client.slots]
        self._settings = settings
        self._report = report
        self._selector = selectors.DefaultSelector()
        self._running = True
        self._started = time.monotonic_ns()
        self._first = self._complete = 0  # when all clients had one connection, and all of their connections
        self._disconnected: dict[SwarmClient, int] = {}  # since when, of clients that had a connection before
        self._outage_began = 0
        self._absences: list[float] = []  # seconds without a connection, of each client in this outage
        self._outage: Outage | None = None  # over, but for connections that are not back yet
        self.outages: list[Outage] = []
        self.attempts = self.lost = 0
        self.failed: Counter[str] = Counter()

    def run(self, seconds: float, interval: float, ramp: float) -> None:
        """Run until the time is over, or stop(). `ramp`: the first attempts are spread over so many seconds."""
        for slot in self._slots:
            slot.due_ns = self._started + int(ramp * 1e9 * random.random())
        end = self._started + int(seconds * 1e9) if seconds else 0
        next_dial = next_check = next_sample = 0
        while self._running:
            now = time.monotonic_ns()
            if end and now >= end:
                break
            if now >= next_dial:
                next_dial = now + int(TICK_SECONDS * 1e9)
                for client in self.clients:
                    for slot in client.due_slots(now):
                        self._dial(slot, now)
            for key, _ in self._selector.select(TICK_SECONDS):
                self._step(key.data)
            if now >= next_check:
                next_check = now + int(CHECK_SECONDS * 1e9)
                self._check_times(now)
            if now >= next_sample:
                next_sample = now + int(interval * 1e9)
                self._report({"sample": self.sample(now)})

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        for connection in self._connections():
            connection.socket.close()
        self._selector.close()

    def sample(self, now: int) -> Sample:
        return Sample(
            time_ns=now,
            clients=sum(client.established > 0 for client in self.clients),
            complete=sum(client.is_complete for client in self.clients),
            connections=sum(client.established for client in self.clients),
            attempts=self.attempts,
            failed=self.failed.total(),
            lost=self.lost,
            echoes=sum(client.echoes for client in self.clients),
        )

    def summary(self, invited_seconds: float) -> Summary:
        took = [ns / 1e6 for client in self.clients for ns in client.handshakes_ns] or [0.0]
        return Summary(
            clients=len(self.clients),
            connections_each=len(self.clients[0].slots),
            invited_seconds=invited_seconds,
            first_seconds=self._since_start(self._first),
            complete_seconds=self._since_start(self._complete),
            handshake_p50_ms=quantile(took, 0.5),
            handshake_p99_ms=quantile(took, 0.99),
            handshake_max_ms=max(took),
            attempts=self.attempts,
            lost=self.lost,
            failed=dict(self.failed.most_common(REASONS_MAX)),
            echoes=sum(client.echoes for client in self.clients),
            other_packets=sum(client.other_packets for client in self.clients),
            outages=self.outages,
            addresses=[client.addresses for client in self.clients],
        )

    def _since_start(self, when: int) -> float | None:
        return (when - self._started) / 1e9 if when else None

    def _connections(self) -> list[SwarmConnection]:
        return [slot.connection for slot in self._slots if slot.connection is not None]

    # -- a connection, from dialling to its end

    def _dial(self, slot: SwarmSlot, now: int) -> None:
        self.attempts += 1
        try:
            connection = slot.connection = SwarmConnection(slot, now)
        except OSError as error:
            self._count_failure(error)
            slot.postpone(now)
            return
        try:
            connection.connect()
            self._selector.register(connection.socket, selectors.EVENT_WRITE, connection)
        except OSError as error:
            self._end(connection, error, now)

    def _step(self, connection: SwarmConnection) -> None:
        now = time.monotonic_ns()
        state = connection.state
        try:
            connection.step(now)
        except (OSError, EOFError, PeerError) as error:
            self._end(connection, error, now)
            return
        self._select_events(connection)
        if connection.state is ESTABLISHED and state is not ESTABLISHED:
            self._on_established(connection.client, now)

    def _select_events(self, connection: SwarmConnection) -> None:
        """Wait for the events that the connection needs now: none if it neither reads nor writes."""
        reads = 0 if connection.reads_nothing else selectors.EVENT_READ
        events = reads | (selectors.EVENT_WRITE if connection.wants_write else 0)
        key = self._selector.get_map().get(connection.socket)
        if key is None and events:
            self._selector.register(connection.socket, events, connection)
        elif key is not None and not events:
            self._selector.unregister(connection.socket)
        elif key is not None and key.events != events:
            self._selector.modify(connection.socket, events, connection)

    def _end(self, connection: SwarmConnection, error: Exception, now: int) -> None:
        if connection.socket in self._selector.get_map():
            self._selector.unregister(connection.socket)
        was_established = connection.state is ESTABLISHED
        connection.slot.ended(connection, now)
        if not was_established:
            self._count_failure(error)
            return
        self.lost += 1
        client = connection.client
        if not client.established:
            if not self._disconnected:
                self._outage_began, self._absences = now, []
            self._disconnected[client] = now

    def _count_failure(self, error: Exception) -> None:
        self.failed[getattr(error, "strerror", None) or str(error)] += 1

    def _on_established(self, client: SwarmClient, now: int) -> None:
        """Another connection of this client is established."""
        if client in self._disconnected:
            self._absences.append((now - self._disconnected.pop(client)) / 1e9)
            if not self._disconnected:
                self._report_outage()
                self._outage = Outage(
                    now,
                    (now - self._outage_began) / 1e9,
                    len(self._absences),
                    quantile(self._absences, 0.5),
                    quantile(self._absences, 0.99),
                    None,
                )
                self.outages.append(self._outage)
        if not self._first and all(each.established for each in self.clients):
            self._first = now
        if (self._outage or not self._complete) and all(each.is_complete for each in self.clients):
            self._complete = self._complete or now
            if self._outage:
                self._outage.complete_seconds = (now - self._outage_began) / 1e9
                self._report_outage()

    def _report_outage(self) -> None:
        if self._outage:
            self._report({"outage": self._outage})
        self._outage = None

    def _check_times(self, now: int) -> None:
        for connection in self._connections():
            reason = connection.overdue(now)
            if reason:
                self._end(connection, OSError(0, reason), now)
            elif connection.state is ESTABLISHED and now - connection.sent_ns >= self._settings.keepalive * 1e9:
                self._keep_alive(connection, now)

    def _keep_alive(self, connection: SwarmConnection, now: int) -> None:
        try:
            connection.send(KEEPALIVE_FRAME, now)
            self._select_events(connection)
        except OSError as error:
            self._end(connection, error, now)
