"""The connections of a client's tcp worker: dialed, welcomed by the server, replaced when they end."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Mapping
from typing import ClassVar

from pipeline.counters import ID
from pipeline.log import LOG
from pipeline.transport.connection import CONNECTING, HANDSHAKE, Connection
from pipeline.transport.dialer import Attempt, Dialer
from pipeline.wire.handshake import Cause, Failed
from workers.tcp.connection_checks import rekey_due
from workers.tcp.connection_manager import READABLE, ConnectionManager, ManagerContext
from workers.tcp.handshake import ClientHandshaker


class ClientConnections(ConnectionManager):
    """Adds the dialer: it begins connections, and is told which are established and which have ended."""

    _handshaker: ClientHandshaker
    _failure_counters: ClassVar[Mapping[Cause, int]] = {Cause.INVALID: ID["tcp.closed_hello_invalid"]}

    def __init__(self, context: ManagerContext) -> None:
        super().__init__(context)
        settings, lanes = self._settings, context.attachment.plan.lanes
        indexes = range(context.attachment.worker.lane, settings.connections + settings.light_connections, lanes)
        self._dialer = Dialer(settings.remote_host, settings.remote_port, indexes, lanes, settings)
        self._epoll.register(self._dialer.wake, select.EPOLLIN)
        self._handshaker = ClientHandshaker(settings, self._channel)

    def close_descriptors(self) -> None:
        super().close_descriptors()
        self._dialer.close()

    # -- they begin

    def _on_source_event(self, fd: int) -> None:
        if fd == self._dialer.wake:
            os.eventfd_read(fd)
            self._dial(time.monotonic_ns())

    def _dial(self, now: int) -> None:
        if not self._stop.requested:
            for attempt in self._dialer.start_due(now):
                self._begin(attempt, now)

    def _begin(self, attempt: Attempt, now: int) -> None:
        connection = self._register(attempt.sock, attempt.address, CONNECTING, now, select.EPOLLOUT)
        connection.dial_index = attempt.dial_index

    def _check_all(self, now: int, unread: bool) -> None:
        super()._check_all(now, unread)
        self._dial(now)
        self._counters[ID["tcp.dials_failed"]] += self._dialer.failures
        self._dialer.failures = 0

    # -- the handshake

    def _advance(self, connection: Connection) -> None:
        if connection.state is not CONNECTING:
            super()._advance(connection)
            return
        error = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._on_failed(connection, Failed(Cause.BROKEN, os.strerror(error)))
            return
        self._epoll.modify(connection.fd, READABLE)
        connection.set_state(HANDSHAKE, time.monotonic_ns())
        self._on_outcome(connection, self._handshaker.begin(connection))

    # -- established, and the end

    def _check_peer_handle(self, connection: Connection) -> bool:
        connection.peer_handle = self._established.sole_peer_handle()
        return True

    def _begin_service(self, connection: Connection, now: int) -> None:
        self._dialer.established(connection.dial_index, now)
        LOG.info("connection %d to %s established", connection.serial, connection.address)
        self._dial(now)  # it may be the turn of the next slot

    def _check_established(self, connection: Connection, now: int, unread: bool) -> bool:
        if not super()._check_established(connection, now, unread):
            return False
        if rekey_due(connection):
            self.close(connection, "rekey: enough bytes under one key; dialing a connection with new ones")
            return False
        return True

    def _end_service(self, connection: Connection, established: bool, why: str, now: int) -> None:
        if self._stop.requested:
            return
        if established:
            self._dialer.connection_lost(connection.dial_index, now, why)
            self._dial(now)
        else:
            attempt = self._dialer.attempt_failed(connection.dial_index, now, f"{connection.address}: {why}")
            if attempt is not None:
                self._begin(attempt, now)
