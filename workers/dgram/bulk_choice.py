"""The peers whose bulk goes by TCP although a path of datagrams to them is open, as pipeline.policy.bulk_carrier says.

A peer without a connection has its bulk in datagrams. The choice is published for the tun workers of this lane
(pipeline.runtime.link_view) and for observers. A successor of this process begins anew.

Owned by the outbound duty.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.log import LOG
from pipeline.policy.bulk_carrier import BulkCarrier, Phase
from pipeline.shm.layout import DATAGRAM_BULK_BY_TCP, LINK_ESTABLISHED, PEER_INDEX_MASK, RECORD_WORDS
from pipeline.shm.peer_table import PeerTable

MBIT = 125_000


class BulkChoice:
    """`words`: the datagram records of this lane."""

    def __init__(self, table: PeerTable, words: memoryview) -> None:
        self._table = table
        self._words = words
        self._carriers: dict[int, BulkCarrier] = {}  # by peer handle
        words[DATAGRAM_BULK_BY_TCP::RECORD_WORDS] = memoryview(bytes(8 * table.capacity)).cast("Q")

    def update(self, limited: Mapping[int, bool], now: int) -> None:
        """`limited`: the peers to which a path is open, by handle, and whether that limits their bulk."""
        for handle in [each for each in self._carriers if not self._is_connected(each)]:
            del self._carriers[handle]
            self._publish(handle, False)
        for handle, is_limited in limited.items():
            carrier = self._carriers.get(handle)
            if carrier is None:
                if not self._is_connected(handle):
                    continue
                carrier = self._carriers[handle] = BulkCarrier()
            if carrier.update(now, self._table.sent_bytes(handle & PEER_INDEX_MASK), is_limited):
                self._publish(handle, carrier.is_by_tcp)
                _log(handle & PEER_INDEX_MASK, carrier)

    def _is_connected(self, handle: int) -> bool:
        peer = handle & PEER_INDEX_MASK
        at = peer * RECORD_WORDS + LINK_ESTABLISHED
        return self._table.peer_handle(peer) == handle and any(words[at] for words in self._table.links)

    def _publish(self, handle: int, is_by_tcp: bool) -> None:
        at = (handle & PEER_INDEX_MASK) * RECORD_WORDS + DATAGRAM_BULK_BY_TCP
        if is_by_tcp:
            self._words[at] = handle
        elif self._words[at] == handle:
            self._words[at] = 0


def _log(peer: int, carrier: BulkCarrier) -> None:
    if carrier.phase is Phase.TCP:
        LOG.info(
            "bulk for peer %d goes by TCP for a while: it carries %.1f Mbit/s there, and %.1f in datagrams",
            peer,
            carrier.rate_by_tcp / MBIT,
            carrier.rate / MBIT,
        )
    else:
        LOG.debug("bulk for peer %d: %s", peer, carrier.phase.name.lower())
