"""A server's Admission on a peer table of its own, and clients for which it is asked as a tcp worker would ask."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network

from pipeline.config import Config, parse
from pipeline.packet.route_table import RouteTable
from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.admission import Admission
from pipeline.peers.peer_sessions import CONNECTING_NS, SAME_PORT, DatagramPorts, Seals
from pipeline.peers.quotas import Quotas
from pipeline.peers.registry import KnownPeer
from pipeline.peers.sealed_sessions import SealedSessions
from pipeline.sealing.key_schedule import AES_256_GCM
from pipeline.shm import layout, peer_table, segment
from pipeline.shm.datagram_secrets import DatagramSecretTable
from pipeline.shm.key_table import KeyTable
from pipeline.shm.layout import PEER_INDEX_MASK, RECORD_WORDS
from pipeline.shm.peer_table import RouteReader
from pipeline.wire import auth, messages
from pipeline.wire.messages import Challenge, Hello, Message, Refused, Welcome

OFFLOADS = 0x13
CERTIFICATE_HASH = b"c" * 32
KEYS = {name: number.to_bytes(31) + b"k" for number, name in enumerate(("ann", "bob", "cyd", "dan", "eve"), 1)}
ROWS = 8


def known(
    name: str, *allowed: str, fixed: Iterable[str] = (), rate: int = 0, bulk_rate: int | None = None
) -> KnownPeer:
    """A peer that proves its identity with its key."""
    policy = PeerPolicy(name, tuple(map(ip_network, allowed)), tuple(map(ip_address, fixed)), rate, bulk_rate=bulk_rate)
    return KnownPeer(policy, KEYS[name])


ANN, BOB, CYD = known("ann"), known("bob"), known("cyd")
SILENCE = 0
"""The reason of an answer that is none."""


class Answer:
    """An answer of Admission, and the message in it."""

    def __init__(self, reply: dict) -> None:
        self.reply = json.loads(json.dumps(reply))  # as over the supervisor channel
        self.frame = bytes.fromhex(self.reply["frame"])
        self.message: Message | None = messages.decode(self.frame) if self.frame else None

    @property
    def peer_handle(self) -> int:
        assert isinstance(self.message, Welcome), self
        assert set(self.reply) - {"seal"} == {"serial", "frame", "peer_handle", "name"}
        return self.reply["peer_handle"]

    @property
    def peer(self) -> int:
        return self.peer_handle & PEER_INDEX_MASK

    @property
    def addresses(self) -> list[str]:
        assert isinstance(self.message, Welcome), self
        return [str(address) for address in self.message.addresses]

    @property
    def reason(self) -> int:
        """The reason of a refusal; 0 if the client has proved nothing and gets no message."""
        assert set(self.reply) == {"serial", "frame", "reason", "name"}, self
        if self.message is None:
            return 0
        assert isinstance(self.message, Refused)
        assert self.reply["reason"] == self.message.text
        return self.message.reason

    def __repr__(self) -> str:
        return f"Answer({self.reply}, {self.message})"


def hello(
    key: bytes | None,
    number: int = 1,
    *requested: str,
    client: int = 1,
    version: int = messages.VERSION,
    index: int = 0,
    key_share: bytes = b"",
    features: int = 0,
) -> Hello:
    """The HELLO of a client with a key, or without one, in its session of this number."""
    method = messages.AUTH_KEY if key else messages.AUTH_NONE
    return Hello(
        version,
        0,
        index,
        1,
        1400,
        client,
        number,
        0,
        features,
        method,
        auth.key_id(key) if key else bytes(8),
        secrets.token_bytes(32),
        tuple(map(ip_address, requested)),
        key_share=key_share,
    )


def request(
    hello_frame: bytes,
    key: bytes | None = None,
    certificate: bytes = b"",
    serial: int = 7,
    certificate_hash: bytes = CERTIFICATE_HASH,
    lane: int = 0,
) -> dict:
    """The request of a tcp worker for a client that has sent this HELLO, and the PROOF for this key if there is one."""
    challenge = mac = b""
    if key:
        challenge = Challenge(secrets.token_bytes(32)).frame()
        mac = auth.client_proof(key, auth.transcript(hello_frame, challenge, certificate_hash))
    return {
        "lane": lane,
        "serial": serial,
        "hello": hello_frame.hex(),
        "challenge": challenge.hex(),
        "proof": mac.hex(),
        "certificate": certificate.hex(),
        "hash": certificate_hash.hex(),
    }


class HubServer:
    """A hub with these peers. `settings`: its configuration; `saved`: the addresses that it saved, each time; `told`:
    what all workers were told; `seals`: with `keys`, the table of the tun workers; `secrets`: that of dgram workers,
    used with `datagrams`; `dgram_workers`: the peer table has their records."""

    def __init__(
        self,
        *peers_known: KnownPeer,
        capacity: int = 4,
        lanes: int = 2,
        remembered: dict | None = None,
        seals: bool = False,
        datagrams: bool = False,
        dgram_workers: bool = False,
        **settings: object,
    ) -> None:
        self.settings = {
            "mode": "server",
            "tunnel_addr": ["10.0.0.1/24", "fd00::1/64"],
            "max_clients": capacity,
        } | settings
        name = f"/tunnel@hubtest@{secrets.token_hex(4)}@peer-table"
        self.table = peer_table.create(name, capacity, lanes, ROWS, dgram_workers)
        self.saved: list[dict[str, list[str]]] = []
        self.told: list[dict] = []
        self.quotas = Quotas()
        self.keys, self._keys_fd = KeyTable.create(capacity)
        self.secrets, self._secrets_fd = DatagramSecretTable.create(capacity)
        sealed = SealedSessions(self.keys, self.table, self.secrets if datagrams else None)
        self.began: list[tuple[int, str]] = []
        self.admission = Admission(
            self.config,
            self.table,
            OFFLOADS,
            remembered or {},
            self.saved.append,
            self.told.append,
            quotas=self.quotas,
            began=lambda *session: self.began.append(session),
            seals=Seals(sealed, AES_256_GCM, DatagramPorts(SAME_PORT, 444)) if seals else None,
        )
        self.configure(*peers_known)

    @property
    def config(self) -> Config:
        return parse(self.settings)

    def configure(self, *peers_known: KnownPeer, **settings: object) -> None:
        self.settings |= settings
        self.admission.configure(self.config, peers_known)

    def close(self) -> None:
        segment.unlink(self.table.memory.name)
        self.table.close()
        for table, fd in ((self.keys, self._keys_fd), (self.secrets, self._secrets_fd)):
            table.close()
            os.close(fd)

    # -- clients

    def ask(
        self, name: str, number: int = 1, *requested: str, index: int = 0, serial: int = 7, lane: int = 0
    ) -> Answer:
        """A peer with a key opens a connection in its session of this number."""
        frame = hello(KEYS[name], number, *requested, index=index).frame()
        return Answer(self.admission.handle_hello(request(frame, KEYS[name], serial=serial, lane=lane)))

    def ask_unauthenticated(self, client: int, number: int = 1, *requested: str) -> Answer:
        """A client without any proof opens a connection in its session of this number."""
        return Answer(self.admission.handle_hello(request(hello(None, number, *requested, client=client).frame())))

    def set_connections(self, peer: int, count: int, lane: int = 0) -> None:
        """As the tcp worker of this lane would publish it."""
        self.table.links[lane][peer * RECORD_WORDS + layout.LINK_ESTABLISHED] = count

    def connect(self, name: str, number: int = 1, *requested: str) -> Answer:
        """A peer with a key opens a connection, which is established."""
        answer = self.ask(name, number, *requested)
        self.set_connections(answer.peer, 1)
        return answer

    def disconnect(self, peer: int) -> None:
        """The connections under an index have ended a while ago."""
        for lane in range(len(self.table.links)):
            self.set_connections(peer, 0, lane)
        self.admission._sessions._admitted_at[peer] -= CONNECTING_NS

    # -- as workers see it

    def is_current(self, answer: Answer) -> bool:
        """Whether the connections of this answer go on."""
        return self.table.peer_handle(answer.peer) == answer.peer_handle

    def handle_at(self, address: str) -> int:
        """The peer handle to which packets for an address go."""
        routes = RouteTable()
        RouteReader(self.table).read_into(routes)
        return routes.lookup(ip_address(address).packed)

    def state(self) -> tuple:
        """Everything that workers see, and the number of times that addresses were saved."""
        routes = RouteTable()
        RouteReader(self.table).read_into(routes)
        records = [(self.table.peer_handle(peer), self.table.rate(peer)) for peer in range(self.table.capacity)]
        return records, routes._families, len(self.saved)


MakeHub = Callable[..., HubServer]


def refusal_reason(server: HubServer, ask: Callable[[], Answer]) -> int:
    """The reason of a refusal, which must change nothing."""
    before = server.state()
    answer = ask()
    assert isinstance(answer.message, Refused), answer
    assert server.state() == before
    return answer.reason
