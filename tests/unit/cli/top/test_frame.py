"""The frames of `top`: never wider or higher than the terminal, and the truth in few words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from pipeline.cli.top import frame, picture
from pipeline.cli.top.state import PANES, SORTS, State
from pipeline.counters import COUNTERS
from pipeline.observe.rates import NO_RATES, PeerRates, Rates, between
from pipeline.runtime import topology
from pipeline.shm import layout
from tests.harness.settings import WORKER_SETTINGS

GLYPHS = picture.FANCY


def worker(name: str, **changes: Any) -> dict[str, Any]:
    kind, _, lane = name.partition("-")
    fields = {
        "pid": 4711,
        "state": "running",
        "restarts": 0,
        "heartbeat_age_ms": 12.0,
        "process": "sleeping",
        "cpu_percent": 12.0,
        "cpu_seconds": 3.0,
        "rss_bytes": 24_000_000,
        "core": 1,
        "cores": [],
        "counters": {c.name: 0 for c in COUNTERS if c.name.startswith(kind)},
    }
    return {"name": name, "kind": kind, "lane": int(lane), **fields, **changes}


def peer(name: str, **changes: Any) -> dict[str, Any]:
    fields = {
        "peer": 0,
        "state": "connected",
        "addresses": ["10.0.0.2"],
        "allowed": [],
        "rate_mbit": 0.0,
        "bulk_rate_mbit": 0.0,
        "endpoint": "192.0.2.1",
        "connections": 8,
        "sent_bytes": 10,
        "received_bytes": 20,
        "dropped": 0,
        "session_seconds": 90.0,
        "problem": "",
        "rtt_ms": 41.0,
        "resent_segments": 0,
        "sent_segments": 100,
        "fec_data": 10,
        "fec_parity": 2,
        "recovered_blocks": 3,
        "expired_blocks": 0,
    }
    return {"name": name, **fields, **changes}


def snapshot(lanes: int = 1, peers: int = 1, fec: bool = True, carrier: str = "tcp", **changes: Any) -> dict[str, Any]:
    settings = WORKER_SETTINGS._replace(fec="auto" if fec else "off", carrier=carrier)
    plan = topology.build_plan("town", "0123abcd", "server", lanes, 4, layout.PAGE, settings, 2)
    rings = [
        {
            "name": ring.name,
            "kind": ring.kind,
            "lane": ring.lane,
            "capacity": ring.slots,
            "stages": [
                {"duty": stage[0].duty, "depth": {member.worker: 0 for member in stage}} for stage in ring.stages
            ],
        }
        for ring in plan.rings
    ]
    return {
        "name": "town",
        "mode": "server",
        "state": "running",
        "pid": 1,
        "taken_ns": 10**9,
        "tun_name": "tun9",
        "uptime_seconds": 4000.0,
        "supervisor": {"pid": 1, "state": "running", "heartbeat_age_ms": 50.0, "process": "sleeping"},
        "workers": [worker(each.name) for each in plan.workers],
        "rings": rings,
        "peers_connected": peers,
        "peers_max": 100,
        "peers": [peer(f"peer-{n:03}") for n in range(peers)],
        "peers_left_out": 0,
        "server": None,
        "rolling": {"left": [], "error": ""},
        "notes": [],
        "connections": [],
        "counters": {c.name: 0 for c in COUNTERS},
        "events": [],
        **changes,
    }


def event(line: str, **changes: Any) -> dict[str, Any]:
    return {"time": 1_700_000_000.0, "level": "info", "line": line, "more": 0, "kind": "lost", **changes}


START = State()


def drawn(
    taken: dict[str, Any], rates: Rates = NO_RATES, state: State = START, width: int = 80, height: int = 24
) -> list[str]:
    lines = frame.draw(taken, rates, state, GLYPHS, width, height)
    assert len(lines) <= height
    assert all(line.cell_len <= width for line in lines)
    return [line.plain.rstrip() for line in lines]


ANY_TEXT = st.text(max_size=60)
STATES = st.builds(
    State,
    pane=st.sampled_from(PANES),
    sort=st.sampled_from(SORTS),
    is_reversed=st.booleans(),
    is_frozen=st.booleans(),
    shows_help=st.booleans(),
    shows_peer=st.booleans(),
    selected=st.sampled_from(["", "peer-000", "peer-003", "gone"]),
    offset=st.integers(0, 500),
)


@given(
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    lanes=st.sampled_from([1, 2, 16]),
    peers=st.sampled_from([0, 1, 5, 200]),
    fec=st.booleans(),
    state=STATES,
    name=ANY_TEXT,
    line=ANY_TEXT,
    note=ANY_TEXT,
    left_out=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_no_frame_is_wider_or_higher_than_the_terminal(
    width: int,
    height: int,
    lanes: int,
    peers: int,
    fec: bool,
    state: State,
    name: str,
    line: str,
    note: str,
    left_out: int,
) -> None:
    taken = snapshot(
        lanes, peers, fec, notes=[note] * 3, events=[event(line, more=left_out)] * 20, peers_left_out=left_out
    )
    if peers:
        taken["peers"][0].update(name=name, endpoint=name, problem=note)
    taken["counters"].update({c.name: 10**18 for c in COUNTERS})
    drawn(taken, NO_RATES, state, width, height)
    for each in frame.waiting(name, line, width, height):
        assert each.cell_len <= width


def test_the_pipeline_is_drawn_as_it_is_wired() -> None:
    taken = snapshot()
    ring = next(each for each in taken["rings"] if each["kind"] == "coded")
    ring["stages"][1]["depth"]["fec-0"] = 3
    lines = drawn(taken)
    assert " plain    tun-0 ─[··········]   0% ─▶ tcp-0" in lines
    assert " coded    tun-0 ─[████████··]  75% ─▶ fec-0 ─[··········]   0% ─▶ tcp-0" in lines
    assert " inbound  tcp-0 ─[··········]   0% ─▶ tun-0, ─[··········]   0% ─▶ fec-0" in lines
    assert any(line.startswith(" transit ") for line in lines)
    without = "\n".join(drawn(snapshot(fec=False)))
    assert "coded" not in without and "fec-0" not in without


def test_datagrams_have_their_workers_their_rings_and_their_part_of_the_sums() -> None:
    before, after = snapshot(carrier="auto"), snapshot(carrier="auto", taken_ns=2 * 10**9)
    moved = {"tcp.bytes_sent": 125, "dgram.bytes_sent": 1_000_000, "dgram.bytes_received": 250_000}
    after["counters"] |= moved
    (worker,) = (each for each in after["workers"] if each["kind"] == "dgram")
    worker["counters"] |= {name: value for name, value in moved.items() if name.startswith("dgram")}
    lines = drawn(after, between(before, after), width=120, height=40)
    assert "8.0 Mbit/s" in lines[0] and "2.0 Mbit/s" in lines[0]
    (row,) = (line for line in lines if line.startswith(" dgram-0"))
    assert "8.0M " in row and "2.0M " in row
    for ring, ends in (("plain", "dgram-0"), ("arrived", "tun-0"), ("returned", "tcp-0")):
        assert any(line.startswith(f" {ring} ") and ends in line for line in lines)


def test_with_lanes_a_row_shows_the_fullest_ring_and_the_workers_in_trouble() -> None:
    taken = snapshot(lanes=4)
    ring = next(each for each in taken["rings"] if each["name"] == "plain-2")
    ring["stages"][1]["depth"]["tcp-3"] = 4
    next(each for each in taken["workers"] if each["name"] == "tun-1")["process"] = "stopped"
    lines = drawn(taken, width=100)
    assert " plain    4 tun (1 STOPPED) ─[██████████] 100% ─▶ 4 tcp" in lines
    first = lines[1 + next(n for n, line in enumerate(lines) if line.lstrip().startswith("worker "))]
    assert first.split()[:2] == ["tun-1", "STOPPED"]


@pytest.mark.parametrize(
    ("changes", "word", "is_trouble"),
    [
        ({}, "running", False),
        ({"process": "stopped"}, "STOPPED", True),
        ({"process": "zombie"}, "dead", True),
        ({"process": ""}, "dead", True),
        ({"heartbeat_age_ms": 4200.0}, "silent 4s", True),
        ({"state": "backoff", "process": ""}, "dead", True),
        ({"state": "failed"}, "dead", True),
        ({"state": "starting", "heartbeat_age_ms": None}, "starting", False),
        ({"state": "stopping", "heartbeat_age_ms": 9000.0}, "stopping", False),
        ({"heartbeat_age_ms": None}, "running", False),
    ],
)
def test_a_worker_is_shown_as_it_is(changes: dict[str, Any], word: str, is_trouble: bool) -> None:
    found = picture.verdict(worker("tun-0", **changes), True)
    assert (found.word, found.is_trouble) == (word, is_trouble)


def test_where_proc_hides_processes_none_is_taken_for_dead() -> None:
    taken = snapshot()
    for each in (*taken["workers"], taken["supervisor"]):
        each["process"] = ""
    assert "dead" not in "\n".join(drawn(taken))


def test_a_stopped_supervisor_is_told_with_what_it_means() -> None:
    taken = snapshot()
    taken["supervisor"].update(state="stopped", heartbeat_age_ms=65_000.0)
    assert any(
        line.startswith(" ! the supervisor (pid 1) is stopped, silent for 1m05s: packets") for line in drawn(taken)
    )


def test_a_client_says_why_its_connections_do_not_stand() -> None:
    server = {"host": "hub", "connections": 2, "connections_wanted": 8, "trouble": ["connection refused"]}
    assert " ! 2 of 8 connections to hub: connection refused" in drawn(snapshot(server=server, mode="client"))


def test_names_of_peers_are_no_markup_and_no_escape_sequence() -> None:
    taken = snapshot(events=[event("peer [red]\x1b[2J\u202e joined")])
    taken["peers"] = [peer("[bold red]x[/]\x1b[31m")]
    for state in (State(), State(selected=taken["peers"][0]["name"], shows_peer=True)):
        text = "\n".join(drawn(taken, state=state, width=120, height=40))
        assert "\x1b" not in text and "\u202e" not in text
        assert "[bold red]x" in text


def test_two_hundred_peers_and_sixteen_lanes_are_cut_with_a_count() -> None:
    taken = snapshot(lanes=16, peers=200, events=[event(f"event {n}") for n in range(20)])
    text = "\n".join(drawn(taken))
    assert "46 more workers" in text or "47 more workers" in text
    assert "more peers" in text and "more events" in text
    chosen = drawn(taken, state=State(selected="peer-150"), height=40)
    assert any(line.startswith(" >peer-150") for line in chosen)
    focused = "\n".join(drawn(taken, state=State(pane="workers"), height=60))
    assert sum(focused.count(f" {kind}-") for kind in ("tun", "fec", "tcp")) > 30


def test_drops_that_move_come_first_and_those_that_never_were_are_not_shown() -> None:
    before, after = snapshot(), snapshot()
    after["taken_ns"] = 3 * 10**9
    after["counters"]["tun.dropped_no_peer"] = 20
    before["counters"]["tcp.dropped_peer_full"] = after["counters"]["tcp.dropped_peer_full"] = 5000
    lines = drawn(after, between(before, after), width=100)
    assert " drops  tun.dropped_no_peer 20 +10/s  tcp.dropped_peer_full 5.0k" in lines
    assert " drops  none" in drawn(snapshot())


def test_rates_of_peers_order_them_and_stand_in_their_rows() -> None:
    taken = snapshot(peers=3)
    taken["peers"][1]["connections"] = 0
    taken["peers"][1]["state"] = "disabled"  # the longest of all states
    rates = Rates(1.0, {}, {}, {"peer-002": PeerRates(1_250_000.0, 125.0, 3.0, 0.0)})
    rows = [line for line in drawn(taken, rates) if "peer-0" in line]
    assert [row.split()[0] for row in rows] == ["peer-002", "peer-000", "peer-001"]
    assert " 10.0M " in rows[0] and " 1.0k " in rows[0] and "3/s" in rows[0] and "10+2" in rows[0]
    assert rows[2].split()[:3] == ["peer-001", "0", "disabled"]
    by_name = [line.split()[0] for line in drawn(taken, rates, State(sort="name")) if "peer-0" in line]
    assert by_name == ["peer-000", "peer-002", "peer-001"]


def test_the_details_of_a_peer_have_its_connections() -> None:
    connection = {
        "worker": "tcp-0",
        "state": "established",
        "address": "192.0.2.1:4000",
        "peer": 0,
        "traffic_class": "light",
        "sent_bytes": 1000,
        "received_bytes": 2000,
        "last_received_ms_ago": 100,
        "rtt_ms": 41.0,
        "resent_segments": 2,
    }
    taken = snapshot(connections=[connection, {**connection, "peer": 1, "address": "192.0.2.9:1"}])
    taken["peers"][0]["class_bytes"] = {"voice": 0, "normal_light": 2000, "normal_bulk": 3_000_000}
    text = "\n".join(drawn(taken, state=State(selected="peer-000", shows_peer=True)))
    assert "normal light 2.0 kB, normal bulk 3.0 MB" in text and "voice" not in text
    assert "192.0.2.1:4000" in text and "192.0.2.9" not in text and "connected since 1m30s" in text


def test_the_text_for_a_file_has_every_row() -> None:
    lines = frame.draw(snapshot(16, 200), NO_RATES, State(), GLYPHS, 100, frame.UNLIMITED)
    assert all(isinstance(line, Text) for line in lines)
    assert sum("peer-" in line.plain for line in lines) == 200
    assert not any(" more " in line.plain for line in lines)


def test_the_help_fits_a_terminal_of_80_columns_and_24_lines() -> None:
    lines = frame.HELP.strip("\n").split("\n")
    assert max(map(len, lines)) <= 80 and len(lines) <= 22
