"""The forwarder of a hub of the original program: no sender takes the whole transit ring."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from pipeline.counters import ID
from pipeline.runtime import topology
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.shm.slot import SLOT_BYTES_MIN
from pipeline.supervisor.run.shared_memory import SharedMemory
from tests.harness.settings import WORKER_SETTINGS
from workers.tun.compat_forwarder import CompatForwarder
from workers.tun.forwarder import TRANSIT_GREED

SLOTS = 16
PACKET = memoryview(bytes(10 + 84))


@pytest.fixture
def attachment() -> Iterator[Attachment]:
    settings = WORKER_SETTINGS._replace(compat=True)
    plan = topology.build_plan("workertest", secrets.token_hex(4), "server", 1, SLOTS, SLOT_BYTES_MIN, settings, 4)
    memory = SharedMemory(plan)
    made = Attachment(plan, "tun-0")
    yield made
    memory.unlink()
    made.close()
    for ring in memory.rings.values():
        ring.close()
    memory.peer_table.close()
    memory.scoreboard.close()


def test_a_sender_leaves_an_eighth_of_the_transit_ring_to_others(attachment: Attachment) -> None:
    forwarder = CompatForwarder(attachment)
    counters = attachment.page.counters

    def forward(sender: int) -> int:
        """One packet to peer 3, in a slot of its own; the packets forwarded so far."""
        forwarder.forward(PACKET, 0, len(PACKET), FIRST_PEER_HANDLE | sender, FIRST_PEER_HANDLE | 3, 0)
        forwarder.flush()
        return counters[ID["tun.packets_forwarded"]]

    for _ in range(SLOTS):
        most = forward(1)
    assert most == SLOTS * TRANSIT_GREED // (TRANSIT_GREED + 1)
    assert counters[ID["tun.dropped_transit_full"]] == SLOTS - most
    assert forward(2) == most + 1
