"""A glance adds up what a snapshot has in rows: both say the same of one instance."""

from __future__ import annotations

import math
import os
import secrets
import statistics
from array import array
from collections.abc import Iterator

import pytest

from pipeline.observe.glance import Glance, SegmentTotals, rates
from pipeline.observe.observer import Observer
from pipeline.shm import layout
from pipeline.shm.connection_status import ConnectionColumns, ConnectionStatus
from pipeline.wire import framing
from tests.harness.made_run import MadeRun

CAPACITY = 5


@pytest.fixture
def made() -> Iterator[MadeRun]:
    it = MadeRun(f"glance{secrets.token_hex(3)}", mode="server", lanes=2, capacity=CAPACITY)
    for worker in it.plan.workers:
        it.about["workers"][worker.name] |= {"state": "running", "pid": os.getpid()}
    it.publish([{"name": f"peer-{number}", "peer": number} for number in (3, 1, 0, 2)])
    yield it
    it.memory.unlink()


def connect(made: MadeRun, lane: int, row: int, peer: int, **fields: int) -> None:
    status = ConnectionStatus("established", f"192.0.2.{peer}:40000", lane, 100 * lane + row, 1, 2, 3, 4, 0, 0, peer)
    table = made.memory.peer_table
    table.write_status_row(lane, row, status._replace(**fields))
    table.links[lane][peer * layout.RECORD_WORDS + layout.LINK_ESTABLISHED] += 1


def test_a_glance_and_a_snapshot_agree(made: MadeRun) -> None:
    connect(made, 0, 0, 0, rtt_us=10_000, traffic_class=framing.BULK, sent_segments=50, resent_segments=2)
    connect(made, 0, 4, 3, rtt_us=30_000, traffic_class=framing.LIGHT, sent_segments=9)
    connect(made, 1, 1, 3, rtt_us=80_000, traffic_class=framing.LIGHT)
    connect(made, 1, 2, 1, rtt_us=0, traffic_class=framing.BULK)
    made.memory.peer_table.write_status_row(
        1, 7, ConnectionStatus("handshake", "192.0.2.9:1", 1, 9, 1, 2, 3, 4, 70_000, 0, 4)
    )
    for worker in made.plan.workers_of_kind("tun"):
        made.memory.scoreboard.pages[worker.page].counters[0] = 7 + worker.lane
    observer = Observer(made.plan.name)
    taken, whole = observer.glance(), observer.snapshot()
    rows = [each for each in whole["connections"] if each["state"] == "established"]
    assert taken.peers_connected == whole["peers_connected"] == 3
    assert taken.totals() == whole["counters"]
    assert taken.workers == {each["name"]: each["counters"] for each in whole["workers"]}
    assert taken.established_in_all == len(rows) == 4
    for name, traffic_class in (("bulk", framing.BULK), ("light", framing.LIGHT)):
        assert taken.established(traffic_class) == [each["traffic_class"] for each in rows].count(name) == 2
    trips = [each["rtt_ms"] / 1000 for each in rows if each["rtt_ms"]]
    assert taken.round_trips() == pytest.approx((statistics.median(trips), 0.08))
    found = taken.connections["tcp-0"]
    assert (list(found.serials), list(found.sent_segments), list(found.resent_segments)) == ([0, 4], [50, 9], [2, 0])
    outline = observer.outline()
    assert {key: outline[key] for key in ("peers", "connections")} == {"peers": [], "connections": []}
    moves = ("taken_ns", "uptime_seconds", "supervisor", "workers", "peers", "connections")
    assert {key: value for key, value in outline.items() if key not in moves} == {
        key: whole[key] for key in outline if key not in moves
    }
    assert list(observer.peers()) == whole["peers"]
    assert [each["name"] for each in observer.peers(2)] == ["peer-0", "peer-1"]
    assert observer.peers_known == 4
    observer.close()


def test_connections_of_a_dead_worker_do_not_count(made: MadeRun) -> None:
    connect(made, 0, 0, 0, rtt_us=10_000)
    made.about["workers"]["tcp-0"]["state"] = "dead"
    made.publish([{"name": "peer-0", "peer": 0}])
    observer = Observer(made.plan.name)
    taken = observer.glance()
    assert taken.established_in_all == 0 and all(map(math.isnan, taken.round_trips()))
    assert [each["endpoint"] for each in observer.peers()] == [""]
    observer.close()


def glance(seconds: float, **counters: int) -> Glance:
    return Glance(int(1e9 * seconds), {"tun-0": counters}, 0, {})


def test_a_rate_is_the_growth_of_a_counter_in_a_second() -> None:
    assert rates(None, glance(1, a=5)) == {}
    assert rates(glance(1, a=5, b=9), glance(5, a=15, b=2, c=7)) == {"tun-0": {"a": 2.5, "b": 0, "c": 0}}
    assert rates(glance(1, a=5), glance(1, a=6)) == {}


def columns(*rows: tuple[int, int, int]) -> dict[str, ConnectionColumns]:
    """Serials with segments sent and resent."""
    serials, sent, resent = (array("I", each) for each in zip(*rows, strict=True)) if rows else [array("I")] * 3
    return {"tcp-0": ConnectionColumns(serials, serials, serials, resent, sent)}


def test_segments_are_added_up_over_connections_that_come_and_go() -> None:
    totals = SegmentTotals()
    totals.add(columns((1, 100, 5), (2, 10, 0)))
    assert (totals.sent, totals.resent) == (0, 0)
    totals.add(columns((1, 130, 6), (2, 10, 0)))
    assert (totals.sent, totals.resent) == (30, 1)
    totals.add(columns((2, 15, 1), (3, 7, 2)))
    assert (totals.sent, totals.resent) == (42, 4)
    totals.add(columns())
    totals.add({})
    totals.add(columns((9, 1, 1)))
    assert (totals.sent, totals.resent) == (43, 5)
