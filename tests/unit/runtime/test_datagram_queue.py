"""Datagrams that wait for room: in their order, few, and none twice."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pipeline.runtime.datagram_queue import DatagramQueue

LIMIT = 3


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def test_datagrams_without_room_wait_up_to_the_limit_and_then_go_in_their_order(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    queue = DatagramQueue(ours, LIMIT)
    sent = 0
    while queue.is_empty:
        assert queue.send(str(sent).encode())
        sent += 1
    for _ in range(LIMIT - 1):
        assert queue.send(str(sent).encode())
        sent += 1
    assert not queue.send(b"one too many")
    found = []
    while len(found) < sent:
        found.append(int(theirs.recv(100)))
        queue.flush()
    assert found == list(range(sent)) and queue.is_empty


def test_a_datagram_that_can_never_be_sent_is_lost_alone(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    queue = DatagramQueue(ours, LIMIT)
    with pytest.raises(OSError, match="Message too long"):
        queue.send(bytes(1 << 24))
    assert queue.send(b"next") and theirs.recv(100) == b"next"
