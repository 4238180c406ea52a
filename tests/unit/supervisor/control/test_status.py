"""The status of an instance, as data and as text, read from shared memory alone."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.status_keys import KEYS, keys_of
from pipeline.cli.status_text import brief, duration, verbose
from pipeline.config import parse
from pipeline.counters import COUNTERS, ID
from pipeline.observe import snapshot
from pipeline.observe.process_stat import CpuMeter
from pipeline.observe.sentence import amount
from pipeline.observe.snapshot import depth
from pipeline.policy.lifecycle import Lifecycle, Limits, Phase, WorkerState
from pipeline.policy.restart import RestartPolicy
from pipeline.policy.server_choice import Server
from pipeline.runtime import topology
from pipeline.runtime.link_paths import Paths
from pipeline.runtime.plan import Plan, StageMember
from pipeline.shm import doorbell, layout, peer_table, ring, scoreboard, segment
from pipeline.shm.connection_status import ConnectionStatus
from pipeline.shm.layout import PATH_RATES, RECORD_WORDS
from pipeline.shm.link_requests import LinkRequests
from pipeline.shm.ring import StageView
from pipeline.supervisor.processes.process import Process
from pipeline.supervisor.processes.worker_channels import INVALID
from pipeline.supervisor.roles.server_trouble import ServerTrouble
from pipeline.supervisor.run.shared_memory import SharedMemory
from pipeline.wire import framing
from tests.harness.settings import WORKER_SETTINGS
from tests.harness.snapshots import peer

SECOND = 1_000_000_000
NOW = 5_000 * SECOND
SLOTS = 4
OFF = WORKER_SETTINGS
FEC = WORKER_SETTINGS._replace(fec="auto")
PARITY = [LinkRequests(parity, 0, 0).pack() for parity in range(4)]
U64 = 1 << 64


class Running:
    """The shared memory of an instance of two lanes, and its processes, which have not been started."""

    def __init__(self, fec: bool = False, capacity: int = 1) -> None:
        self.plan = topology.build_plan(
            "statustest",
            secrets.token_hex(4),
            "client" if capacity == 1 else "server",
            2,
            SLOTS,
            layout.PAGE,
            FEC if fec else OFF,
            capacity,
        )
        self.memory = SharedMemory(self.plan)
        self.processes = {worker.name: Process(worker, []) for worker in self.plan.workers}
        limits = Limits(SECOND, SECOND, RestartPolicy(1, 1.0))
        self.lifecycle = Lifecycle([(worker.name, worker.kind) for worker in self.plan.workers], limits)
        self.lifecycle.phase = Phase.RUNNING
        self.spares: list[dict[str, Any]] = []
        self.rolling: dict[str, Any] = {"left": [], "error": ""}
        self.failures = 0
        self.peers: list[dict[str, Any]] = []
        self.role: dict[str, Any] = {"server": None, "notes": []}
        self.device: dict[str, Any] = {"name": "tun9", "notes": [], "left_out": []}

    def snapshot(self) -> dict[str, Any]:
        about = {
            "version": "1.2",
            "pid": 4711,
            "state": self.lifecycle.phase,
            "failures": self.failures,
            "started_ns": NOW - 90 * SECOND,
            "workers": {
                name: {"pid": process.pid, "cores": process.cores, "state": worker.state, "restarts": worker.restarts}
                for (name, process), worker in zip(self.processes.items(), self.lifecycle.workers.values(), strict=True)
            },
            "spares": self.spares,
            "rolling": self.rolling,
            "device": self.device,
            "peers": self.peers,
            "peers_left_out": 0,
            **self.role,
        }
        taken = snapshot.build(about, self.plan, self.memory, CpuMeter(), NOW)
        return json.loads(json.dumps(taken))  # it must cross the control socket

    def stage(self, name: str, worker: str, duty: str) -> StageView:
        plan = next(each for each in self.plan.rings if each.name == name)
        place = plan.position_of(StageMember(worker, duty))
        return StageView(self.memory.rings[name], place.number, place.before, place.first)

    def page(self, worker: str) -> scoreboard.WorkerPage:
        return self.memory.scoreboard.pages[self.plan.worker(worker).page]

    def publish_link(self, lane: int, peer: int, **words: int) -> None:
        """Write a tcp worker's link record of a peer."""
        for name, value in words.items():
            at = peer * RECORD_WORDS + getattr(layout, f"LINK_{name.upper()}")
            self.memory.peer_table.links[lane][at] = value

    def has_started(self, worker: str) -> Process:
        """Its life cycle goes on as if the worker ran; no process is there."""
        self.lifecycle.workers[worker].state = WorkerState.RUNNING
        return self.processes[worker]

    def close(self) -> None:
        for each in self.memory.rings.values():
            each.close()
        self.memory.peer_table.close()
        self.memory.scoreboard.close()
        self.memory.unlink()


@pytest.fixture
def running() -> Iterator[Running]:
    with closing(Running()) as made:
        yield made


def test_a_status_names_its_instance(running: Running) -> None:
    taken = running.snapshot()
    assert {key: taken[key] for key in ("schema_version", "name", "mode", "state", "pid", "tun_name")} == {
        "schema_version": 2,
        "name": "statustest",
        "mode": "client",
        "state": "running",
        "pid": 4711,
        "tun_name": "tun9",
    }
    assert taken["uptime_seconds"] == 90.0
    assert taken["run"] == running.plan.run_id


def test_every_key_of_a_status_is_documented(running: Running) -> None:
    """docs/status.md; tests/netns has the same for real answers."""
    lists = {name.partition("[]")[0] for name in KEYS if "[]" in name}
    assert set(keys_of(running.snapshot())) - set(KEYS) - lists == set()


def test_a_status_has_every_worker_in_start_order_with_every_promised_key(running: Running) -> None:
    workers = running.snapshot()["workers"]
    assert [w["name"] for w in workers] == ["tcp-0", "tcp-1", "tun-0", "tun-1"]
    assert [(w["kind"], w["lane"]) for w in workers] == [("tcp", 0), ("tcp", 1), ("tun", 0), ("tun", 1)]
    for worker in workers:
        assert set(worker) >= {
            "name",
            "kind",
            "lane",
            "pid",
            "state",
            "restarts",
            "deaths",
            "heartbeat_age_ms",
            "cpu_percent",
            "rss_bytes",
        }


def test_a_worker_that_has_not_started_has_no_heartbeat(running: Running) -> None:
    worker = running.snapshot()["workers"][0]
    assert (worker["state"], worker["pid"], worker["heartbeat_age_ms"]) == ("stopped", 0, None)


def test_a_heartbeat_is_as_old_as_that_of_the_more_silent_duty(running: Running) -> None:
    page = running.page("tcp-1")
    page.heartbeat("outbound")[0] = NOW - 3 * SECOND
    page.heartbeat("inbound")[0] = NOW - SECOND
    assert running.snapshot()["workers"][1]["heartbeat_age_ms"] == 3000.0


def test_the_age_of_a_heartbeat_later_than_now_is_not_negative(running: Running) -> None:
    for duty in layout.DUTIES:
        running.page("tun-0").heartbeat(duty)[0] = NOW + 1000
    assert running.snapshot()["workers"][2]["heartbeat_age_ms"] == 0.0


def test_a_status_has_every_ring_with_the_depth_before_each_member(running: Running) -> None:
    first = running.stage("plain-0", "tun-0", "outbound")
    first.advance(3)
    running.stage("plain-0", "tcp-1", "outbound").advance(2)
    rings = {each["name"]: each for each in running.snapshot()["rings"]}
    assert list(rings) == ["plain-0", "plain-1", "light-0", "light-1", "inbound-0", "inbound-1"]
    assert rings["plain-0"] == {
        "name": "plain-0",
        "kind": "plain",
        "lane": 0,
        "capacity": SLOTS,
        "stages": [
            {"duty": "outbound", "depth": {"tun-0": 0}},
            {"duty": "outbound", "depth": {"tcp-0": 3, "tcp-1": 1}},
        ],
    }


def test_with_fec_each_lane_has_two_more_rings_and_one_has_a_stage_of_its_worker() -> None:
    running = Running(fec=True)
    try:
        rings = {each["name"]: each for each in running.snapshot()["rings"]}
        assert [list(stage["depth"]) for stage in rings["coded-1"]["stages"]] == [
            ["tun-1"],
            ["fec-1"],
            ["tcp-0", "tcp-1"],
        ]
        assert {each["kind"] for each in rings.values()} == {"plain", "light", "coded", "inbound", "decoded"}
    finally:
        running.close()


def test_a_status_has_every_counter_as_the_sum_over_workers(running: Running) -> None:
    running.page("tun-0").counters[ID["tun.packets_read"]] = 3
    running.page("tun-1").counters[ID["tun.packets_read"]] = 4
    counters = running.snapshot()["counters"]
    assert list(counters) == [c.name for c in COUNTERS]
    assert counters["tun.packets_read"] == 7


def test_connections_are_those_of_tcp_workers_that_run(running: Running) -> None:
    connection = ConnectionStatus(
        "established",
        "192.0.2.1:9000",
        1,
        8,
        100,
        200,
        NOW - 2 * SECOND,
        NOW - SECOND // 2,
        1500,
        framing.LIGHT,
        3,
        7,
        90,
        2,
        "cubic",
    )
    running.memory.peer_table.write_status_row(0, 0, connection)
    running.memory.peer_table.write_status_row(1, 3, connection._replace(serial=9, state="handshake"))
    assert running.snapshot()["connections"] == []  # those of a dead worker
    running.has_started("tcp-0")
    assert running.snapshot()["connections"] == [
        {
            "worker": "tcp-0",
            "serial": 8,
            "state": "established",
            "address": "192.0.2.1:9000",
            "peer": 3,
            "lane": 1,
            "traffic_class": "light",
            "sent_bytes": 100,
            "received_bytes": 200,
            "age_seconds": 2.0,
            "last_received_ms_ago": 500,
            "rtt_ms": 1.5,
            "resent_segments": 7,
            "sent_segments": 90,
            "congestion": "cubic",
            "uplink": 1,
        }
    ]


def test_a_connection_that_has_begun_and_received_later_than_now_has_no_negative_age(running: Running) -> None:
    later = NOW + SECOND
    connection = ConnectionStatus("established", "192.0.2.1:9000", 0, 8, 0, 0, later, later, 0, framing.BULK, 0)
    running.memory.peer_table.write_status_row(0, 0, connection)
    running.has_started("tcp-0")
    (row,) = running.snapshot()["connections"]
    assert (row["age_seconds"], row["last_received_ms_ago"]) == (0, 0)


def test_each_uplink_has_its_own_connections_and_its_own_trouble() -> None:
    given = {"uplinks": ["eth0", {"interface": "wwan0", "role": "backup"}]}
    config = parse({"mode": "client", "remote_addr": "hub.test:443", "encryption": "none"} | given)
    trouble = ServerTrouble(config.named_uplinks)
    trouble.take({"lane": 0, "uplink": 1, "trouble": "no answer", "failures": 2, "since_ns": NOW}, 1)
    known = trouble.status(config, Server(*config.remote_endpoint))
    assert known["trouble"] == ["wwan0: no answer"]
    assert known["uplinks"] == [
        {"interface": "eth0", "role": "main", "connections_wanted": 5, "trouble": []},
        {"interface": "wwan0", "role": "backup", "connections_wanted": 3, "trouble": ["no answer"]},
    ]


def test_an_uplink_carries_if_its_path_does_and_a_connection_stands(running: Running) -> None:
    uplinks = [{"interface": name} for name in ("eth0", "eth1", "wwan0")]
    running.role = {"server": SERVER | {"uplinks": uplinks}, "notes": []}
    rates = Paths((), (), {0: 5e6, 1: 0.0, 2: 1e6}, frozenset({0, 1})).pack()[2]
    running.memory.peer_table.paths[0][PATH_RATES] = rates
    assert [each["carries"] for each in running.snapshot()["server"]["uplinks"]] == [False, False, False]
    running.has_started("tcp-0")
    for row, uplink_row in enumerate((1, 2, 3)):
        status = ConnectionStatus("established", "192.0.2.1:9000", 0, 8, 0, 0, NOW, NOW, 0, framing.BULK, 0)
        running.memory.peer_table.write_status_row(0, row, status._replace(uplink_row=uplink_row))
    assert [each["carries"] for each in running.snapshot()["server"]["uplinks"]] == [True, False, False]


@given(st.integers(0, U64 - 1), st.integers(0, U64 - 1), st.integers(0, U64 - 1))
def test_a_depth_seen_from_outside_is_never_more_than_the_ring_has(before: int, other: int, own: int) -> None:
    assert 0 <= depth([before, other], own, SLOTS) <= SLOTS


@pytest.mark.parametrize(
    ("before", "own", "expected"),
    [([7], 5, 2), ([7, 6], 5, 1), ([5], 5, 0), ([4], 5, 0), ([9], 5, 4), ([10], 5, 0), ([1], U64 - 2, 3)],
)
def test_a_depth_is_the_distance_to_the_slowest_before(before: list[int], own: int, expected: int) -> None:
    assert depth(before, own, SLOTS) == expected


def test_the_text_shows_instance_workers_rings_connections_and_counters(running: Running) -> None:
    running.stage("plain-0", "tun-0", "outbound").advance(3)
    running.page("tun-0").counters[ID["tun.dropped_link_down"]] = 12
    running.has_started("tcp-0").cores = [2]
    running.memory.peer_table.write_status_row(
        0, 0, ConnectionStatus("established", "192.0.2.1:9000", 0, 8, 2_500_000, 0, NOW, NOW, 0, framing.BULK, 0)
    )
    text = verbose(running.snapshot())
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "client running up 1m30s device tun9 pid 4711 version 1.2" in lines
    assert "plain-0 4 tcp-0 3 tcp-1 3" in lines
    assert "tun.dropped_link_down 12" in lines
    assert any(line.startswith("tun-1 stopped - 0 - 0 % 0 B any") for line in lines)
    assert any(line.startswith("192.0.2.1:9000 tcp-0 bulk established 2.5 MB 0 B") for line in lines)
    assert "tun.packets_read" not in text
    assert not any(line != line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({}, "fec auto, now no parity (at most 10 + 3): the other end accepts no shards, or is not connected"),
        (
            {"established": 5, "accepts_shards": 0, "requests": PARITY[3]},
            "fec auto, now no parity (at most 10 + 3): the other end accepts no shards, or is not connected",
        ),
        ({"established": 5, "accepts_shards": 1}, "fec auto, now no parity (at most 10 + 3)"),
        (
            {"established": 5, "accepts_shards": 1, "requests": PARITY[2]},
            "fec auto, now 10 + 2 shards a block (at most 10 + 3)",
        ),
        (
            {"established": 5, "accepts_shards": 1, "requests": LinkRequests(0, 2, 0).pack()},
            "fec auto, now no parity (at most 10 + 3), light packets 3 times",
        ),
        (
            {"established": 5, "accepts_shards": 1, "requests": LinkRequests(3, 2, 4321).pack()},
            "fec auto, now 10 + 3 shards a block (at most 10 + 3), light packets 3 times, 4.3 ms apart",
        ),
    ],
)
def test_the_text_shows_how_blocks_are_cut_now(words: dict[str, int], line: str) -> None:
    running = Running(fec=True)
    try:
        running.publish_link(1, 0, **words)
        assert line in brief(running.snapshot()).splitlines()
        assert line in verbose(running.snapshot()).splitlines()
    finally:
        running.close()


def test_with_several_peers_a_status_counts_them_and_has_the_highest_parity() -> None:
    running = Running(fec=True, capacity=5)
    try:
        running.publish_link(0, 1, established=2, accepts_shards=1, requests=PARITY[1])
        running.publish_link(1, 1, established=1, accepts_shards=1, requests=PARITY[1])
        running.publish_link(1, 4, established=3, accepts_shards=1, requests=LinkRequests(3, 2, 1500).pack())
        taken = running.snapshot()
        assert (taken["peers_connected"], taken["peers_max"]) == (2, 5)
        assert (taken["fec"]["parity"], taken["fec"]["peer_accepts_shards"]) == (3, True)
        assert (taken["fec"]["copies"], taken["fec"]["spacing_ms"]) == (2, 1.5)
        running.publish_link(0, 0, established=1, accepts_shards=0)
        taken = running.snapshot()
        assert taken["peers_connected"] == 3
        assert (taken["fec"]["parity"], taken["fec"]["peer_accepts_shards"]) == (3, False)
    finally:
        running.close()


@pytest.mark.parametrize(
    ("peers", "line"),
    [
        ([("AES-256-GCM", 4, 3)], "encrypted with AES-256-GCM, epoch 4 out, 3 in"),
        ([("TLS", 0, 0)], "encrypted with TLS"),
        ([("none", 0, 0)] * 2, "not encrypted"),
        (
            [("AES-256-GCM", 1, 1)] * 2 + [("ChaCha20-Poly1305", 0, 0), ("", 0, 0)],
            "encrypted with AES-256-GCM (2 peers), ChaCha20-Poly1305 (1 peer)",
        ),
        ([("", 0, 0)], ""),
    ],
)
def test_the_text_says_how_packets_are_encrypted(
    running: Running, peers: list[tuple[str, int, int]], line: str
) -> None:
    taken = running.snapshot()
    taken["peers"] = [peer("ann", encryption=name, sent_epoch=out, received_epoch=into) for name, out, into in peers]
    for text in (brief(taken), verbose(taken)):
        found = [each for each in text.splitlines() if "encrypted" in each]
        assert found == ([line] if line else [])
    taken["peers"] = [peer("ann")]  # an instance of an older version
    assert "encrypted" not in brief(taken)


def test_the_verbose_text_of_a_server_has_the_encryption_of_each_peer(running: Running) -> None:
    taken = running.snapshot() | {"mode": "server"}
    taken["peers"] = [
        peer("ann", encryption="AES-256-GCM", sent_epoch=4, received_epoch=3),
        peer("bob", encryption=""),
        peer("cyd"),
    ]
    lines = verbose(taken).splitlines()
    head = next(at for at, line in enumerate(lines) if line.startswith("peer ") and line.endswith("encryption"))
    assert [line.split("  ")[-1].strip() for line in lines[head : head + 4]] == [
        "encryption",
        "AES-256-GCM, epoch 4 out, 3 in",
        "-",
        "-",
    ]


def test_a_status_shows_how_flows_are_spread_over_lanes(running: Running) -> None:
    for lane, (flows, sent, received) in enumerate(((3, 3_000, 0), (1, 1_000, 500))):
        counters = running.page(f"tun-{lane}").counters
        for name, value in (("flows_counted", flows), ("bytes_read", sent), ("bytes_written", received)):
            counters[ID[f"tun.{name}"]] = value
    running.processes["tcp-1"].cores = [4, 5]
    running.processes["tun-1"].cores = [2]
    taken = running.snapshot()
    assert [(each["lane"], each["cores"], each["flows"]) for each in taken["lanes"]] == [(0, [], 3), (1, [2, 4, 5], 1)]
    text = verbose(taken)
    assert "lane  cores  flows  from TUN       to TUN" in text
    assert "0     any    3      3.0 kB (75 %)  0 B (0 %)" in text
    assert "1     2,4,5  1      1.0 kB (25 %)  500 B (100 %)" in text


def test_with_one_lane_there_is_nothing_to_spread(running: Running) -> None:
    taken = running.snapshot()
    taken["lanes"] = taken["lanes"][:1]
    assert "from TUN" not in verbose(taken)


def test_a_half_of_a_worker_is_as_alive_as_its_only_duty(running: Running) -> None:
    running.plan = running.plan._replace(
        workers=[
            each._replace(doorbells={"inbound": each.doorbells["inbound"]}) if each.name == "tun-0" else each
            for each in running.plan.workers
        ]
    )
    running.page("tun-0").heartbeat("inbound")[0] = NOW - SECOND
    (row,) = [each for each in running.snapshot()["workers"] if each["name"] == "tun-0"]
    assert (row["duties"], row["heartbeat_age_ms"]) == (["inbound"], 1000.0)


def test_the_text_says_that_there_is_no_connection(running: Running) -> None:
    assert "no connection" in verbose(running.snapshot()).splitlines()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (U64, "18.4 EB"), (10**22, "10000.0 EB")],
)
def test_amounts(size: int, text: str) -> None:
    assert amount(size) == text


def test_the_text_shows_spares_and_a_rolling_restart(running: Running) -> None:
    assert "spares: none\n" in verbose(running.snapshot())
    running.spares = [
        {"kind": "tcp", "pid": os.getpid(), "state": "waiting"},
        {"kind": "tun", "pid": 0, "state": "importing"},
    ]
    running.rolling = {"left": ["tcp-1", "tun-0"], "error": ""}
    shown = verbose(running.snapshot())
    assert re.search(r"spares: tcp waiting, [0-9.]+ MB; tun importing, 0 B\n", shown)
    assert "rolling restart: still to be replaced: tcp-1, tun-0\n" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (184, "3m04s"),
        (3600, "1h00m"),
        (18_360, "5h06m"),
        (86_400, "1d00h"),
        (633_600, "7d08h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- the memory that it reads


def test_shared_memory_creates_and_unlinks_every_name_of_the_plan(running: Running) -> None:
    plan: Plan = running.plan
    scoreboard.attach(plan.scoreboard, 4).close()
    peer_table.attach(
        plan.peer_table.segment, plan.peer_table.capacity, plan.lanes, plan.peer_table.status_rows
    ).close()
    for each in plan.rings:
        ring.attach(each.segment, each.members, each.slots, each.slot_bytes).close()
    for worker in plan.workers:
        for duty, name in worker.doorbells.items():
            doorbell.Doorbell(name, running.page(worker.name).sleeping(duty), owner=False).close()
    running.memory.unlink()
    for name in (plan.scoreboard, plan.peer_table.segment, *(each.segment for each in plan.rings)):
        with pytest.raises(Exception, match="expected, not found"):
            segment.attach(name, 0)


def test_shared_memory_that_cannot_be_created_in_full_leaves_nothing_behind(running: Running) -> None:
    plan = running.plan
    plan = plan._replace(
        run_id="x",
        scoreboard=plan.scoreboard + "x",
        event_log=plan.event_log + "x",
        overview=plan.overview + "x",
        peer_table=plan.peer_table._replace(segment=plan.peer_table.segment + "x"),
        rings=[each._replace(segment=each.segment + "x") for each in plan.rings],
    )
    with pytest.raises(Exception, match="cannot be created"):
        SharedMemory(plan)  # its doorbells' names are taken
    for name in (plan.scoreboard, plan.peer_table.segment, *(each.segment for each in plan.rings)):
        with pytest.raises(Exception, match="expected, not found"):
            segment.attach(name, 0)


def test_failures_that_the_supervisor_has_survived_are_shown(running: Running) -> None:
    assert running.snapshot()["supervisor_failures"] == 0 and "failure(s)" not in brief(running.snapshot())
    running.failures = 2
    assert "the supervisor has survived 2 failure(s) of its own" in brief(running.snapshot())


# -- what is wrong


SERVER: dict[str, Any] = {
    "host": "hub.test",
    "port": 443,
    "connections_wanted": 2,
    "trouble": [],
    "failed_attempts": 0,
    "trouble_since_ns": 0,
}


def test_a_client_without_connections_says_why_in_one_line_and_what_to_do_in_the_next(running: Running) -> None:
    running.role["server"] = SERVER | {
        "trouble": ["connection refused"],
        "failed_attempts": 3,
        "trouble_since_ns": NOW - 130 * SECOND,
    }
    first, second = brief(running.snapshot()).splitlines()
    assert first == "statustest: not connected: hub.test port 443: connection refused, for 2 min (3 failed attempts)"
    assert second == "Check that the server runs, and that the port in remote_addr is its port."
    assert running.snapshot()["works"] is False and first.endswith(running.snapshot()["sentence"])
    assert running.snapshot()["advice"] == second


def test_reasons_of_many_lanes_and_many_notes_stay_few_lines(running: Running) -> None:
    running.role = {"server": SERVER | {"trouble": [f"reason {n}" for n in range(9)]}, "notes": ["last"]}
    running.device["notes"] = [f"word {n}" for n in range(9)]
    first, advice, *notes = brief(running.snapshot()).splitlines()
    assert first.endswith("hub.test port 443: reason 0; reason 1; and 7 more") and "doctor" in advice
    assert notes == [*(f"note: word {n}" for n in range(5)), "note: 5 more: status --json has them all"]
    assert running.snapshot()["notes"][-1] == "last"


@pytest.mark.parametrize(
    "wrong",
    [
        {"lane": 2},
        {"lane": -1},
        {"lane": "0"},
        {"lane": [0]},
        {"uplink": 1},
        {"uplink": -1},
        {"trouble": 7},
        {"trouble": None},
        {"failures": "many"},
        {"failures": None},
        {"since_ns": []},
    ],
)
def test_a_report_of_a_broken_worker_is_invalid_and_leaves_what_was_known(wrong: dict[str, Any]) -> None:
    trouble = ServerTrouble()
    config = parse({"mode": "client", "remote_addr": "hub.test:443", "encryption": "none"})
    report: Any = {
        "lane": 0,
        "uplink": 0,
        "trouble": "no route\n" + "x" * 10_000,
        "failures": 4,
        "since_ns": NOW - SECOND,
    }
    trouble.take(report, 2)
    with pytest.raises(INVALID):
        trouble.take(report | wrong, 2)
    known = trouble.status(config, Server(*config.remote_endpoint))
    assert (known["host"], known["port"], known["failed_attempts"]) == ("hub.test", 443, 4)
    assert known["trouble_since_ns"] == NOW - SECOND
    (reason,) = known["trouble"]
    assert reason.startswith("no route\\n") and len(reason) < 400
