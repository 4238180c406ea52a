"""The connections of a client's tcp worker: dialed, welcomed by the server, replaced when they end.

The dialer makes them. A connection whose network has changed beneath it, or that stalls, is dialed anew although it
stands (workers.tcp.underlay_check). So is one of compat that has carried much under one key of TLS
(workers.tcp.connection_checks). Another that is dialed anew has had BBR, on a path that is fast now
(workers.tcp.peer_congestion). The new one takes its place when it is established.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Mapping
from typing import ClassVar

from pipeline.counters import ID
from pipeline.log import LOG
from pipeline.runtime.plan import WorkerSettings
from pipeline.transport.connection import ESTABLISHED, HANDSHAKE, Connection
from pipeline.transport.dialer import Dialed, Dialer, make_dialing
from pipeline.transport.resolver import known_addresses
from pipeline.wire.handshake import Cause
from workers.tcp.connection_checks import key_worn_out, rekey_due
from workers.tcp.connection_manager import READABLE, ConnectionManager, ManagerContext
from workers.tcp.handshake import ClientHandshaker
from workers.tcp.trouble_reporter import TroubleReporter
from workers.tcp.underlay_check import UnderlayCheck

SILENT = "the server takes connections and says nothing: is it this server's port?"
UNANSWERED = "our own supervisor, which has the key, did not answer in time"

WORN = "it paces to its end, which costs a fast path; dialing another"
REKEY = "rekey: enough bytes under one key; dialing a connection with new ones"


class ClientConnections(ConnectionManager):
    """Adds the dialer, which begins connections, and the check of the network beneath them."""

    _handshaker: ClientHandshaker
    _failure_counters: ClassVar[Mapping[Cause, int]] = {Cause.INVALID: ID["tcp.closed_hello_invalid"]}

    def __init__(self, context: ManagerContext) -> None:
        super().__init__(context)
        settings, lane, lanes = self._settings, context.attachment.worker.lane, context.attachment.plan.lanes
        indexes = range(lane, settings.connections + settings.light_connections, lanes)
        self._underlay = UnderlayCheck(settings.tun_name)
        dialing = make_dialing(indexes, lane, lanes, settings)
        port = settings.remote_port if settings.proxy is None else settings.proxy.port
        dialing.addresses.take(known_addresses(settings.known_servers, port))
        self._dialer = Dialer(settings.remote_host, settings.remote_port, dialing, settings, self._underlay.hindrance)
        self._epoll.register(self._dialer.fd, select.EPOLLIN)
        self._handshaker = ClientHandshaker(settings, self._channel)
        self._trouble_reporter = TroubleReporter(lane, self._channel)

    def close_descriptors(self) -> None:
        super().close_descriptors()
        self._dialer.close()
        self._underlay.close()

    def _apply_settings(self, settings: WorkerSettings) -> None:
        super()._apply_settings(settings)
        self._dialer.use(settings)

    # -- they begin

    def _on_source_event(self, fd: int) -> None:
        if fd == self._dialer.fd:
            self._dial(time.monotonic_ns())

    def tick(self, now: int, unread: bool) -> None:
        super().tick(now, unread)
        if now >= self._dialer.next_step_ns:
            self._dial(now)

    def _dial(self, now: int) -> None:
        if not self._stop.requested:
            for dialed in self._dialer.step(now):
                self._begin(dialed, now)

    def _begin(self, dialed: Dialed, now: int) -> None:
        connection = self._register(dialed.sock, dialed.address.sockaddr, HANDSHAKE, now, READABLE)
        connection.dial_index = dialed.dial_index
        self._underlay.begin(connection, dialed.address)
        self._on_outcome(connection, self._handshaker.begin(connection))

    def _handshake_expired(self, connection: Connection) -> None:
        self.close(connection, UNANSWERED if self._handshaker.awaits_supervisor(connection) else SILENT)

    # -- established, and the end

    def _check_peer_handle(self, connection: Connection) -> bool:
        connection.peer_handle = self._established.sole_peer_handle()
        return True

    def _begin_service(self, connection: Connection, now: int) -> None:
        self._dialer.established(connection.dial_index, connection.address, now)
        if self._settings.compat:
            self._channel.ask({"found": connection.host})
        LOG.debug("connection %d to %s established", connection.serial, connection.address)

    def close(self, connection: Connection, why: str, level: int = logging.DEBUG) -> None:
        """End a connection. The log has a line for each wave of them instead (pipeline.policy.server_news)."""
        super().close(connection, why, level)

    def _end_service(self, connection: Connection, established: bool, why: str, now: int) -> None:
        self._underlay.end(connection)
        if self._stop.requested:
            return
        if established:
            self._dialer.lost(connection.dial_index, why, now)
        else:
            self._dialer.failed(connection.dial_index, why)

    # -- the clock

    def _check_all(self, now: int, unread: bool) -> None:
        super()._check_all(now, unread)
        self._check_underlay(now)
        self._counters[ID["tcp.dials_failed"]] += self._dialer.failures
        self._dialer.failures = 0
        self._trouble_reporter.tick(self._dialer.trouble, now)

    def _check_established(self, connection: Connection, now: int, unread: bool) -> bool:
        if not super()._check_established(connection, now, unread):
            return False
        if key_worn_out(connection):
            self.close(connection, "it has carried all that its keys are good for")
            return False
        if self._may_be_renewed and self.peers[connection.peer].worn is connection:
            self._renew(connection, WORN, now)
        return not rekey_due(connection) or self._renew(connection, REKEY, now)

    def _check_underlay(self, now: int) -> None:
        established = list(self._established.by_fd.values())
        for connection, stalled in self._underlay.stalls(established, now):
            if self._may_be_renewed:
                self._dialer.renew(connection.dial_index, stalled, now)
        changes = self._underlay.changes(self._dialer.known, now)
        if not changes:
            return
        if changes.hurry:
            self._dialer.hurry(now)
        renewed = 0
        for connection in [*established, *self._handshaking.by_fd.values()]:
            if connection.serial in changes.close:
                self.close(connection, changes.close[connection.serial])
            elif connection.serial in changes.renew and connection.state is ESTABLISHED:
                renewed += 1
                self._renew(connection, changes.renew[connection.serial], now)
        if renewed:
            LOG.info("%s: dialing %d connections anew", next(iter(changes.renew.values())), renewed)

    @property
    def _may_be_renewed(self) -> bool:
        """Whether two connections can stand for one dial slot. The original program takes them for two clients."""
        return not self._settings.compat

    def _renew(self, connection: Connection, why: str, now: int) -> bool:
        """Dial it anew beside itself, once, however often this is asked for. Whether it goes on until then."""
        if self._may_be_renewed:
            self._dialer.renew(connection.dial_index, True, now)
        else:
            self.close(connection, why)
        return self._may_be_renewed
