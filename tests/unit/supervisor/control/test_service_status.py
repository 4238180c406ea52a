"""The line for `systemctl status`: true, short, and rarely sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.counters import ID
from pipeline.supervisor.control.service_status import CARRIED, CHECK_NS, RATE_NS, ServiceStatus, describe

FRA = {"host": "fra1.example.org", "trouble": []}


class Memory:
    """So many peers connected, so many bytes carried."""

    def __init__(self) -> None:
        self.connected, self.carried, self.by = 1, 0, ID["tcp.bytes_sent"]
        self.peer_table = SimpleNamespace(capacity=100, established_count=lambda peer: int(peer < self.connected))

    @property
    def scoreboard(self) -> SimpleNamespace:
        return SimpleNamespace(pages=[SimpleNamespace(counters=dict.fromkeys(CARRIED, 0) | {self.by: self.carried})])


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/somewhere")
    said: list[str] = []
    status, memory = ServiceStatus(said.append), Memory()

    def look(now: int, server: Any = None) -> str:
        said.clear()
        status.tick(memory, lambda: {"server": server}, now)
        assert len(said) <= 1
        return said[0] if said else ""

    return SimpleNamespace(look=look, memory=memory)


def test_a_client_says_where_it_is_connected_or_why_it_is_not() -> None:
    assert describe(FRA, 1) == "connected to fra1.example.org"
    assert describe(FRA, 0) == "not connected to fra1.example.org"
    trouble = FRA | {"trouble": ["the key is\nnot known"]}
    assert describe(trouble, 0) == "not connected to fra1.example.org: the key is not known"


def test_a_server_says_how_many_peers_are_connected() -> None:
    assert [describe(None, number) for number in (0, 1, 12)] == [
        "0 peers connected",
        "1 peer connected",
        "12 peers connected",
    ]


@pytest.mark.parametrize("by", ["tcp.bytes_sent", "tcp.bytes_received", "dgram.bytes_sent", "dgram.bytes_received"])
def test_the_rate_is_that_since_the_line_before_in_two_digits(line: Any, by: str) -> None:
    line.memory.by = ID[by]
    assert line.look(1) == "STATUS=1 peer connected"
    line.memory.carried += 1_284_000_000  # in 30 s: 342.4 Mbit/s
    assert line.look(1 + RATE_NS) == "STATUS=1 peer connected, 340 Mbit/s"
    assert line.look(1 + 2 * RATE_NS) == "STATUS=1 peer connected, idle"


def test_the_same_line_is_not_sent_again_and_a_changing_rate_rarely(line: Any) -> None:
    line.look(1)
    for number in range(1, RATE_NS // CHECK_NS):
        line.memory.carried += 10_000_000
        assert line.look(1 + number * CHECK_NS) == ""
    assert "Mbit/s" in line.look(1 + RATE_NS)
    assert line.look(2 + 2 * RATE_NS) == "STATUS=1 peer connected, idle"
    assert line.look(3 + 3 * RATE_NS) == ""


def test_news_are_told_at_the_next_look(line: Any) -> None:
    line.look(1)
    line.memory.connected = 2
    assert line.look(1 + CHECK_NS - 1) == ""
    assert line.look(1 + CHECK_NS).startswith("STATUS=2 peers connected")


def test_without_a_service_manager_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    ServiceStatus(pytest.fail).tick(SimpleNamespace(), pytest.fail, 1)
