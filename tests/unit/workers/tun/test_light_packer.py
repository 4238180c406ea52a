"""The light packer of a hub: copies that a budget pays for, however many peers there are."""

from __future__ import annotations

from contextlib import closing

from pipeline.counters import ID
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.policy.copy_budget import SAVED_BYTES, SEGMENT_BYTES
from pipeline.runtime.link_view import LinkView
from pipeline.shm import layout
from pipeline.shm.layout import FIRST_PEER_HANDLE
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
