"""The planned stop of a server: who is told, how long it waits, and what ends the wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.supervisor.commands.departure import Departure

SECOND = 1_000_000_000


class Server:
    """A server with so many clients that have another one."""

    def __init__(self, movers: int, patience: float = 5.0) -> None:
        self.movers = movers
        self.told = 0
        self.stops: list[tuple[int, str]] = []
        self.is_stopping = False
        run: Any = SimpleNamespace(config=SimpleNamespace(move_timeout=patience))
        workforce: Any = SimpleNamespace(stop=self._stop, lifecycle=self)
        self.departure = Departure(run, self, workforce, self._tell)

    def _stop(self, status: int, reason: str) -> None:
        self.is_stopping = True
        self.stops.append((status, reason))

    def _tell(self, message: Any) -> None:
        assert message == {"goaway": True}
        self.told += 1


def test_without_clients_that_can_go_elsewhere_a_stop_is_at_once() -> None:
    server = Server(0)
    server.departure.stop(0, "asked")
    assert server.stops == [(0, "asked")] and not server.told and not server.departure.is_under_way


def test_a_server_that_does_not_wait_tells_nobody() -> None:
    server = Server(3, patience=0)
    server.departure.stop(0, "asked")
    assert server.stops == [(0, "asked")] and not server.told


def test_a_server_stops_when_the_last_client_has_gone() -> None:
    server = Server(2)
    server.departure.stop(0, "asked")
    now = server.departure._until_ns - 5 * SECOND
    for server.movers in (2, 1):
        server.departure.tick(now + SECOND)
        assert not server.stops and server.departure.is_under_way
    server.movers = 0
    server.departure.tick(now + 2 * SECOND)
    server.departure.tick(now + 3 * SECOND)
    assert server.stops == [(0, "asked")] and server.told == 1


@pytest.mark.parametrize("how", ["time", "a second signal", "asked again"])
def test_a_client_that_stays_holds_up_a_stop_for_so_long_or_until_somebody_does_not_want_to_wait(how: str) -> None:
    server = Server(1)
    server.departure.stop(0, "asked")
    assert not server.stops
    if how == "time":
        server.departure.tick(server.departure._until_ns + 1)
    elif how == "asked again":
        server.departure.stop(0, "asked")
    else:
        server.departure.stop_now()
    server.departure.tick(server.departure._until_ns + 1)
    assert server.stops == [(0, "asked")] and not server.departure.is_under_way


def test_an_instance_that_stops_for_another_reason_is_not_waited_for() -> None:
    server = Server(1)
    server.is_stopping = True
    server.departure.stop(0, "asked")
    assert server.stops == [(0, "asked")] and not server.told
