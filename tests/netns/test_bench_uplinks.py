"""bench uplinks over real tunnels, as short as possible."""

from __future__ import annotations

import json

import pytest

from tools.bench import uplinks
from tools.lab import congestion

pytestmark = [pytest.mark.tools, pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplinks, "WARM_UP_SECONDS", 0.5)


def measured(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    status = uplinks.main([*words, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert status == 0, result
    assert result["schema_version"] == 1 and result["left_behind"] == []
    return result


def test_two_uplinks_are_compared_with_each_alone(capsys: pytest.CaptureFixture[str]) -> None:
    machines = congestion.DEFAULT.read_text().strip()  # a test may set no other: it is in a network of its own
    chosen = ["--only", "aggregate", "--paths", "40+10", "--congestion", machines]
    up, down = measured(capsys, "--seconds", "1", *chosen)["aggregate"]
    assert [up["way"], down["way"]] == ["up", "down"]
    for row in (up, down):
        assert len(row["alone"]) == 2
        assert 0 < row["bare"] < 40 and 0 < row["together"] < 50


def test_what_a_pulled_cable_costs_is_measured_for_each_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uplinks, "WAYS", {"up": uplinks.UP})
    monkeypatch.setattr(uplinks, "WHERES", ("end",))
    rows = measured(capsys, "--seconds", "0.5", "--only", "pull")["pull"]
    assert [row["traffic"] for row in rows] == ["tcp", "light", "20 Mbit"]
    assert all(row["gap_ms"] > 0 and row["quiet_gap_ms"] > 0 for row in rows)
    assert [row["sent"] is None for row in rows] == [True, False, False]


def test_a_backup_and_echoes_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(uplinks, "WAYS", {"down": uplinks.DOWN})
    monkeypatch.setattr(uplinks, "WHERES", ("end",))
    result = measured(capsys, "--seconds", "0.5", "--only", "backup", "--only", "idle")
    (row,) = result["backup"]
    assert row["main_bytes"] > row["backup_bytes"]
    assert [each["by"] for each in result["idle"]][-1] == "tunnel, both"
    assert all(each["ping"]["sent"] == 25 for each in result["idle"])
