"""The watch: it takes one snapshot a second for all viewers, and keeps the history.

    tick()            take the snapshot that is due
    present()         the snapshot as the page shows it, JSON
    history(span)     the graphs of a span, JSON
    peers()           all peers, JSON, in rows without names of columns: a hub may have thousands

However many look, each text is made once per snapshot.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from pipeline.counters import COUNTERS
from pipeline.errors import TunnelError
from pipeline.exporter.history import SPANS, History, State
from pipeline.exporter.reading import Snapshot, established, hindrance, is_client, round_trips
from pipeline.exporter.segments import SegmentTotals
from pipeline.observe import rates
from pipeline.observe.rates import NO_RATES, Rates

SCHEMA_VERSION = 1
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
}
"""Counters of the work of each kind of worker, outbound and inbound: bytes, and packets, frames, blocks or runs."""

PASSING = {
    "plain": (("tun.blocks_filled",), ("fec.blocks_coded",)),
    "light": (("tun.blocks_light_filled",), ()),
    "coded": (("fec.blocks_coded",), ()),
    "inbound": (("tcp.frames_received",), ()),
    "decoded": (("fec.blocks_whole", *(f"fec.blocks_recovered_{missing}" for missing in range(1, 7))), ()),
    "transit": (("tun.packets_forwarded",), ()),
}
"""By kind of ring: counters of its lane whose rates, added and taken away, are about what passes it."""

PEER_COLUMNS = (
    *("name", "state", "addresses", "endpoint", "connections", "sent_bytes", "received_bytes"),
    *("rtt_ms", "resent_segments", "dropped", "session_seconds", "problem"),
    *("quota_bytes", "quota_used_bytes", "quota_state"),
)

TOTALS = ("tcp.bytes_sent", "tcp.bytes_received")
DROPS = {counter.name: counter.meaning for counter in COUNTERS if ".dropped_" in counter.name}


class Watch:
    """`read` takes a snapshot, TunnelError if there is none. `snapshot` is None then, and `problem` says why."""

    def __init__(self, read: Callable[[], Snapshot]) -> None:
        self._read = read
        self._history = History()
        self._rates: Rates = NO_RATES
        self._taken_at = 0.0
        self._texts: dict[str, bytes] = {}
        self.segments = SegmentTotals()
        self.snapshot: Snapshot | None = None
        self.problem = "nothing has been read yet"
        self.serial = 0

    def tick(self) -> float:
        """Take the snapshot that is due. Seconds until the next one."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        if int(now) != int(self._taken_at):
            self._take(now)
        return 1.02 - time.clock_gettime(time.CLOCK_BOOTTIME) % 1.0  # a little into the next second

    def _take(self, now: float) -> None:
        self._taken_at = now
        self.serial += 1
        self._texts.clear()
        try:
            snapshot = self._read()
        except TunnelError as error:
            self.snapshot, self.problem, self._rates = None, str(error), NO_RATES
            return
        self._rates = rates.between(self.snapshot, snapshot)
        self.snapshot = snapshot
        self.segments.add(snapshot["connections"])
        state = State(*round_trips(snapshot), snapshot["peers_connected"], self.segments.resent)
        self._history.add(snapshot["counters"], state, now)

    # -- what the page gets

    def present(self) -> bytes:
        return self._text("present", self._present)

    def history(self, span: str) -> bytes:
        return self._text(f"history {span}", lambda: self._columns(span))

    def peers(self) -> bytes:
        return self._text("peers", self._peers)

    def _text(self, key: str, make: Callable[[], Any]) -> bytes:
        if key not in self._texts:
            self._texts[key] = json.dumps(make(), separators=(",", ":"), allow_nan=False).encode()
        return self._texts[key]

    def _present(self) -> dict[str, Any]:
        snapshot = self.snapshot
        if snapshot is None:
            return {"schema": SCHEMA_VERSION, "serial": self.serial, "problem": self.problem}
        found = established(snapshot)
        return {
            "schema": SCHEMA_VERSION,
            "serial": self.serial,
            "time": round(time.time(), 2),
            **{key: snapshot[key] for key in KEPT},
            "hindrance": hindrance(snapshot),
            "workers": [self._worker(worker) for worker in snapshot["workers"]],
            "rings": [ring | {"rate": self._passing(ring)} for ring in snapshot["rings"]],
            "connections": snapshot["connections"][:CONNECTIONS_SHOWN] if is_client(snapshot) else [],
            "connections_established": len(found),
            "totals": {name: snapshot["counters"][name] for name in TOTALS},
            "drops": self._drops(snapshot),
            "point": self._history.latest,
            "end": self._history.end("minutes"),
        }

    def _worker(self, worker: dict[str, Any]) -> dict[str, Any]:
        moving = self._rates.workers.get(worker["name"], {})
        work = [[moving.get(each) for each in way] for way in WORK[worker["kind"]]]
        return {**{key: worker[key] for key in KEPT_OF_WORKERS}, "out": work[0], "in": work[1]}

    def _passing(self, ring: dict[str, Any]) -> float:
        """Blocks, frames or packets that pass this ring a second."""
        added, taken = PASSING[ring["kind"]]

        def rate(counter: str) -> float:
            return self._rates.workers.get(f"{counter.partition('.')[0]}-{ring['lane']}", {}).get(counter, 0.0)

        return round(max(0.0, sum(map(rate, added)) - sum(map(rate, taken))), 1)

    def _drops(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """Everything that has been dropped, most first. `rate`: a second, now."""
        found = [
            {"name": name, "meaning": meaning, "count": count, "rate": self._rates.counters.get(name, 0.0)}
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

    def _peers(self) -> dict[str, Any]:
        peers = self.snapshot["peers"] if self.snapshot is not None else []
        return {
            "serial": self.serial,
            "time": round(time.time(), 2),
            "columns": PEER_COLUMNS,
            "rows": [[_cell(peer[column]) for column in PEER_COLUMNS] for peer in peers],
        }


def _cell(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value
