"""The inbound duty of a dgram worker: datagrams become whole blocks in the arrived ring of its lane.

    1. wait            poll says that the socket can be read, or a report, a block or a probe is due
    2. _receive        up to READS receives, each with the segments that the kernel has put together
    3. _take           by their token: segments to the reception of their session, the rest to the control
    4. take_blocks     whole blocks into free slots of the arrived ring
    5. reports, tick   what is due goes out

While the ring is full, datagrams wait in the socket, and those that find no room there look lost. So the other end
becomes slower. After FULL_NS they are read in spite of that, since probes and reports are among them.

Datagrams come from anybody. One with a token that no session has costs a look at the table of sessions, not more often
than each millisecond.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.counters import ID
from pipeline.datagram.segment import TOKEN_BYTES
from pipeline.fec.codec import Codec
from pipeline.policy.carrier_order import Kind
from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.port import QUIET_NS
from pipeline.runtime.worker import DONE, MORE, NOTHING, Attachment
from pipeline.sealing.datagram_memory import DatagramMemory
from pipeline.shm.datagram_secrets import DatagramSecretTable
from workers.dgram.arrived_ring import ArrivedRing
from workers.dgram.control import BUSY_TICK_NS, Control
from workers.dgram.lane_sockets import InboundSocket, LaneSocket
from workers.dgram.path import Paths
from workers.dgram.reception import SEGMENTS_MOST, Reception
from workers.dgram.reports import Reports
from workers.dgram.sessions import DATA, EAGER_NS, Session, Sessions

READS = 16  # receives in one step: then the heartbeat and what is due have their turn
FULL_NS = 50_000_000
FULL_WAIT_S = 0.001  # for room in the ring, before the socket is looked at again
SHARE_WAIT_S = 0.0002  # for room in the share of a peer; meanwhile nothing of another one is seen

_TOKEN = np.dtype(">u4")
_UNKNOWN = ID["dgram.dropped_token_unknown"]
_FULL_WAITS = ID["dgram.ring_full_waits"]


class Inlet(NamedTuple):
    """A socket, and the array of what it has received."""

    kind: Kind
    socket: InboundSocket
    content: np.ndarray


class Receiver:
    """Stage 0 of the arrived ring. The descriptors are its own from now on."""

    name = "inbound"

    def __init__(self, attachment: Attachment, paths: Paths, sockets: Sequence[LaneSocket], fds: WorkerFds) -> None:
        table = attachment.peer_table
        lane = attachment.worker.lane
        (port,) = attachment.ports(self.name, "arrived")
        self._bell = attachment.doorbells[self.name]
        self._counters = attachment.page.counters
        self._words = table.datagrams_in[lane]
        self._has_many = table.capacity > 1
        self._paths = paths
        self._ring = ArrivedRing(port, attachment.plan.lanes, self._has_many)
        self._codec = Codec()
        self._secrets = DatagramSecretTable.attach(fds.datagram_secrets, table.capacity)
        self._sessions = Sessions(self._secrets, table.capacity, self._counters)
        self._inlets = [
            Inlet(each.kind, each.inbound, np.frombuffer(each.inbound.memory, np.uint8)) for each in sockets
        ]
        self._control = Control(
            self._sessions,
            paths,
            sockets,
            DatagramMemory(fds.datagram_memory, table.capacity),
            self._words,
            {Kind.UDP: self._words, Kind.FAKE_TCP: table.datagrams_fake_tcp[lane]},
            self._counters,
            attachment.settings.carrier,
            attachment.plan.mode == "client",
            attachment.process,
            lane,
            attachment.doorbells["outbound"].kick,
            attachment.settings.tun_name,
        )
        self._receptions: dict[int, Reception] = {}  # by peer handle
        self._waiting: dict[Reception, None] = {}  # blocks of theirs wait for room, or for others
        self._reports = Reports(self._control)
        self._poll = select.poll()
        for inlet in self._inlets:
            self._poll.register(inlet.socket.fileno(), select.POLLIN)
        self._spins = attachment.settings.idle == "spin"
        self._last_event_ns = self._full_since = 0
        self._tick_at = 0
        now = time.monotonic_ns()
        self._sessions.look(now)
        self._control.follow(now)

    # -- the duty

    def wait(self, seconds: float) -> None:
        if any(each.held for each in self._waiting):
            free = self._ring.ready()
            self._bell.wait(lambda: self._ring.ready() > free, min(seconds, SHARE_WAIT_S if free else FULL_WAIT_S))
            return
        now = time.monotonic_ns()
        blocks_due = [each.assembly.due() for each in self._waiting]
        until = min(at for at in (*blocks_due, self._reports.due(), self._tick_at, now + int(seconds * 1e9)) if at)
        left = 0.0 if self._spins else max(0.0, (until - now) / 1e6)
        if self._poll.poll(left) and time.monotonic_ns() - self._last_event_ns > QUIET_NS:
            self._ring.wake_ahead()

    def work(self) -> int:
        now = time.monotonic_ns()
        if self._sessions.look(now):
            self._follow(now)
        done = self._deliver(now) + self._take_back()
        reads = 0
        if not self._is_full(now):
            reads = max(map(self._receive, self._inlets), default=0)
        now = time.monotonic_ns()
        self._reports.send(now)
        if now >= self._tick_at:
            self._tick_at = now + BUSY_TICK_NS
            self._tick(now, reads < READS and not self._full_since)
        if reads == READS:
            return MORE
        return DONE if reads or done else NOTHING

    def drained(self) -> bool:
        return True

    def close_descriptors(self) -> None:
        for inlet in self._inlets:
            inlet.socket.close()

    # -- what comes

    def _receive(self, inlet: Inlet) -> int:
        """Receives; READS if there may be more."""
        socket = inlet.socket
        receive = socket.receive
        for reads in range(READS):
            if not receive():
                return reads
            if socket.size:
                now = self._last_event_ns = time.monotonic_ns()
                self._take(inlet, socket.size, socket.segment_bytes, now)
        return READS

    def _take(self, inlet: Inlet, size: int, segment_bytes: int, now: int) -> None:
        """Take what one receive has brought."""
        kind, socket, content = inlet
        memory = socket.memory
        whole = size // segment_bytes
        if 1 < whole <= SEGMENTS_MOST:
            end = whole * segment_bytes
            tokens = np.ndarray(whole, _TOKEN, memory, 0, (segment_bytes,))
            token = int(tokens[0])
            found = self._session_of(token, now)
            if found is not None and found[1] == DATA and np.count_nonzero(tokens == token) == whole:
                reception = self._reception_of(found[0])
                datagrams = content[:end].reshape(whole, segment_bytes)
                reception.add_batch(datagrams, socket.is_marked, now, socket.waited_ns)
                if end < size:
                    self._take_one(inlet, memory[end:size], now)
                self._reports.add(reception, kind)
                self._hand_on(reception, now)
                return
        for at in range(0, size, segment_bytes):
            self._take_one(inlet, memory[at : min(at + segment_bytes, size)], now)

    def _take_one(self, inlet: Inlet, datagram: memoryview, now: int) -> None:
        socket = inlet.socket
        token = int.from_bytes(datagram[:TOKEN_BYTES], "big")
        found = self._session_of(token, now) if len(datagram) > TOKEN_BYTES else None
        if found is None:
            self._counters[_UNKNOWN] += 1
        elif found[1] == DATA:
            reception = self._reception_of(found[0])
            reception.add_one(datagram, socket.is_marked, now, socket.waited_ns)
            self._reports.add(reception, inlet.kind)
            self._hand_on(reception, now)
        else:
            self._control.on_datagram(found[0], socket, datagram, now)

    def _session_of(self, token: int, now: int) -> tuple[Session, int] | None:
        found = self._sessions.of_token(token)
        if found is None and self._sessions.look(now, EAGER_NS):
            self._follow(now)
            found = self._sessions.of_token(token)
        return found

    def _reception_of(self, session: Session) -> Reception:
        found = self._receptions.get(session.peer_handle)
        if found is None:
            senders = self._control.senders_of(session)
            found = self._receptions[session.peer_handle] = Reception(
                session, senders, self._codec, self._counters, self._words, self._has_many
            )
        return found

    def _follow(self, now: int) -> None:
        """Sessions have come or gone."""
        self._control.follow(now)
        for peer_handle, reception in list(self._receptions.items()):
            if self._sessions.of_handle(peer_handle) is not reception.session:
                del self._receptions[peer_handle]
                self._waiting.pop(reception, None)
                self._reports.forget(reception)

    # -- what goes on

    def _hand_on(self, reception: Reception, now: int) -> int:
        """Whole blocks of a session, as far as there is room."""
        done = self._ring.take_blocks(reception, now)
        if reception.held is not None or reception.assembly.due():
            self._waiting[reception] = None
        else:
            self._waiting.pop(reception, None)
        return done

    def _deliver(self, now: int) -> int:
        """Blocks that had to wait."""
        return sum(self._hand_on(each, now) for each in list(self._waiting))

    def _take_back(self) -> int:
        """Blocks for partners that no datagram has brought there."""
        done = 0
        while self._paths.taken_back and self._ring.take_back(self._paths.taken_back[0]):
            self._paths.taken_back.popleft()
            done += 1
        return done

    def _is_full(self, now: int) -> bool:
        """Whether datagrams stay in the socket, since the ring has no room for what has come before."""
        if self._ring.ready() or not any(each.held for each in self._waiting):
            self._full_since = 0
            return False
        if not self._full_since:
            self._full_since = now
            self._counters[_FULL_WAITS] += 1
        return now - self._full_since < FULL_NS

    def _tick(self, now: int, has_read_all: bool) -> None:
        for inlet in self._inlets:
            inlet.socket.tick(now)
        self._control.tick(now, has_read_all)
        for reception in self._receptions.values():
            reception.publish()
