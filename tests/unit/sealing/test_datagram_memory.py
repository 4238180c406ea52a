"""The memory of a lane's datagrams: a successor has what its predecessor knew, and a new session has nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pipeline.sealing.datagram_memory import DatagramMemory
from pipeline.sealing.datagram_seal import LANE_BITS, NUMBER_BITS
from tests.harness.sealed_lane import handle

CAPACITY = 3


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("datagram memory test")
    os.ftruncate(made, DatagramMemory.bytes_of(CAPACITY))
    yield made
    os.close(made)


def count(process: int, number: int) -> int:
    return process << LANE_BITS + NUMBER_BITS | number


def test_a_successor_has_the_windows_and_the_addresses_of_a_session(fd: int) -> None:
    memory = DatagramMemory(fd, CAPACITY)
    assert not memory.begin(handle(5, 1))
    memory.windows_of(1).mark(count(3, 9))
    memory.addresses_of(1)[:4] = b"addr"
    successor = DatagramMemory(fd, CAPACITY)
    assert successor.begin(handle(5, 1))
    windows = successor.windows_of(1)
    assert not windows.may_open(count(3, 9)) and windows.may_open(count(3, 8)) and not windows.may_open(count(2, 99))
    assert bytes(successor.addresses_of(1)[:4]) == b"addr"


def test_another_session_of_an_index_begins_with_nothing_and_that_of_another_index_stays(fd: int) -> None:
    memory = DatagramMemory(fd, CAPACITY)
    for peer in range(CAPACITY):
        memory.begin(handle(5, peer))
        memory.windows_of(peer).mark(count(3, 9))
        memory.addresses_of(peer)[:] = b"x" * len(memory.addresses_of(peer))
    assert not memory.begin(handle(6, 1))
    assert memory.windows_of(1).may_open(count(0, 0)) and not any(memory.addresses_of(1))
    for peer in (0, 2):
        assert memory.begin(handle(5, peer)) and not memory.windows_of(peer).may_open(count(3, 9))
        assert set(memory.addresses_of(peer)) == set(b"x")


def test_the_places_of_all_indices_fill_the_memory(fd: int) -> None:
    memory = DatagramMemory(fd, CAPACITY)
    for peer in range(CAPACITY):
        memory.begin(handle(1, peer))
        memory.addresses_of(peer)[:] = bytes([peer + 1]) * len(memory.addresses_of(peer))
    data = os.pread(fd, 1 << 20, 0)
    assert len(data) == CAPACITY * DatagramMemory.PEER_BYTES and data[-1] == CAPACITY
