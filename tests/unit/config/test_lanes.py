"""`lanes` and `split_workers` on machines of any size."""

from __future__ import annotations

import pytest

from pipeline.config import changes, parse, to_json
from pipeline.errors import ConfigError
from pipeline.policy.machine import Machine, made_of

SERVER = {"mode": "server"}
CLIENT = {"mode": "client", "remote_addr": "192.0.2.1:9000"}
LARGE = made_of(1, 2, 16, smt=2)
TWO = made_of(1, 1, 2)


@pytest.mark.parametrize(
    ("given", "machine", "lanes", "split"),
    [
        (SERVER, TWO, 1, ()),
        (SERVER, LARGE, 5, ("tun", "fec")),
        (SERVER | {"fec": "off"}, LARGE, 7, ("tun",)),
        (SERVER | {"carrier": "auto"}, LARGE, 5, ("tun",)),
        (SERVER | {"carrier": "udp", "fec": "off"}, LARGE, 7, ("tun",)),
        (SERVER | {"lanes": 3}, TWO, 3, ()),
        (SERVER | {"lanes": 2, "split_workers": ["tun"]}, TWO, 2, ("tun",)),
        (SERVER | {"split_workers": []}, LARGE, 5, ()),
        (CLIENT, LARGE, 5, ("tun", "fec")),
        (CLIENT | {"connections": 2}, LARGE, 2, ("tun", "fec")),  # a lane without a connection is of no use
        (CLIENT | {"compat": True, "tunnel_addr": "10.0.0.2/24"}, LARGE, 1, ("tun",)),
        (SERVER | {"ring_slots": 1024, "fec": "off"}, made_of(1, 2, 16, shared_bytes=2 << 30), 2, ("tun",)),
        (
            SERVER | {"ring_slots": 1024, "fec": "off", "carrier": "auto"},
            made_of(1, 2, 16, shared_bytes=2 << 30),
            1,
            ("tun",),
        ),
        (SERVER | {"ring_slots": 4096, "fec": "off"}, made_of(1, 2, 16, shared_bytes=1 << 30), 1, ("tun",)),
    ],
)
def test_lanes_and_split_workers(given: dict, machine: Machine, lanes: int, split: tuple[str, ...]) -> None:
    config = parse(given, machine=machine)
    assert (config.lanes, config.split_workers) == (lanes, split)


def test_a_client_opens_a_connection_for_each_lane() -> None:
    assert parse(CLIENT | {"fec": "off"}, machine=LARGE).connections == 7


def test_what_auto_has_become_is_in_the_effective_configuration() -> None:
    config = parse(SERVER, machine=LARGE)
    assert '"lanes": 5' in to_json(config) and '"split_workers"' in to_json(config)


def test_auto_and_what_it_has_become_are_one_configuration() -> None:
    assert changes(parse(SERVER, machine=TWO), parse(SERVER | {"lanes": 1, "split_workers": []}, machine=TWO)) == []
    assert changes(parse(SERVER, machine=TWO), parse(SERVER | {"lanes": 2}, machine=TWO)) == ["lanes"]


@pytest.mark.parametrize("lanes", [0, 33, "many", True, 1.5, None, [1]])
def test_other_numbers_of_lanes_are_refused(lanes: object) -> None:
    with pytest.raises(ConfigError, match=r'lanes: given .*expected "auto", or an integer from 1 to 32'):
        parse(SERVER | {"lanes": lanes})


@pytest.mark.parametrize("kinds", [["tcp"], "tun", True, ["tun", "tcp"]])
def test_other_kinds_are_not_split(kinds: object) -> None:
    with pytest.raises(ConfigError, match="split_workers"):
        parse(SERVER | {"split_workers": kinds})


def test_the_cores_of_a_half_can_be_named_where_there_are_halves() -> None:
    parse(SERVER | {"split_workers": ["tun"], "affinity": {"tun-in-0": [0], "tun-0": [1]}})
    with pytest.raises(ConfigError, match="affinity"):
        parse(SERVER | {"split_workers": [], "affinity": {"tun-in-0": [0]}})
