"""The rules of peers in the kernel: put there, kept there, and what they have refused.

    apply(guarded)      these peers have rules from now on; without any, the kernel has nothing of ours
    is_in_place         whether all packets that need a rule meet it; False without any rules, too
    take_refusals()     the peers and packets that were refused, as many as the kernel tells
    notes               sentences about what the kernel does not take
    counts              refused packets by peer, since the start

The table replaces the one before it in one transaction, so no packet passes between the two. Its counters begin anew
then; what they had is kept here. They are read when the kernel tells of a refusal, and never else.
"""

from __future__ import annotations

import selectors
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from pipeline.supervisor.kernel import nft
from pipeline.supervisor.kernel.reach_table import TOLD_BYTES, Guarded, ReachTable, counter_of
from pipeline.supervisor.kernel.refusal_log import RefusalLog, open_log
from pipeline.supervisor.kernel.table_keeper import TableKeeper

COUNT_NS = 2_000_000_000  # between two looks at the counters, while packets are refused
RETRY_NS = 10_000_000_000  # after nft has failed


class ReachGuard:
    """`index`: the present index of the device. `there`: the tables that there are at the start."""

    def __init__(
        self,
        tun_name: str,
        instance_name: str,
        index: Callable[[], int],
        there: Collection[str],
        selector: selectors.BaseSelector | None = None,
    ) -> None:
        self._tun_name, self._instance_name, self._index = tun_name, instance_name, index
        self._table = ReachTable((tun_name, index()), instance_name)
        self._keeper = TableKeeper(
            self._table, may_be_there=self._table.table in there, is_guard=True, selector=selector
        )
        self._keeper.apply(False)  # what a killed run has left
        self.notes: list[str] = []
        self._log: RefusalLog | None = None
        self._guarded: Sequence[Guarded] = ()
        self._before: Counter[str] = Counter()  # of earlier tables
        self._now: dict[str, int] = {}  # of this table, when it was read last
        self._told: list[tuple[str, bytes]] = []
        self._has_more = False  # in the counters than was read
        self._count_due = self._retry_due = 0

    def apply(self, guarded: Sequence[Guarded]) -> None:
        if guarded and self._log is None:
            self._log = open_log(TOLD_BYTES)
        group = self._log.group if self._log is not None else None
        table = ReachTable((self._tun_name, self._index()), self._instance_name, guarded, group)
        if guarded and table.text == self._table.text and self._keeper.is_in_place:
            self._guarded = guarded
            return  # a peer has come or gone that no rule concerns
        self._read_log()
        self._settle_counts()
        self._guarded, self._table, self._retry_due = guarded, table, 0
        self.notes = self._keeper.replace(table) if guarded else self._keeper.apply(False)
        if not guarded and self._log is not None:
            self._log.close()
            self._log = None

    @property
    def is_in_place(self) -> bool:
        return self._keeper.is_in_place

    @property
    def counts(self) -> Counter[str]:
        return self._before + Counter(self._now)

    def tick(self, now: int) -> None:
        if not self._guarded:
            return
        self._keeper.tick(now)
        self._read_log()
        if self._has_more and not self._count_due:
            self._has_more, self._count_due = False, now + COUNT_NS
        if self._count_due and now >= self._count_due:
            self._count_due = 0
            self._now = self._read_counts()
        if self._keeper.has_failed:
            self._retry_due = self._retry_due or now + RETRY_NS
            if now >= self._retry_due:
                self._retry_due = 0
                self.notes = self._keeper.apply(True)

    def take_refusals(self) -> list[tuple[str, bytes]]:
        """Name of the peer, and the packet from its IP header on."""
        self._read_log()
        found, self._told = self._told, []
        return found

    def _read_log(self) -> None:
        if self._log is None:
            return
        for prefix, packet in self._log.take():
            if prefix.isdigit() and int(prefix) < len(self._guarded):
                self._told.append((self._guarded[int(prefix)].name, packet))
                self._has_more = True

    def _read_counts(self) -> dict[str, int]:
        found = nft.counts(self._table.table)
        counters = {counter_of(index, peer.name): peer.name for index, peer in enumerate(self._guarded)}
        return {counters[name]: packets for name, packets in found.items() if name in counters}

    def _settle_counts(self) -> None:
        """The counts of this table stay when it goes."""
        if self._has_more or self._count_due or self._log is None:
            self._now = self._read_counts() or self._now
        self._before.update(self._now)
        self._now, self._count_due, self._has_more = {}, 0, False

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
        self._keeper.close()
