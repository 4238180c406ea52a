"""How long the inbound duty of a hub's tun worker takes for a packet from peer to peer, by the rules of the sender.

    python -m tests.inline.harness.reach_times [ROUNDS]

Medians in us, of blocks of 60 UDP packets of 100 bytes and of 1400. Each round visits all kinds of rules in turn, so
that a slow moment of the machine meets all of them.

    none       no peer has rules
    others     a third peer has rules, these two have none
    N          the sender has N rules, each of another network and port, of which the last one is met
    N ports    the sender has N rules, each of another port of one address
    refused    the sender has no right; as fast as it is told
"""

from __future__ import annotations

import itertools
import statistics
import struct
import sys
import time
from ipaddress import ip_address

from pipeline.policy.reach import PeerFacts, Row, Terms, compile_policies
from pipeline.shm.reach_rules import NO_POLICY
from tests.inline.harness.ends import WELCOME, End, Peer, block_of, hello, until
from tests.inline.harness.hub_ends import index_of, inside
from workers.tun.writer import TunWriter

BLOCKS = 60  # of a kind in a round
SIZES, COUNT = (100, 1400), 60  # bytes of a packet, packets of a block
SOURCE, TARGET = inside(1, 4), inside(2, 4)
PORT = 5201


def packet(size: int) -> bytes:
    ends = ip_address(SOURCE).packed + ip_address(TARGET).packed
    body = struct.pack(">HHHH", 40000, PORT, size - 20, 0).ljust(size - 20, b"u")
    return bytes(10) + struct.pack(">BBHHHBBH", 0x45, 0, size, 1, 0, 64, 17, 0) + ends + body


def rules(count: int, *, ports: bool) -> list[Row]:
    targets = [
        f"{TARGET}:{10_000 + number}" if ports else f"10.{number >> 8}.{number & 255}.0/24:{10_000 + number}"
        for number in range(count - 1)
    ]
    facts = [PeerFacts("one", may_reach=(*targets, f"{TARGET}:{PORT}"))]
    return compile_policies(facts, Terms())["one"].rows


KINDS: dict[str, list[Row]] = {
    "none": [],
    "others": [],
    "1": rules(1, ports=False),
    "10": rules(10, ports=False),
    "1000": rules(1000, ports=False),
    "1000 ports": rules(1000, ports=True),
    "refused": [],
}


serials = itertools.count(1)


def hub() -> tuple[End, list[Peer]]:
    """A server with two clients."""
    server, peers = End("server", slots=64, capacity=4, reach=True), []
    for client in (1, 2):
        peers.append(Peer.dial(server.port))
        peers[-1].send(hello(client=client))
        until(lambda: server.established() == client and WELCOME in peers[-1].kinds(), server)
    return server, peers


def measure(server: End, peers: list[Peer], name: str, size: int) -> list[float]:
    """us for each packet, of each block."""
    duty = server.workers["tun-0"].duty("inbound")
    assert isinstance(duty, TunWriter)
    one, two = (server.memory.peer_table.peer_handle(index_of(server, client)) for client in (1, 2))
    handles = {} if name == "none" else {one: NO_POLICY if name == "others" else 0, two: NO_POLICY, 1 << 40: 0}
    own = [ip_address(inside(0, 4)).packed]
    server.reach_memory.rules.write(True, next(serials), own, handles, [] if name == "none" else [KINDS[name]])
    data = block_of(*[packet(size)] * COUNT)
    found = []
    for _ in range(BLOCKS):
        peers[0].send(data)
        until(lambda: server.step("tcp-0") >= 0 and any(port.ready() for port in duty._ports))
        began = time.perf_counter()
        duty.work()
        found.append(1e6 * (time.perf_counter() - began) / COUNT)
        server.step("tcp-0")
        for peer in peers:
            peer.read_frames().frames.clear()
    return found


def main(rounds: str = "5") -> None:
    server, peers = hub()
    times: dict[tuple[int, str], list[float]] = {}
    try:
        for _ in range(1 + int(rounds)):  # the first one warms up
            for size in SIZES:
                for name in KINDS:
                    times.setdefault((size, name), []).extend(measure(server, peers, name, size))
    finally:
        for peer in peers:
            peer.close()
        server.close()
    for size in SIZES:
        shown = [f"{name} {statistics.median(times[size, name][BLOCKS:]):.2f}" for name in KINDS]
        print(f"{size} bytes: {', '.join(shown)} us")


if __name__ == "__main__":
    main(*sys.argv[1:])
