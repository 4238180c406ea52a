"""The traffic meter: what each peer has sent and received since the last look, out of counts that only grow.

    begin(index, name)    from now on, what is counted under an index belongs to this peer
    take()                what each peer has received and sent since the last call

The counts are those of the peer table, one for each index, and every peer that has had an index counts on there. So
each index has a mark: the counts that have been given out already. The difference to the mark is given out once, to
the peer that has the index, and the mark moves up. Before another peer gets the index, its predecessor gets the rest.

    a worker dies       its counts stay in shared memory, and its successor goes on there
    a new session       of a peer: the same name, and a mark that moved up before it
    a new run           another peer table, and so another meter; nothing of the old table is counted again
    a session ends      its last bytes are counted as long as no other peer has the index, which is never given away
                        before the last connection under it has ended

A worker that was taken over can write any counts. A count that has shrunk, or has grown by more than JUMP_MAX, moves
its mark and is given to nobody; `implausible` says how often that was so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

JUMP_MAX = 1 << 46  # bytes in one look: more than 100 Gbit/s carry while the supervisor stands still for an hour
NAMES_MAX = 4096  # that are told apart; clients without proof choose their names, and must not fill memory and disk
OTHERS = "(others)"  # together, all peers beyond; no peer has such a name


class Traffic(NamedTuple):
    """Bytes of packets and frames, as this end sees them: received from the peer, sent to the peer."""

    received: int
    sent: int

    def __add__(self, other: Traffic) -> Traffic:  # type: ignore[override]
        return Traffic(self.received + other.received, self.sent + other.sent)

    @property
    def total(self) -> int:
        return self.received + self.sent


NOTHING = Traffic(0, 0)


class TrafficMeter:
    """`count`: what the peer table has for an index, of all peers that have ever had it."""

    def __init__(self, count: Callable[[int], Traffic]) -> None:
        self.implausible = 0
        self._count = count
        self._names: dict[int, str] = {}
        self._marks: dict[int, Traffic] = {}
        self._taken: dict[str, Traffic] = {}
        self._known: set[str] = set()

    def begin(self, index: int, name: str) -> None:
        self._look(index)
        if name not in self._known and len(self._known) >= NAMES_MAX:
            name = OTHERS
        self._known.add(name)
        self._names[index] = name

    def take(self) -> dict[str, Traffic]:
        """By name of the peer; none of a peer that has neither sent nor received."""
        for index in self._names:
            self._look(index)
        taken, self._taken = self._taken, {}
        return taken

    def _look(self, index: int) -> None:
        found = self._count(index)
        mark = self._marks.get(index, NOTHING if index in self._names else found)
        self._marks[index] = found
        name = self._names.get(index)
        if name is None or found == mark:
            return
        grown = Traffic(found.received - mark.received, found.sent - mark.sent)
        if not all(0 <= each <= JUMP_MAX for each in grown):
            self.implausible += 1
            return
        self._taken[name] = self._taken.get(name, NOTHING) + grown
