"""A hub that is stepped: its clients, and packets with the addresses that they have.

Client number i is the i-th to connect, so a new server assigns it the i-th address after its own: `inside(i, 4)`.
"""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address

from pipeline.credentials import certificates
from pipeline.fec.shard import RUN_BYTES, shard_bytes
from pipeline.packet.vnet import GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VNET
from pipeline.peers.admission import PeerStatus
from pipeline.peers.registry import ANYBODY, KnownPeer
from pipeline.shm.layout import RECORD_WORDS, SENT_DROPPED
from pipeline.transport.settings import TlsMaterial
from pipeline.wire import framing
from tests.harness import run_header
from tests.inline.harness.ends import WELCOME, End, Make, Peer, frame, hello, packets_in, until

BULK_BYTES = 50_000
"""Size of a packet that is never light; one fills most of a block."""

FAMILIES = (4, 6)
Hosts = Callable[..., tuple[End, Peer, Peer]]
RUN = 0x21
ACCEPTS_SHARDS = 1  # the feature bit of a hello


def inside(client: int, version: int) -> str:
    """The address of a client in the tunnel; 0 is the server."""
    return f"10.0.0.{client + 1}" if version == 4 else f"fd00::{client + 1:x}"


def packet(source: str, destination: str, number: int = 0, size: int = 100) -> bytes:
    """A valid packet that carries a number, behind an empty virtio-net header. Two addresses have one flow."""
    ends = ip_address(source).packed + ip_address(destination).packed
    if len(ends) == 8:
        head = struct.pack(">BBHQ8s", 0x45, 0, size, number, ends)
    else:
        head = struct.pack(">IHBB32sQ", 6 << 28, size - 40, 59, 64, ends, number)  # 59: no next header
    return (bytes(10) + head).ljust(10 + size, number.to_bytes(8, "big")[-1:])


def between(sender: int, receiver: int, numbers: range, version: int = 4, size: int = 100) -> list[bytes]:
    """Packets from one client to another."""
    return [packet(inside(sender, version), inside(receiver, version), number, size) for number in numbers]


def super_packet(source: str, destination: str, segments: int = 4, segment: int = 1000) -> bytes:
    """A TCP super-packet as TUN hands it out with all offloads: many segments, and an unfinished checksum."""
    ends = ip_address(source).packed + ip_address(destination).packed
    version = 4 if len(ends) == 8 else 6
    length = 20 + segments * segment
    if version == 4:
        head = struct.pack(">BBHHHBBH8s", 0x45, 0, 20 + length, 1, 0, 64, 6, 0, ends)
    else:
        head = struct.pack(">IHBB32s", 6 << 28, length, 6, 64, ends)
    transport = struct.pack(">HHIIBBHHH", 1, 2, 1000, 0, 0x50, 0x10, 500, 0, 0)
    vnet = VNET.pack(NEEDS_CSUM, GSO_TCPV4 if version == 4 else GSO_TCPV6, len(head) + 20, segment, len(head), 16)
    return vnet + head + transport + bytes(segments * segment)


def connected_hub(
    make: Make, count: int = 2, lanes: int = 1, capacity: int = 4, clients: dict | None = None, **settings: object
) -> tuple[End, ...]:
    """A server and its clients, connected. `clients`: settings of the clients only."""
    server = make("server", lanes=lanes, capacity=capacity, **settings)
    ends: list[End] = []
    for number in range(1, count + 1):
        mine = {"client_id": number, "session": 1} | settings | (clients or {})
        ends.append(make("client", port=server.port, **mine))
        wanted = mine.get("connections", 1) + mine.get("light_connections", 0)
        until(lambda: ends[-1].established() == wanted, server, *ends)
    until(lambda: server.established() == sum(end.established() for end in ends), server, *ends)
    return server, *ends


@functools.cache
def tls() -> tuple[TlsMaterial, TlsMaterial]:
    """Settings of a server with TLS, and of a client that takes any certificate."""
    pair = certificates.make_self_signed("inlinetest")
    fingerprint = certificates.fingerprint(pair.certificate)
    return (
        TlsMaterial(pair.certificate.decode(), pair.key.decode(), "", "1.3", fingerprint),
        TlsMaterial("", "", "", "1.3", fingerprint=""),
    )


def peers_by_number(server: End) -> dict[int, PeerStatus]:
    """The list of `peers`, by number of the client."""
    return {int(row["name"].removeprefix(ANYBODY), 16): row for row in server.hub.list_peers(time.monotonic_ns())}


def index_of(server: End, client: int) -> int:
    """The index of a client that has one."""
    return next(index for index, peer_session in server.hub._sessions.all() if peer_session.name == name_of(client))


def name_of(client: int) -> str:
    return f"{ANYBODY}{client:016x}"


def configure(server: End, *known: KnownPeer) -> None:
    """A reload of the server's peers."""
    server.hub.configure(server.hub.config, known)


def forget_admission_times(server: End) -> None:
    """Age all admissions: from now on a peer counts as connected only while it has a connection."""
    sessions = server.hub._sessions
    sessions._admitted_at = [0] * len(sessions._admitted_at)


def dropped(end: End) -> dict[str, int]:
    """The counters of drops that are not zero."""
    return {name: value for name, value in end.counts().items() if ".dropped_" in name}


def dropped_for(server: End, client: int) -> int:
    """Runs and blocks for a client that were dropped because it reads too slowly."""
    at = index_of(server, client) * RECORD_WORDS + SENT_DROPPED
    return sum(lines[at] for lines in server.memory.peer_table.sent)


def run_duty(server: End, worker: str, duty: str) -> int:
    """One turn of one duty of a worker, without the other duty."""
    it = server.workers[worker].duty(duty)
    it.wait(0)
    return it.work()


def on_worker(
    server: End, worker: str, client: int, index: int = 0, receive_buffer: int = 0, traffic_class: int = framing.BULK
) -> Peer:
    """A connection of a client that this tcp worker has accepted. The caller closes it."""
    peer = Peer.dial(server.port, receive_buffer)
    peer.send(
        hello(client=client, index=index, connections=index + 1, traffic_class=traffic_class, features=ACCEPTS_SHARDS)
    )
    until(lambda: (server.step(worker) and False) or WELCOME in peer.kinds())
    return peer


def destinations(packets: list[bytes]) -> set[str]:
    """The destination addresses of packets."""
    return {str(ip_address(each[26:30] if each[10] >> 4 == 4 else each[34:50])) for each in packets}


def addresses_of(client: int) -> set[str]:
    return {inside(client, version) for version in FAMILIES}


def blocks_in_runs(peer: Peer) -> dict[int, dict[int, list[bytes]]]:
    """The blocks that a peer received in runs: stream -> number of the block -> its packets.

    Nothing is recovered: all data shards must have arrived. A block that arrived twice must be equal.
    """
    shards: dict[tuple[int, int], dict[int, bytes]] = {}
    cuts: dict[tuple[int, int], tuple[int, int]] = {}
    for kind, body in peer.read_frames().frames:
        if kind == RUN:
            run = run_header.decode(memoryview(frame(kind, body)), 0, len(body) + 1)
            key = run.stream, run.block
            assert cuts.setdefault(key, (run.n, run.size)) == (run.n, run.size)
            each = shard_bytes(run.size, run.n, run.m)
            for turn in range(run.shards):
                at = RUN_BYTES - 5 + turn * each
                index = 0 if run.n == 1 else run.first + turn
                shard = body[at : at + each]
                assert shards.setdefault(key, {}).setdefault(index, shard) == shard
    found: dict[int, dict[int, list[bytes]]] = {}
    for (stream, number), there in sorted(shards.items()):
        n, size = cuts[stream, number]
        block = b"".join(there[index] for index in range(n))[:size]
        found.setdefault(stream, {})[number] = packets_in(block[5:])
    return found


def all_packets(peer: Peer) -> list[bytes]:
    """The packets that a peer received in blocks and in runs."""
    return peer.packets() + [
        each for stream in blocks_in_runs(peer).values() for block in stream.values() for each in block
    ]
