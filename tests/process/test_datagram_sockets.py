"""The UDP sockets of an instance: their ports, what they tell of a datagram, and what happens where there are none."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from typing import Any

import pytest

from pipeline.config import Config, parse
from pipeline.config.values import parse_endpoint
from pipeline.errors import LocalError
from pipeline.policy import bypass
from pipeline.supervisor.kernel import datagram_sockets
from pipeline.supervisor.kernel.datagram_sockets import (
    BUFFER_BYTES,
    IP_MTU_DISCOVER,
    IPV6_MTU_DISCOVER,
    PMTUDISC_PROBE,
    SOL_UDP,
    UDP_GRO,
    DatagramSockets,
)
from pipeline.supervisor.kernel.listener import listen
from tests.process.test_listener import in_child, without_ipv6

LANES = 3
CE = 3  # the mark of a queue that fills (RFC 3168)


def config(mode: str, carrier: str = "udp", lanes: int = LANES) -> Config:
    given: dict[str, Any] = {"mode": mode, "name": "udptest", "carrier": carrier, "lanes": lanes}
    return parse(given | ({"remote_addr": "192.0.2.1:9000"} if mode == "client" else {}))


@pytest.fixture(params=["[::]:0", "0.0.0.0:0", "127.0.0.1:0", "[::1]:0"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with listen(parse_endpoint(request.param)) as made:
        yield made


def loopback(sock: socket.socket) -> str:
    host = sock.getsockname()[0]
    return str(host) if ip_address(host).is_loopback else "127.0.0.1"


def sender(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)


def test_a_server_has_a_socket_for_each_lane_on_the_port_of_its_listener(listener: socket.socket) -> None:
    with closing(DatagramSockets(config("server"), listener)) as made:
        assert len(made.sockets) == LANES
        assert {each.getsockname() for each in made.sockets} == {listener.getsockname()}
        assert {made.fds(lane)["datagrams"] for lane in range(LANES)} == {each.fileno() for each in made.sockets}


def test_all_datagrams_of_a_port_come_to_one_lane_and_those_of_many_ports_to_all(listener: socket.socket) -> None:
    host, port = loopback(listener), listener.getsockname()[1]
    with closing(DatagramSockets(config("server"), listener)) as made:
        lanes = set()
        for _ in range(64):
            with sender(host) as sock:
                for _ in range(3):
                    sock.sendto(b"x", (host, port))
            counts = [_waiting(each) for each in made.sockets]
            assert sorted(counts) == [0] * (LANES - 1) + [3]
            lanes.add(counts.index(3))
        assert lanes == set(range(LANES))


def _waiting(sock: socket.socket) -> int:
    count = 0
    try:
        while sock.recv(10):
            count += 1
    except BlockingIOError:
        return count
    raise AssertionError("an empty datagram")


@pytest.mark.parametrize("shares", [False, True], ids=["alone", "with SO_REUSEPORT"])
def test_a_port_that_another_program_has_is_an_error_or_means_tcp_alone(
    listener: socket.socket, shares: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(listener.family, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shares)
        other.bind(listener.getsockname())
        with pytest.raises(LocalError, match=r"no datagrams on .*: another program has that port; set another port"):
            datagram_sockets.make(config("server"), listener)
        with caplog.at_level(logging.WARNING):
            assert datagram_sockets.make(config("server", "auto"), listener) is None
        assert "another program has that port; all blocks travel by TCP" in caplog.text
    made = datagram_sockets.make(config("server", "auto"), listener)
    assert made is not None
    made.close()


def test_a_second_instance_cannot_share_the_port_of_one_lane_or_of_several(listener: socket.socket) -> None:
    for lanes in (1, LANES):
        with closing(DatagramSockets(config("server", lanes=lanes), listener)), pytest.raises(OSError):
            DatagramSockets(config("server", lanes=lanes), listener)


def test_the_only_lane_of_a_server_shares_its_port_with_nobody(listener: socket.socket) -> None:
    with (
        closing(DatagramSockets(config("server", lanes=1), listener)),
        socket.socket(listener.family, socket.SOCK_DGRAM) as other,
    ):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(listener.getsockname())


def test_where_blocks_travel_by_tcp_there_is_no_socket(listener: socket.socket) -> None:
    assert datagram_sockets.make(config("server", "tcp"), listener) is None
    assert datagram_sockets.make(config("client", "tcp"), None) is None


def test_a_client_has_a_port_for_each_lane_and_reaches_both_families() -> None:
    with closing(DatagramSockets(config("client"), None)) as made:
        assert len({each.getsockname()[1] for each in made.sockets}) == LANES
        for host, mapped in (("127.0.0.1", "::ffff:127.0.0.1"), ("::1", "::1")):
            with sender(host) as other:
                other.settimeout(5)
                other.bind((host, 0))
                for sock in made.sockets:
                    sock.sendto(b"x", (mapped, other.getsockname()[1]))
                    assert other.recvfrom(10)[1][1] == sock.getsockname()[1]


def test_on_a_kernel_without_ipv6_a_client_and_a_server_have_ipv4() -> None:
    def look() -> bool:
        without_ipv6()
        with listen(parse_endpoint(":0")) as listener:
            made = [DatagramSockets(config("client"), None), DatagramSockets(config("server"), listener)]
            return all(sock.family == socket.AF_INET for each in made for sock in each.sockets)

    assert in_child(look)


def test_nothing_is_cut_on_the_way_and_the_kernel_joins_segments(listener: socket.socket) -> None:
    ends = (("server", listener), ("client", None))
    for made in (DatagramSockets(config(mode), bound) for mode, bound in ends):
        with closing(made):
            for sock in made.sockets:
                assert sock.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER) == PMTUDISC_PROBE
                assert sock.getsockopt(SOL_UDP, UDP_GRO) == 1
                if sock.family == socket.AF_INET6:
                    assert sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) == PMTUDISC_PROBE
                for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                    assert sock.getsockopt(socket.SOL_SOCKET, option) == 2 * BUFFER_BYTES
                assert not sock.getblocking() and not sock.get_inheritable()


def test_a_datagram_says_to_which_address_it_came_and_which_mark_it_has(listener: socket.socket) -> None:
    host, port = loopback(listener), listener.getsockname()[1]
    with closing(DatagramSockets(config("server", lanes=1), listener)) as made, sender(host) as other:
        level, option = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if ":" in host else (socket.IPPROTO_IP, socket.IP_TOS)
        other.setsockopt(level, option, CE)
        other.sendto(b"x", (host, port))
        _, ancillary, _, _ = made.sockets[0].recvmsg(10, 256)
        found = {(level, kind): data for level, kind, data in ancillary}
        address = ip_address(host).packed
        if listener.family == socket.AF_INET6:
            address = address if ":" in host else b"\0" * 10 + b"\xff\xff" + address
            assert found[socket.IPPROTO_IPV6, socket.IPV6_PKTINFO][:16] == address
        else:
            assert found[socket.IPPROTO_IP, datagram_sockets.IP_PKTINFO][8:] == address
        mark = found[level, option]
        assert mark[0] == CE


def test_with_a_bypass_the_sockets_have_its_mark_and_without_one_none() -> None:
    with closing(DatagramSockets(config("client"), None)) as made:
        for has_bypass in (False, True, True, False):
            made.follow(has_bypass)
            expected = bypass.numbers("udptest").table if has_bypass else 0
            assert {each.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) for each in made.sockets} == {expected}
