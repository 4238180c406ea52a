"""The rate that all peers of a hub share, one way: a bucket for all, from which they take in turns.

    may_pass(peer, now)         whether a peer may pass something now
    spend(peer, size, now)      it has passed so much
    passes_at(peer)             when to ask again, of a peer that may not
    note_waiting(waiting, now)  these peers may not pass, and want to
    begin_round(waiting, now)   nobody else wants to

The bucket is `pipeline.policy.token_bucket`. Over any time t all peers together pass at most rate * t, two bursts, and
the last amount, however many they are and whenever they begin.

The turns are deficit round robin (Shreedhar and Varghese, 1995). In each round every peer may pass QUANTUM. One that
overdraws it, since amounts are large, has less in the next rounds. A round begins when the bucket is in credit and none
of those that wait has any left. So nothing of the rate is lost while somebody wants it, and credit is not saved.

A peer that had credit left as a round began wants less than the others. It does not wait for the bucket, which lends
it up to a burst; those that want more pay that back. Light items of any peer do not wait either, up to LIGHT_DEBT.

With several lanes each worker has such a bucket. Lanes in which peers wait have parts of the rate, by the number of
those peers, and pay for what passes in the others. A part that a lane leaves, beyond a burst, is that of the others. A
lane where nobody waits pays for all out of its credit: so it notices when nothing is left, and never has a debt of
others. Peers are numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipeline.policy.token_bucket import BURST_LEAST, SECOND, SharedBucket

QUANTUM = 65536
"""A full super-packet: less would only make more rounds."""

LIGHT_DEBT = 8 * QUANTUM
"""More than bulk overdraws at once: then the light items of its peer go on. A flood of light items ends here."""

FOLLOW_NS = 5_000_000
"""Between two looks at the other lanes."""

WAITED_NS = 100_000_000
"""A peer that has waited counts for so long: longer than a round lasts, as a rule."""


class OtherLane(NamedTuple):
    """`waiting`: peers that wait there; `passed`: bytes so far."""

    waiting: int
    passed: int


Exchange = Callable[[int], list[OtherLane]]
"""Tells the other lanes how many peers wait in this one, and returns them."""


class _Turn:
    """`is_ahead`: the peer had credit left when the last round began, or has not been seen before."""

    __slots__ = ("credit", "is_ahead", "rounds")

    def __init__(self, rounds: int) -> None:
        self.credit = QUANTUM
        self.is_ahead = True
        self.rounds = rounds

    def follow(self, rounds: int) -> None:
        """So many rounds have begun."""
        if new := rounds - self.rounds:
            left = self.credit + QUANTUM * (new - 1)
            self.is_ahead = left > 0
            self.credit = min(QUANTUM, left + QUANTUM)
            self.rounds = rounds


class SharedRate:
    """Without a limit until the first update(). `exchange`: None without other lanes. Times are CLOCK_MONOTONIC ns."""

    def __init__(self, exchange: Exchange | None = None) -> None:
        self._exchange = exchange
        self._passed: list[int] = []  # in the other lanes, at the last look
        self._left: list[float] = []  # by the other lanes, of their parts
        self._waited: dict[int, int] = {}  # peers, and when each has waited last
        self._rate = 0
        self._bucket = SharedBucket()
        self._turns: dict[int, _Turn] = {}
        self._rounds = 0
        self._followed_ns = 0

    def update(self, rate: int, now: int) -> None:
        """Set the rate, bytes a second. A change of it keeps the debt, or the credit up to the new burst."""
        self._rate = rate
        if self._exchange is None:
            self._bucket.update(rate, 0, now)
        else:
            self._follow(self._exchange, now)

    def _follow(self, exchange: Exchange, now: int) -> None:
        """Set this lane's part of the rate, and pay for the others."""
        seconds, self._followed_ns = min(1.0, (now - self._followed_ns) / SECOND), now
        self._waited = {peer: at for peer, at in self._waited.items() if now - at < WAITED_NS}
        own = len(self._waited)
        others = exchange(own)
        before, self._passed = self._passed or [each.passed for each in others], [each.passed for each in others]
        parts = own + sum(each.waiting for each in others) if own else 1
        paid = sum(
            max(0, each.passed - old) for each, old in zip(others, before, strict=True) if not (own and each.waiting)
        )
        if own:
            paid -= int(self._unused(others, before, parts, seconds) * parts)
        self._bucket.spend(paid * own // parts if own else min(paid, self._bucket.credit(now)), now)
        self._bucket.update(max(1, self._rate * max(1, own) // parts), 0, now)

    def _unused(self, others: list[OtherLane], before: list[int], parts: int, seconds: float) -> float:
        """The rest that lanes leave of their parts, beyond a burst, for each peer that waits elsewhere."""
        found = 0.0
        self._left = self._left or [0.0] * len(others)
        for place, (each, old) in enumerate(zip(others, before, strict=True)):
            left = self._left[place] + self._rate * seconds * each.waiting / parts - (each.passed - old)
            self._left[place] = max(-BURST_LEAST, min(BURST_LEAST, left)) if each.waiting else 0.0
            if each.waiting and left > BURST_LEAST:
                found += (left - BURST_LEAST) / (parts - each.waiting)
        return found

    def may_pass(self, peer: int, now: int, *, light: bool = False) -> bool:
        """`light`: light items alone."""
        bucket = self._bucket
        if self._exchange is not None and now - self._followed_ns >= FOLLOW_NS:
            self._follow(self._exchange, now)
        turn = self._turn(peer)
        if light:
            return turn.credit > -LIGHT_DEBT and bucket.lends(now)
        return turn.credit > 0 and (bucket.in_credit(now) or (turn.is_ahead and bucket.lends(now)))

    def passes_at(self, peer: int, *, light: bool = False) -> int:
        """In the past if others are to pass first: a round begins then."""
        turn = self._turn(peer)
        may_borrow = turn.credit > -LIGHT_DEBT if light else turn.credit > 0 and turn.is_ahead
        return self._bucket.lends_at() if may_borrow else self._bucket.credit_at()

    def spend(self, peer: int, size: int, now: int) -> None:
        self._bucket.spend(size, now)
        self._turn(peer).credit -= size

    def note_waiting(self, waiting: Iterable[int], now: int) -> None:
        """Have these peers counted, where there are other lanes."""
        if self._exchange is not None:
            self._waited.update(dict.fromkeys(waiting, now))

    def begin_round(self, waiting: Iterable[int], now: int) -> None:
        """Let as many rounds begin as give one of them credit, unless one has some, or the bucket has none."""
        if self._bucket.in_credit(now):
            most = max((self._turn(peer).credit for peer in waiting), default=1)
            self._rounds += max(0, -most // QUANTUM + 1)

    def _turn(self, peer: int) -> _Turn:
        turn = self._turns.get(peer)
        if turn is None:
            turn = self._turns[peer] = _Turn(self._rounds)
        turn.follow(self._rounds)
        return turn
