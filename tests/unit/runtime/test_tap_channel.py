"""How a client's dgram worker gets its tap: the latest message counts, and no descriptor is left over."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from pipeline.runtime import tap_channel
from pipeline.runtime.tap_channel import NO_SERVER

FIRST, SECOND = (b"a" * 16, 444, 0), (b"b" * 16, 445, 7)

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = tap_channel.channel()
    with ours, theirs:
        yield ours, theirs


def inode(sock: socket.socket | None) -> int:
    assert sock is not None
    return os.fstat(sock.fileno()).st_ino


def test_a_tap_comes_with_the_server_that_it_leads_to(ends: Ends) -> None:
    assert tap_channel.receive(ends[1]) is None
    with socket.socket() as tap:
        tap_channel.send(ends[0], FIRST, tap)
        found = tap_channel.receive(ends[1])
        assert found is not None and found[0] == FIRST and inode(found[1]) == inode(tap)
        assert found[1] is not None
        found[1].close()
    assert tap_channel.receive(ends[1]) is None


def test_the_latest_one_counts_and_the_others_are_closed(ends: Ends) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket() as first, socket.socket() as second:
        tap_channel.send(ends[0], FIRST, first)
        tap_channel.send(ends[0], SECOND, second)
        found = tap_channel.receive(ends[1])
        assert found is not None and found[0] == SECOND and inode(found[1]) == inode(second)
        assert found[1] is not None
        found[1].close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_server_without_fake_tcp_takes_the_tap_away(ends: Ends) -> None:
    with socket.socket() as tap:
        tap_channel.send(ends[0], FIRST, tap)
        tap_channel.send(ends[0], NO_SERVER, None)
    assert tap_channel.receive(ends[1]) == (NO_SERVER, None)


def test_where_the_supervisor_has_gone_nothing_more_comes(ends: Ends) -> None:
    ends[0].close()
    assert tap_channel.receive(ends[1]) is None
