"""The watch: it takes glances for the history, and reads the rest when somebody looks.

    tick()            take the glance that is due
    look()            somebody asks for figures: they are of this second from now on
    follow()          a page is open: a glance each second, until nobody has followed for FOLLOWED_SECONDS
    snapshot          everything without rows of peers (pipeline.observe.snapshot.outline), read at most once a glance
    present()         the same as the page shows it, JSON
    history(span)     the graphs of a span, JSON
    peers()           all peers, JSON, in rows without names of columns: a hub may have thousands

While nobody looks, there is a glance in REST_SECONDS and nothing else. However many look, each text is made once per
glance.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from pipeline.counters import BYTES_RECEIVED, BYTES_SENT, COUNTERS
from pipeline.errors import TunnelError
from pipeline.exporter.history import LEAST_SECONDS, REST_SECONDS, SPANS, History, State
from pipeline.exporter.reading import Snapshot, hindrance
from pipeline.observe.glance import Glance, SegmentTotals, rates

SCHEMA_VERSION = 1
FOLLOWED_SECONDS = 60.0  # a page asks each second, but for one in a tab that is hidden for a while
BEHIND_SECONDS = 0.02  # a glance is taken a little into its second
CONNECTIONS_SHOWN = 100  # of a client's, which has at most 72; a hub shows its peers

KEPT = (
    *("name", "mode", "state", "pid", "version", "tun_name", "uptime_seconds", "supervisor", "fec"),
    *("peers_connected", "peers_max", "server", "notes", "left_out", "supervisor_failures", "events"),
)
KEPT_OF_WORKERS = (
    *("name", "kind", "lane", "pid", "state", "process", "restarts", "heartbeat_age_ms", "cpu_percent", "core"),
    *("cores", "rss_bytes"),
)
"""Keys that the page gets as they are in the snapshot."""

WORK = {
    "tun": (("tun.bytes_read", "tun.packets_read"), ("tun.bytes_written", "tun.packets_written")),
    "tcp": (("tcp.bytes_sent", "tcp.frames_sent"), ("tcp.bytes_received", "tcp.frames_received")),
    "fec": (("fec.bytes_coded", "fec.blocks_coded"), ("", "fec.runs_received")),
    "dgram": (("dgram.bytes_sent", "dgram.segments_sent"), ("dgram.bytes_received", "dgram.segments_received")),
}
"""Counters of the work of each kind of worker, outbound and inbound: bytes, and packets, frames, blocks, runs or
segments."""

PASSING = {
    "plain": (("tun.blocks_filled",), ("fec.blocks_coded",)),
    "light": (("tun.blocks_light_filled",), ()),
    "coded": (("fec.blocks_coded",), ()),
    "inbound": (("tcp.frames_received",), ()),
    "decoded": (("fec.blocks_whole", *(f"fec.blocks_recovered_{missing}" for missing in range(1, 7))), ()),
    "transit": (("tun.packets_forwarded",), ()),
    "arrived": (("dgram.blocks_whole", "dgram.blocks_recovered"), ()),
    "returned": (("dgram.blocks_returned",), ()),
}
"""By kind of ring: counters of its lane whose rates, added and taken away, are about what passes it."""

PEER_COLUMNS = (
    *("name", "state", "addresses", "endpoint", "connections", "sent_bytes", "received_bytes"),
    *("rtt_ms", "resent_segments", "dropped", "session_seconds", "problem"),
    *("quota_bytes", "quota_used_bytes", "quota_state", "carrier"),
)

TOTALS = (*BYTES_SENT, *BYTES_RECEIVED)
DROPS = {counter.name: counter.meaning for counter in COUNTERS if ".dropped_" in counter.name}


class Source(Protocol):
    """An Observer of pipeline.observe. TunnelError while there is nothing to read."""

    def glance(self) -> Glance: ...

    def outline(self) -> Snapshot: ...

    def peers(self, first: int | None = None, *, by_class: bool = True) -> Iterable[Mapping[str, object]]:
        """All peers, or the first few by name. `by_class`: with the bytes of each class."""

    @property
    def peers_known(self) -> int: ...


class Watch:
    """`glance` is None while nothing can be read, and `problem` says why. `serial`: of the glance.

    `clock`: seconds that go on while the machine sleeps.
    """

    def __init__(self, source: Source, clock: Callable[[], float] | None = None) -> None:
        self.source = source
        self._clock = clock or (lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
        self._history = History()
        self._rates: dict[str, dict[str, float]] = {}
        self._taken_at = 0.0  # by the clock
        self._followed_until = 0.0
        self._texts: dict[str, bytes] = {}
        self._outline: Snapshot | None = None
        self.segments = SegmentTotals()
        self.glance: Glance | None = None
        self.problem = "nothing has been read yet"
        self.serial = 0

    @property
    def seconds_left(self) -> float:
        """Until the next glance is due."""
        now = self._clock()
        period = 1 if now < self._followed_until else REST_SECONDS
        due = (int(self._taken_at) // period + 1) * period + BEHIND_SECONDS
        return max(due, self._taken_at + LEAST_SECONDS) - now

    def tick(self) -> None:
        """Take the glance that is due."""
        if self.seconds_left <= 0:
            self._take(self._clock())

    def look(self) -> None:
        """Take a glance, unless there is one of this second."""
        now = self._clock()
        if int(now) != int(self._taken_at) and now - self._taken_at > LEAST_SECONDS:
            self._take(now)

    def follow(self) -> None:
        self._followed_until = self._clock() + FOLLOWED_SECONDS
        self.look()

    def rest(self) -> None:
        """Nobody follows any more."""
        self._followed_until = 0.0

    def _take(self, now: float) -> None:
        self._taken_at = now
        self.serial += 1
        self._texts.clear()
        self._outline = None
        try:
            taken = self.source.glance()
        except TunnelError as error:
            self.glance, self.problem, self._rates = None, str(error), {}
            return
        self._rates = rates(self.glance, taken)
        self.glance = taken
        self.segments.add(taken.connections)
        state = State(*taken.round_trips(), taken.peers_connected, self.segments.resent)
        self._history.add(taken.totals(), state, now)

    @property
    def snapshot(self) -> Snapshot | None:
        """None while nothing can be read."""
        if self._outline is None and self.glance is not None:
            try:
                self._outline = self.source.outline()
            except TunnelError as error:
                self.glance, self.problem = None, str(error)
        return self._outline

    # -- what the page gets

    def present(self) -> bytes:
        return self._text("present", lambda: _json(self._present()))

    def history(self, span: str) -> bytes:
        return self._text(f"history {span}", lambda: _json(self._columns(span)))

    def peers(self) -> bytes:
        return self._text("peers", self._peers)

    def _text(self, key: str, make: Callable[[], bytes]) -> bytes:
        if key not in self._texts:
            self._texts[key] = make()
        return self._texts[key]

    def _present(self) -> dict[str, Any]:
        snapshot, taken = self.snapshot, self.glance
        if snapshot is None or taken is None:
            return {"schema": SCHEMA_VERSION, "serial": self.serial, "problem": self.problem}
        return {
            "schema": SCHEMA_VERSION,
            "serial": self.serial,
            "time": round(time.time(), 2),
            **{key: snapshot[key] for key in KEPT},
            "hindrance": hindrance(snapshot),
            "workers": [self._worker(worker) for worker in snapshot["workers"]],
            "rings": [ring | {"rate": self._passing(ring)} for ring in snapshot["rings"]],
            "connections": snapshot["connections"][:CONNECTIONS_SHOWN],
            "connections_established": taken.established_in_all,
            "totals": {name: snapshot["counters"][name] for name in TOTALS},
            "drops": self._drops(snapshot),
            "point": self._history.latest,
            "end": self._history.end("minutes"),
        }

    def _worker(self, worker: dict[str, Any]) -> dict[str, Any]:
        moving = self._rates.get(worker["name"], {})
        work = [[moving.get(each) for each in way] for way in WORK[worker["kind"]]]
        return {**{key: worker[key] for key in KEPT_OF_WORKERS}, "out": work[0], "in": work[1]}

    def _passing(self, ring: dict[str, Any]) -> float:
        """Blocks, frames or packets that pass this ring a second."""
        added, taken = PASSING[ring["kind"]]

        def rate(counter: str) -> float:
            return self._rates.get(f"{counter.partition('.')[0]}-{ring['lane']}", {}).get(counter, 0.0)

        return round(max(0.0, sum(map(rate, added)) - sum(map(rate, taken))), 1)

    def _drops(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """Everything that has been dropped, most first. `rate`: a second, now."""
        found = [
            {
                "name": name,
                "meaning": meaning,
                "count": count,
                "rate": sum(each.get(name, 0.0) for each in self._rates.values()),
            }
            for name, meaning in DROPS.items()
            if (count := snapshot["counters"][name])
        ]
        return sorted(found, key=lambda each: (-each["count"], each["name"]))

    def _columns(self, span: str) -> dict[str, Any]:
        seconds, points = SPANS[span]
        age = self._taken_at - self._history.end(span) * seconds
        return {
            "span": span,
            "seconds": seconds,
            "points": points,
            "end": self._history.end(span),
            "end_time": round(time.time() - age, 1),
            "series": self._history.columns(span),
        }

    def _peers(self) -> bytes:
        """One row at a time: as objects all peers of a hub together would need some ten megabytes."""
        head = {"serial": self.serial, "time": round(time.time(), 2), "columns": PEER_COLUMNS}
        text = bytearray(_json(head)[:-1] + b',"rows":[')
        if self.glance is not None:
            for peer in self.source.peers(by_class=False):
                text += _json([_cell(peer[column]) for column in PEER_COLUMNS]) + b","
            del text[-1 if text.endswith(b",") else len(text) :]  # in place: a copy would be half a megabyte
        text += b"]}"
        return bytes(text)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _cell(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value
