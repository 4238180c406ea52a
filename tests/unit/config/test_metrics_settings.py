"""The settings of metrics and page: where they may be shown, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import find_warnings, parse
from pipeline.config.values import Endpoint
from tests.harness.config_problems import CLIENT, the_problem

TOKEN = {"metrics_token_file": "/etc/token"}


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        ("", None),
        (9100, Endpoint("127.0.0.1", 9100)),
        ("9100", Endpoint("127.0.0.1", 9100)),
        ("127.0.0.2:9100", Endpoint("127.0.0.2", 9100)),
        ("localhost:9100", Endpoint("localhost", 9100)),
        ("[::1]:9100", Endpoint("::1", 9100)),
    ],
)
def test_it_is_off_and_a_port_alone_is_for_this_machine_alone(given: Any, endpoint: Endpoint | None) -> None:
    assert parse(CLIENT | {"metrics_addr": given}).metrics_endpoint == endpoint


@pytest.mark.parametrize("given", [":9100", "0.0.0.0:9100", "[::]:9100", "10.0.0.2:9100", "[fd00::1]:9100"])
def test_beyond_loopback_a_token_is_needed(given: str) -> None:
    problem = the_problem(CLIENT | {"metrics_addr": given})
    assert problem.startswith("test.json: metrics_token_file: given nothing")
    assert "genkey" in problem
    config = parse(CLIENT | TOKEN | {"metrics_addr": given})
    assert any("without encryption" in warning for warning in find_warnings(config))


@pytest.mark.parametrize(
    "given", [0, "0", 65536, "65536", -1, "127.0.0.1:0", "127.0.0.1", "http://127.0.0.1:1", "x:1", []]
)
def test_an_address_that_is_none_of_this_machine_is_refused(given: Any) -> None:
    problem = the_problem(CLIENT | {"metrics_addr": given})
    assert problem.startswith("test.json: metrics_addr: given")


def test_a_token_without_an_address_has_no_effect() -> None:
    warnings = find_warnings(parse(CLIENT | TOKEN | {"metrics_peers": 5}))
    assert "metrics_token_file has no effect: metrics_addr is empty." in warnings
    assert "metrics_peers has no effect: metrics_addr is empty." in warnings
