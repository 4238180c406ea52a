"""The inbound duty of a tcp worker: bytes of its connections become whole frames in its inbound ring.

A packet's way, in the order in which `work` calls:

    1. wait           epoll says which connections can be read; after a silence the next stage is woken ahead
    2. handle_event   an event of another descriptor is the connection manager's: handshakes, new connections, the
                      supervisor channel
    3. _take_turn     a turn for each peer that has something to read and room in the ring
    4. _read_burst    up to READ_BURST receives on one connection, straight into a slot of the ring
                      (`workers.tcp.frame_reader`)
    5. _count         bytes, frames and their charge; a peer beyond its rate, or that of all, is paused, all its
                      connections for bulk together
    6. _resume_peers  paused peers that are in credit again, of those beyond the rate of all one after the other
    7. tick           the connection manager's clock: timeouts, checks, rates, status rows

A connection is readable when epoll says so, or when bytes of it are left inside. These stand in its TLS channel, behind
a slot that was full, or behind its handshake; or they were held back until the supervisor has decided about its
address. While one peer alone is connected, its turns do not end, and its share of the ring is all of it.

Where connections come from and how they end is the business of `workers.tcp.connection_manager`.
A peer's bytes can end that peer's connection and nothing else: PeerError is caught where the connection is read.
"""

from __future__ import annotations

import time

from pipeline.counters import ID
from pipeline.errors import PeerError
from pipeline.log import printable
from pipeline.policy.ring_shares import RingShares
from pipeline.policy.shared_rate import SharedRate
from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.port import QUIET_NS
from pipeline.runtime.worker import DONE, NOTHING, Attachment
from pipeline.transport.connection import BARE_FRAMES_RATE, UNANSWERED, Connection
from pipeline.transport.connection_list import ConnectionList
from pipeline.wire import charge, framing
from workers.tcp.client_connections import ClientConnections
from workers.tcp.connection_manager import ConnectionManager, ManagerContext
from workers.tcp.frame_reader import FrameReader
from workers.tcp.peer_receiver import PeerReceiver
from workers.tcp.peer_turns import QUANTUM, SAVED_MOST
from workers.tcp.sender import Sender
from workers.tcp.server_connections import ServerConnections

READ_BURST = 8  # receives on one connection before the others have their turn
FULL_READ_BYTES = 131072  # a receive of less has most likely emptied the socket
SHARE_WAIT_S = 0.0002  # for room in a share; meanwhile no event of another peer is seen

_BYTES_RECEIVED = ID["tcp.bytes_received"]
_FRAMES_RECEIVED = ID["tcp.frames_received"]
_PADDING_RECEIVED = ID["tcp.bytes_padding_received"]
_RING_FULL_WAITS = ID["tcp.ring_full_waits"]
_SHARE_WAITS = ID["tcp.share_waits"]


class Receiver:
    """Stage 0 of the inbound ring."""

    name = "inbound"

    def __init__(self, attachment: Attachment, connection_list: ConnectionList, sender: Sender, fds: WorkerFds) -> None:
        self._sender = sender
        self._counters = attachment.page.counters
        self._bell = attachment.doorbells[self.name]
        (self._port,) = attachment.ports(self.name, "inbound")
        self._frame_reader = FrameReader(self._port, attachment.settings.frame_limit)
        self._events: list[tuple[int, int]] = []
        self._readable: dict[PeerReceiver, None] = {}  # peers that have readable connections and are not paused
        self._rounds = 0  # of turns, that have begun (`workers.tcp.peer_turns`)
        self._paused: list[PeerReceiver] = []
        self._blocked_at = -1  # free slots when no readable peer had room for more; -1: some peer had
        self._last_event_ns = 0
        kind: type[ServerConnections | ClientConnections]
        kind = ServerConnections if fds.listener >= 0 else ClientConnections
        self.connections: ConnectionManager = kind(ManagerContext(attachment, connection_list, sender.kick, fds, self))
        self._total = self.connections.total_rate

    # -- the duty

    def wait(self, seconds: float) -> None:
        if self._paused and self._total.shared is not None:
            seconds = min(seconds, max(0.0, (self._resume_at(self._total.shared) - time.monotonic_ns()) / 1e9))
        if self._blocked_at >= 0:
            self._bell.wait(self._has_more_room, min(seconds, SHARE_WAIT_S) if self._blocked_at else seconds)
            seconds = 0
        elif self._readable:
            seconds = 0
        self._events = self.connections.poll(seconds)
        if self._events:
            now = time.monotonic_ns()
            if now - self._last_event_ns > QUIET_NS:
                self._port.wake_ahead()
            self._last_event_ns = now

    def work(self) -> int:
        """Let the manager handle its events, read all peers that have something, and run the manager's clock."""
        connections = self.connections
        if connections.has_several_peers is not (self._frame_reader.shares is not None):
            self._share_ring(connections.has_several_peers)
        established, peers = connections.established, connections.peers
        in_turns = self._frame_reader.shares is not None
        self._blocked_at = -1
        done = 0
        for fd, _ in self._events:
            connection = established.get(fd)
            if connection is None:
                connections.handle_event(fd)
                continue
            peer = peers[connection.peer]
            if peer.paused and connection.traffic_class == framing.LIGHT:
                done += self._read_light(connection, peer)
            elif in_turns:
                self._add_readable(connection)
            else:
                done += self._read(connection, peer)
        self._events = []
        if self._readable:
            done += self._read_round()
        now = time.monotonic_ns()
        if self._paused:
            self._resume_peers(now)
        connections.tick(now, self._blocked_at == 0)
        return DONE if done else NOTHING

    def drained(self) -> bool:
        """The duty ends when the outbound duty has sent what there was: then it shuts down every connection."""
        if not self._sender.ended:
            return False
        self.connections.shutdown_all()
        return True

    def _has_more_room(self) -> bool:
        return self._port.ready() > self._blocked_at

    def _share_ring(self, among_several: bool) -> None:
        self._frame_reader.shares = RingShares(self._port.ring.capacity) if among_several else None

    # -- whose turn it is

    def _add_readable(self, connection: Connection) -> None:
        peer = self.connections.peers[connection.peer]
        peer.readable[connection] = None
        if not peer.paused:
            self._readable[peer] = None

    def _read_round(self) -> int:
        """Turns of those that have something to read, credit and room. Bytes."""
        done = 0
        blocked = True
        if self._total.shared is not None:
            self._pause_limited(self._total.shared)
        peers = list(self._readable)
        in_turns = self._frame_reader.shares is not None
        if in_turns:
            self._give_credit(peers)
        for peer in peers:
            if (peer.turns.credit > 0 or not in_turns) and self._room(peer):
                blocked = False
                done += self._take_turn(peer)
            if not peer.readable or peer.paused:
                self._readable.pop(peer, None)
                peer.turns.rest()
        if blocked and peers:
            self._note_blocked()
        return done

    def _give_credit(self, peers: list[PeerReceiver]) -> None:
        """If none of those with room has credit left, let rounds begin until one has; the others save theirs."""
        for peer in peers:
            peer.turns.follow(self._rounds)
        if len(peers) == 1:
            peers[0].turns.forgive()
            return
        with_room = [peer for peer in peers if self._room(peer)]
        wait = min((peer.turns.rounds_to_wait for peer in with_room), default=0)
        if not wait:
            return
        without_room = set(peers).difference(with_room)
        if all(peer.turns.may_save(wait) for peer in without_room):
            self._rounds += wait
            for peer in peers:
                peer.turns.follow(self._rounds, SAVED_MOST if peer in without_room else QUANTUM)

    def _note_blocked(self) -> None:
        self._blocked_at = self._port.ready()
        self._counters[_SHARE_WAITS if self._blocked_at else _RING_FULL_WAITS] += 1

    def _room(self, peer: PeerReceiver) -> int:
        """The slots that are free; 0 if the peer has its share of the ring."""
        free = self._port.ready()
        shares = self._frame_reader.shares
        if shares is not None:
            shares.follow(free)
            if not shares.may_add(peer.peer):
                return 0
        return free

    def _take_turn(self, peer: PeerReceiver) -> int:
        """Read the peer's connections, those first that have waited longest. Bytes."""
        in_turns = self._frame_reader.shares is not None
        self._frame_reader.surcharge = peer.turns.surcharge
        readable = peer.readable
        done = 0
        for connection in list(readable):
            if connection not in readable:
                continue  # it has been closed meanwhile
            del readable[connection]
            done += self._read(connection, peer)
            if peer.paused or (in_turns and (peer.turns.credit <= 0 or not self._room(peer))):
                break
        return done

    # -- reading

    def _read_light(self, connection: Connection, peer: PeerReceiver) -> int:
        """Read a connection for light flows of a peer that is paused. Bytes."""
        if self._light_may_pass(peer, time.monotonic_ns()):
            return self._read(connection, peer)
        peer.light_waits = True
        self.connections.watch(connection, False)
        return 0

    def _read(self, connection: Connection, peer: PeerReceiver) -> int:
        """Read an established connection; close it if it has ended or sends nonsense. Bytes."""
        if connection.receive.learner is not None and connection.is_held:
            return 0  # it has been reset meanwhile: that event is not masked
        try:
            return self._read_burst(connection, peer)
        except PeerError as error:
            self._close_hostile(connection, ID["tcp.closed_frame_too_long"], printable(str(error)))
        except EOFError:
            self.connections.close(connection, connection.send.error or "closed by the peer")
        except OSError as error:
            connection.receive.unanswered = error.errno in UNANSWERED
            self.connections.close(connection, connection.send.error or printable(error.strerror or str(error)))
        return 0

    def _read_burst(self, connection: Connection, peer: PeerReceiver) -> int:
        reader, port, receive, channel = self._frame_reader, self._port, connection.receive, connection.channel
        in_turns = reader.shares is not None
        total = reads = bare = 0
        try:
            for _ in range(READ_BURST if self._total.shared is None else 1):
                room = self._room(peer) if in_turns else port.ready()
                if not room:
                    receive.last_ns = time.monotonic_ns()  # its silence is our own fault
                    if not in_turns:
                        self._note_blocked()
                    break
                if receive.has_frames:
                    reader.publish_left(connection, room)
                    received = FULL_READ_BYTES  # the socket may have more
                else:
                    reads += 1
                    received = reader.read(connection, room)
                    if not received:
                        raise EOFError
                    total += received
                if receive.learner is not None and connection.is_held:
                    self.connections.ask_about_claim(connection)
                    break
                if received < FULL_READ_BYTES and not (receive.has_frames or (channel and channel.pending)):
                    break  # there was no more; to ask costs an exception
                if in_turns and total + reader.charge + charge.READ * reads >= peer.turns.credit:
                    break
        except BlockingIOError:
            pass
        finally:
            bare = self._count(connection, peer, total, reads)
        if (receive.has_frames or (channel is not None and channel.pending)) and not connection.is_held:
            self._add_readable(connection)
        if bare and not receive.bare_frames.in_credit(receive.last_ns):
            self._close_hostile(
                connection, ID["tcp.closed_bare_frames"], f"over {BARE_FRAMES_RATE} frames without contents a second"
            )
        return total

    def _close_hostile(self, connection: Connection, counter: int, why: str) -> None:
        self._counters[counter] += 1
        self.connections.close(connection, why)

    # -- counting, and rates

    def _count(self, connection: Connection, peer: PeerReceiver, size: int, reads: int) -> int:
        """Count what a burst has brought, and charge the peer for it; pause the peer if that is beyond its rate.

        The number of frames without contents.
        """
        reader = self._frame_reader
        frames, bare, charged, slots = reader.take_counts()
        channel = connection.channel
        if channel is not None:
            charged += charge.RECORD * channel.records + channel.moved_bytes // charge.MOVED_BYTES
            channel.records = channel.moved_bytes = 0
        if reader.shares is not None:
            peer.turns.spend(size + charged, reads, slots)
        if not (size or frames):
            return 0
        now = time.monotonic_ns()
        receive = connection.receive
        receive.last_ns = now
        receive.byte_count += size
        if bare:
            receive.bare_frames.spend(bare, now)
        counters = self._counters
        counters[_BYTES_RECEIVED] += size
        counters[_FRAMES_RECEIVED] += frames
        scanner = receive.scanner
        if scanner is not None and scanner.padding_bytes:
            padding = scanner.take_padding(size)
            counters[_PADDING_RECEIVED] += padding
            size -= padding
            charged += padding  # its bytes are no traffic of the peer's, and yet work
        peer.record_received(size, charged, now)
        shared = self._total.shared
        if shared is not None:
            shared.spend(peer.peer, charge.against_rate(size, size + charged), now)
        if (peer.bucket.rate or shared is not None) and not peer.paused and not self._may_go_on(peer, shared, now):
            self._pause(peer)
        return bare

    @staticmethod
    def _may_go_on(peer: PeerReceiver, shared: SharedRate | None, now: int) -> bool:
        return peer.bucket.in_credit(now) and (shared is None or shared.may_pass(peer.peer, now))

    def _pause_limited(self, shared: SharedRate) -> None:
        """Let those wait who may not be read now."""
        now = time.monotonic_ns()
        for peer in [each for each in self._readable if not shared.may_pass(each.peer, now)]:
            del self._readable[peer]
            peer.turns.rest()
            self._pause(peer)

    def _light_may_pass(self, peer: PeerReceiver, now: int) -> bool:
        shared = self._total.shared
        return peer.light_bucket.in_credit(now) and (shared is None or shared.may_pass(peer.peer, now, light=True))

    def _pause(self, peer: PeerReceiver) -> None:
        """Read the peer's bulk no more. Its light flows go on, up to its rate for themselves."""
        peer.paused = True
        self._paused.append(peer)
        self._counters[ID["tcp.rate_pauses"]] += 1
        for connection in peer.established:
            if connection.traffic_class != framing.LIGHT:
                self.connections.watch(connection, False)

    def _resume_peers(self, now: int) -> None:
        """Let those go on that may; of the rate of all, the first of them, which has its turn before the next."""
        shared = self._total.shared
        if shared is not None:
            waiting = [peer.peer for peer in self._paused if peer.bucket.in_credit(now)]
            shared.note_waiting(waiting, now)
            shared.begin_round(waiting, now)
        for peer in self._paused:
            if self._may_go_on(peer, shared, now):
                peer.paused = peer.light_waits = False
                for connection in peer.established:
                    self.connections.watch(connection, not connection.is_held)
                if peer.readable:
                    self._readable[peer] = None
                if shared is not None:
                    break
            elif peer.light_waits and self._light_may_pass(peer, now):
                peer.light_waits = False
                for connection in peer.established:
                    if connection.traffic_class == framing.LIGHT:
                        self.connections.watch(connection, not connection.is_held)
        self._paused = [peer for peer in self._paused if peer.paused]

    def _resume_at(self, shared: SharedRate) -> int:
        """When the first of the paused peers may go on."""
        return min(max(peer.bucket.credit_at(), shared.passes_at(peer.peer)) for peer in self._paused)

    # -- called by the connection manager

    def on_established(self, connection: Connection, early: bytes) -> None:
        if early:
            self._counters[_BYTES_RECEIVED] += len(early)
            connection.receive.partial_frame = early
            connection.receive.has_frames = True
        if early or (connection.channel is not None and connection.channel.pending):
            self._add_readable(connection)

    def on_released(self, connection: Connection) -> None:
        connection.receive.has_frames = True
        self._add_readable(connection)
        self.connections.watch(connection, not (self.connections.peers[connection.peer].paused or connection.is_held))

    def on_closed(self, connection: Connection) -> None:
        peer = self.connections.peers.get(connection.peer)
        if peer is not None:
            peer.readable.pop(connection, None)
        self._frame_reader.forget(connection)
