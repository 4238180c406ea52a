"""The rate that all clients of a hub share (`total_rate_mbit`), as one duty of a tcp worker follows it.

The supervisor writes it into the peer table. Tcp workers tell each other on the scoreboard how many peers wait there;
what each has sent, or received, is in its counters. Padding counts in no rate.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.policy.shared_rate import OtherLane, SharedRate
from pipeline.runtime.worker import Attachment

_COUNTERS = {
    "outbound": (ID["tcp.bytes_sent"], ID["tcp.bytes_padding_sent"]),
    "inbound": (ID["tcp.bytes_received"], ID["tcp.bytes_padding_received"]),
}


class TotalRate:
    """`shared`: None while there is no such rate; `rate`: bytes a second, 0 without."""

    def __init__(self, attachment: Attachment, duty: str) -> None:
        self.shared: SharedRate | None = None
        self.rate = 0
        self._table = attachment.peer_table
        self._bytes, self._padding = _COUNTERS[duty]
        self._own = attachment.page.waiting(duty)
        pages = [attachment.scoreboard.pages[worker.page] for worker in attachment.plan.workers_of_kind("tcp")]
        self._others = [(page.waiting(duty), page.counters) for page in pages if page is not attachment.page]

    def follow(self, now: int) -> None:
        """On the clock."""
        rate = self.rate = self._table.total_rate()
        if not rate:
            self.shared = None
            self._own[0] = 0
            return
        if self.shared is None:
            self.shared = SharedRate(self._exchange if self._others else None)
        self.shared.update(rate, now)

    def _exchange(self, waiting: int) -> list[OtherLane]:
        self._own[0] = waiting
        return [
            OtherLane(other[0], counters[self._bytes] - counters[self._padding]) for other, counters in self._others
        ]
