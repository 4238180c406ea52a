"""The inbound duty of a tcp worker: the life of its connections, and their frames into its inbound ring.

    client    dial -> HELLO -> WELCOME -> established      again and again, with backoff, for ever
    server    accept -> HELLO -> WELCOME or REFUSED        one client at a time
    compat    no greeting; one connection

A peer's bytes can end that peer's connection and nothing else: PeerError is caught where the connection is served.
A connection that hears nothing for `timeout` is dead, unless it was this end that did not read.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time

from pipeline import session, wire
from pipeline.carrier import Carrier
from pipeline.connection import CLOSED, CONNECTING, ESTABLISHED, GREETING, Connection, Roster, configure, shown
from pipeline.counters import ID
from pipeline.dialer import CONNECT_NS, Dialer, Slot
from pipeline.errors import PeerError
from pipeline.intake import Intake, receive_greeting
from pipeline.layout import ROWS_MAX
from pipeline.log import LOG, printable
from pipeline.port import QUIET_NS
from pipeline.worker import DONE, NOTHING, Attachment
from workers.tcp_outbound import Outbound
from workers.tcp_watch import Watch

TICK_NS = 100_000_000
ROWS_NS = 500_000_000
GREETING_NS = 10_000_000_000   # in all, from accept or connect to WELCOME
ACCEPT_BURST = 16
ACCEPT_PAUSE_NS = 200_000_000  # after an accept that failed for want of descriptors
READ_BURST = 8                 # receives on one connection before the others have their turn
FULL_READ_BYTES = 131072       # a receive of less has most likely emptied the socket

EVENTS = select.EPOLLIN | select.EPOLLRDHUP


class Inbound:
    """Owns every connection of this worker; `listen_fd` on a server, a Dialer on a client."""

    name = "inbound"

    def __init__(self, attachment: Attachment, roster: Roster, outbound: Outbound, listen_fd: int | None) -> None:
        settings = attachment.settings
        self._settings = settings
        self._stop = attachment.stop
        self._roster = roster
        self._outbound = outbound
        self._counters = attachment.page.counters
        self._bell = attachment.doorbells[self.name]
        (self._port,) = attachment.ports(self.name, "inbound")
        self._compat = settings["compat"]
        self._intake = Intake(self._port, wire.COMPAT_LENGTH_LIMIT if self._compat else wire.LENGTH_LIMIT)
        self._lane = attachment.me.lane
        tcp_workers = attachment.plan.of_kind("tcp")
        self._lanes = len(tcp_workers)
        self._carrier = Carrier(attachment)
        self._features = session.DECODES if settings["fec"] != "off" else 0
        self._watch = Watch(settings, self._carrier, self._counters) if self._features else None
        self._helpless = False   # it has been said that one connection cannot help
        self._timeout_ns = int(settings["timeout"] * 1e9)
        self._epoll = select.epoll()
        self._events: list[tuple[int, int]] = []
        self._connections: dict[int, Connection] = {}
        self._ahead: list[Connection] = []
        self._retired: list[tuple[int, Connection]] = []
        self._serial = 0
        self._ring_full = False
        self._woken = 0
        self._next_tick = self._next_rows = 0
        self._listener: socket.socket | None = None
        self._listen_again = 0
        self._dialer: Dialer | None = None
        if listen_fd is not None:
            self._listener = socket.socket(fileno=listen_fd)
            self._epoll.register(listen_fd, select.EPOLLIN)
        else:
            indexes = list(range(self._lane, settings["connections"] + settings["light_connections"], self._lanes))
            self._dialer = Dialer(settings["remote_host"], settings["remote_port"], indexes, settings)
            self._epoll.register(self._dialer.wake, select.EPOLLIN)

    # -- the duty

    def work(self) -> int:
        """Serve the events of the last wait, and the clock."""
        done = 0
        if self._ahead:
            self._read_ahead()
        for fd, _ in self._events:
            connection = self._connections.get(fd)
            if connection is not None:
                done += self._serve(connection)
            elif self._listener is not None and fd == self._listener.fileno():
                self._accept()
            elif self._dialer is not None and fd == self._dialer.wake:
                os.eventfd_read(fd)
                if not self._stop.requested:
                    self._dial(time.monotonic_ns())
        self._events = []
        now = time.monotonic_ns()
        if now >= self._next_tick:
            self._next_tick = now + TICK_NS
            self._tick(now)
        return DONE if done else NOTHING

    def wait(self, seconds: float) -> None:
        if self._ring_full:
            self._bell.wait(self._port.ready, seconds)
            self._ring_full = not self._port.ready()
        self._events = self._epoll.poll(0 if self._ring_full else seconds)
        if self._events:
            now = time.monotonic_ns()
            if now - self._woken > QUIET_NS:
                self._port.herald()
            self._woken = now

    def drained(self) -> bool:
        """End once the outbound duty has sent what there was: then say goodbye to every peer."""
        if not self._outbound.ended:
            return False
        for connection in self._connections.values():
            try:
                connection.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it ended by itself
        return True

    # -- the life of a connection

    def _dial(self, now: int) -> None:
        for slot, sock, address in self._dialer.step(now):
            self._begin(slot, sock, address, now)

    def _begin(self, slot: Slot, sock: socket.socket, address: tuple, now: int) -> None:
        connection = self._register(sock, shown(address), CONNECTING, now, select.EPOLLOUT)
        connection.slot = slot.index

    def _accept(self) -> None:
        now = time.monotonic_ns()
        for _ in range(ACCEPT_BURST):
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                    self._counters[ID["tcp.accepts_failed"]] += 1
                    self._epoll.modify(self._listener.fileno(), 0)  # else a lack of descriptors would spin
                    self._listen_again = now + ACCEPT_PAUSE_NS
                return
            if len(self._connections) >= ROWS_MAX:
                self._counters[ID["tcp.closed_row_full"]] += 1
                sock.close()
                continue
            configure(sock, self._settings)
            connection = self._register(sock, shown(address), GREETING, now, EVENTS)
            if self._compat:
                if self._roster.established or any(holder.established for holder in self._carrier.other_holders()):
                    self._refuse(connection, session.BUSY)
                else:
                    self._establish(connection, now)

    def _register(self, sock: socket.socket, address: str, state: str, now: int, events: int) -> Connection:
        self._serial += 1
        connection = Connection(sock, address, state, self._serial, now)
        self._connections[connection.fd] = connection
        self._epoll.register(connection.fd, events)
        return connection

    def _serve(self, connection: Connection) -> int:
        try:
            if connection.state is ESTABLISHED:
                return self._read(connection)
            if connection.state is CONNECTING:
                self._connected(connection)
            else:
                self._greet(connection)
        except BlockingIOError:
            pass
        except PeerError as error:
            self._end_for(connection, error)
        except EOFError:
            self._close(connection, connection.error or "closed by the peer")
        except OSError as error:
            self._close(connection, connection.error or error.strerror or str(error))
        return 0

    def _connected(self, connection: Connection) -> None:
        error = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        now = time.monotonic_ns()
        self._epoll.modify(connection.fd, EVENTS)
        if self._compat:
            self._establish(connection, now)
            return
        connection.state = GREETING
        connection.since = now
        hello = session.Hello(session.VERSION, self._settings["offloads_accepted"], connection.slot,
                              self._settings["connections"], self._settings["mtu"],
                              self._settings["client"], self._settings["session"],
                              wire.LIGHT if connection.slot >= self._settings["connections"] else wire.BULK,
                              self._features)
        connection.client, connection.session = hello.client, hello.session
        connection.purpose = hello.purpose
        connection.socket.send(hello.frame())

    def _greet(self, connection: Connection) -> None:
        frame = receive_greeting(connection.socket, connection.greeting)
        if frame is None:
            return
        greeting = session.decode(frame)
        match greeting:
            case session.Hello() if self._listener is not None:
                self._admit(connection, greeting)
            case session.Welcome() if self._listener is None:
                connection.offloads = greeting.offloads
                connection.decodes = bool(greeting.features & session.DECODES)
                self._check_fec(connection, self._settings["connections"])
                self._compare_mtu(connection, greeting.mtu)
                self._establish(connection, time.monotonic_ns())
            case session.Refused() if self._listener is None:
                raise OSError(errno.ECONNREFUSED, f"refused by the server: {printable(greeting.text)}")
            case _:
                raise PeerError("a greeting that only the other side may send")

    def _admit(self, connection: Connection, hello: session.Hello) -> None:
        reason = session.admit(hello, [self._carrier.holder(), *self._carrier.other_holders()])
        if reason:
            self._refuse(connection, reason)
            return
        for other in self._roster.established:
            if other.session < hello.session:
                self._close(other, "replaced by a newer session of the same client")
            elif other.slot == hello.index:
                self._close(other, "dialled anew by the client")
        connection.client, connection.session, connection.slot = hello.client, hello.session, hello.index
        connection.offloads = hello.offloads
        connection.purpose = wire.LIGHT if hello.purpose == wire.LIGHT else wire.BULK
        connection.decodes = bool(hello.features & session.DECODES)
        self._check_fec(connection, hello.connections)
        welcome = session.Welcome(session.VERSION, self._settings["offloads_accepted"], self._settings["mtu"],
                                  self._features)
        connection.socket.send(welcome.frame())
        self._compare_mtu(connection, hello.mtu)
        self._establish(connection, time.monotonic_ns())

    def _refuse(self, connection: Connection, reason: int) -> None:
        self._counters[ID["tcp.connections_refused"]] += 1
        if not self._compat:
            try:
                connection.socket.send(session.Refused(reason, session.REASONS[reason]).frame())
            except OSError:
                pass  # it left before it was refused
        self._close(connection, f"refused: {session.REASONS[reason]}")

    def _check_fec(self, connection: Connection, connections: int) -> None:
        """Say once what keeps forward error correction from helping."""
        if not self._features or self._helpless:
            return
        if not connection.decodes:
            LOG.warning("the other end has fec off: nothing is protected in its direction until it is on or auto there")
        elif connections == 1:
            LOG.warning("fec is %s, but there is one connection: TCP delivers it in order or stalls, and no parity can "
                        "help there; let the client open more (connections)", self._settings["fec"])
        else:
            return
        self._helpless = True

    def _compare_mtu(self, connection: Connection, theirs: int) -> None:
        if theirs != self._settings["mtu"]:
            LOG.warning("connection %d to %s: its tunnel MTU is %d, ours is %d: set both to the same value",
                        connection.serial, connection.address, theirs, self._settings["mtu"])

    def _establish(self, connection: Connection, now: int) -> None:
        connection.state = ESTABLISHED
        connection.since = connection.heard = connection.spoke = now
        connection.lane = (self._lane + len(self._roster.established)) % self._lanes
        self._roster.add(connection)
        self._carrier.write(self._roster.established)
        self._next_rows = 0
        self._outbound.kick()
        if self._dialer is not None:
            self._dialer.held(self._dialer.slots[connection.slot], now)
        self._counters[ID["tcp.connections_established"]] += 1
        LOG.info("connection %d %s %s established", connection.serial, "to" if self._dialer else "from",
                 connection.address)
        if connection.greeting:
            connection.stash = bytes(connection.greeting)  # frames that came right behind the greeting
            connection.greeting = bytearray()
            self._ahead.append(connection)
            self._read_ahead()

    def _read(self, connection: Connection) -> int:
        intake = self._intake
        total = 0
        try:
            for _ in range(READ_BURST):
                free = self._port.ready()
                if not free:
                    self._ring_full = True
                    self._counters[ID["tcp.ring_full_waits"]] += 1
                    connection.heard = time.monotonic_ns()  # silent by our own fault
                    break
                received = intake.read(connection, free)
                if not received:
                    raise EOFError
                total += received
                if received < FULL_READ_BYTES:
                    break  # there was no more; to ask costs an exception
        except BlockingIOError:
            pass
        finally:
            if total:
                connection.heard = time.monotonic_ns()
                connection.received += total
                counters = self._counters
                counters[_BYTES_RECEIVED] += total
                counters[_FRAMES_RECEIVED] += intake.frames
                intake.frames = 0
        return total

    def _read_ahead(self) -> None:
        """Hand on what arrived together with a greeting, as soon as a slot is free."""
        while self._ahead and self._port.ready():
            connection = self._ahead.pop()
            if connection.state is ESTABLISHED:
                self._counters[_BYTES_RECEIVED] += len(connection.stash)
                connection.received += len(connection.stash)
                try:
                    self._intake.prefill(connection)
                except PeerError as error:
                    self._end_for(connection, error)
        self._counters[_FRAMES_RECEIVED] += self._intake.frames
        self._intake.frames = 0

    def _end_for(self, connection: Connection, error: PeerError) -> None:
        counter = "tcp.closed_frame_too_long" if connection.state is ESTABLISHED else "tcp.closed_hello_invalid"
        self._counters[ID[counter]] += 1
        self._close(connection, printable(str(error)))

    def _close(self, connection: Connection, why: str) -> None:
        """Take a connection out of service; its socket is closed once the outbound duty has let go of it."""
        now = time.monotonic_ns()
        state, connection.state = connection.state, CLOSED
        self._next_rows = 0
        del self._connections[connection.fd]
        self._epoll.unregister(connection.fd)
        self._intake.forget(connection)
        level = LOG.debug
        if state is ESTABLISHED:
            level = LOG.info
            self._counters[ID["tcp.connections_lost"]] += 1
            if self._watch is not None:
                self._watch.ended += 1
            self._roster.remove(connection, now)
            self._retired.append((self._roster.version, connection))
            connection.fail(OSError(0, why))
            self._carrier.write(self._roster.established)
            self._outbound.kick()
        else:
            connection.socket.close()
        if why.startswith("refused"):
            level = LOG.warning if self._dialer is None else LOG.debug
        level("connection %d %s ended: %s", connection.serial, connection.address, why)
        if self._dialer is not None and not self._stop.requested:
            slot = self._dialer.slots[connection.slot]
            if state is ESTABLISHED:
                self._dialer.lost(slot, now, why)
                self._dial(now)
            else:
                begun = self._dialer.refused(slot, now, f"{connection.address}: {why}")
                if begun:
                    self._begin(*begun, now)

    # -- the clock

    def _tick(self, now: int) -> None:
        seen = self._roster.seen
        for version, connection in self._retired:
            if seen >= version:
                connection.socket.close()
        self._retired = [item for item in self._retired if seen < item[0]]
        if self._listen_again and now >= self._listen_again:
            self._listen_again = 0
            self._epoll.modify(self._listener.fileno(), select.EPOLLIN)
        if self._stop.requested:
            return
        for connection in list(self._connections.values()):
            if connection.state is ESTABLISHED:
                self._check_established(connection, now)
            elif now - connection.since > (GREETING_NS if connection.state is GREETING else self._connect_ns()):
                if self._dialer is None:
                    self._counters[ID["tcp.closed_hello_invalid"]] += 1
                self._close(connection, f"no answer while {connection.state}")
        if self._watch is not None:
            self._watch.look(self._roster.established, now)
        if self._dialer is not None:
            self._dial(now)
            self._counters[ID["tcp.dials_failed"]] += self._dialer.failures
            self._dialer.failures = 0
        if now >= self._next_rows:
            self._next_rows = now + ROWS_NS
            self._carrier.write_rows(self._connections.values())

    def _check_established(self, connection: Connection, now: int) -> None:
        if self._ring_full:
            connection.heard = now  # unread bytes may be waiting; the silence is ours
        elif now - connection.heard > self._timeout_ns:
            self._counters[ID["tcp.connections_timed_out"]] += 1
            self._close(connection, f"nothing heard for {self._settings['timeout']:g} s")
        elif session.gives_way(self._carrier.holder(), self._carrier.other_holders()):
            self._close(connection, "another worker holds a newer session, or another client")

    def _connect_ns(self) -> int:
        return min(CONNECT_NS, self._timeout_ns)


_BYTES_RECEIVED = ID["tcp.bytes_received"]
_FRAMES_RECEIVED = ID["tcp.frames_received"]
