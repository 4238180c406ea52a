"""The answer to `status`: everything about a running instance, as plain data, read from shared memory.

SCHEMA_VERSION counts up when a key changes its meaning or goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.policy.lifecycle import Lifecycle, Worker, WorkerState
from pipeline.runtime.plan import Plan, RingPlan
from pipeline.shm.layout import LINK_ACCEPTS_SHARDS, LINK_ESTABLISHED, LINK_PARITY, MASK64, RECORD_WORDS
from pipeline.shm.peer_table import PeerTable
from pipeline.shm.ring import Ring
from pipeline.shm.scoreboard import Scoreboard
from pipeline.supervisor.processes.process import Process
from pipeline.supervisor.run.shared_memory import SharedMemory
from pipeline.version import VERSION
from pipeline.wire import framing

SCHEMA_VERSION = 2


def snapshot(
    plan: Plan,
    lifecycle: Lifecycle,
    processes: Mapping[str, Process],
    memory: SharedMemory,
    *,
    spares: list[dict[str, Any]],
    rolling: dict[str, Any],
    pid: int,
    failures: int,
    started_ns: int,
    now: int,
    role: dict[str, Any],
    device: dict[str, Any],
) -> dict[str, Any]:
    """The status at `now` (CLOCK_MONOTONIC ns). `failures`: exceptions that the supervisor has survived.

    `role`, `device`: what the client's or server's part and the TUN device say of themselves.
    """
    scoreboard, peers = memory.scoreboard, memory.peer_table
    connections = _connections(plan, lifecycle, peers, now)
    return {
        "schema_version": SCHEMA_VERSION,
        "version": VERSION,
        "name": plan.name,
        "mode": plan.mode,
        "state": lifecycle.phase,
        "pid": pid,
        "run": plan.run_id,
        "tun_name": device["name"],
        "supervisor_failures": failures,
        "uptime_seconds": round((now - started_ns) / 1e9, 3),
        "workers": [_worker(worker, processes[name], scoreboard, now) for name, worker in lifecycle.workers.items()],
        "spares": spares,
        "rolling": rolling,
        "rings": [_ring(each, memory.rings[each.name]) for each in plan.rings],
        "fec": _fec(plan, peers),
        "peers_connected": sum(peers.established_count(peer) > 0 for peer in range(peers.capacity)),
        "peers_max": peers.capacity,
        "server": _server(role["server"], connections),
        "notes": [*device["notes"], *role["notes"]],
        "left_out": device["left_out"],
        "connections": connections,
        "counters": scoreboard.totals(),
    }


def _server(server: dict[str, Any] | None, connections: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The server of a client, with the number of connections to it that stand; None at a server."""
    if server is None:
        return None
    return server | {"connections": sum(each["state"] == "established" for each in connections)}


def _worker(worker: Worker, process: Process, scoreboard: Scoreboard, now: int) -> dict[str, Any]:
    heartbeat = scoreboard.pages[process.plan.page].oldest_heartbeat()
    percent, rss = process.usage()
    return {
        "name": worker.name,
        "kind": worker.kind,
        "lane": process.plan.lane,
        "pid": process.pid,
        "state": worker.state,
        "restarts": worker.restarts,
        "heartbeat_age_ms": round(max(0, now - heartbeat) / 1e6, 1) if heartbeat else None,
        "cpu_percent": percent,
        "rss_bytes": rss,
        "cores": process.cores,
    }


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


def _fec(plan: Plan, peers: PeerTable) -> dict[str, Any]:
    """The mode, and how a full block is cut now, for the peer that needs most parity; 0: blocks travel whole."""
    settings = plan.settings
    if settings.fec == "off":
        return {"mode": "off"}
    links = [words[at : at + RECORD_WORDS] for words in peers.links for at in range(0, len(words), RECORD_WORDS)]
    established = [link for link in links if link[LINK_ESTABLISHED]]
    decoding = [link for link in established if link[LINK_ACCEPTS_SHARDS]]
    return {
        "mode": settings.fec,
        "data": settings.fec_data,
        "parity": max([link[LINK_PARITY] for link in decoding], default=0),
        "parity_max": settings.fec_parity,
        "peer_accepts_shards": bool(established) and len(decoding) == len(established),
    }


def depth(before: list[int], own: int, capacity: int) -> int:
    """Slots that wait for a member, at most `capacity`: an estimate, since cursors move while they are read."""
    waiting = min((cursor - own) & MASK64 for cursor in before)
    return waiting if waiting <= capacity else 0


def _connections(plan: Plan, lifecycle: Lifecycle, peers: PeerTable, now: int) -> list[dict[str, Any]]:
    running = [w for w in plan.workers_of_kind("tcp") if lifecycle.workers[w.name].state is WorkerState.RUNNING]
    return [  # a dead worker's connections are still in the table: passed over
        {
            "worker": worker.name,
            "serial": connection.serial,
            "state": connection.state,
            "address": connection.address,
            "peer": connection.peer,
            "lane": connection.lane,
            "traffic_class": "light" if connection.traffic_class == framing.LIGHT else "bulk",
            "sent_bytes": connection.sent_bytes,
            "received_bytes": connection.received_bytes,
            "age_seconds": round((now - connection.since_ns) / 1e9, 1),
            "last_received_ms_ago": round((now - connection.last_received_ns) / 1e6),
            "rtt_ms": connection.rtt_us / 1000,
        }
        for worker in running
        for connection in peers.connections(worker.lane)
    ]
