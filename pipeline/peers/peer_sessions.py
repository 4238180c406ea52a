"""The sessions that have an index on a server, and the records and routes of the peer table that follow from them.

Each session that gets an index has a peer handle of its own (pipeline.shm.peer_table), and workers compare handles. So
no connection of an earlier session goes on, whatever session numbers a client makes up. A peer that was admitted a
moment ago counts as connected until the peer table shows its connection. Nobody tells when a connection ends.

Not here: who may have a session, and under which index (admission, membership).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.packet.route_table import EVERYBODY, NO_PEER
from pipeline.peers.dial_slots import UNSEEN_NS, DialSlots, Place
from pipeline.peers.peer_status import PeerRow
from pipeline.peers.registry import KnownPeer
from pipeline.peers.sealed_sessions import SealedSessions
from pipeline.runtime.supervisor_channel import Replaced
from pipeline.sealing.session import KeyShare, SealedSession, answer_offer
from pipeline.shm.datagram_secrets import DatagramServer
from pipeline.shm.layout import PEER_INDEX_BITS
from pipeline.shm.peer_table import PeerTable, Route
from pipeline.wire.messages import ACCEPTS_SHARDS, TAKES_DATAGRAMS, TAKES_NOTES, Hello

CONNECTING_NS = UNSEEN_NS

SAME_PORT = 0
"""As the `datagram_port` of a WELCOME: the port that the client has dialed, whatever leads from there to ours."""


class PeerSession(NamedTuple):
    """The session that has an index. `row`: the peer as observers see it, with the counts when the session began."""

    peer_handle: int
    name: str
    key: bytes  # that it has proved to have; b"" for none
    certificate: bytes  # DER, that it has shown instead; b"" for none
    session: int
    slots: DialSlots
    row: PeerRow
    key_share: bytes = b""  # of the client, as its HELLO has it
    sealed: SealedSession | None = None  # where blocks are sealed
    takes_datagrams: bool = False  # the client does, as its HELLO says
    takes_notes: bool = False
    offloads: int = 0  # that its device accepts


class DatagramPorts(NamedTuple):
    """At which a server takes datagrams, as a WELCOME says (wire.messages)."""

    udp: int | None = None
    fake_tcp: int = 0


class Seals(NamedTuple):
    """Where blocks are sealed: the keeper of the keys, the suite that this machine prefers, and where datagrams with
    blocks are taken."""

    sessions: SealedSessions
    suite: int
    ports: DatagramPorts = DatagramPorts()


class PeerSessions:
    """`tell_workers`: called when a connection replaces one at another worker."""

    def __init__(
        self, table: PeerTable, tell_workers: Callable[[Replaced], object], seals: Seals | None = None
    ) -> None:
        self._seals = seals
        self._table = table
        self._tell_workers = tell_workers
        self._by_index: dict[int, PeerSession] = {}
        self._admitted_at = [0] * table.capacity
        self._handles_made = 0
        self._routes: list[Route] = []

    # -- which there are

    def find(self, peer: int) -> PeerSession | None:
        return self._by_index.get(peer)

    def handle_of(self, peer: int) -> int:
        return self._by_index[peer].peer_handle

    def all(self) -> list[tuple[int, PeerSession]]:
        """Each index that has a session, and the session."""
        return list(self._by_index.items())

    def has(self, peer: int, name: str, hello: Hello) -> bool:
        """Whether the session of a HELLO of this peer has this index."""
        found = self._by_index.get(peer)
        return found is not None and (found.name, found.session) == (name, hello.session)

    def goes_on(self, peer: int, name: str, hello: Hello, now: int) -> bool:
        """Whether a HELLO of this peer adds a connection to the session with this index. Else a session begins.

        Only the first HELLOs have the key share of the session: the client offers another one once it has an answer.
        """
        if not self.has(peer, name, hello):
            return False
        return self._table.established_count(peer) > 0 or (
            self._by_index[peer].key_share == hello.key_share and self.is_connected(peer, now)
        )

    def lacks_key_share(self, hello: Hello) -> bool:
        """Whether blocks are sealed here, and the client has no key share for that."""
        return self._seals is not None and KeyShare.of_client(hello.key_share) is None

    def is_connected(self, peer: int, now: int) -> bool:
        return self._table.established_count(peer) > 0 or (
            peer in self._by_index and now - self._admitted_at[peer] < CONNECTING_NS
        )

    # -- the connections of one session

    def has_room(self, peer: int, index: int, limit: int, now: int) -> bool:
        """Whether one connection more, of this dial slot, is within the limit."""
        count = self._table.established_count(peer)
        return self._by_index[peer].slots.has_room(index, limit, count, lambda: self._places(peer), now)

    def _places(self, peer: int) -> set[Place]:
        """The connections of a peer that the workers show, and those whose handshake is under way, of any peer."""
        return {
            Place(lane, connection.serial)
            for lane in range(len(self._table.links))
            for connection in self._table.connections(lane)
            if connection.peer == peer or connection.state != "established"
        }

    def take_slot(self, peer: int, index: int, place: Place, now: int) -> None:
        """The worker of the new connection ends those that it replaces there; other workers have to be told."""
        peer_session = self._by_index[peer]
        before = peer_session.slots.take(index, place, now)
        if before is not None and before.lane != place.lane:
            handle = peer_session.peer_handle
            self._tell_workers(Replaced(replaced=index, peer_handle=handle, lane=place.lane, serial=place.serial))

    # -- from the first to the last moment

    def admitted(self, peer: int, now: int) -> None:
        """A connection under this index has been admitted, and is going to show in the peer table."""
        self._admitted_at[peer] = now

    def answer_offer(self, known: KnownPeer, hello: Hello) -> SealedSession | None:
        """A sealed session for the key share of a client; None where blocks are not sealed. PeerError if it is of no
        use."""
        key_share = KeyShare.of_client(hello.key_share)
        if self._seals is None or key_share is None:
            return None
        return answer_offer(key_share, self._seals.suite, known.key, hello.client_id, hello.session)

    def start(
        self,
        peer: int,
        known: KnownPeer,
        certificate: bytes,
        hello: Hello,
        sealed: SealedSession | None,
        now: int,
    ) -> None:
        """The session of HELLO gets an index. It has no record yet: publish its routes first, then write its rate."""
        name = known.policy.name
        for other, peer_session in self.all():
            if peer_session.name == name and other != peer:
                self.end(other)
        row = PeerRow(name).with_session(peer, now, self._table)
        peer_handle = self._new_handle(peer)
        self._by_index[peer] = PeerSession(
            peer_handle,
            name,
            known.key,
            certificate,
            hello.session,
            DialSlots(),
            row._replace(version=hello.program, mtu=hello.mtu, fec=bool(hello.features & ACCEPTS_SHARDS)),
            hello.key_share,
            sealed,
            bool(hello.features & TAKES_DATAGRAMS),
            bool(hello.features & TAKES_NOTES),
            hello.offloads,
        )
        if self._seals is not None and sealed is not None:
            self._seals.sessions.begin(peer_handle, sealed, now)

    def end(self, peer: int) -> None:
        ended = self._by_index.pop(peer, None)
        if ended is not None and self._seals is not None:
            self._seals.sessions.end(ended.peer_handle)
        self._table.write_record(self._new_handle(peer), 0)

    def use_datagrams(self, peer: int, allowed: bool) -> None:
        """Let blocks of this session travel in datagrams, if the client and this end take them."""
        peer_session = self._by_index[peer]
        if self._seals is not None and peer_session.takes_datagrams:
            server = DatagramServer() if allowed else None
            self._seals.sessions.use_datagrams(peer_session.peer_handle, server)

    def uses_datagrams(self, peer: int) -> bool:
        return self._seals is not None and self._seals.sessions.uses_datagrams(self.handle_of(peer))

    def datagram_ports(self, peer: int) -> DatagramPorts:
        """Where this session may send datagrams."""
        if self._seals is None or not self.uses_datagrams(peer):
            return DatagramPorts()
        return self._seals.ports

    def tick(self, now: int) -> bool:
        """The epochs of sealed sessions go on: whether one has changed."""
        return self._seals is not None and self._seals.sessions.tick(now)

    def _new_handle(self, peer: int) -> int:
        self._handles_made += 1
        return self._handles_made << PEER_INDEX_BITS | peer

    # -- the peer table

    def write_rates(self, peer: int, rate: int, bulk_rate: int | None) -> None:
        """In bytes a second. `bulk_rate`: None for that of all peers."""
        self._table.write_record(self.handle_of(peer), rate, bulk_rate)

    def publish_routes(self, owned: Iterable[Route]) -> None:
        """`owned`: each route with the index of its peer, or EVERYBODY."""
        handles = {peer: peer_session.peer_handle for peer, peer_session in self._by_index.items()}
        handles[EVERYBODY] = EVERYBODY
        routes = [(address, length, handles.get(peer, NO_PEER)) for address, length, peer in owned]
        if routes != self._routes:
            try:
                self._table.write_routes(routes)
                self._routes = routes
            except LocalError as error:
                LOG.error("%s; the old routes stay in use", error)
