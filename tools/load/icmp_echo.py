"""Replies to echo requests, for clients that have no device: a packet in, its answer out."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.wire import framing

BARE = bytes(VNET_HEADER_BYTES)


def answer(packet: bytes) -> bytes | None:
    """The reply to an echo request, its checksum adapted (RFC 1624); None to any other packet."""
    if len(packet) >= 28 and packet[0] == 0x45 and packet[9] == 1 and packet[20] == 8:
        head, message, source, destination = packet[:12], packet[20:], packet[12:16], packet[16:20]
        kind, change = 0, 0x0800
    elif len(packet) >= 48 and packet[0] >> 4 == 6 and packet[6] == 58 and packet[40] == 128:
        head, message, source, destination = packet[:8], packet[40:], packet[8:24], packet[24:40]
        kind, change = 129, 0xFEFF  # 129 - 128 in the upper byte, taken away from the checksum
    else:
        return None
    total = int.from_bytes(message[2:4], "big") + change
    checksum = (total & 0xFFFF) + (total >> 16)
    return head + destination + source + bytes([kind, message[1]]) + checksum.to_bytes(2, "big") + message[4:]


def block_of(packets: Sequence[bytes]) -> bytes:
    """A block frame with these packets, with which nothing is left to do."""
    table = b"".join(framing.LENGTH.pack(len(BARE) + len(packet)) for packet in packets)
    body = len(packets).to_bytes(2, "big") + table + b"".join(BARE + packet for packet in packets)
    return framing.frame(framing.BLOCK, body)
