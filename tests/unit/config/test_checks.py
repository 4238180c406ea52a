"""Rules between settings, and the forms of endpoints, addresses and networks."""

from __future__ import annotations

import pytest

from pipeline.config.checks import CHECKS, COMPAT_MTU_MAX
from pipeline.config.schema import SETTINGS, SLOT_BYTES, WORKER_KINDS
from pipeline.config.warnings import UNUSED
from pipeline.runtime import topology
from pipeline.shm.slot import SLOT_BYTES_MIN
from pipeline.wire import framing
from tests.harness.config_problems import CLIENT, problems, the_problem


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"local_addr": "9000"}, 'local_addr: given "9000", expected HOST:PORT'),
        ({"local_addr": "::1:9000"}, 'expected an IPv6 address in brackets, such as "[2001:db8::1]:9000"'),
        ({"local_addr": "[::1:9000"}, "expected HOST:PORT"),
        ({"local_addr": "[10.0.0.1]:9000"}, "expected an IPv6 address between the brackets"),
        ({"local_addr": "10.0.0.1:65536"}, "expected a port from 0 to 65535 after the last colon"),
        ({"local_addr": "10.0.0.1:http"}, "expected a port from 0 to 65535"),
        ({"remote_addr": "10.0.0.1:"}, "expected a port from 0 to 65535"),
        ({"remote_addr": "10.0.0.1:0"}, "expected a port of 1 to 65535"),
        ({"remote_addr": ":9000"}, "expected a host before the colon"),
        ({"remote_addr": "10.0.0.256:9000"}, "expected four numbers from 0 to 255"),
        ({"remote_addr": "10.1:9000"}, "expected four numbers from 0 to 255"),
        ({"remote_addr": "bücher.example:9000"}, "expected a host name of letters, digits, hyphens and dots"),
        ({"remote_addr": "https://a.example"}, 'expected HOST:PORT without "https://", such as "a.example:443"'),
        (
            {"remote_addr": "tcp://u:p@a.example:9000/x"},
            'expected HOST:PORT without "tcp://", such as "a.example:9000"',
        ),
        ({"remote_addr": "https://[2001:db8::1]"}, 'such as "[2001:db8::1]:443"'),
        ({"remote_addr": "[fe80::1]:9000"}, 'expected the interface in a link-local address, such as "[fe80::1%eth0]'),
        ({"remote_addr": "-a.example:9000"}, "expected a host name"),
        ({"remote_addr": ["a.example:9000", "10.0.0.1:"]}, "expected a port from 0 to 65535"),
        ({"remote_addr": ["a.example:9000", ""]}, "expected a server, such as"),
        ({"remote_addr": ["a.example:9000", "a.example:9000"]}, "remote_addr[1]"),
        ({"remote_addr": "srv:-a.example"}, "expected the name of SRV records"),
        ({"remote_addr": "srv:"}, "expected the name of SRV records"),
        ({"remote_addr": []}, 'expected the server that this client dials, such as "192.0.2.1:9000"'),
        ({"remote_addr": ""}, 'expected the server that this client dials, such as "192.0.2.1:9000"'),
        ({"tunnel_addr": "10.0.0.2"}, 'expected an address with its prefix length, such as "10.0.0.1/24"'),
        ({"tunnel_addr": "10.0.0.2/33"}, "expected an address with its prefix length"),
        ({"tunnel_addr": "10.0.0.2/255.255.255.0"}, "expected an address with its prefix length"),
        ({"tunnel_addr": "10.0.0.0/24"}, "expected the address of a host: 10.0.0.0 is the network or broadcast"),
        ({"tunnel_addr": "10.0.0.255/24"}, "expected the address of a host"),
        ({"tunnel_addr": "fe80::1%eth0/64"}, "expected an address with its prefix length"),
        ({"tunnel_addr": "127.0.0.1/8"}, "expected a unicast address that is not a loopback address"),
        ({"tunnel_addr": ""}, "expected an address with its prefix length"),
        ({"tunnel_addr": []}, "tunnel_addr: given [], expected at least one address"),
        ({"tunnel_addr": ["fd00::1/64", "fd00::1/48"]}, 'tunnel_addr[1]: given "fd00::1/48", expected each'),
        ({"tunnel_addr": ["auto", "fd00::2/64"]}, 'tunnel_addr[0]: given "auto", expected an address with its prefix'),
        ({"mode": "server", "tunnel_addr": "auto"}, "a server gives addresses to clients and needs one of its own"),
        (
            {"routes": ["10.1.2.3/16"]},
            ('routes[0]: given "10.1.2.3/16", expected a network without bits after its prefix, such as "10.1.0.0/16"'),
        ),
        ({"routes": ["all"]}, 'routes[0]: given "all", expected a network'),
        ({"routes": ["10.1.0.0/16", "10.1.0.0/255.255.0.0"]}, "routes[1]"),
        (
            {"affinity": {"tun-1": [0]}},
            (
                'affinity: given "tun-1", expected names of workers, "tun-N", "fec-N", "tcp-N", '
                "with N less than lanes (1)"
            ),
        ),
        (
            {"fec": "off", "affinity": {"fec-0": [0]}},
            'affinity: given "fec-0", expected names of workers, "tun-N", "tcp-N"',
        ),
        ({"affinity": {"dgram-0": [0]}}, 'affinity: given "dgram-0", expected names of workers, "tun-N", "fec-N"'),
        ({"carrier": "udp", "affinity": {"dgram-1": [0]}}, '"fec-N", "dgram-N", "tcp-N", with N less than lanes (1)'),
        ({"mode": "server", "may_reach": ["office"]}, 'may_reach[0]: given "office", expected a target, such as'),
        ({"mode": "server", "may_reach": ["10.0.0.5:https"]}, "may_reach[0]"),
        ({"mode": "server", "may_reach": ["group:office"]}, "expected a group of the setting groups"),
        ({"mode": "server", "groups": {"office": ["10.0.0.5/24"]}}, 'such as "10.0.0.0/24"'),
        ({"mode": "server", "groups": {"the office": []}}, "groups.the office"),
        ({"mode": "server", "groups": {"office": ["any", "any"]}}, "groups.office[1]"),
        (
            {"mode": "server", "peers": [{"name": "ann", "key_file": "/k", "groups": ["ofice"]}]},
            'peers[0].groups: given "ofice", expected a group of the setting groups, such as "groups": {"ofice": []}',
        ),
        (
            {"mode": "server", "peers": [{"name": "ann", "key_file": "/k", "may_reach": ["10.0.0.5:0"]}]},
            "peers[0].may_reach[0]",
        ),
        ({"affinity": {"tun-0": []}}, "affinity.tun-0: given [], expected at least one core"),
        ({"affinity": {"tcp-0": [1, 1]}}, "affinity.tcp-0: given [1, 1], expected each core only once"),
        ({"keepalive": 30}, "keepalive: given 30.0, expected less than timeout (30)"),
        ({"reconnect_min": 11}, "reconnect_min: given 11.0, expected at most reconnect_max (10)"),
        ({"mtu": 1279, "tunnel_addr": "fd00::2/64"}, "mtu: given 1279, expected at least 1280 with IPv6"),
        ({"mtu": 1279, "routes": ["fd01::/48"]}, "mtu: given 1279, expected at least 1280 with IPv6"),
        ({"compat": True, "mtu": 1496}, "mtu: given 1496, expected at most 1495 with compat"),
        ({"compat": True, "connections": 2}, "connections: given 2, expected 1 with compat"),
        ({"compat": True, "offload": True}, "offload: given true, expected false with compat"),
        ({"compat": True, "light_connections": 1}, "light_connections: given 1, expected 0 with compat"),
        ({"compat": True, "fec": "on"}, 'fec: given "on", expected "off" with compat'),
        ({"fec": "on", "fec_parity": 0}, 'fec_parity: given 0, expected at least 1, or fec "off"'),
        ({"fec_data": 38}, "fec_data: given 38, expected an integer from 1 to 37"),
        ({"fec_parity": 7}, "fec_parity: given 7, expected an integer from 0 to 6"),
        ({"encryption": "ssl"}, 'encryption: given "ssl", expected "none" or "tls"'),
        ({"tls_min_version": "1.1"}, 'tls_min_version: given "1.1", expected "1.2" or "1.3"'),
        ({"state_dir": ""}, 'state_dir: given "", expected a path beginning with /'),
        ({"state_dir": "state"}, 'state_dir: given "state", expected a path beginning with /'),
        ({"public_addr": ":9000"}, 'public_addr: given ":9000", expected a host before the colon'),
        ({"public_addr": "vpn.example.org"}, "public_addr: given"),
        ({"public_addr": []}, "public_addr: given [], expected at least one server"),
        ({"public_addr": ["a.example:1", ":9000"]}, 'public_addr[1]: given ":9000", expected a host before the colon'),
        ({"public_addr": ["a.example:1", ""]}, 'public_addr[1]: given "", expected HOST:PORT'),
        ({"public_addr": ["a.example:1", "srv:x.example"]}, "public_addr[1]: given"),
        ({"public_addr": ["a.example:1", "a.example:1"]}, "public_addr[1]: given"),
        (
            {"push_routes": ["10.1.2.3/16"]},
            'push_routes[0]: given "10.1.2.3/16", expected a network without bits after its prefix',
        ),
        ({"push_routes": ["10.1.0.0/16"] * 2}, "push_routes[1]: given"),
        ({"push_dns": ["10.0.0.1/24"]}, 'push_dns[0]: given "10.0.0.1/24", expected an address'),
        ({"push_dns": ["dns.example"]}, 'push_dns[0]: given "dns.example", expected an address'),
        ({"push_dns": [f"10.0.0.{n}" for n in range(5)]}, "push_dns: given 5, expected at most 4"),
        ({"mode": "client", "remote_addr": "a.example:1", "dns": "10.0.0.1"}, "dns: given"),
        (
            {"mode": "client", "remote_addr": "a.example:1", "full_tunnel": True, "user": "root"},
            'user: given "root", expected a system user of the workers\' own, or nothing, with full_tunnel',
        ),
        ({"full_tunnel": "maybe"}, 'full_tunnel: given "maybe", expected true or false, or "pushed"'),
        ({"mtu": 1279, "push_routes": ["fd01::/48"]}, "mtu: given 1279, expected at least 1280 with IPv6"),
        ({"max_clients": 4097}, "max_clients: given 4097, expected an integer from 1 to 4096 clients"),
        ({"max_handshakes": 0}, "max_handshakes: given 0, expected an integer from 1 to 65535 connections"),
        ({"handshake_timeout": 0}, "handshake_timeout: given 0, expected a number from 0.001"),
        ({"peer_queue_bytes": 131072}, "peer_queue_bytes: given 131072, expected an integer from 135168"),
        ({"rate_mbit": -1}, "rate_mbit: given -1, expected a number from 0 to 1000000 Mbit/s"),
    ],
)
def test_a_broken_rule_is_refused_with_the_reason(wrong: dict, text: str) -> None:
    assert text in the_problem(CLIENT | wrong)


def test_a_client_needs_its_server() -> None:
    values = {key: value for key, value in CLIENT.items() if key != "remote_addr"}
    assert "remote_addr: given nothing, expected" in the_problem(values)


def test_without_a_mode_only_the_mode_and_problems_of_either_mode_are_reported() -> None:
    assert [problem.path for problem in problems({"mtu": 1})] == ["mtu", "mode"]


def test_checks_and_warnings_name_settings_that_exist() -> None:
    assert {name for check in CHECKS for name in check.reads} <= SETTINGS.keys()
    assert {name for unused in UNUSED for name in unused.names} <= SETTINGS.keys()


def test_numbers_that_other_modules_have_too_agree() -> None:
    assert SLOT_BYTES == SLOT_BYTES_MIN
    assert COMPAT_MTU_MAX == framing.COMPAT_LENGTH_LIMIT - 1
    assert set(WORKER_KINDS) == {worker for kinds in topology.START_ORDER.values() for worker in kinds}
