"""bench coexist and bench fec, as short as possible, with blocks in datagrams."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tools.bench import coexist, loss
from tools.lab import congestion

pytestmark = [pytest.mark.tools, pytest.mark.alone, pytest.mark.slow]


def measured(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    status = main([*words, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert status == 0, result
    assert result["schema_version"] == 1 and result["left_behind"] == []
    return result


def test_ours_and_a_bare_flow_share_a_link(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machines = congestion.DEFAULT.read_text().strip()  # a test may set no other: it is in a network of its own
    monkeypatch.setattr(coexist, "INSIDE", machines)
    monkeypatch.setattr(coexist, "OTHERS", (machines,))
    monkeypatch.setattr(coexist, "WARM_UP_SECONDS", 1.0)
    found = measured(coexist.main, capsys, "--seconds", "1", "--queue", "1", "--only", "udp")
    (cell,) = found["cells"]
    (ours,), (other,) = cell["ours"], cell["other"]
    assert 0 < ours < found["rate_mbit"] and 0 < other < found["rate_mbit"]


def test_a_row_of_datagrams_has_processor_time_for_each_gigabyte(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loss, "WARM_UP_SECONDS", 0.5)
    found = measured(loss.main, capsys, "--seconds", "1", "--scenario", "reorder-5", "--only", "udp")
    (cell,) = found["cells"]
    assert cell["beside"]["bulk_mbit"] > 0
    assert cell["beside"]["client_cpu"] > 0 and cell["beside"]["server_cpu"] > 0
    assert cell["counters"]["client"]["dgram.segments_sent"] > 0
