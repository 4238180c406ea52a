"""Late charges: what a packet costs that nobody could see before the tun worker had it (`pipeline.wire.charge`).

The tcp worker that reads a peer charges it by its frames. It cannot see how many packets there are in a coded block,
nor that a super-packet will have to be cut. So the inbound duty of the tun worker counts these charges up, in a word of
the peer table for each peer. The tcp workers take them from the peer's next turns.
"""

from __future__ import annotations

from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import MASK64, PEER_INDEX_MASK, RECORD_WORDS, TRANSIT_CHARGE


class LateCharges:
    """The words of this lane."""

    def __init__(self, attachment: Attachment) -> None:
        self._words = attachment.peer_table.transit_numbers[attachment.worker.lane]

    def add(self, peer_handle: int, charge: int) -> None:
        at = (peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + TRANSIT_CHARGE
        self._words[at] = self._words[at] + charge & MASK64
