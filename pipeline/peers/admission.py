"""The server's desk: proofs are checked here, peers admitted, and the peers segment written.

    answer(request)    a tcp worker's question about a connection; never raises for what a peer sent
    configure(known)   other peers from now on; whose identity is gone loses its connections
    peers()            for the command of this name

Whoever gets an index, and each new session of his, gets a seat of its own (pipeline.shm.peer_table), and workers
compare those: no connection of an earlier one goes on, whatever numbers its client makes up. Who was admitted a
moment ago counts as connected, until his connection shows in the segment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipeline.config import Config
from pipeline.errors import LocalError, PeerError
from pipeline.log import LOG, printable
from pipeline.packet.route_table import NOBODY
from pipeline.peers.address_assignment import PeerPolicy, Refusal
from pipeline.peers.membership import Admitted, Membership
from pipeline.peers.registry import KnownPeer, PeerRegistry
from pipeline.shm import layout
from pipeline.shm.layout import PEER_INDEX_BITS, RECORD_WORDS
from pipeline.shm.peer_table import PeerTable
from pipeline.wire import auth, messages

ON_THE_WAY_NS = 2_000_000_000


class PeerSession(NamedTuple):
    """Who has an index. `sent`, `received`, `dropped`: the segment's counts when he took it."""

    peer_handle: int
    name: str
    session: int
    since_ns: int
    sent: int
    received: int
    dropped: int


class Admission:
    """`save` is called with what is to be remembered (name -> addresses) whenever that has changed."""

    def __init__(
        self,
        config: Config,
        table: PeerTable,
        offloads_accepted: int,
        remembered: dict[str, list[str]],
        save: Callable[[dict[str, list[str]]], None],
    ) -> None:
        self._table = table
        self._save = save
        self._saved = remembered
        open_to_all = config.encryption == "none" or config.insecure
        self.identities = PeerRegistry(open_to_all)
        interfaces = config.tunnel_interfaces
        if config.encryption == "none" and not config.multi_client:
            self._membership = Membership.open_to_one(interfaces)
        else:
            self._membership = Membership(interfaces, table.capacity, remembered)
        self._offloads_accepted = offloads_accepted
        self._peer_sessions: dict[int, PeerSession] = {}  # by index
        self._admitted_at = [0] * table.capacity
        self._occupations = 0
        self._routes: list = []
        self.config = config
        self._publish_routes()

    def configure(self, config: Config, known: Iterable[KnownPeer]) -> None:
        """Take over a configuration."""
        self.config = config
        self.identities.replace(known)
        ended = self._membership.configure(each.identity for each in self.identities.known)
        for peer, refusal in ended.items():
            LOG.info(
                "peer %s: %s", self._peer_sessions[peer].name if peer in self._peer_sessions else peer, refusal.text
            )
            self._end_session(peer)
        rates = {each.identity.name: each.identity.rate for each in self.identities.known}
        for peer_session in self._peer_sessions.values():
            self._table.write_record(peer_session.peer_handle, rates.get(peer_session.name, 0))
        self._publish_routes()

    # -- a connection asks

    def answer(self, request: dict) -> dict:
        """Bytes in a request are a peer's, and hexadecimal."""
        found = self._decide(request)
        if isinstance(found, Refusal):
            frame = messages.Refused(found.reason, found.text).frame() if found.reason else b""
            return {"serial": request["serial"], "frame": frame.hex(), "why": printable(found.text)}
        admitted, frame = found
        return {
            "serial": request["serial"],
            "frame": frame.hex(),
            "seat": self._peer_sessions[admitted.peer].peer_handle,
        }

    def _decide(self, request: dict) -> Refusal | tuple[Admitted, bytes]:
        hello_frame = bytes.fromhex(request["hello"])
        hello = messages.decode(hello_frame)
        if not isinstance(hello, messages.Hello):
            raise PeerError("a HELLO that is another greeting")
        transcript = b""
        challenge = bytes.fromhex(request["challenge"])
        if challenge:
            transcript = auth.transcript(hello_frame, challenge, bytes.fromhex(request["hash"]))
            known = self.identities.by_key(hello, transcript, bytes.fromhex(request["proof"]))
        elif request["certificate"]:
            known = self.identities.by_certificate(bytes.fromhex(request["certificate"]))
        else:
            known = self.identities.stranger(hello)
        if known is None:
            return Refusal(0, "has not proved to be a peer")
        if hello.version != messages.VERSION:
            return Refusal(messages.WRONG_VERSION, messages.REASONS[messages.WRONG_VERSION])
        admitted = self._admit(known.identity, hello)
        if isinstance(admitted, Refusal):
            return admitted
        config = self.config
        behind = known.identity.allowed
        routes = tuple(
            route
            for route in config.push_prefixes
            if not any(route.version == network.version and route.subnet_of(network) for network in behind)
        )
        welcome = messages.Welcome(
            messages.VERSION,
            self._offloads_accepted,
            config.mtu,
            messages.ACCEPTS_SHARDS if config.fec != "off" else 0,
            addresses=admitted.addresses,
            routes=routes,
        )
        if transcript:
            welcome = welcome._replace(mac=auth.server_proof(known.key, transcript, welcome.frame()))
        return admitted, welcome.frame()

    def _admit(self, identity: PeerPolicy, hello: messages.Hello) -> Refusal | Admitted:
        now = time.monotonic_ns()
        admitted = self._membership.admit(
            identity, hello.session, hello.wishes, lambda peer: self._connected(peer, now)
        )
        if isinstance(admitted, Refusal):
            return admitted
        peer = admitted.peer
        if self._table.count(peer) >= self.config.max_connections_per_client and self._has_session(identity, hello):
            return Refusal(messages.TOO_MANY_CONNECTIONS, messages.REASONS[messages.TOO_MANY_CONNECTIONS])
        stays = self._has_session(identity, hello, peer) and self._connected(peer, now)
        self._admitted_at[peer] = now
        if not stays:
            self._start_session(peer, identity, hello, now)
        return admitted

    def _connected(self, peer: int, now: int) -> bool:
        return self._table.count(peer) > 0 or (
            peer in self._peer_sessions and now - self._admitted_at[peer] < ON_THE_WAY_NS
        )

    def _has_session(self, identity: PeerPolicy, hello: messages.Hello, peer: int = NOBODY) -> bool:
        return any(
            (peer_session.name, peer_session.session) == (identity.name, hello.session)
            for index, peer_session in self._peer_sessions.items()
            if peer in (NOBODY, index)
        )

    # -- the segment

    def _new_handle(self, peer: int) -> int:
        self._occupations += 1
        return self._occupations << PEER_INDEX_BITS | peer

    def _start_session(self, peer: int, identity: PeerPolicy, hello: messages.Hello, now: int) -> None:
        for other in [
            other
            for other, peer_session in self._peer_sessions.items()
            if peer_session.name == identity.name and other != peer
        ]:
            self._end_session(other)
        peer_handle = self._new_handle(peer)
        self._peer_sessions[peer] = PeerSession(
            peer_handle, identity.name, hello.session, now, self._sent(peer), self._received(peer), self._dropped(peer)
        )
        self._publish_routes()  # before the seat: its packets come after
        self._table.write_record(peer_handle, identity.rate)
        remembered = {
            name: [str(address) for address in addresses] for name, addresses in self._membership.remembered.items()
        }
        if remembered != self._saved:
            self._saved = remembered
            self._save(remembered)

    def _end_session(self, peer: int) -> None:
        self._peer_sessions.pop(peer, None)
        self._table.write_record(self._new_handle(peer), 0)

    def _publish_routes(self) -> None:
        peer_handles = {peer: peer_session.peer_handle for peer, peer_session in self._peer_sessions.items()}
        routes = [
            (address, length, peer_handles.get(peer, NOBODY)) for address, length, peer in self._membership.routes()
        ]
        if routes != self._routes:
            try:
                self._table.write_routes(routes)
                self._routes = routes
            except LocalError as error:
                LOG.error("%s; the old routes go on", error)

    def _sent(self, peer: int) -> int:
        return sum(lines[peer * RECORD_WORDS + layout.SENT_BYTES] for lines in self._table.sent)

    def _received(self, peer: int) -> int:
        return sum(lines[peer * RECORD_WORDS + layout.LINK_RECEIVED_BYTES] for lines in self._table.links)

    def _dropped(self, peer: int) -> int:
        return sum(lines[peer * RECORD_WORDS + layout.SENT_DROPPED] for lines in self._table.sent)

    # -- for people

    def peers(self, now: int) -> list[dict]:
        """Every peer that is configured or sits here, by name."""
        endpoints: dict[int, set[str]] = {}
        for lane in range(len(self._table.links)):
            for row in self._table.connections(lane):
                if row.state == "established":
                    endpoints.setdefault(row.peer, set()).add(row.address.rpartition(":")[0])
        return [self._peer(member, endpoints, now) for member in self._membership.listing()]

    def _peer(self, member: NamedTuple, endpoints: dict[int, set[str]], now: int) -> dict:
        index = member.peer
        peer_session = self._peer_sessions.get(index)
        count = self._table.count(index) if index != NOBODY else 0
        return {
            "name": member.identity.name,
            "state": "connected" if count else "away",
            "addresses": [str(address) for address in member.addresses],
            "allowed": [str(network) for network in member.identity.allowed],
            "rate_mbit": member.identity.rate / 125_000,
            "endpoint": ", ".join(sorted(endpoints.get(index, ()))) if count else "",
            "connections": count,
            "sent_bytes": self._sent(index) - peer_session.sent if peer_session else 0,
            "received_bytes": self._received(index) - peer_session.received if peer_session else 0,
            "dropped": self._dropped(index) - peer_session.dropped if peer_session else 0,
            "session_seconds": round((now - peer_session.since_ns) / 1e9, 1) if peer_session and count else None,
        }
