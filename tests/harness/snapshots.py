"""Snapshots of instances that do not exist, in the form of pipeline.observe.snapshot, for what is made out of them."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from pipeline.counters import COUNTERS
from pipeline.errors import NotRunning
from pipeline.exporter.reading import Snapshot
from pipeline.observe.glance import Glance
from pipeline.shm.connection_status import ConnectionColumns
from pipeline.wire import framing

PIDS = {"tcp-0": 101, "fec-0": 102, "tun-0": 103}
RINGS = {
    "plain": ("tun", "tcp"),
    "light": ("tun", "tcp"),
    "coded": ("tun", "fec", "tcp"),
    "inbound": ("tcp", "tun"),
    "decoded": ("fec", "tun"),
}


def counters(kind: str, **values: int) -> dict[str, int]:
    """Counters of a worker of this kind. Names are given without it."""
    made = {each.name: 0 for each in COUNTERS if each.name.startswith(f"{kind}.")}
    return made | {f"{kind}.{name}": value for name, value in values.items()}


def worker(name: str, **fields: Any) -> dict[str, Any]:
    kind, _, lane = name.partition("-")
    return {
        "name": name,
        "kind": kind,
        "lane": int(lane),
        "pid": PIDS.get(name, 200),
        "state": "running",
        "restarts": 0,
        "heartbeat_age_ms": 12.5,
        "process": "sleeping",
        "cpu_percent": 25.0,
        "cpu_seconds": 3.25,
        "rss_bytes": 30_000_000,
        "core": 1,
        "cores": [],
        "counters": counters(kind),
        **fields,
    }


def connection(serial: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "worker": "tcp-0",
        "serial": serial,
        "state": "established",
        "address": f"192.0.2.9:{40000 + serial}",
        "peer": 0,
        "lane": 0,
        "traffic_class": "bulk",
        "sent_bytes": 1000,
        "received_bytes": 2000,
        "age_seconds": 60.0,
        "last_received_ms_ago": 15,
        "rtt_ms": 20.0,
        "resent_segments": 0,
        "sent_segments": 50,
        **fields,
    }


def peer(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "connected",
        "addresses": ["10.0.0.2", "fd00::2"],
        "allowed": [],
        "rate_mbit": 0.0,
        "bulk_rate_mbit": 0.0,
        "endpoint": "192.0.2.9",
        "connections": 8,
        "sent_bytes": 5000,
        "received_bytes": 7000,
        "dropped": 1,
        "session_seconds": 100.0,
        "problem": "",
        "quota_bytes": 0,
        "quota_used_bytes": 0,
        "quota_state": "open",
        "carrier": "tcp",
        "datagrams": None,
        "peer": 0,
        "light_connections": 3,
        "rtt_ms": 20.0,
        "resent_segments": 3,
        "sent_segments": 400,
        "recovered_blocks": 0,
        "expired_blocks": 0,
        "class_bytes": {"voice": 0, "normal_light": 300, "normal_bulk": 4000, "bulk": 0},
        "received_class_bytes": {"bulk": 6000, "light": 0},
        "transit_class_bytes": {"bulk": 0, "light": 70},
        **fields,
    }


def datagrams(**fields: Any) -> dict[str, Any]:
    """Of a peer with a path that is open."""
    return {
        "state": "open",
        "reason": "probes are answered",
        "state_seconds": 200.0,
        "endpoint": "192.0.2.7:443",
        "segment_bytes": 1452,
        "rate_mbit": 48.0,
        "rtt_ms": 41.0,
        "data_rows": 10,
        "parity_rows": 2,
        "sent_segments": 40_000,
        "lost_segments": 100,
        "sent_bytes": 50_000_000,
        "received_bytes": 60_000_000,
        "recovered_blocks": 12,
        **fields,
    }


def snapshot(**fields: Any) -> Snapshot:
    """A client, or a hub with mode="server", with one lane. Totals follow from the workers."""
    made: Snapshot = {
        "schema_version": 3,
        "version": "1.2.3",
        "name": "laptop",
        "mode": "client",
        "state": "running",
        "pid": 100,
        "run": "0badcafe",
        "taken_ns": 1_000_000_000,
        "tun_name": "tun0",
        "supervisor": {
            "pid": 100,
            "state": "running",
            "heartbeat_age_ms": 50.0,
            "process": "sleeping",
            "cpu_percent": 1.0,
            "cpu_seconds": 2.0,
            "rss_bytes": 34_000_000,
            "core": 0,
        },
        "supervisor_failures": 0,
        "uptime_seconds": 3600.0,
        "workers": [worker(name) for name in PIDS],
        "spares": [],
        "rolling": {"left": [], "error": ""},
        "rings": [
            {
                "name": f"{kind}-0",
                "kind": kind,
                "lane": 0,
                "capacity": 32,
                "stages": [{"duty": "outbound", "depth": {f"{each}-0": 0}} for each in stages],
            }
            for kind, stages in RINGS.items()
        ],
        "fec": {
            "mode": "auto",
            "data": 10,
            "parity": 0,
            "parity_max": 3,
            "copies": 0,
            "spacing_ms": 0.0,
            "peer_accepts_shards": True,
        },
        "peers_connected": 1,
        "peers_max": 1,
        "peers": [peer("server")],
        "peers_left_out": 0,
        "certificate_expires": 1.8e9,
        "server": {
            "host": "vpn.example.org",
            "port": 443,
            "connections": 2,
            "connections_wanted": 8,
            "trouble": [],
            "failed_attempts": 0,
            "trouble_seconds": 0.0,
        },
        "accounting": {"path": "/var/lib/x/accounting.sqlite", "failures": 0, "problem": ""},
        "websockets": {
            "pid": 4711,
            "open": 4,
            "opened": 9,
            "not_ours": 3,
            "without_upgrade": 1,
            "late": 2,
            "full": 0,
            "bad_frames": 1,
            "bare_frames": 0,
            "failed": 0,
        },
        "hooks": {"running": [], "run": 3, "failed": 1, "dropped": 0},
        "notes": [],
        "left_out": [],
        "connections": [connection(1), connection(2, traffic_class="light", rtt_ms=30.0)],
        "events": [],
    }
    made |= fields
    totals = {each.name: 0 for each in COUNTERS}
    for each in made["workers"]:
        for name, value in each["counters"].items():
            totals[name] += value
    return {"counters": totals} | made


CLASSES = {"bulk": framing.BULK, "light": framing.LIGHT}


def columns(connections: list[dict[str, Any]]) -> dict[str, ConnectionColumns]:
    """The established ones of these, by worker."""
    found = {}
    for worker_name in sorted({each["worker"] for each in connections}):
        own = [each for each in connections if each["worker"] == worker_name and each["state"] == "established"]
        values = [
            (each["serial"], int(1000 * each["rtt_ms"]), CLASSES[each["traffic_class"]], each["resent_segments"],
             each["sent_segments"])
            for each in own
        ]  # fmt: skip
        found[worker_name] = ConnectionColumns(*(array("I", column) for column in zip(*values, strict=True))) \
            if own else ConnectionColumns(*(array("I") for _ in range(5)))  # fmt: skip
    return found


def glance(shown: Snapshot) -> Glance:
    """What a glance would have seen when this snapshot was taken."""
    workers = {each["name"]: each["counters"] for each in shown["workers"]}
    return Glance(shown["taken_ns"], workers, shown["peers_connected"], columns(shown["connections"]))


class Source:
    """What an exporter reads: the snapshots that `read` gives. Counts what is read."""

    def __init__(self, read: Callable[[], Snapshot | None]) -> None:
        self._read = read
        self._shown: Snapshot | None = None
        self.glances = self.outlines = self.listings = 0

    def glance(self) -> Glance:
        self.glances += 1
        self._shown = self._read()
        return glance(self._known)

    def end(self) -> None:
        """What has been seen cannot be read any more."""
        self._shown = None

    @property
    def _known(self) -> Snapshot:
        if self._shown is None:
            raise NotRunning('instance "laptop" does not run')
        return self._shown

    def outline(self) -> Snapshot:
        self.outlines += 1
        has_rows = self._known["mode"] == "client"
        return self._known | {"peers": []} | ({} if has_rows else {"connections": []})

    def peers(self, first: int | None = None, *, by_class: bool = True) -> list[dict[str, Any]]:
        self.listings += 1
        found: list[dict[str, Any]] = self._known["peers"]
        return found if first is None else sorted(found, key=lambda each: each["name"])[:first]

    @property
    def peers_known(self) -> int:
        return len(self._known["peers"]) + self._known["peers_left_out"]
