"""The addresses of a client's server are looked up in a thread, again and again until there is an answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from pipeline.supervisor.kernel import server_lookup
from pipeline.supervisor.kernel.server_lookup import ServerLookup
from tests.harness.factory import factory
from tests.support import eventually

ANSWER = [
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1%lo", 0, 0, 1)),
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
]


class Resolver:
    """Fails until it `works`."""

    def __init__(self) -> None:
        self.works = False
        self.asked = 0
        self.waits = threading.Event()
        self.waits.set()

    def getaddrinfo(self, *_: object, **__: object) -> list[Any]:
        self.asked += 1
        self.waits.wait(10)
        if not self.works:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ANSWER


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    made = Resolver()
    monkeypatch.setattr(server_lookup.socket, "getaddrinfo", made.getaddrinfo)
    monkeypatch.setattr(server_lookup, "RETRY_SECONDS", 0.01)
    return made


@pytest.fixture
def look_up() -> Iterator[Callable[[list[str]], ServerLookup]]:
    with factory(ServerLookup) as make:
        yield make


def test_each_address_is_known_once_and_without_its_interface(
    resolver: Resolver, look_up: Callable[[list[str]], ServerLookup]
) -> None:
    resolver.works = True
    lookup = look_up(["hub.test"])
    eventually(lambda: lookup.addresses)
    assert lookup.addresses == (ip_address("fe80::1"), ip_address("192.0.2.1")) and resolver.asked == 1


def test_nobody_waits_for_a_resolver_that_hangs(
    resolver: Resolver, look_up: Callable[[list[str]], ServerLookup]
) -> None:
    resolver.waits.clear()
    assert look_up(["hub.test"]).addresses == ()
    resolver.waits.set()


def test_a_name_without_an_answer_is_looked_up_again_until_there_is_one_or_it_is_closed(
    resolver: Resolver, look_up: Callable[[list[str]], ServerLookup]
) -> None:
    lookup, closed = look_up(["hub.test"]), look_up(["hub.test"])
    eventually(lambda: resolver.asked > 4)
    closed.close()
    eventually(lambda: len(threads()) == 1)
    resolver.works = True
    eventually(lambda: lookup.addresses)
    eventually(lambda: not threads())
    assert closed.addresses == ()


def test_addresses_of_a_name_that_has_an_answer_are_known_while_others_are_looked_up_again(
    resolver: Resolver, look_up: Callable[[list[str]], ServerLookup], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver.works = True
    answer = resolver.getaddrinfo

    def one_fails(host: str, *rest: object, **more: object) -> object:
        if host == "late.test" and resolver.asked < 4:
            resolver.asked += 1
            raise OSError("no answer")
        return answer(host, *rest, **more)

    monkeypatch.setattr(server_lookup.socket, "getaddrinfo", one_fails)
    lookup = look_up(["late.test", "hub.test"])
    eventually(lambda: lookup.addresses)
    eventually(lambda: lookup.is_complete)
    assert lookup.addresses == (ip_address("fe80::1"), ip_address("192.0.2.1"))


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "server lookup"]
