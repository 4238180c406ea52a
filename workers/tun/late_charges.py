"""Late charges: what a packet costs that nobody could see before the tun worker had it (`pipeline.wire.charge`).

The tcp worker that reads a peer charges it by its frames. It cannot see how many packets there are in a coded block,
nor that a super-packet will have to be cut, nor what the kernel does with a packet. The answer to an echo request, for
one, is made and begins its way out before write(2) returns. So the inbound duty of the tun worker counts these charges
up, in a word of the peer table for each peer. The tcp workers take them from the peer's next turns.

The time of a slot is that of the clock on the wall, because reading the time of a thread takes as long as a packet.
The kernel may have run something else meanwhile, so the time counts up to TIME_MOST times what the packets show.
"""

from __future__ import annotations

import time

from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import MASK64, PEER_INDEX_MASK, RECORD_WORDS, TRANSIT_CHARGE
from pipeline.wire import charge

TIME_MOST = 4  # an echo request takes three times as long as a packet that nothing answers


class LateCharges:
    """The words of this lane."""

    def __init__(self, attachment: Attachment) -> None:
        self._words = attachment.peer_table.transit_numbers[attachment.worker.lane]
        self._began_ns = self._before = 0

    def add(self, peer_handle: int, charged: int) -> None:
        at = (peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + TRANSIT_CHARGE
        self._words[at] = self._words[at] + charged & MASK64

    def begin_slot(self, peer_handle: int) -> None:
        """The work on a slot of this peer begins."""
        self._before = self._words[(peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + TRANSIT_CHARGE]
        self._began_ns = time.monotonic_ns()

    def end_slot(self, peer_handle: int, packets: int, size: int) -> None:
        """The work has ended: charge its time, less what is charged for it in other ways.

        `packets`, and bytes (`size`): of the slot.
        """
        spent = charge.of_time(time.monotonic_ns() - self._began_ns)
        shown = charge.PACKET * packets + size // charge.WRITE_SHARE
        late = self._words[(peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + TRANSIT_CHARGE] - self._before & MASK64
        if spent > shown + late:
            self.add(peer_handle, min(spent - late, TIME_MOST * shown) - shown)
