"""The socket of a lane tells of each receive where it comes from, where it went to, and how it is cut and marked."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pipeline.policy.return_address import Address
from pipeline.supervisor.kernel import datagram_sockets
from tests.support import eventually
from workers.dgram.datagram_socket import SOL_UDP, DatagramSocket

UDP_SEGMENT = 103  # linux/udp.h
FAMILIES = {
    "IPv4": (socket.AF_INET, "127.0.0.7"),
    "both": (socket.AF_INET6, "127.0.0.7"),
    "IPv6": (socket.AF_INET6, "::1"),
}


class Ends:
    """A socket as the supervisor makes it for a lane, and a plain one. `local`: where the plain one sends to."""

    def __init__(self, stack: ExitStack, family: int, local: str) -> None:
        made = datagram_sockets._new(family)
        made.bind(("", 0))
        self.port = made.getsockname()[1]
        datagram_sockets._configure(made)
        self.here = DatagramSocket(made.detach())
        stack.callback(self.here.close)
        self.local = local
        self.plain = stack.enter_context(
            socket.socket(socket.AF_INET6 if ":" in local else socket.AF_INET, socket.SOCK_DGRAM)
        )
        self.plain.settimeout(5)

    def send(self, data: bytes, segment_bytes: int = 0) -> None:
        about = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", segment_bytes))] if segment_bytes else []
        self.plain.sendmsg([data], about, 0, (self.local, self.port))
        select.select([self.here], [], [], 5)


@pytest.fixture(params=FAMILIES)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with ExitStack() as stack:
        yield Ends(stack, *FAMILIES[request.param])


def test_an_answer_goes_out_from_the_address_to_which_the_datagram_went(ends: Ends) -> None:
    ends.send(b"hello")
    assert ends.here.receive()
    assert bytes(ends.here.memory[: ends.here.size]) == b"hello"
    host = "::1" if ends.local == "::1" else "127.0.0.1"
    assert ends.here.source_address() == Address(host, ends.plain.getsockname()[1])
    assert ends.here.send(memoryview(b"answer"), ends.here.source, ends.here.answer_ancillary()) == 0
    data, source = ends.plain.recvfrom(100)
    assert data == b"answer" and source[:2] == (ends.local, ends.port)


def test_an_address_of_16_bytes_is_reached(ends: Ends) -> None:
    six = ends.plain.family == socket.AF_INET6
    ends.plain.bind(("::1" if six else "127.0.0.1", 0))
    host, port = ends.plain.getsockname()[:2]
    packed = socket.inet_pton(socket.AF_INET6, host if six else f"::ffff:{host}")
    address = ends.here.address_of(packed, port, 0)
    assert address is not None and ends.here.send(memoryview(b"x"), address, []) == 0
    assert ends.plain.recv(10) == b"x"


def test_a_socket_of_ipv4_alone_does_not_reach_an_address_of_ipv6() -> None:
    with ExitStack() as stack:
        ends = Ends(stack, socket.AF_INET, "127.0.0.1")
        assert ends.here.address_of(socket.inet_pton(socket.AF_INET6, "::1"), 5, 0) is None


def test_segments_come_together_and_the_last_one_is_shorter(ends: Ends) -> None:
    ends.send(bytes(10_300), 1000)
    assert ends.here.receive()
    assert (ends.here.size, ends.here.segment_bytes) == (10_300, 1000)
    ends.send(bytes(77))
    assert ends.here.receive()
    assert (ends.here.size, ends.here.segment_bytes) == (77, 77)
    assert not ends.here.receive(), "there is no more"


@pytest.mark.parametrize(("tos", "is_marked"), [(0, False), (1, False), (2, False), (3, True), (0xB8 | 3, True)])
def test_the_mark_of_a_queue_is_seen(ends: Ends, tos: int, is_marked: bool) -> None:
    if ends.plain.family == socket.AF_INET6:
        ends.plain.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
    else:
        ends.plain.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
    ends.send(b"x")
    assert ends.here.receive()
    assert ends.here.is_marked is is_marked


def test_a_datagram_that_the_interface_does_not_carry_is_an_error_and_no_exception(ends: Ends) -> None:
    ends.send(b"x")
    ends.here.receive()
    assert ends.here.send(memoryview(bytes(65_530)), ends.here.source, []) == errno.EMSGSIZE


def test_the_time_that_a_datagram_has_waited_here_is_told(ends: Ends) -> None:
    ends.send(b"first")
    began = time.monotonic_ns()
    ends.send(b"second")
    eventually(lambda: time.monotonic_ns() - began > 30_000_000)
    waited = []
    for _ in range(2):
        assert ends.here.receive()
        waited.append(ends.here.waited_ns)
    assert min(waited) > 30_000_000 > min(waited) - (time.monotonic_ns() - began)
