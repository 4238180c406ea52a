"""A connection's parts: its address, its end, what the kernel says of it, and the list that two duties share."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pipeline.policy.standstill import Arrival
from pipeline.transport.address import format_address
from pipeline.transport.connection import CLOSED, ESTABLISHED, HANDSHAKE, Connection
from pipeline.transport.connection_list import ConnectionList
from pipeline.transport.socket_options import (
    SO_MAX_PACING_RATE,
    UNPACED,
    configure,
    congestion_control,
    first_congestion_control,
    set_congestion_control,
    set_dscp,
    set_pacing_rate,
)
from pipeline.transport.tcp_info import TcpInfo, read_arrival, read_tcp_info
from tests.harness.settings import WORKER_SETTINGS
from tests.harness.tls_ends import tcp_pair
from tests.support import eventually

NOW = 1_000_000_000_000


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = tcp_pair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 9000), "192.0.2.1:9000"),
        (("2001:db8::1", 9000, 0, 0), "[2001:db8::1]:9000"),
        (("::ffff:192.0.2.1", 9000, 0, 0), "192.0.2.1:9000"),
        (("fe80::1%eth0", 9000, 0, 2), "[fe80::1%eth0]:9000"),
    ],
)
def test_an_address_is_written_as_people_write_it(address: tuple[str, int], text: str) -> None:
    assert format_address(address) == text


# -- one connection


def test_a_connection_that_is_established_begins_its_times_anew(sockets: tuple[socket.socket, socket.socket]) -> None:
    connection = Connection(sockets[0], ("192.0.2.1", 9000), HANDSHAKE, 1, NOW)
    connection.establish(NOW + 5)
    assert (connection.state, connection.state_since_ns) == (ESTABLISHED, NOW + 5)
    assert (connection.receive.last_ns, connection.send.last_ns) == (NOW + 5, NOW + 5)


def test_a_failed_write_ends_the_connection_for_the_reader_and_tells_it_why(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    connection = Connection(sockets[0], ("192.0.2.1", 9000), ESTABLISHED, 1, NOW)
    connection.write_failed(ConnectionResetError(104, "Connection reset by peer"))
    assert connection.send.error == "Connection reset by peer"
    assert connection.socket.recv(1) == b""
    assert connection.socket.fileno() == connection.fd  # its number is not free yet


def test_a_shutdown_ends_the_outbound_direction_alone(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    connection = Connection(ours, ("192.0.2.1", 9000), ESTABLISHED, 1, NOW)
    connection.shutdown()
    assert theirs.recv(1) == b""
    theirs.sendall(b"late")
    assert ours.recv(4) == b"late"


def test_a_connection_that_is_closed_with_unread_bytes_sends_no_reset(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = sockets
    theirs.sendall(bytes(30_000))
    eventually(lambda: len(ours.recv(30_000, socket.MSG_PEEK)) == 30_000)
    Connection(ours, ("192.0.2.1", 9000), HANDSHAKE, 1, NOW).close_unauthenticated()
    theirs.settimeout(5.0)
    assert theirs.recv(1) == b""


# -- the kernel


def test_the_kernel_tells_of_bytes_that_were_acknowledged(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    ours.sendall(bytes(5000))
    eventually(lambda: read_tcp_info(ours).bytes_acked >= 5000)
    info = read_tcp_info(ours)
    assert info.rtt_us >= info.min_rtt_us > 0
    assert info.data_segs_out >= 1
    assert not info.timed_out
    assert len(theirs.recv(5000)) > 0


def test_the_kernel_tells_how_long_the_other_ends_window_was_closed(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = sockets
    ours.setblocking(False)

    def fill() -> int:
        with suppress(BlockingIOError):
            ours.send(bytes(100_000))
        return read_tcp_info(ours).rwnd_limited_us

    eventually(lambda: fill() > 10_000)


def test_a_closed_socket_has_nothing_to_tell(sockets: tuple[socket.socket, socket.socket]) -> None:
    sockets[0].close()
    assert read_tcp_info(sockets[0]) == TcpInfo(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(("retransmits", "probes", "timed_out"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_a_retransmission_or_a_probe_without_an_answer_is_a_timeout(
    retransmits: int, probes: int, timed_out: bool
) -> None:
    assert TcpInfo(retransmits, probes, 0, 0, 0, 0, 0, 0, 0, 0).timed_out is timed_out


def test_what_was_sent_again_and_had_arrived_is_no_loss() -> None:
    info = TcpInfo(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, dsack_dups=2)
    assert [info._replace(total_retrans=count).lost_segments for count in (0, 2, 5)] == [0, 0, 3]


def test_options_are_set_and_an_unknown_congestion_control_leaves_that_of_the_host(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = sockets
    host = congestion_control(ours)
    configure(ours, WORKER_SETTINGS._replace(congestion="no-such", timeout=7.0, notsent_lowat=40_000))
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 40_000
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert not ours.getblocking()
    assert congestion_control(ours) == host


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_mark_is_set_for_ipv4_and_for_ipv6(family: int) -> None:
    with socket.socket(family) as sock:
        set_dscp(sock, 46)
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 46 << 2
        if family == socket.AF_INET6:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 46 << 2
    set_dscp(sock, 46)  # closed: nothing happens


def test_a_closed_socket_has_no_congestion_control(sockets: tuple[socket.socket, socket.socket]) -> None:
    assert set_congestion_control(sockets[0], congestion_control(sockets[0]))
    sockets[0].close()
    assert congestion_control(sockets[0]) == ""
    assert not set_congestion_control(sockets[0], "reno")


@pytest.mark.parametrize(
    ("setting", "host", "first"),
    [
        ("", "westwood", "westwood"),
        ("reno", "cubic", "reno"),
        ("auto", "cubic", "cubic"),
        ("auto", "reno", "reno"),
        ("auto", "bbr", "cubic"),
    ],
)
def test_a_connection_begins_without_pacing_unless_it_is_asked_for(setting: str, host: str, first: str) -> None:
    assert first_congestion_control(setting, host) == first


def test_a_pacing_rate_is_set_and_taken_away_and_a_closed_socket_is_no_error(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = sockets
    for rate in (1_000_000, UNPACED):
        set_pacing_rate(ours, rate)
        found = ours.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8)
        assert int.from_bytes(found, sys.byteorder) == rate
    ours.close()
    set_pacing_rate(ours, 1)


# -- the list that two duties share


def test_a_removed_connection_is_closed_when_the_outbound_duty_has_seen_the_list_without_it(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    connections = ConnectionList(NOW)
    connection = Connection(sockets[0], ("192.0.2.1", 9000), ESTABLISHED, 1, NOW)
    connections.add(connection)
    connections.seen_version = connections.version
    connection.state = CLOSED
    connections.remove(connection, NOW + 1)
    connections.close_retired()
    assert connection.socket.fileno() == connection.fd
    connections.seen_version = connections.version
    connections.close_retired()
    assert connection.socket.fileno() == -1


def test_the_list_knows_since_when_it_is_empty(sockets: tuple[socket.socket, socket.socket]) -> None:
    connections = ConnectionList(NOW)
    first, second = (Connection(sock, ("192.0.2.1", 9000), ESTABLISHED, 1, NOW) for sock in sockets)
    connections.add(first)
    connections.add(second)
    connections.remove(first, NOW + 1)
    assert connections.empty_since_ns == NOW
    assert connections.established == (second,)
    connections.remove(second, NOW + 2)
    assert connections.empty_since_ns == NOW + 2


# -- the way of bytes


def test_bytes_have_arrived_when_the_other_ends_kernel_has_them_though_nobody_reads(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = sockets
    ours.setblocking(True)
    ours.sendall(bytes(1000))
    eventually(lambda: read_arrival(ours).arrived >= read_arrival(ours).written >= 1000, 5.0, "they have arrived")
    assert read_arrival(ours).rtt_us > 0


def test_what_waits_for_a_program_that_does_not_read_counts_as_arrived(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = sockets
    ours.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 16))
    eventually(lambda: read_arrival(ours)[:2] == (0, 0), 5.0, "the window is closed")


def test_of_a_socket_that_is_no_tcp_socket_nothing_is_known() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert read_arrival(ours) == Arrival()
