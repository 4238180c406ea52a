"""Addresses of a server that need no resolver."""

from __future__ import annotations

import socket

import pytest

from pipeline.transport.resolver import known_addresses


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
