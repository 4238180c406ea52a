"""What the kernel sees of a tcp worker's connections to one peer, and what follows from it. With fec on or auto alone.

loss and stalls    how much parity they call for: a carrier word, which the tun and fec workers follow
delay              how fast the connections for bulk may send, so that light flows find the path's queue short
"""

from __future__ import annotations

from collections.abc import Collection

from pipeline.counters import ID
from pipeline.log import LOG
from pipeline.policy.adaptive_parity import AdaptiveParity
from pipeline.policy.pacing import BulkPacer, PathSample
from pipeline.transport.connection import UNPACED, Connection
from pipeline.wire import framing
from workers.tcp.link_publisher import LinkPublisher


class LinkMonitor:
    """Looks on the clock of the inbound duty, which counts in `ended` the established connections that have ended."""

    def __init__(self, settings: dict, peer: int, carrier: LinkPublisher, counters: memoryview) -> None:
        self._peer = peer
        self._carrier = carrier
        self._counters = counters
        self._pace = BulkPacer()
        self._adaptive: AdaptiveParity | None = None
        self.ended = 0
        if settings["fec"] == "auto":
            self._adaptive = AdaptiveParity(settings["fec_parity"])
        else:
            carrier.call_for(peer, settings["fec_parity"])

    @property
    def quiet(self) -> bool:
        """Whether a connection that sends nothing need not be looked at."""
        return not (self.ended or self._pace.rate or (self._adaptive is not None and self._adaptive.parity))

    def look(self, established: Collection[Connection], now: int) -> None:
        """`now`: CLOCK_MONOTONIC ns."""
        seen = {connection: connection.seen() for connection in established}
        if self._adaptive is not None:
            before = self._adaptive.parity
            parity = self._adaptive.look([losses for losses, _ in seen.values()], self.ended, now)
            if parity != before:
                self._carrier.call_for(self._peer, parity)
                self._counters[ID["tcp.parity_raised" if parity > before else "tcp.parity_lowered"]] += 1
                LOG.debug("parity called for: %d", parity)
        self.ended = 0
        bulk = {connection: flow for connection, (_, flow) in seen.items() if connection.traffic_class == framing.BULK}
        if len(bulk) < len(seen):  # else there is nobody to make room for
            self._set_pace(bulk, now)

    def _set_pace(self, bulk: dict[Connection, PathSample], now: int) -> None:
        paced = self._pace.rate
        each = self._pace.look(list(bulk.values()), now)
        if paced or each:
            for connection in bulk:
                connection.pace(int(each) or UNPACED)
            self._counters[ID["tcp.paces_changed"]] += 1
