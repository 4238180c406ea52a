"""Counts of the segments of one process that have come, and of those that are lost. Pure.

    add, add_one    segments have come
    judge           take for lost what has not come in time
    counts          all of it, for a report

A segment is taken for lost if it has not come `patience_ns` after a later one. If it comes after all, it is lost no
more, and patience grows, since the path changes the order so much. Patience falls again, slowly. So neither jitter nor
two ways at once look like losses for long.

Of REACH sequences before the latest one it is remembered whether they have come. A sequence further away begins anew,
without losses: after a pause of the path or of this end.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from pipeline.wire.control_datagram import FAR_LAG, Counts

WINDOW = 1 << 14
REACH = WINDOW // 2  # sequences: 18 ms at 5 Gbit/s, 180 ms at 500 Mbit/s
PATIENCE_NS = 5_000_000
PATIENCE_MOST_NS = 250_000_000
RAMP_MOST = 1 << 10
FORGET_NS = 1_000_000_000  # an eighth of the patience above PATIENCE_NS is forgotten

_MASK = WINDOW - 1
_U32 = 0xFFFFFFFF
_HALF = 1 << 31
_RAMP = np.arange(RAMP_MOST, dtype=np.uint32).tobytes()


class ArrivalCounts:
    """Of the process `sender`, modulo 2^16. `is_new`: something has come since counts() were taken."""

    def __init__(self, sender: int) -> None:
        self.sender = sender
        self.received = self.marked = self.refused = 0
        self.lost = self.pairs = self.far_pairs = 0
        self.patience_ns = PATIENCE_NS
        self.is_new = False
        self._forget_at = self._grown_at = 0
        self._next = -1  # behind the latest sequence, which is modulo 2^32 on the wire; -1: none has come
        self._judged = 0  # all sequences before are judged
        self._latest_at = 0
        self._came = self._lost = np.zeros(0, np.bool_)  # most processes of many peers send nothing
        self._marks: deque[tuple[int, int]] = deque()  # a time, and what was `_next` then

    @property
    def is_waiting(self) -> bool:
        """Whether sequences are to be judged yet."""
        return self._next > self._judged

    def add(self, sequences: np.ndarray, now: int) -> None:
        """`sequences`: unsigned, in the order in which they came; RAMP_MOST at most."""
        count = len(sequences)
        self.received += count
        self.is_new = True
        numbers = sequences.astype(np.uint32)
        first = int(numbers[0])
        if self._next < 0 or abs(_ahead(first, self._next)) >= REACH:
            self._begin(first)
        at = self._next
        if first == at & _U32 and (numbers - numbers[0]).tobytes() == _RAMP[: numbers.nbytes]:
            self._set(at, at + count, came=True)
            self._next = at + count
            self._latest_at = now
        else:
            self._add_any(numbers, now)

    def add_one(self, sequence: int, now: int) -> None:
        self.received += 1
        self.is_new = True
        if self._next < 0 or abs(_ahead(sequence, self._next)) >= REACH:
            self._begin(sequence)
        if sequence == self._next & _U32:
            at = self._next & _MASK
            self._came[at] = True
            self._lost[at] = False
            self._next += 1
            self._latest_at = now
        else:
            self._add_any(np.array([sequence], np.int64), now)

    def judge(self, now: int) -> None:
        """Take for lost what is missing before a sequence that came long enough ago; note the latest one of now."""
        marks, until = self._marks, self._next - REACH
        while marks and marks[0][0] <= now - self.patience_ns:
            until = max(until, marks.popleft()[1])
        if until > self._judged:
            self._judge_up_to(until)
        if self.is_waiting and (not marks or marks[-1][1] != self._next):
            marks.append((now, self._next))
        if now >= self._forget_at:
            self._forget_at = now + FORGET_NS
            self.patience_ns -= (self.patience_ns - PATIENCE_NS) >> 3

    def counts(self, now: int) -> Counts:
        self.is_new = False
        return Counts(
            sender=self.sender,
            highest=self._next - 1 & _U32,
            age=min(_U32, (now - self._latest_at) // 1000),
            received=self.received & _U32,
            marked=self.marked & _U32,
            refused=self.refused & _U32,
            lost=self.lost & _U32,
            pairs=self.pairs & _U32,
            far_pairs=self.far_pairs & _U32,
        )

    def _begin(self, first: int) -> None:
        """Nothing before this sequence is known."""
        self._next = self._judged = first + (1 << 32)  # so that earlier ones are positive numbers, too
        self._marks.clear()
        self._came = np.ones(WINDOW, np.bool_)
        self._lost = np.zeros(WINDOW, np.bool_)

    def _set(self, first: int, end: int, came: bool) -> None:
        """These sequences are the latest ones now."""
        low, high = first & _MASK, end & _MASK
        for part in (slice(low, high),) if low <= high else (slice(low, None), slice(0, high)):
            self._came[part] = came
            self._lost[part] = False

    def _add_any(self, sequences: np.ndarray, now: int) -> None:
        """Add sequences among which some are missing, or late, or come twice."""
        ahead = (sequences.astype(np.int64) - self._next + _HALF & _U32) - _HALF
        numbers = self._next + ahead[np.abs(ahead) < REACH]
        if not len(numbers):
            return
        before, last = self._next, int(numbers.max())
        if last >= before:
            self._set(before, last + 1, came=False)
            self._next = last + 1
            self._latest_at = now
            self._came[numbers[numbers >= before] & _MASK] = True
        late = numbers[numbers < before]
        for number in late[~self._came[late & _MASK]].tolist():
            self._add_late(number, now)

    def _add_late(self, number: int, now: int) -> None:
        """A segment has come behind a later one that came in an earlier burst."""
        at, lost = number & _MASK, self._lost
        self._came[at] = True
        if lost[at]:
            lost[at] = False
            self.lost -= 1
            self.pairs -= int(lost[at - 1]) + int(lost[at + 1 & _MASK])
            self.far_pairs -= int(lost[at - FAR_LAG]) + int(lost[at + FAR_LAG & _MASK])
            if now - self._grown_at >= self.patience_ns:
                self._grown_at = now
                self.patience_ns = min(PATIENCE_MOST_NS, 2 * self.patience_ns)
        else:
            passed = next((time for time, end in self._marks if end > number), now)
            self.patience_ns = min(PATIENCE_MOST_NS, max(self.patience_ns, 5 * (now - passed) // 4))

    def _judge_up_to(self, until: int) -> None:
        first, self._judged = self._judged, until
        if until - first > REACH:
            first = until - REACH  # of a burst that has come all at once
        places = np.arange(first - FAR_LAG, until) & _MASK
        came = self._came[places[FAR_LAG:]]
        if came.all():
            return
        self._lost[places[FAR_LAG:]] = ~came
        lost = self._lost[places]
        here = lost[FAR_LAG:]
        self.lost += int(here.sum())
        self.pairs += int((here & lost[FAR_LAG - 1 : -1]).sum())
        self.far_pairs += int((here & lost[:-FAR_LAG]).sum())


def _ahead(sequence: int, of: int) -> int:
    return (sequence - of + _HALF & _U32) - _HALF
