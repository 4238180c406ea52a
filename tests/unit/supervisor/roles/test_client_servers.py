"""The servers of a client as its supervisor keeps them: what workers are told, what they may say, and SRV records."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipeline.config import Config, parse
from pipeline.policy.server_choice import GRACE_NS, Server
from pipeline.supervisor.roles import srv_lookup
from pipeline.supervisor.roles.client_servers import ClientServers
from tests.harness.settings import WORKER_SETTINGS
from tests.support import eventually

A, B = "192.0.2.1:9000", "b.example.org:9001"


def config(*remotes: str, **settings: Any) -> Config:
    return parse({"mode": "client", "remote_addr": list(remotes) if len(remotes) > 1 else remotes[0], **settings})


class Kept:
    """Servers, and the events that were recorded."""

    def __init__(self, *remotes: str, **settings: Any) -> None:
        self.events: list[tuple[str, str, str]] = []
        self.servers = ClientServers(config(*remotes, **settings), lambda *event: self.events.append(event))
        self.now = time.monotonic_ns()

    def settings(self) -> Any:
        return self.servers.with_servers(WORKER_SETTINGS)

    def report(self, lane: int, *visits: list[Any], lanes: int = 1) -> None:
        self.servers.take({"lane": lane, "visits": list(visits)}, lanes)

    def step(self, ns: int = 0) -> Any:
        self.now += ns
        return self.servers.step(self.now)


def standing(number: int, count: int = 8) -> list[Any]:
    return [number, count, 8, False, False, 0, ""]


def gone(number: int) -> list[Any]:
    return [number, 0, 8, False, False, 1, "connection refused"]


def test_a_client_with_one_server_is_told_nothing_of_others() -> None:
    kept = Kept(A)
    assert kept.settings() == WORKER_SETTINGS and kept.step() is None
    assert kept.servers.present == Server("192.0.2.1", 9000)
    assert kept.servers.status() == {"why": "", "why_since_ns": 0, "list": []}
    assert kept.servers.is_present(1234)


def test_workers_are_told_of_the_present_server_and_of_the_one_that_stands_by() -> None:
    kept = Kept(A, B)
    number = kept.settings().session
    kept.report(0, standing(number))
    kept.step()
    settings = kept.settings()
    assert (settings.remote_host, settings.remote_port, settings.session) == ("192.0.2.1", 9000, number)
    assert settings.has_others and settings.reserve[:2] == ("b.example.org", 9001) and not settings.reserve.is_complete
    assert settings.reserve.session > number


def test_a_lost_server_is_left_with_an_event_and_a_reason() -> None:
    kept = Kept(A, B)
    number = kept.settings().session
    kept.report(0, standing(number))
    kept.step()
    kept.report(0, gone(number))
    move = kept.step(GRACE_NS)
    assert move.visit.server == Server("b.example.org", 9001) and kept.servers.present == move.visit.server
    assert kept.settings().session == move.visit.number > number
    ((kind, subject, text),) = kept.events
    assert (kind, subject) == ("moved", B) and A in text and "connection refused" in text
    assert [each["state"] for each in kept.servers.status()["list"]] == ["", "current"]


def test_lanes_are_counted_together() -> None:
    kept = Kept(A, B)
    number = kept.settings().session
    kept.report(0, standing(number, 4), lanes=2)
    kept.report(1, standing(number, 4), lanes=2)
    kept.step()
    kept.report(0, gone(number), lanes=2)
    assert kept.step(10 * GRACE_NS) is None, "the other lane has connections"
    kept.report(1, gone(number), lanes=2)
    assert kept.step() is not None


@pytest.mark.parametrize(
    "report",
    [
        {"lane": 1, "visits": []},
        {"lane": "0", "visits": []},
        {"lane": 0, "visits": [[1]]},
        {"lane": 0, "visits": [standing(number) for number in range(9)]},
        {"lane": 0, "visits": [["x", 1, 1, 0, 0, 0, ""]]},
        {"lane": 0, "visits": 7},
    ],
    ids=str,
)
def test_a_report_of_a_worker_that_runs_amok_is_refused(report: Any) -> None:
    kept = Kept(A, B)
    with pytest.raises((ValueError, TypeError)):
        kept.servers.take(report, 1)


def test_words_of_a_worker_are_cut_and_made_printable() -> None:
    kept = Kept(A, B)
    number = kept.settings().session
    kept.report(0, standing(number))
    kept.step()
    kept.report(0, [number, 0, 8, False, False, 1, "\x1b[31m" + "x" * 9999])
    kept.step(GRACE_NS)
    assert "\x1b" not in kept.events[0][2] and len(kept.events[0][2]) < 600


def test_addresses_are_remembered_for_the_server_that_they_belong_to() -> None:
    kept = Kept(A, B)
    number = kept.settings().session
    kept.report(0, standing(number))
    kept.step()
    reserve = kept.settings().reserve.session
    assert (
        kept.servers.server_of(reserve).host == "b.example.org" and kept.servers.server_of(number).host == "192.0.2.1"
    )
    kept.servers.remember("b.example.org", "192.0.2.77")
    kept.servers.remember("192.0.2.1", "192.0.2.1")
    assert kept.servers.known == [] and kept.settings().reserve.known_servers == ["192.0.2.77"]


def test_behind_a_proxy_addresses_are_those_of_the_proxy_whichever_server_was_dialed() -> None:
    servers = Kept("fra.test:1", "ams.test:1", proxy="http://proxy.test:3128").servers
    servers.remember("ams.test", "192.0.2.7")
    assert servers.known == ["192.0.2.7"]
    servers.reload(config("fra.test:1", "ams.test:1", proxy=""))
    assert servers.known == []
    servers.reload(config("fra.test:1", "ams.test:1", proxy_command=["/usr/bin/nc"]))
    servers.remember("fra.test", "127.0.0.1")
    assert servers.known == []
    servers.reload(config("fra.test:1", "ams.test:1"))
    assert servers.known == []


def test_a_reload_that_takes_the_present_server_off_the_list_makes_the_client_leave_it() -> None:
    kept = Kept(A, B)
    number = kept.settings().session
    kept.report(0, standing(number))
    kept.step()
    reserve = kept.settings().reserve.session
    kept.report(0, standing(number), standing(reserve, 1))
    kept.servers.reload(config(B, "192.0.2.9:9000"))
    kept.step()
    kept.report(0, standing(number), standing(reserve, 8))
    assert kept.step().visit.number == reserve


def test_a_server_that_cannot_stand_by_is_a_note() -> None:
    kept = Kept(A, B)
    number = kept.settings().session
    kept.report(0, standing(number))
    kept.step()
    assert kept.servers.notes == []
    reserve = kept.settings().reserve.session
    kept.report(0, standing(number), [reserve, 0, 1, False, False, 2, "it does not know us"])
    assert kept.servers.notes == [f"server {B} does not stand by: it does not know us"]
    kept.report(0, standing(number), standing(reserve, 1))
    assert kept.servers.notes == []


# -- SRV records


def library(monkeypatch: pytest.MonkeyPatch, resolve: Callable[[str], list[tuple[str, int]]]) -> None:
    """In place of dnspython."""
    names = ModuleType("dns"), ModuleType("dns.exception"), ModuleType("dns.resolver")
    root, exception, resolver = names
    exception.DNSException = type("DNSException", (Exception,), {})

    def answer(name: str, kind: str, lifetime: float) -> Any:
        assert kind == "SRV" and lifetime
        found = resolve(name)
        if not found:
            raise exception.DNSException(f"no records of {name}")
        records = [
            SimpleNamespace(target=SimpleNamespace(to_text=lambda omit_final_dot, host=host: host), port=port)
            for host, port in found
        ]
        return SimpleNamespace(rrset=SimpleNamespace(processing_order=lambda: records))

    resolver.resolve = answer
    root.exception, root.resolver = exception, resolver
    for name, module in zip(("dns", "dns.exception", "dns.resolver"), names, strict=True):
        monkeypatch.setitem(sys.modules, name, module)


def test_srv_records_are_servers_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch, lambda name: [("fra", 9000), ("ams", 9001)])
    kept = Kept("srv:_tunnel._tcp.example.org")
    assert kept.settings().reserve is None or kept.servers.present.host == "fra"
    eventually(lambda: kept.step() is None and kept.servers.present == Server("fra", 9000))
    assert [each["server"] for each in kept.servers.status()["list"]] == ["fra:9000", "ams:9001"]
    kept.servers.close()


def test_a_lookup_that_fails_is_a_note_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[list[tuple[str, int]]] = [[], [("fra", 9000)]]
    monkeypatch.setattr(srv_lookup, "RETRY_SECONDS", 0.01)
    tries: list[str] = []

    def resolve(name: str) -> list[tuple[str, int]]:
        tries.append(name)
        return answers[min(len(tries), len(answers)) - 1] if len(tries) > 3 else []

    library(monkeypatch, resolve)
    kept = Kept(A, "srv:example.org")
    eventually(lambda: kept.servers.notes, what="a note")
    assert "no records of example.org" in kept.servers.notes[0]
    eventually(lambda: not kept.servers.notes, what="an answer")
    kept.step()
    assert [each["server"] for each in kept.servers.status()["list"]] == [A, "fra:9000"]
    kept.servers.close()


def test_records_that_deny_the_service_are_no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 2782: a target of "." means that the service is decidedly not available."""
    library(monkeypatch, lambda name: [(".", 0)])
    assert srv_lookup.look_up("example.org") == ((), srv_lookup.NO_SERVICE)


def test_without_the_library_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns", None)
    monkeypatch.setitem(sys.modules, "dns.exception", None)
    monkeypatch.setitem(sys.modules, "dns.resolver", None)
    assert srv_lookup.look_up("example.org") == ((), srv_lookup.NO_LIBRARY)
