"""A server's hub on a peers segment of its own, and clients that ask it as a tcp worker would for them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network

from pipeline.config import Config, parse
from pipeline.packet.route_table import RouteTable
from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.admission import ON_THE_WAY_NS, Admission
from pipeline.peers.registry import KnownPeer
from pipeline.shm import layout, peer_table, segment
from pipeline.shm.layout import PEER_INDEX_MASK, RECORD_WORDS
from pipeline.shm.peer_table import RouteReader
from pipeline.wire import auth as proof
from pipeline.wire import messages
from pipeline.wire.messages import Challenge, Hello, Message, Refused, Welcome

OFFLOADS = 0x13
CERTIFICATE_HASH = b"c" * 32
KEYS = {name: number.to_bytes(31) + b"k" for number, name in enumerate(("ann", "bob", "cyd", "dan", "eve"), 1)}
ROWS = 8


def known(name: str, *allowed: str, fixed: Iterable[str] = (), rate: int = 0) -> KnownPeer:
    """A peer that proves itself with its key."""
    return KnownPeer(PeerPolicy(name, tuple(map(ip_network, allowed)), tuple(map(ip_address, fixed)), rate), KEYS[name])


class Answer:
    """What the hub has said."""

    def __init__(self, reply: dict) -> None:
        self.reply = json.loads(json.dumps(reply))  # it must cross the desk
        self.frame = bytes.fromhex(self.reply["frame"])
        self.greeting: Message | None = messages.decode(self.frame) if self.frame else None

    @property
    def peer_handle(self) -> int:
        assert isinstance(self.greeting, Welcome), self
        assert set(self.reply) == {"serial", "frame", "seat"}
        return self.reply["seat"]

    @property
    def peer(self) -> int:
        return self.peer_handle & PEER_INDEX_MASK

    @property
    def addresses(self) -> list[str]:
        assert isinstance(self.greeting, Welcome), self
        return [str(address) for address in self.greeting.addresses]

    @property
    def reason(self) -> int:
        """Of a refusal; 0 for the silence in which a stranger is turned away."""
        assert set(self.reply) == {"serial", "frame", "why"}, self
        if self.greeting is None:
            return 0
        assert isinstance(self.greeting, Refused)
        assert self.reply["why"] == self.greeting.text
        return self.greeting.reason

    def __repr__(self) -> str:
        return f"Answer({self.reply}, {self.greeting})"


def hello(key: bytes | None, number: int = 1, *wishes: str, client: int = 1, version: int = messages.VERSION) -> Hello:
    """Of a client with a key, or without one, in its session of this number."""
    auth = messages.AUTH_KEY if key else messages.AUTH_NONE
    return Hello(
        version,
        0,
        0,
        1,
        1400,
        client,
        number,
        0,
        0,
        auth,
        proof.key_id(key) if key else bytes(8),
        secrets.token_bytes(32),
        tuple(map(ip_address, wishes)),
    )


def request(
    greeting: bytes,
    key: bytes | None = None,
    certificate: bytes = b"",
    serial: int = 7,
    certificate_hash: bytes = CERTIFICATE_HASH,
) -> dict:
    """What a tcp worker asks when a client has sent this HELLO, and after its PROOF with this key, if it has one."""
    challenge = mac = b""
    if key:
        challenge = Challenge(secrets.token_bytes(32)).frame()
        mac = proof.client_proof(key, proof.transcript(greeting, challenge, certificate_hash))
    return {
        "serial": serial,
        "hello": greeting.hex(),
        "challenge": challenge.hex(),
        "proof": mac.hex(),
        "certificate": certificate.hex(),
        "hash": certificate_hash.hex(),
    }


class Server:
    """With these peers. `settings` are the configuration's; `saved`: what was to be remembered, each time."""

    def __init__(
        self,
        *peers_known: KnownPeer,
        capacity: int = 4,
        lanes: int = 2,
        remembered: dict | None = None,
        **settings: object,
    ) -> None:
        self.settings = {
            "mode": "server",
            "tunnel_addr": ["10.0.0.1/24", "fd00::1/64"],
            "max_clients": capacity,
        } | settings
        self.table = peer_table.create(f"/tunnel@hubtest@{secrets.token_hex(4)}@peers", capacity, lanes, ROWS)
        self.saved: list[dict[str, list[str]]] = []
        self.hub = Admission(self.config, self.table, OFFLOADS, remembered or {}, self.saved.append)
        self.configure(*peers_known)

    @property
    def config(self) -> Config:
        return parse(self.settings)

    def configure(self, *peers_known: KnownPeer, **settings: object) -> None:
        self.settings |= settings
        self.hub.configure(self.config, peers_known)

    def close(self) -> None:
        segment.unlink(self.table.memory.name)
        self.table.close()

    # -- what clients do

    def ask(self, name: str, number: int = 1, *wishes: str) -> Answer:
        """A peer with a key opens a connection in its session of this number."""
        return Answer(self.hub.answer(request(hello(KEYS[name], number, *wishes).frame(), KEYS[name])))

    def ask_unproved(self, client: int, number: int = 1, *wishes: str) -> Answer:
        """The same for a client that has nothing to prove itself with."""
        return Answer(self.hub.answer(request(hello(None, number, *wishes, client=client).frame())))

    def has_connections(self, peer: int, count: int, lane: int = 0) -> None:
        """What tcp worker `lane` says."""
        self.table.links[lane][peer * RECORD_WORDS + layout.LINK_ESTABLISHED] = count

    def comes(self, name: str, number: int = 1, *wishes: str) -> Answer:
        """It is admitted, and connected."""
        answer = self.ask(name, number, *wishes)
        self.has_connections(answer.peer, 1)
        return answer

    def goes(self, peer: int) -> None:
        """Its connections have ended, a while ago."""
        for lane in range(len(self.table.links)):
            self.has_connections(peer, 0, lane)
        self.hub._admitted_at[peer] -= ON_THE_WAY_NS

    # -- what workers see

    def is_current(self, answer: Answer) -> bool:
        """Whether connections that were answered so go on."""
        return self.table.peer_handle(answer.peer) == answer.peer_handle

    def whose(self, address: str) -> int:
        """The seat to which packets for an address go."""
        found = RouteTable()
        RouteReader(self.table).read_into(found)
        return found.peer_of(ip_address(address).packed)

    def state(self) -> tuple:
        """All that workers see, and all that is remembered."""
        found = RouteTable()
        RouteReader(self.table).read_into(found)
        lines = [(self.table.peer_handle(peer), self.table.rate(peer)) for peer in range(self.table.capacity)]
        return lines, found._families, len(self.saved)


MakeServer = Callable[..., Server]


def refused(server: Server, ask: Callable[[], Answer]) -> int:
    """The reason, and that nothing has changed."""
    before = server.state()
    answer = ask()
    assert isinstance(answer.greeting, Refused), answer
    assert server.state() == before
    return answer.reason
