"""The effects of a link on each segment: pure, stepped with `now`, repeatable from a seed.

    offer(now, segments, size, last)   a packet enters: which of its segments come out, in which trains, when

A packet has `segments` segments of `size` wire bytes (the last has `last`); an ordinary packet has one. Every segment
passes, in this order: path MTU, queue (tail drop), rate, loss, delay. So loss happens behind the bottleneck, and a lost
segment has taken its time there.

Loss comes in spells. With `burst` 1 each segment is lost independently. Above 1, it is a Gilbert model: all is lost in
the bad state, whose mean length is `burst` segments; the good state's mean length makes `loss_percent`. Spells are
drawn as lengths: a super-packet in the middle of a good spell costs one comparison. With `burst_ms` the spells are
times instead, as where a radio fades: all that leaves the queue in a bad one is lost, be it one segment or many.

Jitter wanders: the delay moves within delay_ms +- jitter_ms, in straight lines between random points, slower than time
passes. So jitter alone never reorders; `reorder_percent` of the segments is held back `reorder_ms` longer.

Each effect has a random.Random of its own: one changes without moving the others.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import NamedTuple

import msgspec

from tools.lab.gso import ETHERNET_BYTES

NS_PER_MS = 1_000_000
GRAIN_NS = NS_PER_MS // 4
"""Segments of one packet that leave the queue within this time stay one super-packet."""

FOREVER = 1 << 62
WANDER_PERIOD = 4
"""Time between two points of the jitter, in jitter_ms: the delay moves at most half as fast as time does."""


class LinkSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One direction of a link. The default is a perfect one."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """Greatest deviation from delay_ms, up and down."""
    rate_mbit: float | None = None
    """10^6 bits a second; all headers of all segments count, Ethernet's too. None: no limit."""
    loss_percent: float = 0.0
    burst: float = 1.0
    """Mean length of a loss in segments; 1 is independent loss."""
    burst_ms: float = 0.0
    """Mean length of a loss in time, in place of `burst`; `loss_percent` is the share of the time then."""
    reorder_percent: float = 0.0
    reorder_ms: float = 2.0
    duplicate_percent: float = 0.0
    mtu: int | None = None
    """Path MTU: a segment whose IP packet is larger vanishes silently. None: the limit of the device alone."""
    queue_packets: int | None = 1000
    """Segments that may wait for the rate; those that find the queue full are dropped."""
    queue_bytes: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        for field in ("loss_percent", "reorder_percent", "duplicate_percent"):
            if not 0 <= getattr(self, field) <= 100:
                raise ValueError(f"{field}: expected 0 to 100, got {getattr(self, field)}")
        for field in ("delay_ms", "jitter_ms", "reorder_ms", "burst_ms"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"{field}: expected 0 or more, got {getattr(self, field)}")
        if self.jitter_ms > self.delay_ms:
            raise ValueError(f"jitter_ms: expected at most delay_ms ({self.delay_ms:g}), got {self.jitter_ms:g}")
        if self.rate_mbit is not None and not 0 < self.rate_mbit < math.inf:
            raise ValueError(f"rate_mbit: expected more than 0, or none, got {self.rate_mbit}")
        for field in ("queue_packets", "queue_bytes", "mtu"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}: expected 1 or more, or none, got {value}")
        if self.burst < 1:
            raise ValueError(f"burst: expected 1 or more, got {self.burst}")
        loss = self.loss_percent / 100
        if self.burst > 1 and loss < 1 and loss / (1 - loss) > self.burst:
            raise ValueError(
                f"burst: expected at least {loss / (1 - loss):.2f} for loss_percent "
                f"{self.loss_percent}, got {self.burst}"
            )


class Train(NamedTuple):
    """Neighbouring segments of a packet that come out together."""

    due: int
    """monotonic ns"""
    first: int
    length: int


class LinkCounters(msgspec.Struct):
    """All counters are in segments."""

    offered: int = 0
    passed: int = 0
    """Segments that will arrive, copies included."""
    lost: int = 0
    dropped_queue_full: int = 0
    dropped_too_big: int = 0
    reordered: int = 0
    duplicated: int = 0


class Chance:
    """Picks segments out of a stream, in spells: `percent` of all, in spells of `burst` on average."""

    def __init__(self, rng: random.Random, percent: float, burst: float = 1.0) -> None:
        share = percent / 100
        self._rng = rng
        self._bad = rng.random() < share
        self._left = FOREVER
        if 0 < share < 1:
            self._end_bad = 1 / burst if burst > 1 else 1 - share
            self._end_good = self._end_bad * share / (1 - share)
            self._left = self._length()

    def pick(self, count: int) -> list[int]:
        """Indices picked among the next `count` segments, in order."""
        if not self._bad and self._left > count:
            if self._left != FOREVER:
                self._left -= count
            return []
        picked: list[int] = []
        index = 0
        while index < count:
            step = min(self._left, count - index)
            if self._bad:
                picked.extend(range(index, index + step))
            index += step
            if self._left == FOREVER:
                continue
            self._left -= step
            if self._left == 0:
                self._bad = not self._bad
                self._left = self._length()
        return picked

    def _length(self) -> int:
        """Length of the spell that begins: geometric, 1 or more."""
        end = self._end_bad if self._bad else self._end_good
        if end >= 1:
            return 1
        return int(math.log(1 - self._rng.random()) / math.log(1 - end)) + 1


class Fades:
    """Times in which all is lost: `percent` of the time, in spells of `mean_ns` on average."""

    def __init__(self, rng: random.Random, percent: float, mean_ns: int) -> None:
        share = percent / 100
        self._rng = rng
        self._means = mean_ns, mean_ns * (1 - share) / share if share else math.inf
        self._bad = rng.random() < share
        self._until = -FOREVER

    def pick(self, times: list[int]) -> list[int]:
        """Indices of the times that are in a bad spell; times never go back."""
        if self._means[1] in (0, math.inf):
            return list(range(len(times))) if not self._means[1] else []
        return [index for index, time in enumerate(times) if self._is_bad(time)]

    def _is_bad(self, time: int) -> bool:
        if self._until == -FOREVER:
            self._until = time
        while time >= self._until:
            self._bad = not self._bad
            self._until += 1 + round(self._rng.expovariate(1 / self._means[not self._bad]))
        return self._bad


class Wander:
    """An offset within +- span that moves in straight lines from one random point to the next."""

    def __init__(self, rng: random.Random, span_ns: int) -> None:
        self._rng = rng
        self._span = span_ns
        self._period = WANDER_PERIOD * span_ns
        self._from = self._to = rng.uniform(-span_ns, span_ns)
        self._until = -FOREVER

    def at(self, now: int) -> int:
        """The offset at this time; `now` never goes back."""
        if self._span == 0:
            return 0
        if now >= self._until:
            if now >= self._until + self._period:
                self._until = now
            self._from, self._to = self._to, self._rng.uniform(-self._span, self._span)
            self._until += self._period
        return round(self._to - (self._to - self._from) * (self._until - now) / self._period)


class LinkModel:
    """One direction. It keeps its queue across a change of the spec; the random streams start again."""

    def __init__(self, spec: LinkSpec, direction: str = "") -> None:
        self._direction = direction
        self._busy_until = 0
        self._waiting: deque[tuple[int, int]] = deque()
        self._waiting_bytes = 0
        self.counters = LinkCounters()
        self.change(spec)

    def change(self, spec: LinkSpec) -> None:
        self.spec = spec

        def stream(effect: str) -> random.Random:
            return random.Random(f"{spec.seed}/{self._direction}/{effect}")

        self._loss = Chance(stream("loss"), 0.0 if spec.burst_ms else spec.loss_percent, spec.burst)
        self._fades = Fades(
            stream("loss"), spec.loss_percent if spec.burst_ms else 0.0, round(spec.burst_ms * NS_PER_MS)
        )
        self._reorder = Chance(stream("reorder"), spec.reorder_percent)
        self._duplicate = Chance(stream("duplicate"), spec.duplicate_percent)
        self._jitter = Wander(stream("jitter"), round(spec.jitter_ms * NS_PER_MS))
        self._delay_ns = round(spec.delay_ms * NS_PER_MS)
        self._hold_ns = round(spec.reorder_ms * NS_PER_MS)
        self._ns_per_byte = 8000 / spec.rate_mbit if spec.rate_mbit else 0.0
        self._greatest = spec.mtu + ETHERNET_BYTES if spec.mtu else FOREVER

    def offer(self, now: int, segments: int, size: int, last: int) -> list[Train]:
        """The trains that come out. `size` and `last` count the Ethernet header; `now` never goes back."""
        counters = self.counters
        counters.offered += segments
        first = 0
        if size > self._greatest:
            first = segments - 1 if last <= self._greatest else segments
            counters.dropped_too_big += first
            if first == segments:
                return []
            segments, size = 1, last
        departures = self._queue(now, segments, size, last) if self._ns_per_byte else [now] * segments
        trains = self._trains(departures, first)
        for train in trains:
            counters.passed += train.length
        return trains

    def _queue(self, now: int, segments: int, size: int, last: int) -> list[int]:
        """Departure times of the segments that find room; these are always the first segments."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= now:
            self._waiting_bytes -= waiting.popleft()[1]
        limit_packets = self.spec.queue_packets or FOREVER
        limit_bytes = self.spec.queue_bytes or FOREVER
        at = max(now, self._busy_until)
        departures: list[int] = []
        for index in range(segments):
            wire = size if index < segments - 1 else last
            if waiting and (len(waiting) >= limit_packets or self._waiting_bytes + wire > limit_bytes):
                self.counters.dropped_queue_full += segments - index
                break
            at += round(wire * self._ns_per_byte)
            departures.append(at)
            waiting.append((at, wire))
            self._waiting_bytes += wire
        self._busy_until = at
        return departures

    def _trains(self, departures: list[int], first: int) -> list[Train]:
        """The trains made of segments `first`, first + 1, ... that leave the queue at these times."""
        segments = len(departures)
        if segments == 0:
            return []
        lost, held, twice = (chance.pick(segments) for chance in (self._loss, self._reorder, self._duplicate))
        lost += self._fades.pick(departures)
        if not lost and not held and not twice and departures[-1] - departures[0] <= GRAIN_NS:
            return [Train(self._arrival(departures[-1]), first, segments)]
        counters = self.counters
        counters.lost += len(lost)
        trains: list[Train] = []
        copies: list[Train] = []
        began = None
        for index, departure in enumerate(departures):
            if index in lost:
                began = None
                continue
            arrival = self._arrival(departure)
            if index in twice:
                counters.duplicated += 1
                copies.append(Train(arrival, first + index, 1))
            if index in held:
                counters.reordered += 1
                trains.append(Train(arrival + self._hold_ns, first + index, 1))
                began = None
            elif began is not None and departure - began <= GRAIN_NS:
                trains[-1] = Train(arrival, trains[-1].first, trains[-1].length + 1)
            else:
                began = departure
                trains.append(Train(arrival, first + index, 1))
        return trains + copies

    def _arrival(self, departure: int) -> int:
        return departure + self._delay_ns + self._jitter.at(departure)
