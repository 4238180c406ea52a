"""Whose turn it is to accept: that of the tcp worker that has the fewest connections.

All tcp workers of a server wait on one listening socket. The kernel wakes them all, and the one that runs first would
take every connection that waits, most often the same one. A socket for each (SO_REUSEPORT) would leave it to a hash of
the addresses, which gives one of two workers six of a client's eight connections as easily as four; and what waits in
the queue of a worker that dies waits for its successor.

So each worker publishes how many connections it has, handshakes included. One that has more than another leaves
those that wait alone, for PATIENCE_NS at most: the other one may hang, or have no descriptor left.
"""

from __future__ import annotations

from pipeline.runtime.worker import Attachment

PATIENCE_NS = 100_000_000
"""How long connections that wait are left to others. A worker that runs looks at them within a millisecond or two, on a
busy machine within some ten. The successor of a dead one is there in less than this, too, if a spare takes over."""

LOOK_AGAIN_NS = 1_000_000


class AcceptShare:
    """The own word on the scoreboard, and those of the other tcp workers."""

    def __init__(self, attachment: Attachment) -> None:
        pages = attachment.scoreboard.pages
        others = [each for each in attachment.plan.workers_of_kind("tcp") if each.name != attachment.worker.name]
        self._own = attachment.page.connections
        self._others = [pages[each.page].connections for each in others]
        self._left_ns = 0  # since when connections that wait are left to others; 0: they are not
        self.note(0)

    def note(self, connections: int) -> None:
        """This worker has so many connections now."""
        self._own[0] = connections

    def is_ours(self, now: int) -> bool:
        """Whether this worker may take a connection that waits. CLOCK_MONOTONIC ns."""
        own = self._own[0]
        for other in self._others:
            if other[0] < own:
                return self._has_waited(now)
        self._left_ns = 0
        return True

    def _has_waited(self, now: int) -> bool:
        """Whether the others have had their time. A turn that is long over was about another connection."""
        waited = now - self._left_ns
        if waited > 3 * PATIENCE_NS:
            self._left_ns = now
            return False
        if waited < PATIENCE_NS:
            return False
        self._left_ns = now - PATIENCE_NS  # one of them hangs: those that come next need not wait again
        return True
