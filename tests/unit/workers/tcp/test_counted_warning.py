"""Log lines about many clients: the first at once, then one for many."""

from __future__ import annotations

import pytest

from workers.tcp.counted_warning import INTERVAL_NS, CountedWarning

NOW = 1_000_000_000_000


def test_a_flood_gives_one_line_in_each_interval_with_the_number_of_clients(caplog: pytest.LogCaptureFixture) -> None:
    log = CountedWarning("client %s has not proved to be a peer (%d such clients since the last such line)")
    for number in range(1000):
        log.record(NOW + number, f"192.0.2.1:{number}")
    assert [record.getMessage() for record in caplog.records] == [
        "client 192.0.2.1:0 has not proved to be a peer (1 such clients since the last such line)"
    ]
    caplog.clear()
    log.record(NOW + INTERVAL_NS - 1, "192.0.2.2:9")
    log.record(NOW + INTERVAL_NS, "192.0.2.3:9")
    assert [record.getMessage() for record in caplog.records] == [
        "client 192.0.2.3:9 has not proved to be a peer (1001 such clients since the last such line)"
    ]
