"""What a hostile peer sends: for each kind, a stretch of whole frames that is repeated for as long as it lasts.

The frames are those without encryption: tools.load.swarm_seal makes sealed ones of them.

Each kind is cheap for its sender and dear for the server in another stage. `full` is no attack: the full blocks of a
peer that sends as much as it can, with which the others are compared.
"""

from __future__ import annotations

import ipaddress
import random
import struct
from collections.abc import Callable
from typing import NamedTuple

from pipeline.fec import shard
from pipeline.packet.vnet import GSO_TCPV4, NEEDS_CSUM, VNET
from pipeline.sealing import kinds
from pipeline.wire import framing

RUBBISH_BYTES = 20  # in place of a sealed block
RUNS = 100_000  # different ones, so that most are not known to be copies
SEGMENTS, SEGMENT_BYTES = 127, 512  # as many segments of a super-packet as are cut
TCP_AT, TCP_CHECKSUM_AT = 20, 16  # in the super-packet
FULL_PACKET_BYTES, FULL_PACKETS = 1400, 80
FOREIGN_SOURCE = "192.0.2.1"  # RFC 5737, belongs to no peer
UNKNOWN_TYPE = 0x7F
DISCARD_PORT = 9  # RFC 863
ICMP, TCP, UDP = 1, 6, 17


class Target(NamedTuple):
    """Addresses inside: the peer's own, the server's, another peer's, and that of a peer of ours without offloads."""

    own: str
    server: str
    victim: str
    sink: str


def _ipv4(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    """A finished IPv4 packet with its checksum, behind an empty virtio-net header."""
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(target).packed
    head = struct.pack(">BBHIBBH", 0x45, 0, 20 + len(payload), 0, 64, protocol, 0) + ends
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return bytes(VNET.size) + head[:10] + struct.pack(">H", total ^ 0xFFFF) + head[12:] + payload


def _udp(source: str, target: str, size: int) -> bytes:
    """Without a checksum (RFC 768)."""
    return _ipv4(source, target, UDP, struct.pack(">HHHH", DISCARD_PORT, DISCARD_PORT, size - 20, 0) + bytes(size - 28))


def _echo(source: str, target: str) -> bytes:
    return _ipv4(source, target, ICMP, struct.pack(">BBHI", 8, 0, 0xF7FF, 0))


def _block(*packets: bytes) -> bytes:
    table = struct.pack(f">H{len(packets)}I", len(packets), *map(len, packets))
    return framing.frame(framing.BLOCK, table + b"".join(packets))


def _super_packet(source: str, target: str) -> bytes:
    payload = struct.pack(">HHIIBBHHH", 1, DISCARD_PORT, 1, 0, 0x50, 0x10, 100, 0, 0) + bytes(SEGMENTS * SEGMENT_BYTES)
    ip = _ipv4(source, target, TCP, payload)[VNET.size :]
    return VNET.pack(NEEDS_CSUM, GSO_TCPV4, TCP_AT + 20, SEGMENT_BYTES, TCP_AT, TCP_CHECKSUM_AT) + ip


def _runs(_: Target) -> bytes:
    draw = random.Random(1).getrandbits
    return b"".join(
        shard.SEALED_RUN.pack(
            shard.RUN_BYTES + RUBBISH_BYTES - framing.LENGTH.size,
            framing.RUN,
            draw(24) << 8 | kinds.COPIED,
            draw(32),
            1,
            1,
            0,
            1,
            RUBBISH_BYTES,
            0,
            0,
        )
        + bytes(RUBBISH_BYTES)
        for _ in range(RUNS)
    )


KINDS: dict[str, Callable[[Target], bytes]] = {
    "full": lambda at: _block(*[_udp(at.own, at.server, FULL_PACKET_BYTES)] * FULL_PACKETS),
    "run1": _runs,
    "type": lambda _: framing.frame(UNKNOWN_TYPE) * 4096,
    "keep": lambda _: framing.KEEPALIVE_FRAME * 4096,
    "one": lambda at: _block(_echo(FOREIGN_SOURCE, at.server)) * 512,
    "spoof": lambda at: _block(*[_echo(FOREIGN_SOURCE, at.server)] * framing.BLOCK_PACKETS_MAX),
    "echo": lambda at: _block(*[_echo(at.own, at.server)] * framing.BLOCK_PACKETS_MAX),
    "small": lambda at: _block(*[_udp(at.own, at.victim, 29)] * framing.BLOCK_PACKETS_MAX),
    "gso": lambda at: _block(_super_packet(at.own, at.sink)),
}
"""The stretch of each kind.

full     blocks of large packets for the server: what an honest peer sends
run1     copies of blocks of 20 bytes, which nobody can open
type     frames of an unknown type
keep     keepalives
one      blocks of one packet of 28 bytes with a source that is not the peer's
spoof    blocks of 512 such packets
echo     blocks of 512 echo requests, which the server's kernel answers
small    blocks of 512 packets of 29 bytes for another peer
gso      super-packets for a peer that accepts none, so that the server has to cut each into 127 segments
"""
