"""The rate of datagrams: how fast one process may send to one peer, and how much may be under way.

Nothing here is a fixed rate. A model of the path decides, as in BBR (draft-ietf-ccwg-bbr): the greatest delivery rate
of the last ten round trips, and the shortest round trip of the last ten seconds. Their product is the flight, the
bytes that fill the path without a queue.

    phase     pace    window   until
    STARTUP   2.77    2        the rate has not grown by a quarter in three round trips. Those count in which it was
                               limited by the path, or too much was lost: a short queue lets nothing wait here
    DRAIN     0.36    2        what is under way fits the flight
    CRUISE    1       2        six times the shortest round trip; two seconds or more after yielding
    UP        1.25    2.5      that long, and a queue of a quarter of a flight
    DOWN      0.75    1.5      that long, and that queue is gone; UP again if the rate has grown by a tenth
    SHORT     1       0.5      200 ms: the round trip without our queue. Begins if no shortest one was met for ten
                               seconds, or if all of a second were half as long again (another route)

The pace is so many times the rate, the window so many flights. Behind the window come the bytes of REPORT_NS, because
a report comes no sooner. An end that gets the processor late reports late, or hears late. Then these are the bytes of a
longer time. The shortest round trip tells nothing of that, and with a smaller window the rate would fall and fall.

A limited sender (nothing waits behind a burst) keeps what it knows. It is not limited if each segment of a round trip
met a long queue: a flow inside that fills the path leaves nothing waiting here.

Beside others it has rules of its own, since BBR 1 takes all from Cubic in a short queue, and its flows are unequal in
a long one:

    shared        all segments since the last UP met a queue. UP then adds FIRST_WINDOW for each round trip, and
                  CRUISE has SHARED_CRUISE of its pace: small flows win, great ones lose (as with AIMD)
    excess loss   yield: the ceiling of the window comes to 0.7 of what was under way when the lost segment was sent
                  (Cubic's factor, RFC 9438), or 0.85 if not shared (BBRHeadroom). Then no UP for two to three
                  seconds, so that Cubic can grow (BBRPickProbeWait). Each UP raises the ceiling
    still so in   yield again. After STUBBORN of them the others do not yield (BBR 1, or a path that loses so much).
    AGAIN round   No ceiling for FREE_NS then, as the bulk pacer (pacing.py) has it
    trips

The usual losses of the path count for nothing: `path_losses.py` tells them from excess ones, and the rate is that of
what passed, as if they had come. The ceiling of that is what came, divided by one less the usual share. A path that
became slower shows in two round trips below half of the rate. Then the greatest rate is that of those two.

With nothing heard for three round trips and 100 ms, all that is under way counts as lost, and a few segments try. Of
the time between two ticks LOOK_NS at most count: beyond, this end did not run.
"""

from __future__ import annotations

from pipeline.policy.delivery_samples import MERGED_SHIFT, DeliverySamples
from pipeline.policy.path_losses import PathLosses

SECOND = 1_000_000_000

STARTUP, DRAIN, CRUISE, UP, DOWN, SHORT = range(6)
PACES = (2.77, 0.36, 1.0, 1.25, 0.75, 1.0)
"""4 ln 2 doubles the rate in each round trip (BBRStartupPacingGain), and its inverse empties that queue as fast. The
others are those of BBR 1 (Cardwell and others 2016)."""
WINDOWS = (2.0, 2.0, 2.0, 2.5, 1.5, 0.5)
"""2 and 0.5 are BBRDefaultCwndGain and BBRProbeRTTCwndGain. The windows of UP and DOWN lie half a flight above
and below that: with one window for all, flows in a long queue would never find equal shares."""

FIRST_WINDOW = 14_600  # bytes (RFC 6928)
FIRST_NS = 1_000_000  # the round trip before one is known (BBRInitPacingRate)
LEAST_WINDOW = 6_000  # bytes: four segments (BBRMinPipeCwnd)
REPORT_NS = 5_000_000
LATE = 2  # times what the longest gap between reports has beyond REPORT_NS: both ends may be late
LATE_MOST_NS = 100_000_000
LATE_KEPT_NS = 500_000_000  # at least, and at most twice as long
ROUNDS = 10  # BBR 1: longer than the cycle of eight phases
FALLEN = 2
FULL_GROWTH = 1.25  # BBRCheckFullBWReached
FULL_ROUNDS = 3
QUEUED = 1.5  # shortest round trips, and REPORT_NS
QUEUED_SHARE = 0.25  # of a flight, at least, in that round trip: else it was no queue of ours
LEAST_KEPT_NS = 10 * SECOND  # MinRTTFilterLen
SHORT_NS = 200_000_000  # ProbeRTTDuration
RISEN = 1.5
RISEN_NS = SECOND
CRUISES = 6  # with UP and DOWN the eight phases of BBR 1
LONGEST = 3  # shortest round trips that UP and DOWN last
GROWN = 1.1  # by UP: the path has become faster, and UP comes again at once
SHARED_CRUISE = 0.95
YIELD_SHARED = 0.7
YIELD = 0.85
RAISE = 1.25
WAIT_NS = 2 * SECOND
WAIT_RANDOM_NS = SECOND  # the clock decides: flows that yield together go up apart
AGAIN = 3  # round trips with excess loss while we wait
STUBBORN = 5
FREE_NS = 30 * SECOND
NO_CEILING = 1 << 50
SILENT_ROUND_TRIPS = 3
SILENT_NS = 100_000_000
LOOK_NS = 60_000_000


class RateControl:
    """`pacing_rate`: bytes a second. `window`: bytes that may be under way. `under_way`: bytes that are.

    Times are ns of CLOCK_MONOTONIC. Sums only grow: bytes sent and received, segments with ECN-CE and lost, the
    sequence of the latest segment.
    """

    def __init__(self, now: int) -> None:
        self.pacing_rate = FIRST_WINDOW * SECOND / FIRST_NS
        self.window = FIRST_WINDOW
        self.rate = 0.0
        self.round_trip = 0  # the shortest
        self.phase = STARTUP
        self.shared = False
        self._samples = DeliverySamples(now)
        self._losses = PathLosses()
        self._rates = [0.0] * ROUNDS
        self._round = 0
        self._phase_at = now
        self._cruises = 0
        self._full_rate, self._full_rounds = 0.0, 0
        self._round_least, self._round_from = 0, 0  # the shortest round trip of this round, and what had passed before
        self._queued = False
        self._found_at = now  # when the round trip was as short as ever
        self._least_since, self._least = now, 0
        self._met_none = False  # a segment met no queue since the last UP
        self._rate_before = 0.0  # before the last UP
        self._gaps = [0, 0]  # the longest one between two reports of now, and of the time before
        self._gaps_since = now
        self._ceiling = NO_CEILING
        self._yielded_at = now
        self._wait_until = now
        self._free_until = now
        self._stubborn = 0
        self._lost_much = False
        self._ticked_at = 0

    @property
    def under_way(self) -> int:
        return self._samples.under_way

    @property
    def usual_loss(self) -> float:
        return self._losses.usual

    def resume(self, rate: float, round_trip: int, now: int) -> None:
        """Begin with what a predecessor knew of the path: bytes a second, and ns. It may hold no more: a rate that is
        too high falls after FALLEN round trips, and one that is too low grows by UP."""
        self.rate = self._full_rate = rate
        self._rates = [rate] * ROUNDS
        self._full_rounds = FULL_ROUNDS
        self._know_round_trip(round_trip)
        self._enter(CRUISE, now)
        self._set(now)

    def on_sent(self, now: int, sent: int, highest: int, emptied: bool) -> None:
        """A burst went out. `sent`: bytes ever; `highest`: its last sequence; `emptied`: nothing waits behind it."""
        self._samples.on_sent(now, sent, highest, emptied, self.phase)

    def on_report(
        self, now: int, received: int, highest: int, hold: int, ce: int, lost: int, missing: int | None = None
    ) -> None:
        """The peer has got so much, and the segment `highest` had come `hold` ns before it said so. `missing`: segments
        up to that one that have not come, lost or not."""
        sample = self._samples
        gap = now - sample.heard_at
        if not sample.on_report(now, received, highest, hold, ce, lost, lost if missing is None else missing):
            return
        self._follow_gaps(gap, now)
        self._follow_round_trip(sample.round_trip, now)
        self._follow_losses(now)
        self._look_for_queue()
        limited = (sample.limited and not self._queued) or sample.sent_in == SHORT
        passed = min(sample.passed, sample.received / (1 - self._losses.usual))
        rate = passed * SECOND / sample.interval
        if (not limited or rate > self.rate) and (sample.interval >= self.round_trip or not self.rate):
            self._follow_rate(rate, sample.new_round)
        self._step(now, limited)
        self._look_for_short(now)
        self._set(now)

    def on_tick(self, now: int) -> None:
        """Call it now and then, at least as often as nothing is sent or heard for a while."""
        sample = self._samples
        missed = now - (self._ticked_at or now) - LOOK_NS
        self._ticked_at = now
        if missed > 0:
            sample.heard_at = min(now, sample.heard_at + missed)
        if sample.under_way and now - sample.heard_at > SILENT_ROUND_TRIPS * self.round_trip + SILENT_NS:
            sample.give_up(now)
            self.window = LEAST_WINDOW

    def _follow_round_trip(self, round_trip: int, now: int) -> None:
        if round_trip <= self.round_trip or not self.round_trip:
            self._found_at = now
            self._know_round_trip(round_trip)
        if round_trip < self._least or not self._least:
            self._least = round_trip

    def _know_round_trip(self, round_trip: int) -> None:
        self.round_trip = round_trip
        self._samples.merged_ns = round_trip >> MERGED_SHIFT

    def _follow_losses(self, now: int) -> None:
        sample, losses = self._samples, self._losses
        slow = sample.sent_in in (DOWN, DRAIN) or (sample.sent_in == CRUISE and self.shared and now > self._free_until)
        self._met_none |= losses.add(sample, self.round_trip, slow=slow, counts=sample.sent_at > self._yielded_at)
        if sample.new_round:
            self._lost_much = losses.excess(self.round_trip)
            if self.phase >= CRUISE and now > self._free_until and self._lost_much:
                self._yield(now)
            losses.begin_round()

    def _yield(self, now: int) -> None:
        """There was excess loss in the round that has just ended."""
        if now > self._wait_until:
            self._wait_until = now + WAIT_NS + now % WAIT_RANDOM_NS
            self._stubborn = 0
            if self.phase == UP:
                self._enter(DOWN, now)
        else:
            self._stubborn += 1
        if self._stubborn > STUBBORN:
            self._free_until, self._wait_until = now + FREE_NS, now
            self._ceiling = NO_CEILING
        elif self._stubborn % AGAIN == 0:
            kept = YIELD_SHARED if self.shared else YIELD
            self._ceiling = int(kept * min(self._ceiling, self._losses.sent_with))
            self._yielded_at = now

    def _follow_rate(self, rate: float, new_round: bool) -> None:
        rates = self._rates
        if new_round:
            latest = max(rates[self._round], rates[self._round - 1])
            if 0 < latest < self.rate / FALLEN:
                rates[:] = [latest] * ROUNDS
            self._round = (self._round + 1) % ROUNDS
            rates[self._round] = 0.0
        if rate > rates[self._round]:
            rates[self._round] = rate
        self.rate = max(rates)

    def _look_for_queue(self) -> None:
        """Whether each segment of the last round trip has met a long queue."""
        sample = self._samples
        if sample.new_round:
            passed = sample.passed_ever - self._round_from
            is_ours = passed * SECOND > QUEUED_SHARE * self.rate * self.round_trip
            self._queued = is_ours and self._round_least > QUEUED * self.round_trip + REPORT_NS
            self._round_from, self._round_least = sample.passed_ever, sample.round_trip
        self._round_least = min(self._round_least, sample.round_trip)

    def _follow_gaps(self, gap: int, now: int) -> None:
        gaps = self._gaps
        if now - self._gaps_since > LATE_KEPT_NS:
            self._gaps_since = now
            gaps[:] = 0, gaps[0]
        gaps[0] = max(gaps[0], min(gap, LATE_MOST_NS))

    def _step(self, now: int, limited: bool) -> None:
        phase = self.phase
        flight = self.rate * self.round_trip / SECOND
        lasted = now - self._phase_at
        if phase == STARTUP:
            if self._samples.new_round and (not limited or self._lost_much):
                self._look_whether_full(now)
        elif phase == SHORT:
            if lasted > max(SHORT_NS, 2 * self.round_trip):
                self._know_round_trip(self._least)
                self._found_at = now
                self._least_since, self._least = now, 0
                self._enter(CRUISE if self._full_rounds >= FULL_ROUNDS else STARTUP, now)
        elif phase == DRAIN:
            if self.under_way <= flight:
                self._losses.begin_round()
                self._yielded_at = now  # what STARTUP lost is no reason to yield
                self._cruises = 2
                self._enter(CRUISE, now)
        elif lasted > max(self.round_trip, REPORT_NS):
            self._cycle(now, flight, limited or lasted > LONGEST * self.round_trip)

    def _look_whether_full(self, now: int) -> None:
        if self.rate > self._full_rate * FULL_GROWTH:
            self._full_rate, self._full_rounds = self.rate, 0
            return
        self._full_rounds += 1
        if self._full_rounds >= FULL_ROUNDS:
            self._enter(DRAIN, now)

    def _cycle(self, now: int, flight: float, over: bool) -> None:
        """CRUISE, UP or DOWN has lasted for a round trip. `over`: it lasts no longer in any case."""
        if self.phase == CRUISE:
            self._cruises -= 1
            if self._cruises > 0 or now < self._wait_until:
                self._enter(CRUISE, now)
            else:
                self._go_up(now)
        elif self.phase == UP:
            if over or self.under_way >= PACES[UP] * flight:
                self._enter(DOWN, now)
        elif over or self.under_way <= flight + self.rate * REPORT_NS / SECOND:
            if self.rate > GROWN * self._rate_before:
                self._go_up(now)
            else:
                self._cruises = CRUISES
                self._enter(CRUISE, now)

    def _go_up(self, now: int) -> None:
        self._losses.begin_cycle()
        self.shared, self._met_none = not self._met_none, False
        self._ceiling = min(NO_CEILING, int(self._ceiling * RAISE))
        self._rate_before = self.rate
        self._enter(UP, now)

    def _look_for_short(self, now: int) -> None:
        if self.phase == SHORT:
            return
        short = now - self._found_at > LEAST_KEPT_NS
        if now - self._least_since > RISEN_NS:
            short = short or (self.phase >= CRUISE and self._least > RISEN * self.round_trip)
            self._least_since, self._least = now, 0
        if short:
            self._least = 0
            self._enter(SHORT, now)

    def _enter(self, phase: int, now: int) -> None:
        self.phase, self._phase_at = phase, now

    def _set(self, now: int) -> None:
        phase, rate, round_trip = self.phase, self.rate, self.round_trip
        least = LEAST_WINDOW
        if phase == STARTUP:
            least = FIRST_WINDOW
            rate = max(rate, FIRST_WINDOW * SECOND / round_trip)
        pace = PACES[phase] * rate
        if self.shared:
            if phase == UP:
                pace += FIRST_WINDOW * SECOND / round_trip
            elif phase == CRUISE and now > self._free_until:
                pace *= SHARED_CRUISE
        self.pacing_rate = max(pace, LEAST_WINDOW)
        late = LATE * max(0, max(self._gaps) - self.round_trip - REPORT_NS)
        window = (WINDOWS[phase] * rate * round_trip + pace * REPORT_NS + rate * late) / SECOND
        self.window = max(least, min(int(window), self._ceiling))
