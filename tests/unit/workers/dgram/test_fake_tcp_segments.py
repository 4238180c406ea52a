"""Segments into fake flows: the answers of the outbound duty's other socket, whatever the network does."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any, cast

import pytest

from pipeline.counters import ID
from pipeline.transport.fake_tcp import FakeTcp
from tests.harness.datagram_sender import session_of
from workers.dgram.fake_tcp_segments import BURST_BYTES, FakeTcpSegments
from workers.dgram.fake_tcp_socket import FakeTcpSocket
from workers.dgram.path import Path
from workers.dgram.segment_socket import FULL, REFUSED, SEGMENTS_MOST, TOO_BIG

SIZE = 1000
THERE = ("192.0.2.1", 444)


class Flows:
    """They take all, or answer with this error."""

    opened = 0

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.taken: list[tuple[bytes, int, tuple[str, int]]] = []

    def send(self, pieces: Sequence[bytes], size: int, segment_bytes: int, address: tuple[str, int], now: int) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        content = b"".join(pieces)
        assert len(content) == size
        self.taken.append((content, segment_bytes, address))


class Ends:
    def __init__(self, flows: Flows | None) -> None:
        self.counters = memoryview(bytearray(8 * 320)).cast("Q")
        self.socket = FakeTcpSocket()
        self.socket.flows = cast("FakeTcp | None", flows)
        self.segments = FakeTcpSegments(self.socket, self.counters)
        self.path = Path(session_of(1 << 12), 0, self.segments)
        self.path.address = THERE

    def send(self, count: int = 3) -> int:
        return self.segments.send([b"x" * SIZE] * count, SIZE, count, self.path)


def test_a_burst_is_one_payload_of_segments_of_one_size() -> None:
    flows = Flows()
    ends = Ends(flows)
    assert ends.send() == 3
    assert flows.taken == [(b"x" * 3 * SIZE, SIZE, THERE)]


def test_a_burst_fits_into_the_window_of_a_handshake() -> None:
    segments = Ends(None).segments
    for size in (100, 1400, 8948):
        assert segments.most(size) * size <= BURST_BYTES < 65160 and segments.most(size) <= SEGMENTS_MOST
    assert segments.most(1 << 20) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [(errno.EAGAIN, FULL), (errno.ENOBUFS, FULL), (errno.EMSGSIZE, TOO_BIG), (errno.ENOTCONN, REFUSED)],
)
def test_what_the_flow_says_is_what_a_udp_socket_would_say(error: int, expected: int) -> None:
    ends = Ends(Flows(error))
    assert ends.send() == expected
    counter = "dgram.socket_full_waits" if expected == FULL else "dgram.sends_refused"
    assert ends.counters[ID[counter]] == 1


def test_without_a_flow_or_an_address_nothing_is_sent() -> None:
    assert Ends(None).send() == REFUSED
    flows: Any = Flows()
    ends = Ends(flows)
    ends.path.address = None
    assert ends.send() == REFUSED and not flows.taken
