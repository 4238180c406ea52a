"""Conversion of single settings: unknown names, wrong types, and values that must not be printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.schema import SETTINGS
from tests.harness.config_problems import CLIENT, problems, the_problem

NAMES = sorted(SETTINGS)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("mtuu", "mtu"),
        ("keep-alive", "keepalive"),
        ("tunnelAddr", "tunnel_addr"),
        ("TLS_CERT", "tls_cert_file"),
        ("lane", "lanes"),
        ("connection", "connections"),
    ],
)
def test_an_unknown_setting_is_refused_and_the_nearest_name_proposed(key: str, nearest: str) -> None:
    expected = f'test.json: {key}: unknown setting, the nearest one is "{nearest}"'
    assert the_problem(CLIENT | {key: 1}) == expected


@given(st.sampled_from(NAMES), st.integers(0, 40), st.sampled_from("aeiostx_"))
def test_a_name_with_one_letter_too_many_finds_the_known_name(name: str, place: int, letter: str) -> None:
    slip = name[:place] + letter + name[place:]
    if slip not in SETTINGS:
        assert "unknown setting, the nearest one is" in the_problem(CLIENT | {slip: 1})


def test_the_value_of_an_unknown_setting_is_not_printed_because_it_may_be_a_secret() -> None:
    assert the_problem(CLIENT | {"key": "hunter2"}) == "test.json: key: unknown setting"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"mtu": "1400"}, 'mtu: given "1400", expected an integer from 68 to 65535 bytes'),
        ({"mtu": 67}, "mtu: given 67, expected an integer from 68 to 65535 bytes"),
        ({"mtu": True}, "mtu: given true, expected an integer from 68 to 65535 bytes"),
        ({"mtu": None}, "mtu: given null, expected an integer from 68 to 65535 bytes"),
        ({"timeout": 0}, "timeout: given 0, expected a number from 0.001 to 86400 seconds"),
        ({"timeout": float("nan")}, "timeout: given NaN, expected a number from 0.001 to 86400 seconds"),
        ({"timeout": float("inf")}, "timeout: given Infinity, expected a number from 0.001 to 86400 seconds"),
        ({"hold": -1}, "hold: given -1, expected a number from 0 to 86400 seconds"),
        ({"mode": "sever"}, 'mode: given "sever", expected "client" or "server"'),
        ({"compat": "yes"}, 'compat: given "yes", expected true or false'),
        ({"connections": 33}, "connections: given 33, expected an integer from 1 to 32"),
        ({"ring_slots": 33}, "expected 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048 or 4096 slots"),
        ({"slot_bytes": 139000}, "given 139000, expected a multiple of 4096 from 135168 to 4194304 bytes"),
        ({"slot_bytes": 131072}, "given 131072, expected a multiple of 4096 from 135168"),
        ({"fec_data": 38}, "fec_data: given 38, expected an integer from 1 to 37"),
        ({"fec_parity": 7}, "fec_parity: given 7, expected an integer from 0 to 6"),
        ({"routes": ["10.0.0.0/8", 5]}, 'routes[1]: given 5, expected a network, such as "10.1.0.0/16"'),
        ({"tunnel_addr": 5}, "tunnel_addr: given 5, expected an address with its prefix length, such as"),
        ({"tls_key_file": 5}, "tls_key_file: given 5, expected the path of a file"),
        ({"tls_key_file": "a\nb"}, 'tls_key_file: given "a\\nb", expected the path of a file'),
        ({"tls_key_file": "\ud800"}, 'tls_key_file: given "\\ud800", expected the path of a file'),
        ({"name": "a/b"}, 'name: given "a/b", expected 1 to 32 letters, digits, "_", "-" or "."'),
        ({"name": ".."}, 'name: given "..", expected 1 to 32 letters'),
        ({"name": "vpn\n"}, 'name: given "vpn\\n", expected 1 to 32 letters'),
        ({"tun_name": "sixteen-letters-"}, "expected 1 to 15 letters"),
        ({"tun_name": "tun%d"}, 'tun_name: given "tun%d", expected 1 to 15 letters'),
        ({"congestion": "bbr cubic"}, 'congestion: given "bbr cubic", expected "auto", a name such as "bbr", or ""'),
        ({"affinity": {"tun-0": 0}}, "affinity.tun-0: given 0, expected an array of cores, such as [0, 1]"),
    ],
)
def test_the_problem_of_a_wrong_type_or_range_says_what_is_expected(wrong: dict, text: str) -> None:
    assert text in the_problem(CLIENT | wrong)


def test_a_value_nested_without_end_is_named_and_not_printed() -> None:
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert "mtu: given a list, expected an integer" in the_problem(CLIENT | {"mtu": nested})


def test_a_long_value_is_cut() -> None:
    assert len(the_problem(CLIENT | {"remote_addr": "x" * 10_000})) < 300
    assert len(the_problem(CLIENT | {"mtu": [1] * 10_000})) < 300
    assert len(the_problem(CLIENT | {"x" * 10_000: 1})) < 300


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ({"up": "/bin/true"}, 'on.up: given "/bin/true", expected an array of a path and arguments'),
        ({"down": ["/bin/true", 3]}, 'on.down: given ["/bin/true", 3], expected an array of a path and arguments'),
        ({"lost": None, "up": ["/bin/true"]}, "on.lost: given null, expected an array of a path and arguments"),
        ({"peer-connected": ["/bin/true"]}, 'on.peer-connected: unknown, expected "connected", "down", "lost"'),
        ({"x\x1b[31m": []}, "on.x\\u001b[31m: unknown, expected "),
    ],
)
def test_a_wrong_entry_of_an_object_is_named_by_its_key(on: object, expected: str) -> None:
    assert the_problem(CLIENT | {"on": on}).startswith(f"test.json: {expected}")


def test_each_wrong_entry_of_an_object_is_a_problem() -> None:
    paths = [problem.path for problem in problems(CLIENT | {"on": {"up": 1, "nope": [], "down": ["/a"], "lost": {}}})]
    assert paths == ["on.up", "on.nope", "on.lost"]
    assert "affinity.tun-0: given" in the_problem(CLIENT | {"affinity": {"tun-0": "x", "tcp-0": [1]}})
