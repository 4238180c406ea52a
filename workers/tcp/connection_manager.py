"""The lives of a tcp worker's connections, from their beginning to their end. Owned by the inbound duty.

    client    dial -> greeting -> established      again and again, with backoff, for ever
    server    door -> greeting -> established
    compat    no greeting; one connection

What an established connection says is its reader's business (`tcp_inbound`), which hears of each that comes and goes.
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import socket
import time
from typing import Protocol

from pipeline.counters import ID
from pipeline.errors import PeerError
from pipeline.log import LOG, printable
from pipeline.runtime.supervisor_channel import SupervisorChannel
from pipeline.runtime.worker import Attachment
from pipeline.transport.connection import (
    CLOSED,
    CONNECTING,
    ESTABLISHED,
    HANDSHAKE,
    Connection,
    ConnectionList,
    configure,
)
from pipeline.transport.dialer import CONNECT_NS, Dialer, DialSlot
from pipeline.wire import messages
from workers.tcp.acceptor import Acceptor
from workers.tcp.handshake import Guest, Host, Unauthenticated
from workers.tcp.link_publisher import LinkPublisher
from workers.tcp.peer_receiver import PeerReceiver
from workers.tcp.sender import Sender

ROWS_A_TICK = 64  # rows refreshed on each tick, in turn
STRANGERS_NS = 10_000_000_000  # strangers are spoken of once in so long, or they would fill the log

REKEY_AFTER_BYTES = 1 << 38  # RFC 8446, 5.5: 2^24.5 full records of AES-GCM under one key; ssl has no KeyUpdate

EVENTS = select.EPOLLIN | select.EPOLLRDHUP


class Reader(Protocol):
    """Who reads established connections."""

    def came(self, connection: Connection, ahead: bytes) -> None:
        """It is established; `ahead` arrived together with its greeting."""

    def went(self, connection: Connection) -> None:
        """It has ended, whether it was established or not."""


class ConnectionManager:
    """Owns every connection of this worker; a server has a Door, a client a Dialer."""

    def __init__(
        self,
        attachment: Attachment,
        connection_list: ConnectionList,
        outbound: Sender,
        arguments: argparse.Namespace,
        epoll: select.epoll,
        reader: Reader,
    ) -> None:
        settings = attachment.settings
        self._settings = settings
        self._stop = attachment.stop
        self._connection_list = connection_list
        self._outbound = outbound
        self._reader = reader
        self._table = attachment.peers
        self._counters = attachment.page.counters
        self._compat = settings["compat"]
        self._lane = attachment.me.lane
        self._lanes = attachment.plan.lanes
        self._carrier = LinkPublisher(attachment)
        self.peers: dict[int, PeerReceiver] = {}
        self._helpless = False  # it has been said that one connection cannot help
        self._strangers = 0  # that have not been spoken of
        self._speak_again = 0
        self._timeout_ns = int(settings["timeout"] * 1e9)
        self._greeting_ns = int(settings["handshake_timeout"] * 1e9)
        self._epoll = epoll
        self.connections: dict[int, Connection] = {}  # by descriptor
        self._greeting: dict[int, Connection] = {}  # those that are not established, by serial number
        self._retired: list[tuple[int, Connection]] = []
        self._serial = 0
        self._next_rows: list[Connection] = []
        self._dial_soon = False
        self.desk = SupervisorChannel(arguments.desk_fd)
        self._epoll.register(self.desk.socket.fileno(), select.EPOLLIN)
        self.door: Acceptor | None = None
        self.dialer: Dialer | None = None
        if arguments.listen_fd is not None:
            self.door = Acceptor(arguments.listen_fd, settings, self._lanes, self._counters, self._epoll)
            self._manners: Host | Guest = Host(settings, self.desk)
        else:
            indexes = list(range(self._lane, settings["connections"] + settings["light_connections"], self._lanes))
            self.dialer = Dialer(settings["remote_host"], settings["remote_port"], indexes, self._lanes, settings)
            self._epoll.register(self.dialer.wake, select.EPOLLIN)
            self._manners = Guest(settings, self.desk, messages.ACCEPTS_SHARDS if settings["fec"] != "off" else 0)

    # -- they begin

    def serve(self, fd: int) -> None:
        """Something has happened that is no established connection's."""
        connection = self.connections.get(fd)
        if connection is not None:
            self._greet(connection)
        elif fd == self.desk.socket.fileno():
            for answer in self.desk.answers():
                self._hear(answer)
        elif self.door is not None and fd == self.door.fd:
            self._accept()
        elif self.dialer is not None and fd == self.dialer.wake:
            os.eventfd_read(fd)
            self._dial_soon = True
        if self._dial_soon:
            self._dial(time.monotonic_ns())

    def _dial(self, now: int) -> None:
        self._dial_soon = False
        if not self._stop.requested:
            for slot, sock, address in self.dialer.step(now):
                self._begin(slot, sock, address, now)

    def _begin(self, slot: DialSlot, sock: socket.socket, address: tuple, now: int) -> None:
        connection = self._register(sock, address, CONNECTING, now, select.EPOLLOUT)
        connection.dial_index = slot.index

    def _accept(self) -> None:
        now = time.monotonic_ns()
        for sock, address in self.door.accept(now):
            configure(sock, self._settings)
            connection = self._register(sock, address, HANDSHAKE, now, EVENTS)
            if connection.row < 0:
                self._counters[ID["tcp.closed_row_full"]] += 1
                self.close(connection, "as many connections as this worker can have")
                continue
            self._manners.begin(connection)
            if self._compat:
                self._greet(connection)  # it may have nothing to say first

    def _register(self, sock: socket.socket, address: tuple, state: str, now: int, events: int) -> Connection:
        self._serial += 1
        connection = Connection(sock, address, state, self._serial, now)
        connection.row = self._carrier.take_row()
        self.connections[connection.fd] = self._greeting[connection.serial] = connection
        self._epoll.register(connection.fd, events)
        return connection

    def _greet(self, connection: Connection) -> None:
        try:
            if connection.state is CONNECTING:
                self._connected(connection)
            if self._manners.step(connection):
                self._establish(connection, time.monotonic_ns())
            elif connection.exchange.expects == "answer":
                self._epoll.modify(connection.fd, 0)  # whatever it says next has to wait
        except BlockingIOError:
            pass
        except PeerError as error:
            self._counters[ID["tcp.closed_hello_invalid"]] += 1
            self.close(connection, printable(str(error)))
        except EOFError:
            self._fail(connection, OSError(0, "closed by the peer"))
        except OSError as error:
            self._fail(connection, error)

    def _connected(self, connection: Connection) -> None:
        error = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        self._epoll.modify(connection.fd, EVENTS)
        connection.state = HANDSHAKE
        connection.state_since_ns = time.monotonic_ns()
        self._manners.begin(connection)

    def _hear(self, answer: dict) -> None:
        """The supervisor's word: on a connection that has asked, if it is still there, or what a reload has changed."""
        if "tls" in answer:
            self._manners.renew(answer["tls"])
            if self.door is not None:
                self.door.limit(answer)
            return
        connection = self._greeting.get(answer["serial"])
        if connection is None:
            return
        try:
            self._manners.answered(connection, answer)
        except Unauthenticated as error:
            self._counters[ID["tcp.closed_proof_wrong"]] += 1
            self._speak_of(connection, time.monotonic_ns())
            self.close(connection, error.strerror)
        except OSError as error:
            self._counters[ID["tcp.connections_refused"]] += 1
            self.close(connection, error.strerror or str(error))
        else:
            self._establish(connection, time.monotonic_ns())

    def _speak_of(self, stranger: Connection, now: int) -> None:
        self._strangers += 1
        if now >= self._speak_again:
            LOG.warning(
                "%s has not proved to be a peer (%d in all since the last such line)", stranger.address, self._strangers
            )
            self._strangers = 0
            self._speak_again = now + STRANGERS_NS

    def _establish(self, connection: Connection, now: int) -> None:
        if self.door is None or self._compat:
            connection.peer_handle = self._table.peer_handle(0)
            if self.door is not None and self._table.count(connection.peer):
                self._counters[ID["tcp.connections_refused"]] += 1
                self.close(connection, f"refused: {messages.REASONS[messages.BUSY]}")
                return
        elif not self._carrier.current(connection):
            self.close(connection, "its session ended meanwhile")
            return
        exchange, connection.exchange = connection.exchange, None
        del self._greeting[connection.serial]
        connection.state = ESTABLISHED
        connection.state_since_ns = connection.last_received_ns = connection.last_sent_ns = now
        connection.stamped_lane = (self._lane + len(self._connection_list.established)) % self._lanes
        peer = self.peers.get(connection.peer)
        if peer is None:
            peer = self.peers[connection.peer] = PeerReceiver(
                connection.peer, self._carrier, self._settings, self._counters
            )
        peer.limit(self._table.rate(peer.peer), self._table.received_elsewhere(peer.peer, self._lane), now)
        for other in peer.established:
            if not self._carrier.current(other):
                self.close(other, "replaced by a newer session of the same peer")
            elif other.dial_index == connection.dial_index:
                self.close(other, "dialled anew by the client")
        self._epoll.modify(connection.fd, 0 if peer.paused else EVENTS)
        self._connection_list.add(connection)
        peer.add(connection)
        self._carrier.write_rows([connection])
        self._outbound.kick()
        if self.door is not None:
            self.door.settled(connection, True)
        else:
            self.dialer.held(self.dialer.slots[connection.dial_index], now)
            self._dial_soon = True  # it is another one's turn
        self._counters[ID["tcp.connections_established"]] += 1
        LOG.info(
            "connection %d %s %s established", connection.serial, "to" if self.dialer else "from", connection.address
        )
        if not self._compat:
            self._check_fec(connection, exchange.connections)
            self._compare_mtu(connection, exchange.mtu)
        self._reader.came(connection, bytes(exchange.buffer))

    def _check_fec(self, connection: Connection, connections: int) -> None:
        """Say once what keeps forward error correction from helping."""
        if self._settings["fec"] == "off" or self._helpless:
            return
        if not connection.accepts_shards:
            LOG.warning("the other end has fec off: nothing is protected in its direction until it is on or auto there")
        elif connections == 1:
            LOG.warning(
                "fec is %s, but there is one connection: TCP delivers it in order or stalls, and no parity can "
                "help there; let the client open more (connections)",
                self._settings["fec"],
            )
        else:
            return
        self._helpless = True

    def _compare_mtu(self, connection: Connection, theirs: int) -> None:
        if theirs != self._settings["mtu"]:
            LOG.warning(
                "connection %d to %s: its tunnel MTU is %d, ours is %d: set both to the same value",
                connection.serial,
                connection.address,
                theirs,
                self._settings["mtu"],
            )

    # -- they end

    def _fail(self, connection: Connection, error: OSError) -> None:
        why = connection.last_error or printable(error.strerror or str(error))
        if self.door is not None:
            self._counters[ID["tcp.closed_hello_invalid"]] += error.errno != 0  # whoever leaves has done nothing wrong
        elif (
            connection.exchange is not None
            and connection.exchange.expects == "welcome"
            and error.errno in (0, errno.ECONNRESET)
        ):
            why += ": the server does not say why: it does not know us (any more), or it is stopping"
        self.close(connection, why)

    def close(self, connection: Connection, why: str) -> None:
        """Take a connection out of service; its socket is closed once the outbound duty has let go of it."""
        now = time.monotonic_ns()
        state, connection.state = connection.state, CLOSED
        del self.connections[connection.fd]
        self._epoll.unregister(connection.fd)
        self._reader.went(connection)
        if connection.row >= 0:
            self._carrier.give_back(connection.row)
        level = LOG.debug
        if state is ESTABLISHED:
            level = LOG.info
            self._counters[ID["tcp.connections_lost"]] += 1
            self._connection_list.remove(connection, now)
            self._retired.append((self._connection_list.version, connection))
            connection.fail(OSError(0, why))
            self.peers[connection.peer].remove(connection)
            self._outbound.kick()
        else:
            del self._greeting[connection.serial]
            if self.door is not None:
                self.door.settled(connection, False)
            connection.close_unread()
        if why.startswith("refused"):
            level = LOG.warning if self.dialer is None else LOG.debug
        level("connection %d %s ended: %s", connection.serial, connection.address, why)
        if self.dialer is not None and not self._stop.requested:
            self._dial_again(connection, state, now, why)

    def _dial_again(self, connection: Connection, state: str, now: int, why: str) -> None:
        slot = self.dialer.slots[connection.dial_index]
        if state is ESTABLISHED:
            self.dialer.lost(slot, now, why)
            self._dial(now)
        else:
            begun = self.dialer.refused(slot, now, f"{connection.address}: {why}")
            if begun:
                self._begin(*begun, now)

    def say_goodbye(self) -> None:
        """Nothing more will be sent: every peer may know."""
        for connection in self.connections.values():
            try:
                connection.say_goodbye()
            except OSError:
                pass  # it ended by itself, or takes nothing

    # -- the clock

    def tick(self, now: int, unread: bool) -> None:
        """`unread`: bytes of anybody may be waiting, because we do not read."""
        seen = self._connection_list.seen
        for version, connection in self._retired:
            if seen >= version:
                connection.socket.close()
        self._retired = [item for item in self._retired if seen < item[0]]
        if self._stop.requested:
            return
        for connection in list(self.connections.values()):
            if connection.state is ESTABLISHED:
                self._check_established(connection, now, unread)
            else:
                self._check_greeting(connection, now)
        for peer in self.peers.values():
            if peer.established:
                peer.limit(self._table.rate(peer.peer), self._table.received_elsewhere(peer.peer, self._lane), now)
                peer.look(now)
        if self.dialer is not None:
            self._dial(now)
            self._counters[ID["tcp.dials_failed"]] += self.dialer.failures
            self.dialer.failures = 0
        if not self._next_rows:
            self._next_rows = list(self.connections.values())
        rows, self._next_rows = self._next_rows[:ROWS_A_TICK], self._next_rows[ROWS_A_TICK:]
        self._carrier.write_rows(each for each in rows if each.state is not CLOSED)

    def _check_established(self, connection: Connection, now: int, unread: bool) -> None:
        if not self._carrier.current(connection):
            self.close(connection, "its session has ended: there is a newer one, or the peer was revoked")
        elif unread or self.peers[connection.peer].paused:
            connection.last_received_ns = now  # the silence is ours
        elif now - connection.last_received_ns > self._timeout_ns:
            self._counters[ID["tcp.connections_timed_out"]] += 1
            self.close(connection, f"nothing heard for {self._settings['timeout']:g} s")
        elif (
            self.dialer is not None
            and connection.channel is not None
            and max(connection.sent_bytes, connection.received_bytes)
            > REKEY_AFTER_BYTES - connection.dial_index % 32 * (REKEY_AFTER_BYTES // 64)
        ):
            # at other times than those that have carried as much beside it
            self.close(connection, "its keys have served long enough: the next connection has new ones")

    def _check_greeting(self, connection: Connection, now: int) -> None:
        most = self._greeting_ns if connection.state is HANDSHAKE else min(CONNECT_NS, self._timeout_ns)
        if now - connection.state_since_ns > most:
            if self.door is not None:
                self._counters[ID["tcp.closed_too_late"]] += 1
            self.close(connection, f"no answer while {connection.state}")
        elif connection.channel is not None and connection.channel.wants_write:
            self._greet(connection)

    def received(self, connection: Connection, size: int) -> None:
        self._carrier.received(connection.peer, size)
