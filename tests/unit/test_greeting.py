"""Receiving a greeting: over every split of the stream, and from those who speak something else."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

import pytest

from pipeline import wire
from pipeline.errors import PeerError
from pipeline.intake import receive_greeting


def greeted(arrivals: Sequence[bytes]) -> tuple[bytes | None, bytes]:
    """Receive these bytes, one arrival a call: the greeting, and what is left behind it."""
    peer, ours = socket.socketpair()
    with peer, ours:
        buffer = bytearray()
        for arrival in arrivals:
            peer.sendall(arrival)
            frame = receive_greeting(ours, buffer)
            if frame is not None:
                return frame, bytes(buffer)
        return None, bytes(buffer)


GREETING = wire.frame(wire.HELLO, b"hello")


@pytest.mark.parametrize("cut", range(1, len(GREETING)))
def test_a_greeting_is_received_over_every_split(cut: int) -> None:
    assert greeted([GREETING[:cut]]) == (None, GREETING[:cut])
    assert greeted([GREETING[:cut], GREETING[cut:] + b"tail"]) == (GREETING, b"tail")


def test_a_greeting_that_comes_byte_by_byte_is_received() -> None:
    assert greeted([bytes([value]) for value in GREETING]) == (GREETING, b"")


@pytest.mark.parametrize("length", [0, 1, wire.HELLO_LENGTH_LIMIT])
def test_a_first_frame_up_to_the_limit_is_received(length: int) -> None:
    frame = struct.pack(">I", length) + bytes(length)
    assert greeted([frame[:300], frame[300:]] if length > 296 else [frame]) == (frame, b"")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                                  b"SSH-2.0-OpenSSH_9.6\r\n", struct.pack(">I", wire.HELLO_LENGTH_LIMIT + 1),
                                  struct.pack(">I", 1 << 31), struct.pack(">I", (1 << 32) - 1)])
def test_whoever_speaks_another_protocol_is_told_by_its_first_four_bytes(data: bytes) -> None:
    with pytest.raises(PeerError, match="greeting of .* bytes, at most 512 allowed"):
        greeted([data[:4]])


def test_the_end_of_the_stream_before_a_greeting_is_an_end_of_file() -> None:
    peer, ours = socket.socketpair()
    with ours:
        peer.close()
        with pytest.raises(EOFError):
            receive_greeting(ours, bytearray())
