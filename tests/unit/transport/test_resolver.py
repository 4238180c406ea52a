"""Addresses of a server that need no resolver."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from pipeline.transport import resolver
from pipeline.transport.resolver import NOT_LISTED, Resolver, ResolverAnswer, known_addresses


def test_addresses_of_both_families_are_known_in_their_order() -> None:
    found = known_addresses(["2001:db8::5", "192.0.2.5"], 9000)
    assert [(each.family, each.host, each.sockaddr[1]) for each in found] == [
        (socket.AF_INET6, "2001:db8::5", 9000),
        (socket.AF_INET, "192.0.2.5", 9000),
    ]


@pytest.mark.parametrize("host", ["", "vpn.example.org", "fe80::1%gone", "192.0.2", "\0", "x" * 300])
def test_what_is_no_address_now_is_left_out_without_asking_anybody(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = socket.getaddrinfo

    def look_up(name: str, *words: object, **options: object) -> object:
        assert name != "vpn.example.org"
        return before(name, *words, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert [each.host for each in known_addresses([host, "192.0.2.5"], 9000)] == ["192.0.2.5"]


def test_an_answer_that_comes_after_the_end_touches_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket may have the number by then."""
    go = threading.Event()

    def look_up(host: str, port: int) -> ResolverAnswer:
        go.wait(10)
        return ResolverAnswer([], "no answer")

    monkeypatch.setattr(resolver, "look_up", look_up)
    made = Resolver("hub.test", 9000)
    made.begin()
    number = made.wake
    made.close()
    again = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        assert again == number
        (thread,) = [each for each in threading.enumerate() if each.name == "resolver"]
        go.set()
        thread.join(10)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(again)
    finally:
        os.close(again)


def test_while_srv_records_are_not_known_nothing_is_looked_up() -> None:
    made = Resolver("_tunnel._tcp.example.org", 0)
    made.begin()
    assert made.answers() == [ResolverAnswer([], NOT_LISTED)]
    made.close()
