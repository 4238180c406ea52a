"""A client of a hub beside a peer that sends what costs most, at full speed: it keeps its share of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.bench import measure
from tools.bench.hostile import NEIGHBOUR, Hostility
from tools.bench.hub_testbed import SERVER_ADDRESS, open_testbed

SECONDS, CONNECTIONS = 2, 8


@pytest.mark.slow
@pytest.mark.alone
def test_a_hostile_peer_leaves_a_client_about_as_much_as_an_honest_one_that_sends_all_it_can(tmp_path: Path) -> None:
    with open_testbed(tmp_path) as testbed:
        testbed.client("one")
        without = measure.tcp_gbit(testbed.lab["one"], testbed.lab["hub"], SERVER_ADDRESS, SECONDS)
        hostility = Hostility(testbed, SECONDS, lambda _: None)
        rows = {row.kind: row for row in hostility.rows(["run1", "one", "keep"], [CONNECTIONS])}
        counters = testbed.server.running()["counters"]
    closed = {name: count for name, count in counters.items() if name.startswith("tcp.closed") and count}
    assert testbed.left_behind == []
    assert rows[NEIGHBOUR].gbit > without / 10
    for kind, row in rows.items():
        assert row.gbit > 0.35 * rows[NEIGHBOUR].gbit, rows
        assert row.p99_ms < 200, kind
    assert rows["keep"].ended == CONNECTIONS and closed == {"tcp.closed_bare_frames": CONNECTIONS}
    assert rows["run1"].ended == rows["one"].ended == rows[NEIGHBOUR].ended == 0
