"""The light packer of a hub: copies that a budget pays for, however many peers there are."""

from __future__ import annotations

from array import array
from contextlib import closing

import pytest

from pipeline.counters import ID
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.policy.copy_budget import SAVED_BYTES, SEGMENT_BYTES
from pipeline.runtime.link_paths import Paths
from pipeline.runtime.link_view import LinkView
from pipeline.shm import layout
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.shm.slot import read_header_and_runs, read_runs
from tests.harness.run import Run
from workers.tun.light_packer import LightPacker

PEERS = 80
PACKET_BYTES = 200


def test_many_peers_in_turn_get_no_more_copies_than_their_budgets_pay_for() -> None:
    with closing(Run(1, PEERS)) as run:
        for peer in range(PEERS):
            run.write_link(0, peer, established=2, light=2, decodes=1)
        attachment = run.attach("tun-0")
        attachment.settings = attachment.settings._replace(fec="auto", fec_parity=3)
        packer = LightPacker(attachment, LinkView(attachment))
        (behind,) = run.attach("tcp-0").ports("outbound", "light")
        slot = memoryview(bytearray(layout.SLOT_BODY_AT + PACKET_BYTES))
        slot[layout.SLOT_BODY_AT + VNET_HEADER_BYTES] = 0x45
        rounds = 2 * SAVED_BYTES // (PACKET_BYTES + SEGMENT_BYTES)
        for _ in range(rounds):
            for peer in range(PEERS):
                slot[layout.SLOT_BODY_AT + VNET_HEADER_BYTES + 16] = peer  # a flow of each peer
                assert packer.offer(slot, layout.SLOT_BODY_AT, PACKET_BYTES, 0, FIRST_PEER_HANDLE | peer)
                packer.flush()
                behind.advance(behind.ready())
        copies = attachment.page.counters[ID["tun.copies_added"]]
        assert PEERS * rounds // 4 < copies <= PEERS * SAVED_BYTES // (PACKET_BYTES + SEGMENT_BYTES)


@pytest.mark.parametrize(
    ("uplinks", "mains", "rows"),
    [([0, 0, 1], {0, 1}, [0, 2]), ([0, 0, 1], {0}, [0]), ([0], {0}, [0]), ([1, 1], set(), [0])],
    ids=["two uplinks", "a backup", "one left", "the backup left"],
)
def test_a_light_block_for_a_peer_with_uplinks_is_a_run_on_two_main_ones(
    uplinks: list[int], mains: set[int], rows: list[int]
) -> None:
    with closing(Run(1, 1)) as run:
        record = Paths((), tuple(uplinks), dict.fromkeys(uplinks, 1e6), frozenset(mains)).pack()
        run.memory.peer_table.paths[0][:3] = array("Q", record)
        run.write_link(0, 0, established=len(uplinks), light=len(uplinks), decodes=3)
        attachment = run.attach("tun-0")
        attachment.settings = attachment.settings._replace(fec="auto", fec_parity=3)
        packer = LightPacker(attachment, LinkView(attachment))
        (behind,) = run.attach("tcp-0").ports("outbound", "light")
        slot = memoryview(bytearray(layout.SLOT_BODY_AT + PACKET_BYTES))
        slot[layout.SLOT_BODY_AT + VNET_HEADER_BYTES] = 0x45
        for _ in range(2 * SAVED_BYTES // (PACKET_BYTES + SEGMENT_BYTES)):  # whatever the budget for copies has left
            assert packer.offer(slot, layout.SLOT_BODY_AT, PACKET_BYTES, 0, FIRST_PEER_HANDLE)
            packer.flush()
            filled = behind.slot()
            *_, runs = read_header_and_runs(filled)
            ordinals = [ordinal for _, ordinal, *_ in read_runs(filled, runs)]
            assert ordinals[:1] == rows[:1] and (len(rows) == 1 or ordinals == rows)
            behind.advance(1)
