"""The memory of datagrams: each lane has its own, and a server that begins anew has forgotten all."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from pipeline.errors import LocalError
from pipeline.sealing.datagram_memory import DatagramMemory as LaneMemory
from pipeline.shm.datagram_secrets import DatagramSecrets, DatagramSecretTable
from pipeline.supervisor.run.datagram_memory import DatagramMemory
from tests.harness.no_descriptors import no_descriptor_left
from tests.harness.sealed_lane import handle

CAPACITY, LANES = 3, 2
RECORD = DatagramSecrets(handle(1, 2), 1, bytes(16), 0, b"s" * 32, b"r" * 32)


def test_lanes_share_the_secrets_and_have_memory_of_their_own() -> None:
    with closing(DatagramMemory(CAPACITY, LANES)) as memory:
        memory.secrets.write(RECORD)
        lanes = [memory.fds(lane) for lane in range(LANES)]
        for fds in lanes:
            with closing(DatagramSecretTable.attach(fds["datagram_secrets"], CAPACITY)) as reader:
                assert reader.read_index(2) == RECORD
        known = [LaneMemory(fds["datagram_memory"], CAPACITY) for fds in lanes]
        assert not known[0].begin(handle(1, 2)) and not known[1].begin(handle(1, 2))
        known[0].addresses_of(2)[0] = 7
        assert known[1].addresses_of(2)[0] == 0


def test_begun_anew_nothing_is_left() -> None:
    with closing(DatagramMemory(CAPACITY, LANES)) as memory:
        memory.secrets.write(RECORD)
        LaneMemory(memory.fds(1)["datagram_memory"], CAPACITY).begin(handle(1, 2))
        memory.begin_anew()
        assert memory.secrets.read_index(2) is None
        assert not LaneMemory(memory.fds(1)["datagram_memory"], CAPACITY).begin(handle(1, 2))


def test_without_descriptors_it_says_so_and_leaves_none_open() -> None:
    before = os.listdir("/proc/self/fd")
    with no_descriptor_left(), pytest.raises(LocalError, match="memory for datagrams cannot be made"):
        DatagramMemory(CAPACITY, LANES)
    assert os.listdir("/proc/self/fd") == before
