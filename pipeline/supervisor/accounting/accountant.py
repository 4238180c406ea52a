"""The accountant: it looks at the counts of the peer table once a second, has them booked, and follows the quotas.

    start(table)        look at this peer table from now on; its counts begin with nothing
    settle()            look for the last time, before the peer table is closed
    begin(index, name)  a peer gets an index
    tick(now)           look; the peers whose quota has other consequences now
    configure(...)      other quotas
    set_used(...)       an operator says how much of a quota is used
    close()             hand over the rest

The supervisor never waits for a disk (`pipeline.accounting.outbox`).

If the supervisor is killed, the bytes since the last batch are lost: those of five seconds, and of the time of a write.
No byte is counted twice: the meter gives each byte once, and the book takes each batch once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from pipeline.accounting import FILE_NAME
from pipeline.accounting.batch import Forgiven, Told, Usage
from pipeline.accounting.outbox import Outbox
from pipeline.config import Config
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.peers.quotas import Quotas, gigabytes
from pipeline.policy.quota import QuotaState, QuotaTerms, period_of
from pipeline.policy.traffic_meter import Traffic, TrafficMeter
from pipeline.shm.peer_table import PeerTable

LOOK_NS = 1_000_000_000
REFRESH_NS = 10_000_000_000
START_SECONDS = 0.5  # a wait for what was used this month, before the first client is admitted

Record = Callable[[str, str, str], object]
"""Records an event: its kind, its subject, its text."""


class Accountant:
    """`record` gets each mark of a quota that is reached, and troubles of the book. `wall`: seconds since the epoch.

    `has_quotas`: the peers are those of a server. Without `accounting` an accountant does nothing.
    """

    def __init__(
        self,
        config: Config,
        record: Record = lambda kind, subject, text: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.quotas = Quotas()
        self._record = record
        self._wall = wall
        self._day = config.quota_day
        self._has_quotas = config.mode == "server" and not config.compat
        self._outbox = Outbox(Path(config.state_dir) / FILE_NAME, record) if config.accounting else None
        self._meter: TrafficMeter | None = None
        self._look_at = 0  # CLOCK_MONOTONIC ns
        self._refresh_at = time.monotonic_ns() + REFRESH_NS
        self._peers: set[str] = set()  # that are configured or invited
        self._states: dict[str, QuotaState] = {}  # of all that are not open, at the last look

    def configure(self, quota_day: int, own: Mapping[str, QuotaTerms], general: QuotaTerms) -> None:
        """Call before the admission looks at the quotas. `own`: of the peers that are configured or invited."""
        self._day = quota_day
        for name in self._peers - own.keys():
            self._states.pop(name, None)  # it is no peer any more, so nobody waits for its quota
        self._peers = set(own)
        self.quotas.configure(own, general)
        if self._meter is not None and self._outbox is not None and self._has_quotas:
            self._follow_period(self._outbox)

    def start(self, table: PeerTable) -> None:
        self._meter = TrafficMeter(lambda index: Traffic(table.received_bytes(index), table.sent_bytes(index)))
        if self._outbox is not None and self._has_quotas and self._follow_period(self._outbox):
            self._use(self._outbox.await_usage(START_SECONDS, time.monotonic_ns()))

    def begin(self, index: int, name: str) -> None:
        if self._meter is not None:
            self._meter.begin(index, name)

    def tick(self, now: int) -> set[str]:
        """Names of peers that were slowed or stopped, or are so no more."""
        outbox = self._outbox
        if outbox is None:
            return set()
        self._use(outbox.tick(now))
        if now < self._look_at:
            return set()
        self._look_at = now + LOOK_NS
        self._look()
        return self._follow_quotas(outbox, now) if self._has_quotas else set()

    def status(self) -> dict[str, Any] | None:
        """For `status` and `peers`; None without accounting."""
        return self._outbox.status() if self._outbox is not None else None

    @property
    def notes(self) -> list[str]:
        if self._outbox is None or not self._outbox.problem:
            return []
        return [f"accounting: {self._outbox.path} cannot be written: {self._outbox.problem}"]

    def settle(self) -> None:
        self._look()
        self._meter = None

    def close(self) -> None:
        self.settle()
        if self._outbox is not None:
            self._outbox.close()

    def _look(self) -> None:
        """Take what is new from the meter. A day's last second may count for the next day."""
        if self._meter is None or self._outbox is None:
            return
        traffic = self._meter.take()
        if traffic:
            self._outbox.add(self._today(), traffic)
            self.quotas.add({name: each.total for name, each in traffic.items()})

    # -- quotas

    def set_used(self, name: str, size: int) -> QuotaTerms:
        """The quota, of which so many bytes count as used in this period. LocalError if there is none to be kept."""
        terms = self.quotas.terms(name)
        if self._outbox is None or not self._has_quotas:
            raise LocalError("this instance keeps no account: accounting is false")
        if not terms.limit:
            raise LocalError(f'peer "{name}" has no quota: see quota_gb')
        self._look()
        self._follow_period(self._outbox)
        first = self.quotas.period.first
        self._outbox.forgive(Forgiven(first, name, self.quotas.used(name) - size))
        self._outbox.tell(Told(first, name, str(mark)) for mark in self.quotas.set_used(name, size))
        return terms

    def _follow_quotas(self, outbox: Outbox, now: int) -> set[str]:
        self._follow_period(outbox)
        marks = self.quotas.take_marks()
        outbox.tell(Told(self.quotas.period.first, mark.peer, str(mark)) for mark in marks)
        until = self.quotas.period.end_text
        for mark in marks:
            text = f"{mark.percent} % of its quota of {gigabytes(mark.limit)} is used up, until {until} (UTC)"
            self._record("quota", mark.peer, text)
        return self._changed() | self._due(now)

    def _due(self, now: int) -> set[str]:
        """Now and then, all peers that have a quota: observers see what these have used."""
        if now < self._refresh_at:
            return set()
        self._refresh_at = now + REFRESH_NS
        return {name for name in self.quotas.names() if self.quotas.terms(name).limit}

    def _changed(self) -> set[str]:
        """The peers whose state differs from that at the last call."""
        states = {name: self.quotas.state(name) for name in self.quotas.names()}
        before, self._states = self._states, {name: each for name, each in states.items() if each != QuotaState.OPEN}
        changed = {name for name in {*before, *self._states} if before.get(name) != self._states.get(name)}
        for name in changed - self._states.keys():
            LOG.info("peer %s: its quota is open again", name)
        return changed

    def _follow_period(self, outbox: Outbox) -> bool:
        """In a new month, and after a jump of the clock, the numbers are of another period. Whether that is so."""
        period = period_of(self._today(), self._day)
        if period == self.quotas.period:
            return False
        unwritten = Usage(period, outbox.unwritten(period), set(), outbox.unwritten_forgiven(period))
        self.quotas.restart(period, unwritten.counted, ())
        outbox.want(period)
        return True

    def _use(self, usage: Usage | None) -> None:
        if usage is not None and usage.period == self.quotas.period:
            told = {(each.peer, each.mark) for each in usage.told}
            self.quotas.restart(usage.period, usage.counted, told)

    def _today(self) -> date:
        return datetime.fromtimestamp(self._wall(), UTC).date()
