"""Bursts into a UDP socket, and what the kernel says about them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from pipeline.counters import ID
from tests.harness.datagram_sender import session_of, udp_socket
from workers.dgram.path import Path
from workers.dgram.segment_socket import FULL, REFUSED, SEGMENTS_MOST, TOO_BIG, SegmentSocket

SIZE = 1000


class Pair:
    def __init__(self) -> None:
        self.near, self.far = udp_socket(), udp_socket()
        self.counters = memoryview(bytearray(8 * 320)).cast("Q")
        self.socket = SegmentSocket(self.near, self.counters)
        self.path = Path(session_of(1 << 12), 0, self.socket)
        self.path.address = self.far.getsockname()

    def send(self, segments: list[bytes]) -> int:
        return self.socket.send([b"".join(segments)], SIZE, len(segments), self.path)

    def received(self) -> list[bytes]:
        found = []
        try:
            while True:
                found.append(self.far.recv(1 << 16))
        except BlockingIOError:
            return found

    def close(self) -> None:
        self.near.close()
        self.far.close()


class Failing:
    """A socket whose kernel says this to bursts of several segments, or to all."""

    def __init__(self, of: socket.socket, number: int, is_always: bool = False) -> None:
        self._of, self._number, self._is_always = of, number, is_always

    def sendmsg(self, pieces: list, ancillary: list, flags: int, address: tuple) -> int:
        if ancillary or self._is_always:
            raise OSError(self._number, os.strerror(self._number))
        return self._of.sendmsg(pieces, ancillary, flags, address)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with closing(Pair()) as made:
        yield made


@pytest.mark.parametrize("count", [1, 2, SEGMENTS_MOST])
def test_a_burst_arrives_as_its_segments(pair: Pair, count: int) -> None:
    segments = [os.urandom(SIZE) for _ in range(count)]
    assert pair.send(segments) == count <= pair.socket.most(SIZE)
    assert pair.received() == segments


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_a_kernel_that_cuts_no_bursts_gets_segments_one_by_one(
    pair: Pair, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    pair.socket = SegmentSocket(Failing(pair.near, number), pair.counters)
    segments = [os.urandom(SIZE) for _ in range(7)]
    for _ in range(3):
        assert pair.send(segments) == 7
    assert pair.received() == 3 * segments
    assert not pair.socket.cuts and pair.counters[ID["dgram.segments_single_sent"]] == 21
    assert len(caplog.records) == 1, "it is said once"


def test_what_is_refused_one_by_one_as_well_is_no_matter_of_cutting(pair: Pair) -> None:
    pair.socket = SegmentSocket(Failing(pair.near, errno.EINVAL, is_always=True), pair.counters)
    assert pair.send([bytes(SIZE)] * 3) == REFUSED and pair.socket.cuts


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EAGAIN, FULL),
        (errno.ENOBUFS, FULL),
        (errno.EMSGSIZE, TOO_BIG),
        (errno.ECONNREFUSED, REFUSED),
        (errno.ENETUNREACH, REFUSED),
        (errno.EHOSTUNREACH, REFUSED),
        (errno.EPERM, REFUSED),
    ],
)
def test_nothing_is_raised_for_what_the_network_does(pair: Pair, number: int, expected: int) -> None:
    pair.socket = SegmentSocket(Failing(pair.near, number, is_always=True), pair.counters)
    assert pair.send([bytes(SIZE)] * 2) == expected
    assert pair.send([bytes(SIZE)]) == expected


def test_a_segment_that_the_interface_does_not_carry_is_too_big(pair: Pair) -> None:
    pair.near.setsockopt(socket.IPPROTO_IP, 10, 3)  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE
    assert pair.socket.send([bytes(65_520)], 65_520, 1, pair.path) == TOO_BIG
