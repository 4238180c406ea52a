"""The uplinks of a client: which settings name some, and what has to go with them."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import find_warnings, parse
from pipeline.wire.uplink import Uplink
from tests.harness.config_problems import CLIENT, SERVER, problems, the_problem

BACKUP = {"interface": "wwan0", "role": "backup"}
TWO = CLIENT | {"uplinks": ["eth0", BACKUP]}


def test_an_uplink_is_a_name_or_an_object_with_a_role() -> None:
    assert parse(CLIENT).named_uplinks == ()
    assert parse(TWO).named_uplinks == (Uplink(0, "eth0", False), Uplink(1, "wwan0", True))
    assert parse(CLIENT | {"uplinks": ["a", {"interface": "b"}]}).named_uplinks[1] == Uplink(1, "b", False)


@pytest.mark.parametrize(
    ("given", "path", "expected"),
    [
        ("eth0", "uplinks", "an array"),
        (["eth0"], "uplinks", "2 to 4 uplinks, or none"),
        (["a", "b", "c", "d", "e"], "uplinks", "2 to 4 uplinks, or none"),
        (["eth0", "eth0"], "uplinks[1]", "once"),
        (["eth0", ".."], "uplinks[1]", "the name of an interface"),
        (["eth0", "a/b"], "uplinks[1]", "the name of an interface"),
        (["eth0", "a b"], "uplinks[1]", "the name of an interface"),
        (["eth0", ""], "uplinks[1]", "the name of an interface"),
        (["eth0", "sixteen-letters-"], "uplinks[1]", "the name of an interface"),
        (["eth0", "eth1\n"], "uplinks[1]", "the name of an interface"),
        (["eth0", "tun7"], "uplinks[1]", "another interface than that of the tunnel itself"),
        (["eth0", {"interface": "eth1", "role": "spare"}], "uplinks[1]", '"main" or "backup"'),
        (["eth0", {"interface": "eth1", "metric": 1}], "uplinks[1]", '"main" or "backup"'),
        (["eth0", {"role": "main"}], "uplinks[1]", "the name of an interface"),
        ([BACKUP, {"interface": "eth1", "role": "backup"}], "uplinks", 'at least one uplink with the role "main"'),
    ],
)
def test_what_is_no_list_of_uplinks_is_refused(given: Any, path: str, expected: str) -> None:
    problem = the_problem(CLIENT | {"tun_name": "tun7", "uplinks": given})
    assert f"{path}: " in problem and expected in problem


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"fec": "off"}, "fec"),
        ({"proxy": "http://proxy.test:3128"}, "proxy"),
        ({"proxy_command": ["/bin/nc", "%h", "%p"]}, "proxy_command"),
        ({"websocket": "wss://web.test/t"}, "websocket"),
        ({"connections": 1, "light_connections": 2}, "connections"),
        ({"light_connections": 1}, "light_connections"),
        ({"light_connections": 0}, "light_connections"),
    ],
)
def test_what_excludes_uplinks_is_said(given: dict[str, Any], path: str) -> None:
    assert f"{path}: given " in the_problem(TWO | given)


def test_uplinks_and_the_original_program_exclude_each_other() -> None:
    given = {"compat": True, "encryption": "none", "tunnel_addr": "10.0.0.2/24", "key_file": ""}
    assert [problem.path for problem in problems(TWO | given)] == ["uplinks"]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_by_default_each_uplink_has_a_connection_for_each_class(count: int) -> None:
    config = parse(CLIENT | {"fec_data": 1, "fec_parity": 1, "uplinks": [f"eth{i}" for i in range(count)]})
    assert config.connections >= count and config.light_connections >= count


def test_a_server_has_no_uplinks_and_says_so() -> None:
    config = parse(SERVER | {"uplinks": ["eth0"]})
    assert config.named_uplinks == ()
    assert any("uplinks" in warning and "does not dial" in warning for warning in find_warnings(config))
