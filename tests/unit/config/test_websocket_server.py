"""The settings of a server that takes WebSockets."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import find_warnings, parse
from pipeline.config.values import Endpoint
from tests.harness.config_problems import CLIENT, SERVER, the_problem

ON = SERVER | {"websocket_addr": 8080, "websocket_path": "/tunnel"}


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        (8080, Endpoint("127.0.0.1", 8080)),
        ("192.0.2.1:80", Endpoint("192.0.2.1", 80)),
        ("[::]:8080", Endpoint("::", 8080)),
        ("", None),
    ],
)
def test_a_port_alone_is_one_of_this_machine(given: int | str, endpoint: Endpoint | None) -> None:
    assert parse(ON | {"websocket_addr": given}).websocket_endpoint == endpoint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"websocket_path": ""}, 'expected a path beginning with /, such as "/tunnel"'),
        ({"websocket_path": "tunnel"}, "websocket_path"),
        ({"websocket_path": "/a b"}, "websocket_path"),
        ({"websocket_path": "/a\r\nb"}, "websocket_path"),
        ({"websocket_addr": "127.0.0.1:0"}, "websocket_addr"),
        ({"websocket_addr": "hub.test:80"}, "and no name"),
        ({"websocket_addr": "127.0.0.1"}, "websocket_addr"),
        ({"websocket_proxies": ["10.0.0.1/8"]}, "websocket_proxies[0]"),
        ({"websocket_proxies": ["10.0.0.0/8", "10.0.0.0/8"]}, "websocket_proxies[1]"),
        ({"websocket_client_field": "X Forwarded"}, "websocket_client_field"),
        ({"local_addr": "127.0.0.1:8080", "websocket_addr": "127.0.0.1:8080"}, "another port than that of local_addr"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], words: str) -> None:
    assert words in the_problem(ON | change)


def test_proxies_that_may_be_anybody_are_warned_of() -> None:
    said = find_warnings(parse(ON | {"websocket_proxies": ["0.0.0.0/0"]}))
    assert any(each.startswith("websocket_proxies has every address") for each in said)
    assert not any("websocket" in each for each in find_warnings(parse(ON)))


def test_where_they_have_no_effect_it_is_said() -> None:
    said = find_warnings(parse(SERVER | {"websocket_path": "/tunnel"}))
    assert any(each.startswith("websocket_path has no effect: websocket_addr is empty") for each in said)
    said = find_warnings(parse(CLIENT | {"websocket_addr": 8080}))
    assert any(each.startswith("websocket_addr has no effect: the server decides") for each in said)
