"""The carrier of blocks: which settings exclude datagrams, and where they have no effect."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import RELOAD, find_warnings, parse
from tests.harness.config_problems import CLIENT, OPEN_SERVER, SERVER, the_problem

COMPAT_SERVER = {"mode": "server", "compat": True, "local_addr": "127.0.0.1:9000"}


def test_blocks_go_by_tcp_unless_the_configuration_says_otherwise_and_so_for_a_whole_run() -> None:
    assert parse(CLIENT).carrier == parse(SERVER).carrier == "tcp"
    assert RELOAD["carrier"] == "restart"


@pytest.mark.parametrize("carrier", ["udp", "faketcp", "auto"])
@pytest.mark.parametrize("end", [CLIENT, SERVER], ids=["client", "server"])
def test_both_ends_may_have_datagrams(end: dict[str, Any], carrier: str) -> None:
    config = parse(end | {"carrier": carrier})
    assert config.carrier == carrier
    assert not [each for each in find_warnings(config) if "carrier" in each]


@pytest.mark.parametrize("carrier", ["udp", "faketcp", "auto"])
@pytest.mark.parametrize(
    ("given", "why"),
    [
        (OPEN_SERVER, 'encryption "none"'),
        (COMPAT_SERVER, "compat"),
        (CLIENT | {"uplinks": ["eth0", "wwan0"]}, "uplinks"),
        (CLIENT | {"proxy": "http://proxy.test:3128"}, "proxy"),
        (CLIENT | {"proxy_command": ["/bin/nc", "%h", "%p"]}, "proxy_command"),
        (CLIENT | {"websocket": "wss://web.test/t"}, "websocket"),
    ],
)
def test_what_excludes_datagrams_is_said(given: dict[str, Any], why: str, carrier: str) -> None:
    problem = the_problem(given | {"carrier": carrier})
    assert "carrier: " in problem and f'expected "tcp" with {why}: ' in problem
    parse(given | {"carrier": "tcp"})


def test_the_port_of_fake_tcp_is_the_one_behind_that_of_the_connections_or_the_one_that_is_set() -> None:
    config = parse(SERVER | {"carrier": "auto"})
    assert [config.fake_tcp_port_beside(port) for port in (443, 65535)] == [444, 65534]
    assert parse(SERVER | {"carrier": "auto", "fake_tcp_port": 80}).fake_tcp_port_beside(443) == 80
    assert RELOAD["fake_tcp_port"] == "restart"


def test_the_port_of_the_connections_is_not_that_of_fake_tcp() -> None:
    given = SERVER | {"local_addr": "0.0.0.0:443", "carrier": "auto"}
    assert "fake_tcp_port: given 443, expected another port than that of local_addr" in the_problem(
        given | {"fake_tcp_port": 443}
    )
    assert parse(given | {"fake_tcp_port": 444}).fake_tcp_port == 444


@pytest.mark.parametrize(
    ("given", "warns"),
    [
        (CLIENT | {"carrier": "auto"}, True),
        (SERVER | {"carrier": "udp"}, True),
        (SERVER | {"carrier": "auto"}, False),
        (SERVER | {"carrier": "faketcp"}, False),
    ],
)
def test_a_port_of_fake_tcp_that_nobody_uses_is_warned_of(given: dict[str, Any], warns: bool) -> None:
    found = [each for each in find_warnings(parse(given | {"fake_tcp_port": 444})) if "fake_tcp_port" in each]
    assert bool(found) == warns


def test_a_proxy_that_the_environment_does_not_name_excludes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    given = CLIENT | {"proxy": "environment", "carrier": "auto"}
    assert parse(given).carrier == "auto"
    monkeypatch.setenv("https_proxy", "http://proxy.test:3128")
    assert 'expected "tcp" with proxy: ' in the_problem(given)


def test_the_way_of_a_client_is_nothing_to_a_server() -> None:
    parse(SERVER | {"carrier": "udp", "proxy_command": ["/bin/nc", "%h", "%p"], "websocket": "wss://web.test/t"})


@pytest.mark.parametrize(
    ("given", "keeps"),
    [
        (CLIENT | {"send_rate_mbit": 5}, True),
        (CLIENT | {"bulk_rate_mbit": 5, "always_bulk": ["CS1"]}, True),
        (CLIENT | {"total_rate_mbit": 5}, False),
        (SERVER | {"send_rate_mbit": 5}, True),
        (SERVER | {"total_rate_mbit": 5}, True),
        (SERVER | {"bulk_rate_mbit": 5, "always_bulk": ["CS1"]}, False),  # a peer may have none
        (SERVER | {"rate_mbit": 5}, False),
    ],
)
def test_a_rate_that_connections_alone_keep_is_warned_of(given: dict[str, Any], keeps: bool) -> None:
    config = parse(given | {"carrier": "udp"})
    said = "carrier has no effect: only connections keep the rate that this end has."
    assert config.has_rate_of_connections == keeps == (said in find_warnings(config))
