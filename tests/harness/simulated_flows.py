"""Flows over a simulated link, packet by packet: datagrams with the rate control under test, Cubic, and BBR.

The competitors are models of what kernels do, with a packet for each window's unit and an acknowledgement for every
second one. They always have something to send. `delivered` counts the bytes that arrived.

    Cubic   RFC 9438, with fast convergence; slow start ends at a loss or a growing delay (HyStart, RFC 9406)
    Bbr     BBR version 1 (draft-cardwell-iccrg-bbr-congestion-control-00): ten round trips, ten seconds, eight phases
"""

from __future__ import annotations

from collections import deque

from pipeline.policy.datagram_rate import RateControl
from tests.harness.simulated_link import LOST, MS, SECOND, Link

PACKET = 1500
REPORT_EVERY = 5 * MS
BURST_NS = MS
BURST_MOST = 47


class Datagrams:
    """`supply`: bytes a second that the application has to send, 0 for as many as go. `inside`: the window of a flow
    inside, 0 for none: it sends no more than that before it hears of what has arrived."""

    def __init__(
        self, link: Link, start: int = 0, *, supply: float = 0, packet: int = PACKET, inside: float = 0
    ) -> None:
        self.link, self.clock, self.packet = link, link.clock, packet
        self.supply, self.supplied_at = supply, start
        self.inside, self._heard = inside, 0  # bytes of which the flow inside has heard
        self.report_every = REPORT_EVERY
        self.control = RateControl(start)
        self.sent = self.delivered = self.sequence = self.lost = self.marks = 0
        self.waiting = 0.0
        self.report_losses = 0.0  # share of reports that do not come back
        self.report_delay = 0
        self._highest = -1
        self._seen = 0
        self._arriving: deque[tuple[int, int, bool]] = deque()
        self._reported_at = -REPORT_EVERY
        self._report_due = False
        self._free_at = start
        self._pumping = False
        self._reports = 0
        self.queues: list[float] = []
        self.clock.at(start, self._begin)

    def _begin(self) -> None:
        self._pump()
        self._tick()

    def _tick(self) -> None:
        self.control.on_tick(self.clock.now)
        self.queues.append(self.link.queued())
        if not self._pumping:
            self._pump()
        self.clock.at(self.clock.now + REPORT_EVERY, self._tick)

    def _pump(self) -> None:
        self._pumping = False
        now, control = self.clock.now, self.control
        if now < self._free_at:
            self._pump_at(self._free_at)
            return
        rate = control.pacing_rate
        left = 0
        count = max(2, min(BURST_MOST, int(rate * BURST_NS / SECOND) // self.packet))
        room = (control.window - control.under_way) // self.packet
        if self.supply:
            self.waiting += self.supply * (now - self.supplied_at) / SECOND
            self.supplied_at = now
            room = min(room, int(self.waiting) // self.packet)
        if self.inside:
            left = int(self.inside - (self.sent - self._heard)) // self.packet
            room = min(room, left)
        count = min(count, room)
        if count <= 0:
            return  # a report, or the next tick, goes on
        for _ in range(count):
            arrival = self.link.carry(self.packet)
            if arrival != LOST:
                self._arriving.append((arrival, self.sequence, self.link.marked))
            self.sequence += 1
        self.sent += count * self.packet
        self.waiting -= count * self.packet
        emptied = (bool(self.supply) and self.waiting < self.packet) or (bool(self.inside) and count >= left)
        control.on_sent(now, self.sent, self.sequence - 1, emptied)
        self._free_at = max(self._free_at, now - BURST_NS) + int(count * self.packet * SECOND / rate)
        self._report_soon()
        self._pump_at(self._free_at)

    def _pump_at(self, time: int) -> None:
        self._pumping = True
        self.clock.at(time, self._pump)

    def _report_soon(self) -> None:
        if self._arriving and not self._report_due:
            self._report_due = True
            self.clock.at(max(self._arriving[0][0], self._reported_at + self.report_every), self._report)

    def _report(self) -> None:
        self._report_due = False
        now, arriving = self.clock.now, self._arriving
        self._reported_at = now
        arrived_at = now
        while arriving and arriving[0][0] <= now:
            arrived_at, self._highest, marked = arriving.popleft()
            self._seen += 1
            self.marks += marked
        self.delivered = self._seen * self.packet
        self.lost = self._highest + 1 - self._seen
        state = (self.delivered, self._highest, now - arrived_at, self.marks, self.lost)
        self._reports += 1
        if self._reports * 0.618 % 1 >= self.report_losses:
            self.clock.at(now + self.link.back + self.report_delay, lambda: self._reported(state))
        self._report_soon()

    def _reported(self, state: tuple[int, int, int, int, int]) -> None:
        self.control.on_report(self.clock.now, *state)
        self._heard = max(self._heard, (state[1] + 1) * self.packet)
        if not self._pumping:
            self._pump()


class _Acknowledged:
    """The part of a TCP sender that both models have: packets under way, losses, acknowledgements of every second."""

    def __init__(self, link: Link, start: int) -> None:
        self.link, self.clock = link, link.clock
        self.delivered = 0
        self.window = 10.0  # packets; RFC 6928
        self.under_way: deque[tuple[int, int, int, float, int]] = deque()  # arrival, sent at, and the model's own
        self._unacknowledged = 0
        self.heard_at = start
        self.clock.at(start, self._begin)

    def _begin(self) -> None:
        self._timeout()
        self.send()

    def send(self) -> None:
        raise NotImplementedError

    def acknowledged(self, sent_at: int, count: int, lost: int, note: tuple[int, float, int]) -> None:
        raise NotImplementedError

    def timed_out(self) -> None:
        self.window = 4.0

    def _timeout(self) -> None:
        if self.under_way and self.clock.now - self.heard_at > SECOND:
            self.under_way.clear()
            self.timed_out()
            self.heard_at = self.clock.now
            self.send()
        self.clock.at(self.clock.now + SECOND // 4, self._timeout)

    def put(self, note: tuple[int, float, int] = (0, 0.0, 0)) -> None:
        arrival = self.link.carry(PACKET)
        self.under_way.append((arrival, self.clock.now, *note))
        if arrival == LOST:
            return
        self._unacknowledged += 1
        if self._unacknowledged % 2 == 0 or len(self.under_way) < 4:
            self.clock.at(arrival + self.link.back, self._acknowledge)

    def _acknowledge(self) -> None:
        arrived = self.clock.now - self.link.back
        under_way = self.under_way
        count = lost = sent_at = behind = 0
        note = (0, 0.0, 0)
        while under_way and under_way[0][0] <= arrived:
            packet = under_way.popleft()
            if packet[0] == LOST:
                behind += 1
                continue
            lost += behind
            behind = 0
            count += 1
            sent_at, note = packet[1], packet[2:]
        if behind:  # nothing behind these has arrived: they count as under way
            under_way.extendleft((LOST, 0, 0, 0.0, 0) for _ in range(behind))
        if count:
            self.delivered += count * PACKET
            self.heard_at = self.clock.now
            self.acknowledged(sent_at, count, lost, note)
        self.send()


class Cubic(_Acknowledged):
    C, BETA = 0.4, 0.7

    def __init__(self, link: Link, start: int = 0) -> None:
        super().__init__(link, start)
        self.threshold = float("inf")
        self.before = 0.0  # W_max
        self.epoch_at = 0
        self.origin = self.cube_root = self.reno = 0.0
        self.recovery_until = -1
        self.least = float("inf")

    def send(self) -> None:
        while len(self.under_way) < int(self.window):
            self.put()

    def timed_out(self) -> None:
        self.threshold, self.window, self.epoch_at = max(2.0, self.window / 2), 1.0, 0

    def acknowledged(self, sent_at: int, count: int, lost: int, note: tuple[int, float, int]) -> None:
        now = self.clock.now
        round_trip = now - sent_at
        self.least = min(self.least, round_trip)
        if lost:
            if sent_at > self.recovery_until:
                self.recovery_until = now
                self.before = self.window * (1 + self.BETA) / 2 if self.window < self.before else self.window
                self.threshold = self.window = max(2.0, self.window * self.BETA)
                self.epoch_at = 0
            return
        if sent_at <= self.recovery_until:
            return
        if self.window < self.threshold:
            self.window += count
            if self.window > 16 and round_trip > self.least + min(16 * MS, max(4 * MS, self.least / 8)):
                self.threshold = self.window
            return
        if not self.epoch_at:
            self.epoch_at = now
            self.origin = max(self.before, self.window)
            self.cube_root = ((self.origin - self.window) / self.C) ** (1 / 3)
            self.reno = self.window
        time = (now - self.epoch_at + self.least) / SECOND
        target = min(1.5 * self.window, self.C * (time - self.cube_root) ** 3 + self.origin)
        self.reno += count * 3 * (1 - self.BETA) / (1 + self.BETA) / self.window
        if target > self.window:
            self.window += count * (target - self.window) / self.window
        self.window = max(self.window, self.reno)


class Bbr(_Acknowledged):
    GAINS = (1.25, 0.75, 1, 1, 1, 1, 1, 1)

    def __init__(self, link: Link, start: int = 0) -> None:
        super().__init__(link, start)
        self.state = "startup"
        self.rates: deque[tuple[int, float]] = deque()  # round, greatest rate: falling
        self.rate = 0.0
        self.pace = 10 * PACKET * 2.89 / 0.001
        self.least, self.least_at = SECOND, start
        self.round = self.round_end = 0
        self.full, self.full_rounds = 0.0, 0
        self.phase, self.phase_at = 2, 0
        self.probe_until = 0
        self.delivered_at = self.first_sent = start
        self.next_at = start
        self._sending = False

    def send(self) -> None:
        if not self._sending:
            self._go_on()

    def _go_on(self) -> None:
        self._sending = False
        now = self.clock.now
        while len(self.under_way) < self.window:
            if now < self.next_at:
                self._sending = True
                self.clock.at(self.next_at, self._go_on)
                return
            if not self.under_way:
                self.first_sent = self.delivered_at = now
            for _ in range(2):
                self.put((self.delivered, self.delivered_at, self.first_sent))
            self.next_at = max(self.next_at, now - MS) + int(2 * PACKET * SECOND / self.pace)

    def acknowledged(self, sent_at: int, count: int, lost: int, note: tuple[int, float, int]) -> None:
        now = self.clock.now
        delivered, delivered_at, first_sent = note
        if delivered >= self.round_end:
            self.round += 1
            self.round_end = self.delivered
            new_round = True
        else:
            new_round = False
        interval = max(sent_at - first_sent, now - int(delivered_at))
        self.first_sent, self.delivered_at = sent_at, now
        if interval >= self.least or not self.rate:
            self._note_rate((self.delivered - delivered) * SECOND / max(1, interval))
        expired = now - self.least_at > 10 * SECOND
        if now - sent_at <= self.least or expired:
            self.least, self.least_at = now - sent_at, now
        self._step(now, new_round, expired)

    def _note_rate(self, rate: float) -> None:
        rates = self.rates
        while rates and rates[-1][1] <= rate:
            rates.pop()
        rates.append((self.round, rate))
        while rates[0][0] < self.round - 9:
            rates.popleft()
        self.rate = rates[0][1]

    def _step(self, now: int, new_round: bool, expired: bool) -> None:
        bdp = self.rate * self.least / SECOND / PACKET
        gain, window = 2.89, 2.89 * bdp
        if self.state == "startup" and new_round:
            self._look_whether_full()
        if self.state == "drain":
            gain = 1 / 2.89
            if len(self.under_way) <= bdp:
                self.state, self.phase, self.phase_at = "bandwidth", 2, now
        if self.state == "bandwidth":
            self._next_phase(now, bdp)
            gain, window = self.GAINS[self.phase], 2 * bdp + 3
        if expired and self.state != "round trip":
            self.state, self.probe_until = "round trip", 0
        if self.state == "round trip":
            gain, window = 1.0, 4.0
            self._probe_round_trip(now)
        self.pace = max(self.rate * gain, 2 * PACKET)
        self.window = max(window, self.window if self.state == "startup" else 4.0)

    def _look_whether_full(self) -> None:
        if self.rate > self.full * 1.25:
            self.full, self.full_rounds = self.rate, 0
        else:
            self.full_rounds += 1
        if self.full_rounds >= 3:
            self.state = "drain"

    def _next_phase(self, now: int, bdp: float) -> None:
        passed = now - self.phase_at > self.least
        if self.phase == 0:
            passed = passed and len(self.under_way) >= min(1.25 * bdp, self.window - 3)
        elif self.phase == 1:
            passed = passed or len(self.under_way) <= bdp
        if passed:
            self.phase, self.phase_at = (self.phase + 1) % 8, now

    def _probe_round_trip(self, now: int) -> None:
        if not self.probe_until and len(self.under_way) <= 4:
            self.probe_until = now + SECOND // 5
        if self.probe_until and now > self.probe_until:
            self.least_at = now
            self.state = "bandwidth" if self.full_rounds >= 3 else "startup"
            self.phase, self.phase_at = 2, now
