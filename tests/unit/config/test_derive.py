"""Defaults that depend on other settings."""

from __future__ import annotations

import pytest

from pipeline.config import find_warnings, parse
from tests.harness.config_problems import CLIENT, SERVER, the_problem


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("tun0", "tun0")),
        ({"name": "office"}, ("office", "office")),
        ({"tun_name": "vpn7"}, ("vpn7", "vpn7")),
        ({"name": "a-name-that-no-device-can-have"}, ("a-name-that-no-device-can-have", "tun0")),
        ({"name": "office", "tun_name": "vpn7"}, ("office", "vpn7")),
    ],
)
def test_the_name_of_the_instance_or_of_the_device_is_the_default_of_the_other(
    given: dict, expected: tuple[str, str]
) -> None:
    config = parse(SERVER | given)
    assert (config.name, config.tun_name) == expected


def test_connections_follow_the_lanes_unless_given_and_compat_has_one() -> None:
    assert parse(CLIENT | {"lanes": 3, "fec": "off"}).connections == 3
    assert parse(CLIENT | {"lanes": 3, "connections": 4}).connections == 4
    assert parse(CLIENT | {"lanes": 3, "compat": True}).connections == 1


@pytest.mark.parametrize(
    ("data", "parity", "lanes", "connections"),
    [(10, 3, 1, 5), (10, 3, 8, 8), (10, 1, 1, 11), (4, 2, 1, 3), (4, 6, 1, 2), (37, 1, 1, 32)],
)
def test_with_fec_there_are_enough_connections_for_one_to_die(
    data: int, parity: int, lanes: int, connections: int
) -> None:
    config = parse(CLIENT | {"fec_data": data, "fec_parity": parity, "lanes": lanes})
    assert config.connections == connections


def test_fec_is_auto_and_has_connections_for_light_flows_if_it_has_more_than_one() -> None:
    assert (parse(CLIENT).fec, parse(CLIENT).light_connections) == ("auto", 3)
    assert parse(CLIENT | {"connections": 1}).light_connections == 0
    assert parse(CLIENT | {"connections": 1, "light_connections": 2}).light_connections == 2
    assert parse(CLIENT | {"fec": "off"}).light_connections == 0
    compat = parse(CLIENT | {"compat": True})
    assert (compat.fec, compat.light_connections) == ("off", 0)


def test_compat_turns_offloads_off_and_null_means_left_out() -> None:
    assert parse(CLIENT | {"offload": None}).offload is True
    assert parse(CLIENT | {"compat": True, "offload": None}).offload is False


def test_a_client_gets_its_address_from_the_server_except_with_compat() -> None:
    values = {key: value for key, value in CLIENT.items() if key != "tunnel_addr"}
    for config in (parse(values), parse(values | {"tunnel_addr": "auto"}), parse(values | {"encryption": "none"})):
        assert (config.tunnel_addr, config.tunnel_interfaces, config.route_prefixes) == ("auto", (), ())
    assert parse(SERVER).tunnel_addr == "10.0.0.1/24"
    for more in ({}, {"tunnel_addr": "auto"}):
        text = the_problem(values | {"compat": True} | more)
        assert (
            "tunnel_addr: given" in text
            and "with compat, the original program's server gives no addresses to clients" in text
        )


def test_the_state_directory_has_the_instances_name() -> None:
    assert parse(SERVER | {"name": "office"}).state_dir == "/var/lib/tunnel-supervisor/office"
    assert parse(SERVER | {"state_dir": "/srv/tunnel"}).state_dir == "/srv/tunnel"


def test_the_user_is_empty_by_default_and_root_stays_root() -> None:
    assert [parse(SERVER | {"user": user}).user for user in (None, "", "root", "vpn")] == ["", "", "root", "vpn"]


def test_connections_that_are_needed_beyond_the_most_that_is_possible_are_warned_of() -> None:
    config = parse(CLIENT | {"key_file": "k", "fec_data": 37, "fec_parity": 1})
    assert config.connections == 32
    (warning,) = find_warnings(config)
    assert "connections is 32, the most that is possible, and 38 are needed" in warning
    for fits in ({"fec_data": 31, "fec_parity": 1}, {"fec": "off", "lanes": 32}, {"connections": 32}):
        assert find_warnings(parse(CLIENT | {"key_file": "k"} | fits)) == []
