"""What `status` tells, as plain data."""

from __future__ import annotations

from pipeline.runtime.plan import Plan, RingPlan
from pipeline.shm.layout import LINK_ACCEPTS_SHARDS, LINK_ESTABLISHED, LINK_PARITY, MASK64, RECORD_WORDS
from pipeline.shm.peer_table import PeerTable
from pipeline.shm.ring import Ring
from pipeline.shm.scoreboard import Scoreboard
from pipeline.supervisor.process import RUNNING, Process
from pipeline.supervisor.shared_memory import SharedMemory
from pipeline.wire import framing

SCHEMA_VERSION = 1


def snapshot(
    plan: Plan,
    state: str,
    pid: int,
    since: int,
    tun_name: str,
    processes: list[Process],
    memory: SharedMemory,
    now: int,
) -> dict:
    """Everything about a running instance at `now` (CLOCK_MONOTONIC ns)."""
    board, peers = memory.scoreboard, memory.peers
    return {
        "schema_version": SCHEMA_VERSION,
        "name": plan.name,
        "mode": plan.mode,
        "state": state,
        "pid": pid,
        "run": plan.run_id,
        "tun_name": tun_name,
        "uptime_seconds": round((now - since) / 1e9, 3),
        "workers": [_worker(process, board, now) for process in processes],
        "rings": [_ring(each, memory.rings[each.name]) for each in plan.rings],
        "fec": _fec(plan, peers),
        "peers_connected": sum(peers.count(peer) > 0 for peer in range(peers.capacity)),
        "peers_most": peers.capacity,
        "connections": _connections(peers, processes, now),
        "counters": board.totals(),
    }


def _worker(process: Process, board: Scoreboard, now: int) -> dict:
    beat = board.pages[process.plan.page].oldest_heartbeat()
    percent, rss = process.usage()
    return {
        "name": process.name,
        "kind": process.plan.kind,
        "lane": process.plan.lane,
        "pid": process.pid,
        "state": process.state,
        "restarts": process.restarts,
        "heartbeat_age_ms": round(max(0, now - beat) / 1e6, 1) if beat else None,
        "cpu_percent": percent,
        "rss_bytes": rss,
        "cores": process.cores,
    }


def _ring(plan: RingPlan, ring: Ring) -> dict:
    stages = []
    for group in plan.stages:
        depths = {}
        for member in group:
            place = plan.place(member)
            own = ring.cursor(place.number)
            before = [ring.cursor(number) for number in place.before]
            depths[member.worker] = 0 if place.first else depth(before, own, ring.capacity)
        stages.append({"duty": group[0].duty, "depth": depths})
    return {"name": plan.name, "kind": plan.kind, "lane": plan.lane, "capacity": ring.capacity, "stages": stages}


def _fec(plan: Plan, peers: PeerTable) -> dict:
    """The mode, and how a full block is cut now, for the peer that needs most; `parity` 0: blocks travel whole."""
    settings = plan.settings
    if settings["fec"] == "off":
        return {"mode": "off"}
    lines = [words[at : at + RECORD_WORDS] for words in peers.links for at in range(0, len(words), RECORD_WORDS)]
    established = [line for line in lines if line[LINK_ESTABLISHED]]
    decoding = [line for line in established if line[LINK_ACCEPTS_SHARDS]]
    return {
        "mode": settings["fec"],
        "data": settings["fec_data"],
        "parity": max([line[LINK_PARITY] for line in decoding], default=0),
        "parity_most": settings["fec_parity"],
        "peer_accepts_shards": bool(established) and len(decoding) == len(established),
    }


def depth(before: list[int], own: int, capacity: int) -> int:
    """Slots waiting for a member, as an outsider guesses them from cursors that move meanwhile: clamped."""
    waiting = min((cursor - own) & MASK64 for cursor in before)
    return waiting if waiting <= capacity else 0


def _connections(peers: PeerTable, processes: list[Process], now: int) -> list[dict]:
    found = []
    for process in processes:
        if process.plan.kind != "tcp" or process.state != RUNNING:  # rows of the dead are old
            continue
        for row in peers.connections(process.plan.lane):
            found.append(
                {
                    "worker": process.name,
                    "serial": row.serial,
                    "state": row.state,
                    "address": row.address,
                    "peer": row.peer,
                    "lane": row.lane,
                    "purpose": "light" if row.traffic_class == framing.LIGHT else "bulk",
                    "sent_bytes": row.sent_bytes,
                    "received_bytes": row.received_bytes,
                    "age_seconds": round((now - row.since_ns) / 1e9, 1),
                    "heard_ms_ago": round((now - row.last_received_ns) / 1e6),
                    "rtt_ms": row.rtt_us / 1000,
                }
            )
    return found
