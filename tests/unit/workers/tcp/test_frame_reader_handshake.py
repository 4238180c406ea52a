"""Receiving a greeting: over every split of the stream, and from those who speak something else."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from pipeline.errors import PeerError
from pipeline.transport.connection import HANDSHAKE, Connection, HandshakeState
from pipeline.wire import framing
from workers.tcp.frame_reader import receive_greeting

LIMIT = framing.HELLO_LENGTH_LIMIT


@contextmanager
def stranger() -> Iterator[tuple[socket.socket, Connection]]:
    """The other end of a connection that has just been accepted, and that connection."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.setblocking(False)
        connection = Connection(ours, ("192.0.2.1", 40000), HANDSHAKE, 1, 0)
        connection.exchange = HandshakeState("hello")
        yield theirs, connection


def greeted(arrivals: Sequence[bytes], limit: int = LIMIT) -> tuple[bytes | None, bytes]:
    """Receive these bytes, one arrival at a time: the first frame, and what is left behind it."""
    with stranger() as (theirs, connection):
        for arrival in arrivals:
            theirs.sendall(arrival)
            try:
                return receive_greeting(connection, limit), bytes(connection.exchange.buffer)
            except BlockingIOError:
                pass
        return None, bytes(connection.exchange.buffer)


FRAME = framing.frame(framing.HELLO, b"hello")


@pytest.mark.parametrize("cut", range(1, len(FRAME)))
def test_a_frame_is_received_over_every_split(cut: int) -> None:
    assert greeted([FRAME[:cut]]) == (None, FRAME[:cut])
    assert greeted([FRAME[:cut], FRAME[cut:] + b"tail"]) == (FRAME, b"tail")


def test_a_frame_that_comes_byte_by_byte_is_received() -> None:
    assert greeted([bytes([value]) for value in FRAME]) == (FRAME, b"")


@pytest.mark.parametrize("first", [0, 1, 4, len(FRAME), len(FRAME) + 3])
def test_a_second_frame_is_taken_from_what_came_with_the_first(first: int) -> None:
    proof = framing.frame(framing.PROOF, bytes(32))
    stream = FRAME + proof + b"and more"
    with stranger() as (theirs, connection):
        received = []
        for piece in (stream[:first], stream[first:]):
            theirs.sendall(piece)
            try:
                while len(received) < 2:
                    received.append(receive_greeting(connection, LIMIT))
            except BlockingIOError:
                pass
        assert received == [FRAME, proof]
        assert connection.exchange.buffer == b"and more"


@pytest.mark.parametrize("limit", [framing.HELLO_LENGTH_LIMIT, framing.WELCOME_LENGTH_LIMIT])
def test_a_frame_up_to_the_limit_is_received_and_no_byte_more(limit: int) -> None:
    for length in (0, 1, limit):
        frame = struct.pack(">I", length) + bytes(length)
        assert greeted([frame[:300], frame[300:]], limit) == (frame, b"")
    with pytest.raises(PeerError, match=f"greeting of {limit + 1} bytes, at most {limit} allowed"):
        greeted([struct.pack(">I", limit + 1)], limit)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        struct.pack(">I", LIMIT + 1),
        struct.pack(">I", 1 << 31),
        struct.pack(">I", (1 << 32) - 1),
    ],
)
def test_whoever_speaks_another_protocol_is_told_by_its_first_four_bytes(data: bytes) -> None:
    with pytest.raises(PeerError, match=r"greeting of .* bytes, at most 512 allowed"):
        greeted([data[:4]])


def test_a_stranger_who_says_much_is_not_listened_to_beyond_what_a_frame_may_have() -> None:
    with stranger() as (theirs, connection):
        theirs.sendall(FRAME + bytes(50 * LIMIT))
        receive_greeting(connection, LIMIT)
        assert len(connection.exchange.buffer) < LIMIT


def test_the_end_of_the_stream_before_a_whole_frame_is_an_end_of_file() -> None:
    for came in (b"", FRAME[:3], FRAME[:-1]):
        with stranger() as (theirs, connection):
            theirs.sendall(came)
            theirs.close()
            with pytest.raises(EOFError):
                receive_greeting(connection, LIMIT)
