"""Log lines about unauthenticated clients: the first at once, then one for many."""

from __future__ import annotations

import pytest

from workers.tcp.unauthenticated_log import INTERVAL_NS, UnauthenticatedLog

NOW = 1_000_000_000_000


def test_a_flood_gives_one_line_in_each_interval_with_the_number_of_clients(caplog: pytest.LogCaptureFixture) -> None:
    log = UnauthenticatedLog()
    for number in range(1000):
        log.record(f"192.0.2.1:{number}", NOW + number)
    assert [record.getMessage() for record in caplog.records] == [
        "client 192.0.2.1:0 has not proved to be a peer (1 such clients since the last such line)"
    ]
    caplog.clear()
    log.record("192.0.2.2:9", NOW + INTERVAL_NS - 1)
    log.record("192.0.2.3:9", NOW + INTERVAL_NS)
    assert [record.getMessage() for record in caplog.records] == [
        "client 192.0.2.3:9 has not proved to be a peer (1001 such clients since the last such line)"
    ]
