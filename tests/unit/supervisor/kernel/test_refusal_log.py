"""Messages of nfnetlink_log: made as the kernel makes them, and cut off and spoilt."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from pipeline.supervisor.kernel.refusal_log import packets_of

PACKET = b"E" + bytes(27)


def message(*attributes: tuple[int, bytes], kind: int = 4 << 8) -> bytes:
    body = struct.pack(">BBH", 2, 0, 7)
    for number, value in attributes:
        body += struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_a_packet_has_its_prefix_and_its_bytes() -> None:
    data = message((1, bytes(4)), (10, b"12\0"), (9, PACKET)) + message((10, b"3\0"), (9, PACKET[:21]))
    assert list(packets_of(data)) == [("12", PACKET), ("3", PACKET[:21])]


def test_other_messages_are_passed_over() -> None:
    assert list(packets_of(message((9, PACKET), kind=2) + message((10, b"1\0"), (9, PACKET)))) == [("1", PACKET)]


def test_a_message_that_is_cut_off_ends_the_datagram() -> None:
    data = message((10, b"1\0"), (9, PACKET))
    assert list(packets_of(data + data[:-1])) == [("1", PACKET)]
    assert list(packets_of(data[:15])) == []


@given(st.binary(max_size=200))
def test_any_bytes_are_read_to_their_end(data: bytes) -> None:
    list(packets_of(data))
