"""The connections of a tcp worker, from their first to their last moment. Owned by the inbound duty.

    client    dial   -> handshake -> established -> closed, and dialed again, for ever
    server    accept -> handshake -> established -> closed
    compat    no handshake; a hub asks the supervisor about each connection, and about the first address of its peer

ConnectionManager is what both ends have in common: the handshakes under way, the end of a connection, the checks on
the clock. Where connections begin is in workers.tcp.server_connections and workers.tcp.client_connections. The
Receiver reads established connections and is told of each that comes and goes (ConnectionObserver).
"""

from __future__ import annotations

import logging
import select
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple, Protocol

from pipeline.counters import ID
from pipeline.errors import LocalError, TunnelError
from pipeline.log import LOG
from pipeline.policy.pauses import Pauses
from pipeline.runtime.plan import WorkerFds, WorkerSettings
from pipeline.runtime.supervisor_channel import Answer, ClaimDecision, Doubted, Replaced, SupervisorChannel
from pipeline.runtime.worker import Attachment
from pipeline.transport.address import SocketAddress
from pipeline.transport.connection import CLOSED, ESTABLISHED, Connection
from pipeline.transport.connection_list import ConnectionList
from pipeline.wire.handshake import AskKnock, AskProof, AskSupervisor, AskVerdict, Cause, Failed, Welcomed
from workers.tcp.connection_checks import Timeouts
from workers.tcp.established import EstablishedConnections
from workers.tcp.handshake import ClientHandshaker, Outcome, ServerHandshaker
from workers.tcp.link_publisher import LinkPublisher
from workers.tcp.peer_receiver import PeerReceiver
from workers.tcp.peer_settings import PeerSettingsCheck
from workers.tcp.status_rows import StatusRows
from workers.tcp.total_rate import TotalRate

CHECK_NS = 100_000_000  # between two checks of all connections

READABLE = select.EPOLLIN | select.EPOLLRDHUP


class ConnectionObserver(Protocol):
    """The reader of established connections."""

    def on_established(self, connection: Connection, early: bytes) -> None:
        """The connection can be read. `early`: bytes that arrived behind its handshake."""

    def on_released(self, connection: Connection) -> None:
        """The supervisor has decided about the peer's address: the frames that were held back can be published."""

    def on_closed(self, connection: Connection) -> None:
        """The connection has ended, whether it was established or not."""


class HandshakingConnections:
    """The connections that are not established yet."""

    def __init__(self) -> None:
        self.by_fd: dict[int, Connection] = {}
        self._by_serial: dict[int, Connection] = {}
        self._last_serial = 0

    def add(self, sock: socket.socket, address: SocketAddress, state: str, now: int) -> Connection:
        """A new connection with the next serial number."""
        self._last_serial += 1
        connection = Connection(sock, address, state, self._last_serial, now)
        self.by_fd[connection.fd] = self._by_serial[connection.serial] = connection
        return connection

    def find(self, serial: int) -> Connection | None:
        """By its serial number, which belongs to one connection for ever; a descriptor's number does not."""
        return self._by_serial.get(serial)

    def remove(self, connection: Connection) -> None:
        del self.by_fd[connection.fd]
        del self._by_serial[connection.serial]


class ManagerContext(NamedTuple):
    """The parts of a worker that its connection manager works with."""

    attachment: Attachment
    connection_list: ConnectionList
    kick_sender: Callable[[], None]
    fds: WorkerFds
    observer: ConnectionObserver


class ConnectionManager(ABC):
    """Owns epoll, the supervisor channel and every connection of this worker.

    `established`: the connections that are, by descriptor; `peers`: by index, also those without a connection.
    """

    _handshaker: ServerHandshaker | ClientHandshaker
    _failure_counters: ClassVar[Mapping[Cause, int]]
    """Counters of failed handshakes. A cause without one is no fault of the other end's."""
    _shows_handshakes = True
    """Whether a connection has a status row from its beginning, or once it is established."""

    def __init__(self, context: ManagerContext) -> None:
        attachment = context.attachment
        publisher = LinkPublisher(attachment)
        self._settings = attachment.settings
        self._stop = attachment.stop
        self._counters = attachment.page.counters
        self._observer = context.observer
        self._list = context.connection_list
        self._handshaking = HandshakingConnections()
        self._established = EstablishedConnections(
            attachment,
            context.connection_list,
            publisher,
            context.kick_sender,
            lambda name, sock: self._channel.hand_over({"congestion": name}, sock),
        )
        self.established: Mapping[int, Connection] = self._established.by_fd
        self.peers: Mapping[int, PeerReceiver] = self._established.peers
        self._rows = StatusRows(publisher)
        self._timeouts = Timeouts.of(attachment.settings)
        self._peer_settings = PeerSettingsCheck(attachment.settings)
        self._next_check_ns = 0
        self._pauses = Pauses()
        self._epoll = select.epoll()
        self._handshake_epoll = self._epoll  # that of the connections that are not established yet
        self._channel = SupervisorChannel(context.fds.supervisor, self._epoll)

    # -- for the Receiver

    @property
    def has_several_peers(self) -> bool:
        """Whether more than one peer is connected, here or with another worker."""
        return self._established.has_several_peers

    @property
    def total_rate(self) -> TotalRate:
        return self._established.total_rate

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        """Wait for events of any descriptor: (descriptor, events)."""
        return self._epoll.poll(seconds)

    def watch(self, connection: Connection, readable: bool) -> None:
        """Let poll() report an established connection that can be read, or not."""
        self._epoll.modify(connection.fd, READABLE if readable else 0)

    def handle_event(self, fd: int) -> None:
        """Handle an event of a descriptor that belongs to no established connection."""
        connection = self._handshaking.by_fd.get(fd)
        if connection is not None:
            self._advance(connection)
        elif fd == self._channel.socket.fileno():
            for message in self._channel.answers():
                self._on_supervisor_message(message)
        else:
            self._on_source_event(fd)

    # -- the handshake

    @abstractmethod
    def _on_source_event(self, fd: int) -> None:
        """Begin new connections, if the descriptor is what they come from; a late event is of one that is closed."""

    def _register(self, sock: socket.socket, address: SocketAddress, state: str, now: int, events: int) -> Connection:
        connection = self._handshaking.add(sock, address, state, now)
        if self._shows_handshakes:
            self._rows.assign(connection)
        self._handshake_epoll.register(connection.fd, events)
        return connection

    def _advance(self, connection: Connection) -> None:
        """Go on with a handshake: the socket has bytes or room."""
        self._on_outcome(connection, self._handshaker.step(connection))

    def _on_outcome(self, connection: Connection, outcome: Outcome) -> None:
        match outcome:
            case AskSupervisor() | AskKnock() | AskProof() | AskVerdict():
                self._handshake_epoll.modify(connection.fd, 0)  # nothing more is read until the supervisor has answered
            case Welcomed():
                self._establish(connection, outcome, time.monotonic_ns())
            case Failed():
                self._on_failed(connection, outcome)

    def _on_failed(self, connection: Connection, failed: Failed, level: int = logging.DEBUG) -> None:
        if failed.cause in self._failure_counters:
            self._counters[self._failure_counters[failed.cause]] += 1
        self.close(connection, failed.reason, level)

    def _on_supervisor_message(self, message: Answer) -> None:
        """The settings after a reload, or an answer about a connection, which may have ended meanwhile."""
        if "settings" in message:
            try:
                self._apply_settings(WorkerSettings.from_json(message["settings"]))
            except (TunnelError, OSError, ValueError) as error:  # OSError: no descriptor or memory is left, for one
                self._counters[ID["tcp.settings_refused"]] += 1
                LOG.error("the settings of the reload cannot be used, the old ones stay in use: %s", error)
            return
        if "claim" in message:
            self._on_claim_decided(message)
            return
        if "replaced" in message:
            self._end_replaced(message)
            return
        if "doubted" in message:
            self._doubt(message)
            return
        if "goaway" in message:
            self._list.leaving = True
            return
        if "note" in message:
            self._list.notes.append((message["peer_handle"], bytes.fromhex(message["note"])))
            return
        connection = self._handshaking.find(message["serial"])
        if connection is None:
            return
        outcome = self._handshaker.answered(connection, message)
        if outcome is None:
            self._handshake_epoll.modify(connection.fd, READABLE)
        self._on_outcome(connection, outcome)

    def _apply_settings(self, settings: WorkerSettings) -> None:
        self._handshaker.renew(settings)

    def _end_replaced(self, message: Replaced) -> None:
        raise LocalError(f"dial slot {message['replaced']}: this end is not a server")

    def _doubt(self, message: Doubted) -> None:
        raise LocalError(f"peer handle {message['doubted']:#x}: this end is not a server")

    # -- addresses that a hub of the original program learns

    def ask_about_claim(self, connection: Connection) -> None:
        """The Receiver has held back frames whose source may become the peer's address: ask the supervisor."""
        raise LocalError(f"connection {connection.serial} of this end learns no address")

    def _on_claim_decided(self, decision: ClaimDecision) -> None:
        raise LocalError(f"connection {decision['serial']} of this end learns no address")

    # -- established

    @abstractmethod
    def _check_peer_handle(self, connection: Connection) -> bool:
        """Find the peer handle of a connection that has none. If that peer may not be connected: close it, False."""

    @abstractmethod
    def _begin_service(self, connection: Connection, now: int) -> None:
        """The connection has just been established."""

    def _establish(self, connection: Connection, welcomed: Welcomed, now: int) -> None:
        if not self._check_peer_handle(connection):
            return
        self._handshaking.remove(connection)
        connection.establish(now)
        self._established.stamp(connection, welcomed.lane)
        peer = self._established.prepare_receiver(connection, now)
        for other, why in self._replaced_by(connection):
            self.close(other, why)
        self._handshake_epoll.unregister(connection.fd)
        self._epoll.register(connection.fd, 0 if peer.paused else READABLE)
        self._rows.write(connection)  # before the connection counts, so that a reader that counts it finds its row
        self._established.add(connection, now)
        self._counters[ID["tcp.connections_established"]] += 1
        self._begin_service(connection, now)
        self._peer_settings.warn(connection, welcomed.connections, welcomed.mtu)
        self._observer.on_established(connection, welcomed.rest)

    def _replaced_by(self, connection: Connection) -> list[tuple[Connection, str]]:
        """The connections that end when this one is established, each with the reason."""
        return self._established.replaced_by(connection)

    # -- the end

    def close(self, connection: Connection, why: str, level: int = logging.INFO) -> None:
        """End a connection; `why` is for the log."""
        now = time.monotonic_ns()
        established = connection.state is ESTABLISHED
        connection.state = CLOSED
        (self._epoll if established else self._handshake_epoll).unregister(connection.fd)
        self._observer.on_closed(connection)
        if established:
            self._counters[ID["tcp.connections_lost"]] += 1
            self._established.remove(connection, now)
        else:
            self._handshaking.remove(connection)
            connection.close_unauthenticated()
        self._rows.release(connection)
        LOG.log(level, "connection %d %s ended: %s", connection.serial, connection.address, why)
        self._end_service(connection, established, why, now)

    @abstractmethod
    def _end_service(self, connection: Connection, established: bool, why: str, now: int) -> None:
        """The connection has just been closed; it was established or not."""

    def shutdown_all(self) -> None:
        """Nothing more will be sent: end the outbound direction of every connection."""
        for connection in (*self._handshaking.by_fd.values(), *self._established.by_fd.values()):
            try:
                connection.shutdown()
            except OSError:
                pass  # it has ended, or its socket takes nothing

    def close_descriptors(self) -> None:
        """Close every descriptor and send nothing, as the kernel does when a process dies."""
        for connection in self._handshaking.by_fd.values():
            connection.socket.close()
        self._established.close_all()
        self._channel.socket.close()
        self._epoll.close()

    # -- the clock

    def tick(self, now: int, unread: bool) -> None:
        """Call often. `unread`: bytes of any connection may be waiting, because the Receiver does not read."""
        if now >= self._next_check_ns:
            self._next_check_ns = now + CHECK_NS
            self._established.close_retired()
            if not self._stop.requested:
                self._check_all(now, unread)

    def _check_all(self, now: int, unread: bool) -> None:
        self._forgive_pause(now)
        for connection in list(self._handshaking.by_fd.values()):
            self._check_handshake(connection, now)
        for connection in list(self._established.by_fd.values()):
            self._check_established(connection, now, unread)
            if connection.receive.scanner is not None and connection.receive.scanner.notes:
                self._hand_over_notes(connection, connection.receive.scanner.notes)
        self._established.update_peers(now)
        self._rows.refresh((*self._handshaking.by_fd.values(), *self._established.by_fd.values()))

    def _hand_over_notes(self, connection: Connection, notes: list[bytes]) -> None:
        for note in notes:
            self._channel.ask({"heard": note.hex(), "peer_handle": connection.peer_handle})
        notes.clear()

    def _forgive_pause(self, now: int) -> None:
        """Time in which this worker did not run is no silence of the other end: what it has sent is yet to be read.

        A suspended machine received nothing, not even the end of a connection. If it slept for longer than `timeout`,
        the other ends have given up, and no connection is waited for.
        """
        missed = self._pauses.missed(now)
        if missed:
            for connection in (*self._handshaking.by_fd.values(), *self._established.by_fd.values()):
                connection.forgive(missed, now)
        suspended = self._pauses.suspended(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.monotonic_ns())
        if suspended > self._timeouts.silence:
            for connection in list(self._established.by_fd.values()):
                self.close(connection, f"this machine was suspended for {suspended / 1e9:.0f} s")

    def _check_handshake(self, connection: Connection, now: int) -> None:
        if self._has_had_its_time(connection, now):
            self._handshake_expired(connection)
        elif connection.channel is not None and connection.channel.wants_write:
            self._advance(connection)

    def _has_had_its_time(self, connection: Connection, now: int) -> bool:
        return self._timeouts.handshake_expired(connection, now)

    def _handshake_expired(self, connection: Connection) -> None:
        self.close(connection, "no answer in time", logging.DEBUG)

    def _is_in_use(self, connection: Connection) -> bool:
        """Whether a connection belongs to a session that goes on."""
        return self._established.is_current(connection)

    def _note_held_up(self, connection: Connection, unread: bool) -> bool:
        """Whether its bytes may wait unread for reasons of our own. The outbound duty tells the other end."""
        peer = self.peers[connection.peer]
        connection.receive.is_held_up = unread or peer.paused or connection in peer.readable
        return connection.receive.is_held_up

    def _check_established(self, connection: Connection, now: int, unread: bool) -> bool:
        """Close a connection whose time is over. Whether it is in order."""
        if not self._is_in_use(connection):
            self.close(connection, "its session has ended: there is a newer one, or the peer was revoked")
        elif self._note_held_up(connection, unread):
            connection.receive.last_ns = now  # the silence is our own fault
        elif (
            connection.receive.scanner is not None
            and self._established.is_current(connection)
            and self._established.is_rubbish(connection)
        ):
            self._counters[ID["tcp.closed_unopened"]] += 1
            self.close(connection, "none of its blocks can be opened")
        elif self._timeouts.silence_expired(connection, now):
            self._counters[ID["tcp.connections_timed_out"]] += 1
            connection.receive.unanswered = True
            self.close(connection, f"nothing received for {self._settings.timeout:g} s")
        else:
            return True
        return False
