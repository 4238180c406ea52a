"""Whether the blocks for one peer travel in datagrams or by TCP. Pure.

    off        `carrier` is "tcp", or the other end has no datagrams
    probing    no probe has been answered yet
    open       datagrams pass
    dark       they do not, or no more

    `carrier`      open         probing, dark   off
    auto           datagrams    TCP             TCP
    udp, faketcp   datagrams    nowhere         nowhere
    tcp                                         TCP

With "udp" blocks are dropped while no datagram passes, as by any tunnel over UDP. So nothing is sent by TCP but the
handshake and the end of a session: a path where TCP is slow, or dear, is not used by surprise. `status` says why
nothing passes. "auto" is for all others. Which datagrams it tries, and in which order: pipeline.policy.carrier_order.

    probing -> open    a probe is answered
    open -> dark       segments are outstanding, and for ROUND_TRIPS and SILENT_NS nothing was reported; or MISSES
                       probes in a row were not answered, and nothing was reported meanwhile
    dark -> open       ANSWERS probes in a row are answered, and the path has been dark for a hold. There is none for a
                       path that was open for STEADY_NS. For others it begins at HOLD_NS, and doubles up to HOLD_MOST_NS

The probes go out often at first, and then each time that an eighth of the time since the change has passed. Under load
an open path gets one in BUSY_NS. An idle one is not probed here (pipeline.policy.nat_keepalive) without a doubt. They
have BASE bytes (pipeline.policy.path_mtu): a path that carries less than a segment is dark.

A pause of this machine is no silence of the path, and the other end may have had it as well. So of the time between two
calls of `update` LOOK_NS at most count, and the caller has read what waits in its socket.

Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple

Setting = Literal["auto", "tcp", "udp", "faketcp"]

MS = 1_000_000
ROUND_TRIPS, SILENT_NS = 3, 100 * MS
"""Reports come each 5 ms while segments do. A first round trip that queues, a late process and a lost report fit in; a
flow inside has no timeout yet, since that takes 200 ms and more (tcp_rto_min)."""
LOOK_NS = 60 * MS  # more than the time between two looks at a path under load
MISSES = 3  # at 10 % of losses each way, one probe of five goes unanswered, and three in a row of 150
ANSWERS = 2
STEADY_NS = 60_000 * MS
HOLD_NS, HOLD_MOST_NS = 2_000 * MS, 300_000 * MS
PROBE_NS, PROBE_MOST_NS = 250 * MS, 60_000 * MS
PROBE_ROUND_TRIPS = 2  # an answer has so long before the next probe
WAITED_SHARE = 8
BUSY_NS = 1_000 * MS

OFF_BY_SETTING = '`carrier` is "tcp"'
OFF_BY_PEER = "the other end has no datagrams"
NOT_YET = "no probe has been answered yet"
PASSES = "probes are answered"
MISSED = f"{MISSES} probes in a row without an answer"
UNHEARD = "nothing has come from the other end yet"
_SILENT = "segments are outstanding, and nothing was reported for "


def silent_for(ms: int) -> str:
    """The reason of a path that went dark under load."""
    return f"{_SILENT}{ms} ms"


def silent_ms(reason: str) -> int | None:
    """The milliseconds in such a reason; None for another one."""
    return int(reason.removeprefix(_SILENT).removesuffix(" ms")) if reason.startswith(_SILENT) else None


class State(StrEnum):
    OFF = "off"
    PROBING = "probing"
    OPEN = "open"
    DARK = "dark"


class Way(StrEnum):
    """Where the next block goes."""

    DATAGRAMS = "datagrams"
    TCP = "tcp"
    NOWHERE = "nowhere"


class CarrierStatus(NamedTuple):
    state: State
    since: int
    reason: str


class Carrier:
    """`is_offered`: whether the other end has datagrams."""

    def __init__(self, setting: Setting, is_offered: bool, now: int) -> None:
        self._otherwise = Way.TCP if setting in ("auto", "tcp") else Way.NOWHERE
        if setting == "tcp":
            self.status = CarrierStatus(State.OFF, now, OFF_BY_SETTING)
        elif not is_offered:
            self.status = CarrierStatus(State.OFF, now, OFF_BY_PEER)
        else:
            self.status = CarrierStatus(State.PROBING, now, NOT_YET)
        self._reported_at = self._looked_at = 0
        self._probed_at: int | None = None
        self._is_waiting = False  # the latest probe has no answer
        self._answered = 0  # probes in a row
        self._missed = 0
        self._is_doubted = False
        self._is_busy = False  # segments were outstanding since the latest probe
        self._hold_ns = 0
        self.limit_ns = SILENT_NS

    @property
    def way(self) -> Way:
        return Way.DATAGRAMS if self.status.state is State.OPEN else self._otherwise

    def due(self, now: int, rtt_ns: int = 0) -> bool:
        """Whether a probe goes out now; the caller sends it. `rtt_ns`: smoothed, 0 if it is not known."""
        pause = self._pause(now)
        if pause is None:
            return False
        if self._is_waiting:
            pause = max(pause, PROBE_ROUND_TRIPS * rtt_ns)
        if self._probed_at is not None and now - self._probed_at < pause:
            return False
        if self._is_waiting:
            self._miss(now)
        self._probed_at = now
        self._is_waiting = True
        self._is_busy = False
        return True

    def answered(self, now: int) -> None:
        """A probe has been answered."""
        self._missed = 0
        self._is_doubted = False
        if not self._is_waiting:
            return
        self._is_waiting = False
        self._answered += 1
        state, since, _ = self.status
        is_held = now - since < self._hold_ns or self._answered < ANSWERS
        if state is State.PROBING or (state is State.DARK and not is_held):
            self._reported_at = now
            self.status = CarrierStatus(State.OPEN, now, PASSES)

    def reported(self, now: int) -> None:
        """A report has come, about segments of this peer that were new to it."""
        self._reported_at = now
        self._missed = 0
        self._is_doubted = False

    def update(self, outstanding_since: int | None, now: int, rtt_ns: int = 0, has_read_all: bool = True) -> None:
        """Since when the oldest segment is outstanding of which nothing was reported; None: there is none.
        `has_read_all`: nothing waits in the socket that could tell more."""
        missed = now - (self._looked_at or now) - LOOK_NS
        self._looked_at = now
        if outstanding_since is None:
            return
        self._is_busy = True
        self.limit_ns = ROUND_TRIPS * rtt_ns + SILENT_NS
        silent_since = max(outstanding_since, self._reported_at)
        if missed > 0:
            silent_since = self._reported_at = min(now, silent_since + missed)
        if has_read_all and self.status.state is State.OPEN and now - silent_since > self.limit_ns:
            self._darken(silent_for(self.limit_ns // MS), now)

    def doubt(self) -> None:
        """A router or the other host says that nothing passes, or an answer is missing on an idle path. It may be
        forged, or lost: a probe finds out."""
        self._is_doubted = True

    def _pause(self, now: int) -> int | None:
        """Between two probes; None: there is nothing to find out."""
        match self.status.state:
            case State.OFF:
                return None
            case State.OPEN:
                if self._missed or self._is_doubted:
                    return PROBE_NS
                return BUSY_NS if self._is_busy or self._is_waiting else None
        waited = now - self.status.since
        return min(PROBE_MOST_NS, max(PROBE_NS, waited // WAITED_SHARE))

    def _miss(self, now: int) -> None:
        self._answered = 0
        self._missed += 1
        if self._missed >= MISSES and self.status.state is State.OPEN:
            self._darken(MISSED, now)

    def _darken(self, reason: str, now: int) -> None:
        if now - self.status.since >= STEADY_NS:
            self._hold_ns = 0
        else:
            self._hold_ns = min(HOLD_MOST_NS, max(HOLD_NS, 2 * self._hold_ns))
        self._answered = self._missed = 0
        self._is_waiting = self._is_doubted = False
        self._probed_at = None
        self.status = CarrierStatus(State.DARK, now, reason)
