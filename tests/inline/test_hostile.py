"""A peer's bytes end that peer's connection and nothing else. The peers here are plain sockets in the test's hand."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

import pytest

from pipeline.runtime.topology import STATUS_ROWS_MIN
from pipeline.wire import framing
from tests.inline.harness.ends import (
    BLOCK,
    DATA,
    HELLO,
    KEEPALIVE,
    REFUSED,
    WELCOME,
    Dial,
    End,
    HandmadeServer,
    Make,
    Peer,
    block_of,
    ended,
    frame,
    hello,
    ipv4,
    ipv6,
    step_for,
    until,
    welcome,
)

# -- bytes that are no handshake


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
    "empty frame": b"\x00\x00\x00\x00",
    "keepalive": frame(KEEPALIVE),
    "packet": frame(DATA, ipv4(1)[10:]),
    "block": block_of(ipv4(1)),
    "hello cut short": frame(HELLO, hello()[5:-1]),
    "hello with another magic": frame(HELLO, b"xxxx" + hello()[9:]),
    "a server's welcome": welcome(),
    "a server's refusal": frame(REFUSED, b"\x01no"),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_instead_of_a_handshake_ends_that_connection_and_no_other(
    server: End, dial: Dial, garbage: bytes
) -> None:
    good = dial(server, hello())
    bad = dial(server)
    bad.send(garbage)
    ended(bad, server)
    assert bad.frames == []
    assert server.count("tcp.closed_hello_invalid") == 1
    good.send(block_of(ipv4(1)))
    until(lambda: server.packets() == [ipv4(1)], server)
    assert server.established() == 1
    assert server.count("tcp.connections_lost") == 0


@pytest.mark.parametrize("unread", [0, 30_000], ids=["nothing-more", "more-behind-it"])
def test_the_end_of_an_unauthenticated_connection_does_not_tell_how_many_bytes_were_read(
    server: End, dial: Dial, unread: int
) -> None:
    peer = dial(server)
    peer.send(GARBAGE["empty frame"] + bytes(unread))
    ended(peer, server)
    assert not peer.was_reset


@pytest.mark.parametrize(
    "garbage",
    [hello(), frame(KEEPALIVE), b"HTTP/1.1 400 Bad Request\r\n", block_of(ipv4(1))],
    ids=["hello", "keepalive", "http", "block"],
)
def test_a_client_that_is_answered_with_garbage_dials_again(
    handmade_server: HandmadeServer, client_of: Callable[..., End], garbage: bytes
) -> None:
    client = client_of()
    peer = until(handmade_server.accept, client)
    until(lambda: HELLO in peer.kinds(), client)
    peer.send(garbage)
    ended(peer, client)
    assert client.count("tcp.closed_hello_invalid") == 1
    handmade_server.admit(client)
    assert client.established() == 1


def test_a_hello_of_another_version_is_refused_with_the_reason(server: End, dial: Dial) -> None:
    peer = dial(server)
    peer.send(hello(version=3))
    ended(peer, server)
    assert peer.frames == [(REFUSED, b"\x02this server speaks version 2")]
    assert server.count("tcp.connections_refused") == 1


def test_a_second_client_is_told_why_it_is_refused(server: End, dial: Dial) -> None:
    dial(server, hello(client=1))
    second = dial(server)
    second.send(hello(client=2))
    ended(second, server)
    assert second.frames == [(REFUSED, b"\x01another client is connected")]


def test_a_refusal_in_hostile_words_reaches_the_log_escaped(
    handmade_server: HandmadeServer, client_of: Callable[..., End], caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of()
    peer = until(handmade_server.accept, client)
    until(lambda: HELLO in peer.kinds(), client)
    peer.send(frame(REFUSED, b"\x01\x1b[2Jgone\nfake line\xff"))
    until(lambda: client.count("tcp.dials_failed"), client)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert r"refused by the server: \x1b[2Jgone\nfake line\ufffd" in warning


def test_a_handshake_in_single_bytes_succeeds(server: End, dial: Dial) -> None:
    peer = dial(server)
    for value in hello():
        peer.send(bytes([value]))
        server.step()
    until(lambda: WELCOME in peer.kinds(), server)
    assert server.established() == 1


def test_a_client_that_never_says_hello_is_closed_after_a_while(make: Make, dial: Dial) -> None:
    server = make("server", handshake_timeout=0.2)
    silent, slow = dial(server), dial(server)
    slow.send(hello()[:7])
    ended(silent, server)
    ended(slow, server)
    assert server.count("tcp.closed_too_late") == 2
    assert server.established() == 0


def test_a_connection_that_ends_before_its_handshake_is_not_counted(server: End, dial: Dial) -> None:
    peer = dial(server)
    server.step()
    peer.close()
    step_for(0.05, server)
    assert not [name for name in server.counts() if name.startswith(("tcp.closed", "tcp.connections"))]


def test_more_connections_than_the_table_has_rows_are_closed(server: End, dial: Dial) -> None:
    peers = []
    for _ in range(STATUS_ROWS_MIN + 6):
        peers.append(dial(server))
        server.step()
    until(lambda: server.count("tcp.closed_row_full") == 6, server)
    assert sum(peer.read_frames().ended for peer in peers) == 6
    for peer in peers:
        peer.close()
    step_for(0.05, server)
    dial(server, hello())


# -- frames


def test_malformed_frames_and_packets_are_counted_each_under_its_name_and_cost_nothing_else(
    server: End, dial: Dial
) -> None:
    peer = dial(server, hello())
    wrong_version = bytes(10) + b"\x55" + ipv4(0)[11:]
    wrong_length = ipv4(0) + b"more"
    wrong_header = b"\x00\x01" + bytes(8) + ipv4(0)[10:]  # TSO4 with segments of nothing
    stream = [
        (block_of(ipv4(1)), [ipv4(1)], ""),
        (frame(BLOCK, b""), [], "tun.dropped_frame_malformed"),
        (frame(BLOCK, b"\x00"), [], "tun.dropped_frame_malformed"),
        (frame(BLOCK, struct.pack(">HI", 1, 61) + ipv4(2)[:60]), [], "tun.dropped_frame_malformed"),
        (frame(BLOCK, struct.pack(">H", 513) + bytes(4 * 513)), [], "tun.dropped_frame_malformed"),
        (frame(0x7F, b"of a later version"), [], "tun.dropped_frame_unknown"),
        (frame(HELLO, hello()[5:]), [], "tun.dropped_frame_unknown"),
        (frame(0x00), [], "tun.dropped_frame_unknown"),
        (struct.pack(">I", 0), [], ""),
        (frame(KEEPALIVE), [], ""),
        (frame(KEEPALIVE, b"with a body"), [], ""),
        (block_of(ipv4(3), wrong_version, ipv6(4)), [ipv4(3), ipv6(4)], "tun.dropped_packet_malformed"),
        (block_of(wrong_length, ipv4(5)), [ipv4(5)], "tun.dropped_packet_malformed"),
        (block_of(b"", b"x", ipv4(6)), [ipv4(6)], "tun.dropped_packet_malformed"),
        (block_of(ipv4(7), wrong_header), [ipv4(7)], "tun.dropped_header_malformed"),
        (frame(DATA, ipv4(8)[10:]), [ipv4(8)], ""),
        (frame(DATA), [], "tun.dropped_packet_malformed"),
        (frame(DATA, b"\x45"), [], "tun.dropped_packet_malformed"),
        (block_of(*[ipv4(i, 30) for i in range(512)]), [ipv4(i, 30) for i in range(512)], ""),
        (block_of(ipv4(9)), [ipv4(9)], ""),
    ]
    peer.send(b"".join(data for data, _, _ in stream))
    expected = [packet for _, packets, _ in stream for packet in packets]
    until(lambda: len(server.packets()) == len(expected), server)
    assert server.packets() == expected
    counted = {name: value for name, value in server.counts().items() if ".dropped_" in name}
    assert counted == {
        "tun.dropped_frame_malformed": 4,
        "tun.dropped_frame_unknown": 3,
        "tun.dropped_packet_malformed": 6,
        "tun.dropped_header_malformed": 1,
    }
    assert server.count("tun.packets_written") == len(expected)
    assert server.count("tcp.frames_received") == len(stream)
    assert server.established() == 1


def test_a_packet_that_the_kernel_refuses_is_counted_and_the_next_one_passes(server: End, dial: Dial) -> None:
    peer = dial(server, hello())
    inside = server._device_sides[0]
    inside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # EMSGSIZE for what is longer
    super_packet = b"\x00\x01\x00\x00\x00\x05" + bytes(4) + ipv4(0, 60_000)[10:]
    peer.send(
        block_of(ipv4(1), ipv4(2, 60_000), super_packet, ipv4(3))
        + frame(DATA, ipv4(4, 60_000)[10:])
        + frame(DATA, ipv4(5)[10:])
    )
    until(lambda: len(server.packets()) == 3, server)
    assert server.packets() == [ipv4(1), ipv4(3), ipv4(5)]
    assert server.count("tun.dropped_write_refused") == 2
    assert server.count("tun.dropped_offload_refused") == 1


@pytest.mark.parametrize("length", [framing.LENGTH_LIMIT + 1, 1 << 31, (1 << 32) - 1])
def test_a_frame_that_is_too_long_ends_its_connection_and_no_other(server: End, dial: Dial, length: int) -> None:
    good, bad = dial(server, hello(index=0)), dial(server, hello(index=1))
    good.send(block_of(ipv4(1, 5000))[:2000])  # is in the middle of a frame meanwhile
    until(lambda: not server.step())
    bad.send(struct.pack(">IB", length, BLOCK) + b"x" * 100)
    ended(bad, server)
    assert server.count("tcp.closed_frame_too_long") == 1
    good.send(block_of(ipv4(1, 5000))[2000:] + block_of(ipv4(2)))
    until(lambda: len(server.packets()) == 2, server)
    assert server.packets() == [ipv4(1, 5000), ipv4(2)]
    assert server.established() == 1


def test_a_frame_at_the_limit_is_taken(server: End, dial: Dial) -> None:
    peer = dial(server, hello())
    share = framing.BLOCK_PAYLOAD_MAX // framing.BLOCK_PACKETS_MAX
    packets = [ipv4(i, share - 10) for i in range(framing.BLOCK_PACKETS_MAX)]
    data = block_of(*packets)
    assert len(data) == 4 + framing.BLOCK_LENGTH_LIMIT
    sent = [0]

    def all_there() -> bool:
        try:
            sent[0] += peer.socket.send(data[sent[0] :])
        except BlockingIOError:
            pass
        return len(server.packets()) == len(packets)

    until(all_there, server)
    assert server.packets() == packets


def test_with_compat_the_limit_is_the_originals() -> None:
    server = End("server", compat=True)
    peers = []
    try:
        good = Peer.dial(server.port)
        peers.append(good)
        longest = ipv4(1, framing.COMPAT_LENGTH_LIMIT - 1)
        good.send(frame(DATA, longest[10:]) + frame(KEEPALIVE) + frame(DATA, ipv4(2)[10:]))
        until(lambda: len(server.packets()) == 2, server)
        assert server.packets() == [longest, ipv4(2)]
        server.write(ipv6(3, 1400))
        until(lambda: DATA in good.kinds(), server)
        assert (DATA, ipv6(3, 1400)[10:]) in good.frames
        good.send(frame(DATA, bytes(framing.COMPAT_LENGTH_LIMIT)))
        ended(good, server)
        assert server.count("tcp.closed_frame_too_long") == 1
    finally:
        for peer in peers:
            peer.close()
        server.close()


def test_a_connection_that_ends_is_lost_only_if_it_was_established(server: End, dial: Dial) -> None:
    peer = dial(server)
    peer.send(hello() + b"\xff\xff\xff\xff")  # a frame that is too long, right behind the handshake
    ended(peer, server)
    assert server.count("tcp.closed_frame_too_long") == 1
    assert server.count("tcp.connections_lost") == server.count("tcp.connections_established")


@pytest.mark.parametrize("leaves", [False, True], ids=["stays", "leaves-at-once"])
def test_packets_behind_a_handshake_do_not_wait_for_long_in_front_of_a_full_ring(
    server: End, dial: Dial, leaves: bool
) -> None:
    first = dial(server, hello(index=0))
    for i in range(4):
        first.send(block_of(ipv4(i)))
        until(lambda: server.step("tcp-0") == 0 and server.count("tcp.frames_received") == i + 1)
    second = dial(server)
    second.send(hello(index=1) + block_of(ipv4(7)))
    if leaves:
        second.socket.shutdown(socket.SHUT_WR)
    over = time.monotonic() + 0.2
    until(lambda: (server.step("tcp-0") and False) or time.monotonic() > over)  # all its time, and the ring is full
    until(lambda: len(server.packets()) == 5, server, seconds=2)
    assert server.packets() == [ipv4(i) for i in (0, 1, 2, 3, 7)]


def test_a_connection_that_ends_in_the_middle_of_a_frame_leaves_nothing_of_it(server: End, dial: Dial) -> None:
    first = dial(server, hello(index=0))
    first.send(block_of(ipv4(1)) + block_of(ipv4(2, 5000))[:3000])
    until(lambda: len(server.packets()) == 1, server)
    first.close()
    until(lambda: server.established() == 0, server)
    second = dial(server, hello(index=0))
    second.send(block_of(ipv4(3)))
    until(lambda: len(server.packets()) == 2, server)
    assert server.packets() == [ipv4(1), ipv4(3)]
    assert not [name for name in server.counts() if ".dropped_" in name]
