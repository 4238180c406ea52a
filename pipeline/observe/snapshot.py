"""The snapshot: everything about a running instance at one moment, as plain data. `status --json` prints it.

    build(about, plan, memory, meter, now)     of any memory: the supervisor's own, or an observer's RunView
    outline(about, plan, memory, meter, now)   the same without a row for each of a hub's peers and connections
    peers(rows, about, plan, table, now)       the rows of peers, one by one

There is no second truth. The supervisor answers `status` with this. `status`, `top`, the exporter and the page build it
themselves. `about` is the overview. Everything that moves comes from the scoreboard, the peer table and the rings,
and CPU time and memory of processes from /proc. Rates are made by a reader out of two snapshots
(pipeline.observe.rates).

SCHEMA_VERSION counts up when a key changes its meaning or goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from pipeline.counters import COUNTERS
from pipeline.events import Event
from pipeline.observe.process_stat import HALTED, CpuMeter, read_process
from pipeline.observe.sentence import describe
from pipeline.peers.peer_datagrams import carrier_now
from pipeline.peers.peer_status import PeerRow, PeerStatus, peer_status
from pipeline.runtime import link_paths
from pipeline.runtime.plan import Plan, RingPlan, WorkerPlan
from pipeline.shm import link_requests
from pipeline.shm.connection_status import ConnectionStatus
from pipeline.shm.event_log import EventLog
from pipeline.shm.layout import (
    LINK_ACCEPTS_SHARDS,
    LINK_ESTABLISHED,
    LINK_REQUESTS,
    MASK64,
    PATH_RATES,
    RECORD_WORDS,
)
from pipeline.shm.overview import Overview
from pipeline.shm.peer_table import PeerTable
from pipeline.shm.ring import Ring
from pipeline.shm.scoreboard import Scoreboard, WorkerPage
from pipeline.wire import framing

SCHEMA_VERSION = 2

SUPERVISOR_SILENT_NS = 1_500_000_000  # its loop turns ten times a second
EVENTS_SHOWN = 20


class Memory(Protocol):
    """The shared memory of a run."""

    @property
    def overview(self) -> Overview: ...

    @property
    def scoreboard(self) -> Scoreboard: ...

    @property
    def peer_table(self) -> PeerTable: ...

    @property
    def event_log(self) -> EventLog: ...

    @property
    def rings(self) -> dict[str, Ring]: ...


def build(about: Mapping[str, Any], plan: Plan, memory: Memory, meter: CpuMeter, now: int) -> dict[str, Any]:
    """The snapshot at `now` (CLOCK_MONOTONIC ns). `meter`: of this reader, from one snapshot to the next."""
    found = _outline(about, plan, memory, meter, now, with_rows=True)
    return found | describe(found)._asdict()


def outline(about: Mapping[str, Any], plan: Plan, memory: Memory, meter: CpuMeter, now: int) -> dict[str, Any]:
    """The snapshot without its sentence. The lists of peers, and of a server's connections, are empty."""
    return _outline(about, plan, memory, meter, now, with_rows=False)


def _outline(
    about: Mapping[str, Any], plan: Plan, memory: Memory, meter: CpuMeter, now: int, with_rows: bool
) -> dict[str, Any]:
    scoreboard, table = memory.scoreboard, memory.peer_table
    live = _live_connections(about, plan, table) if with_rows or plan.mode == "client" else []
    connections = [_connection(worker, connection, now) for worker, connection in live]
    workers = [_worker(each, about["workers"][each.name], scoreboard, meter, now) for each in plan.workers]
    spares = [_spare(each) for each in about["spares"]]
    meter.forget_others({about["pid"], *(worker["pid"] for worker in workers)})
    return {
        "schema_version": SCHEMA_VERSION,
        "version": about["version"],
        "name": plan.name,
        "mode": plan.mode,
        "state": about["state"],
        "pid": about["pid"],
        "run": plan.run_id,
        "taken_ns": now,
        "tun_name": about["device"]["name"],
        "supervisor": _supervisor(about, memory.overview.heartbeat, meter, now),
        "supervisor_failures": about["failures"],
        "uptime_seconds": round((now - about["started_ns"]) / 1e9, 3),
        "workers": workers,
        "lanes": _lanes(workers),
        "placement": about.get("placement", []),
        "spares": spares,
        "rolling": about["rolling"],
        "rings": [_ring(each, memory.rings[each.name]) for each in plan.rings],
        "fec": _fec(plan, table),
        "peers_connected": sum(count > 0 for count in table.established_counts()),
        "peers_max": table.capacity,
        "peers": [dict(each) for each in peers(about["peers"], about, plan, table, now)] if with_rows else [],
        "peers_left_out": about["peers_left_out"],
        "certificate_expires": about.get("certificate_expires"),
        "server": _server(about, connections, table, now),
        "notes": [*about["device"]["notes"], *about["notes"]],
        "left_out": about["device"]["left_out"],
        "full_tunnel": about.get("full_tunnel"),
        "accounting": about.get("accounting"),
        "direct": about.get("direct"),
        "hooks": about.get("hooks"),
        "websockets": about.get("websockets"),
        "connections": connections,
        "counters": scoreboard.totals(),
        "events": [event_dict(each) for each in memory.event_log.read(memory.event_log.count - EVENTS_SHOWN).events],
    }


def event_dict(event: Event) -> dict[str, Any]:
    """An event as plain data. `more` above 0: not one event, but a count of so many more that were equal."""
    return {
        "number": event.number,
        "time": event.time_ns / 1e9,
        "kind": event.kind.name,
        "level": event.kind.level,
        "subject": event.subject,
        "text": event.text,
        "line": event.line,
        "more": event.more,
        "since": event.since_ns / 1e9 if event.more else None,
    }


# -- processes


def _supervisor(about: Mapping[str, Any], heartbeat: int, meter: CpuMeter, now: int) -> dict[str, Any]:
    """`state`: running, or why it does nothing now. Packets need no supervisor; commands and restarts do."""
    process = read_process(about["pid"])
    silent = max(0, now - heartbeat)
    state = "running"
    if process is not None and process.state in HALTED:
        state = process.state
    elif silent > SUPERVISOR_SILENT_NS:
        state = "silent"
    return {
        "pid": about["pid"],
        "state": state,
        "heartbeat_age_ms": round(silent / 1e6, 1) if heartbeat else None,
        **_usage(about["pid"], meter),
    }


def _worker(
    plan: WorkerPlan, about: Mapping[str, Any], scoreboard: Scoreboard, meter: CpuMeter, now: int
) -> dict[str, Any]:
    page = scoreboard.pages[plan.page]
    heartbeat = page.oldest_heartbeat(plan.duties)
    pid = about["pid"]
    return {
        "name": plan.name,
        "kind": plan.kind,
        "lane": plan.lane,
        "duties": list(plan.duties),
        "pid": pid,
        "state": about["state"],
        "restarts": about["restarts"],
        "deaths": about.get("deaths", 0),
        "heartbeat_age_ms": round(max(0, now - heartbeat) / 1e6, 1) if heartbeat else None,
        **_usage(pid, meter),
        "cores": about["cores"],
        "counters": counters_of(plan.kind, page),
    }


def _lanes(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lanes: the cores of each, and how flows are spread over them."""
    found = []
    for lane in sorted({each["lane"] for each in workers}):
        own = [each for each in workers if each["lane"] == lane]
        counters = [each["counters"] for each in own if each["kind"] == "tun"]
        found.append(
            {
                "lane": lane,
                "cores": sorted({core for each in own for core in each["cores"]}),
                "flows": _sum(counters, "tun.flows_counted"),
                "sent_packets": _sum(counters, "tun.packets_read"),
                "sent_bytes": _sum(counters, "tun.bytes_read"),
                "received_packets": _sum(counters, "tun.packets_written"),
                "received_bytes": _sum(counters, "tun.bytes_written"),
            }
        )
    return found


def _sum(counters: list[dict[str, int]], name: str) -> int:
    return sum(each[name] for each in counters)


def _usage(pid: int, meter: CpuMeter) -> dict[str, Any]:
    """`process`: what the kernel says of it; "" without a process that we can see."""
    process = read_process(pid) if pid else None
    if process is None:
        return {"process": "", "cpu_percent": 0.0, "cpu_seconds": 0.0, "rss_bytes": 0, "core": None}
    return {
        "process": process.state,
        "cpu_percent": meter.percent(pid, process),
        "cpu_seconds": process.cpu_seconds,
        "rss_bytes": process.rss_bytes,
        "core": process.core,
    }


def counters_of(kind: str, page: WorkerPage) -> dict[str, int]:
    """The counters of a worker of this kind."""
    values, beginning = page.counters.tolist(), f"{kind}."
    return {each.name: values[each.id] for each in COUNTERS if each.name.startswith(beginning)}


def _spare(about: Mapping[str, Any]) -> dict[str, Any]:
    process = read_process(about["pid"])
    return {**about, "rss_bytes": process.rss_bytes if process else 0}


# -- rings


def _ring(plan: RingPlan, ring: Ring) -> dict[str, Any]:
    stages: list[dict[str, Any]] = []
    for group in plan.stages:
        depths = {}
        for member in group:
            place = plan.position_of(member)
            assert place is not None, f"{member} is of this ring"
            before = [ring.cursor(number) for number in place.before]
            depths[member.worker] = 0 if place.first else depth(before, ring.cursor(place.number), ring.capacity)
        stages.append({"duty": group[0].duty, "depth": depths})
    return {"name": plan.name, "kind": plan.kind, "lane": plan.lane, "capacity": ring.capacity, "stages": stages}


def depth(before: list[int], own: int, capacity: int) -> int:
    """Slots that wait for a member, at most `capacity`: an estimate, since cursors move while they are read."""
    waiting = min((cursor - own) & MASK64 for cursor in before)
    return waiting if waiting <= capacity else 0


# -- connections and peers


def running_senders(about: Mapping[str, Any], plan: Plan) -> list[WorkerPlan]:
    """The tcp workers whose connections count. Those of a dead worker are still in the table."""
    return [each for each in plan.workers_of_kind("tcp") if about["workers"][each.name]["state"] == "running"]


def _live_connections(
    about: Mapping[str, Any], plan: Plan, table: PeerTable
) -> list[tuple[WorkerPlan, ConnectionStatus]]:
    """Connections with their workers."""
    running = running_senders(about, plan)
    return [(worker, connection) for worker in running for connection in table.connections(worker.lane)]


def _connection(worker: WorkerPlan, connection: ConnectionStatus, now: int) -> dict[str, Any]:
    return {
        "worker": worker.name,
        "serial": connection.serial,
        "state": connection.state,
        "address": connection.address,
        "peer": connection.peer,
        "lane": connection.lane,
        "traffic_class": "light" if connection.traffic_class == framing.LIGHT else "bulk",
        "sent_bytes": connection.sent_bytes,
        "received_bytes": connection.received_bytes,
        "age_seconds": round(max(0, now - connection.since_ns) / 1e9, 1),
        "last_received_ms_ago": round(max(0, now - connection.last_received_ns) / 1e6),
        "rtt_ms": connection.rtt_us / 1000,
        "resent_segments": connection.resent_segments,
        "sent_segments": connection.sent_segments,
        "congestion": connection.congestion,
        "uplink": connection.uplink_row - 1 if connection.uplink_row else None,
    }


def peers(
    rows: Iterable[Mapping[str, Any]],
    about: Mapping[str, Any],
    plan: Plan,
    table: PeerTable,
    now: int,
    *,
    by_class: bool = True,
) -> Iterator[PeerStatus]:
    """The status of the peers that have these rows in the overview, each when it is reached."""
    connections_of = table.connections_by_peer([each.lane for each in running_senders(about, plan)])
    fec_data = 0 if plan.settings.fec == "off" else plan.settings.fec_data
    for each in rows:
        yield peer_status(PeerRow.from_dict(each), table, connections_of, fec_data, now, by_class=by_class)


def _server(
    about: Mapping[str, Any], connections: list[dict[str, Any]], table: PeerTable, now: int
) -> dict[str, Any] | None:
    """The server of a client, with the number of connections to it that stand; None at a server."""
    server = about["server"]
    if server is None:
        return None
    standing = sum(each["state"] == "established" for each in connections)
    setting = next((PeerRow.from_dict(each).carrier for each in about["peers"]), "tcp")
    carrying = link_paths.carriers(words[PATH_RATES] for words in table.paths)  # the server is peer 0
    since, there = server["trouble_since_ns"], server.get("why_since_ns", 0)
    shown = {name: value for name, value in server.items() if not name.endswith("since_ns")}
    return (
        {"why": "", "list": []}
        | shown
        | {
            "trouble_seconds": round((now - since) / 1e9, 1) if since else 0.0,
            "why_seconds": round((now - there) / 1e9, 1) if there else 0.0,
            "connections": standing,
            "carrier": carrier_now(setting, table, 0) if standing else "",
            "uplinks": [
                each | _uplink([row for row in connections if row["uplink"] == number], number in carrying)
                for number, each in enumerate(server.get("uplinks", ()))
            ],
        }
    )


def _uplink(connections: list[dict[str, Any]], carries: bool) -> dict[str, Any]:
    """The sums of the connections of one uplink that stand; the round trip is the shortest, since queues add to it."""
    there = [each for each in connections if each["state"] == "established"]
    sums = ("sent_bytes", "received_bytes", "resent_segments", "sent_segments")
    return {
        "connections": len(there),
        "carries": bool(there) and carries,
        "rtt_ms": min((each["rtt_ms"] for each in there if each["rtt_ms"]), default=0.0),
        **{name: sum(each[name] for each in there) for name in sums},
    }


def _fec(plan: Plan, table: PeerTable) -> dict[str, Any]:
    """The mode, and how a full block is cut now, for the peer that needs most parity; 0: blocks travel whole. And the
    copies of a light packet beside the first."""
    settings = plan.settings
    if settings.fec == "off":
        return {"mode": "off"}
    established, decoding = 0, 0
    words_of_decoding = []
    for words in table.links:
        columns = (words[at::RECORD_WORDS] for at in (LINK_ESTABLISHED, LINK_ACCEPTS_SHARDS, LINK_REQUESTS))
        for count, accepts, wanted in zip(*columns, strict=True):
            if count:
                established += 1
                if accepts:
                    decoding += 1
                    words_of_decoding.append(wanted)
    requests = link_requests.most(words_of_decoding)
    return {
        "mode": settings.fec,
        "data": settings.fec_data,
        "parity": requests.parity,
        "parity_max": settings.fec_parity,
        "copies": requests.copies,
        "spacing_ms": requests.spacing_us / 1000,
        "peer_accepts_shards": 0 < established == decoding,
    }
