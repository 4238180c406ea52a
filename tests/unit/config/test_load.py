"""The configuration: what is accepted, what is refused and in which words, and what is published."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import RELOAD, changes, json_schema, load, notices, parse, to_json
from pipeline.config import reference as config_text
from pipeline.config.checks import CHECKS, COMPAT_MTU_MAX
from pipeline.config.peer import PEER_FIELDS
from pipeline.config.schema import FIELDS, SLOT_BYTES, WORKER_KINDS
from pipeline.config.warnings import UNUSED
from pipeline.errors import ConfigError, LocalError, NotRunning, PermissionDenied
from pipeline.runtime import topology
from pipeline.shm.slot import SLOT_BYTES_MIN
from pipeline.wire import block, framing
from tests.harness.config_problems import problems, the_problem
from tests.support import ROOT

PROFILES = sorted(path for path in (ROOT / "configs").glob("*.json") if path != ROOT / config_text.SCHEMA_PATH)

SERVER = {"mode": "server"}
OPEN_SERVER = {"mode": "server", "encryption": "none", "insecure": True}
CLIENT = {"mode": "client", "remote_addr": "192.0.2.1:9000", "tunnel_addr": "10.0.0.2/24", "key_file": "client.key"}

ORIGINAL = {  # a file of the original program with every key that it knows, most at their defaults
    "mode": "server",
    "local_addr": "0.0.0.0:9000",
    "remote_addr": "",
    "tunnel_addr": "10.0.0.1/24",
    "mtu": 1400,
    "fec_data": 10,
    "fec_parity": 3,
    "timeout": 30,
    "keepalive": 10,
    "send_queue_size": 1000,
    "recv_queue_size": 1000,
    "tls_enabled": False,
    "tls_cert_file": "",
    "tls_key_file": "",
    "tls_skip_verify": False,
    "multi_client": False,
    "max_clients": 100,
    "client_isolation": False,
}


def file_with(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "tunnel.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


# --- what works ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["server", "client"])
def test_the_smallest_examples_work_and_whatever_is_left_out_of_them_is_missed(name):
    path = ROOT / "configs" / f"{name}.json"
    assert load(str(path)).mode == name
    values = json.loads(path.read_text())
    assert notices(parse(values)) == []
    for key in values:
        less = {other: value for other, value in values.items() if other != key}
        try:
            assert notices(parse(less)), key
        except ConfigError:
            pass


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_published_profile_works_as_it_is_and_all_of_it_has_an_effect(path):
    said = notices(load(str(path)))
    assert not [notice for notice in said if "no effect" in notice]
    assert [notice.partition(":")[0] for notice in said] == (["insecure is true"] if path.stem == "original" else [])


def test_a_file_of_the_original_means_the_same_and_needs_only_to_say_what_it_lets_happen():
    assert "tls_enabled" in the_problem(ORIGINAL)
    assert "insecure" in the_problem(ORIGINAL | {"encryption": "none"})
    config = parse(ORIGINAL | {"encryption": "none", "insecure": True})
    assert {key: getattr(config, key) for key in ORIGINAL} == ORIGINAL
    assert len(notices(config)) == 1 and "insecure is true" in notices(config)[0]


def test_the_defaults_of_the_original_are_ours_but_for_encryption():
    config = parse(SERVER)
    assert {key: getattr(config, key) for key in ORIGINAL} == ORIGINAL | {"tls_enabled": True, "multi_client": True}


def test_the_published_profile_of_the_original_has_every_key_that_it_knows():
    values = json.loads((ROOT / "configs" / "original.json").read_text())
    assert {key: value for key, value in values.items() if key in ORIGINAL} == ORIGINAL


def test_a_start_without_a_file_works_from_overrides_alone():
    config = load(None, ["mode=client", "remote_addr=a.example:9000", "tunnel_addr=10.0.0.2/24", "mtu=9000"])
    assert (config.mode, config.mtu, config.remote_endpoint) == ("client", 9000, ("a.example", 9000))


def test_an_override_wins_over_the_file_and_is_json_or_else_a_string(tmp_path):
    path = file_with(tmp_path, json.dumps(SERVER | {"lanes": 0, "log_level": "error"}))
    config = load(
        path,
        [
            "lanes=2",
            "log_level=debug",
            'routes=["10.9.0.0/16"]',
            "mtu=1300",
            'peers=[{"name": "a", "key_file": "a.key"}]',
        ],
    )
    assert (config.lanes, config.log_level, config.routes, config.mtu) == (2, "debug", ("10.9.0.0/16",), 1300)
    assert [peer.name for peer in config.peers] == ["a"]


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
def test_instance_and_device_lend_each_other_their_name(given, expected):
    config = parse(SERVER | given)
    assert (config.name, config.tun_name) == expected


def test_connections_follow_the_lanes_unless_given_and_compat_has_one():
    assert parse(CLIENT | {"lanes": 3, "fec": "off"}).connections == 3
    assert parse(CLIENT | {"lanes": 3, "connections": 4}).connections == 4
    assert parse(CLIENT | {"lanes": 3, "compat": True}).connections == 1


@pytest.mark.parametrize(
    ("data", "parity", "lanes", "connections"),
    [(10, 3, 1, 5), (10, 3, 8, 8), (10, 1, 1, 11), (4, 2, 1, 3), (4, 6, 1, 2), (37, 1, 1, 32)],
)
def test_with_fec_there_are_enough_connections_that_one_may_die(data, parity, lanes, connections):
    config = parse(CLIENT | {"fec_data": data, "fec_parity": parity, "lanes": lanes})
    assert config.connections == connections


def test_fec_is_auto_and_has_connections_for_light_flows_unless_one_connection_has_to_do():
    assert (parse(CLIENT).fec, parse(CLIENT).light_connections) == ("auto", 3)
    assert parse(CLIENT | {"connections": 1}).light_connections == 0
    assert parse(CLIENT | {"connections": 1, "light_connections": 2}).light_connections == 2
    assert parse(CLIENT | {"fec": "off"}).light_connections == 0
    compat = parse(CLIENT | {"compat": True})
    assert (compat.fec, compat.light_connections) == ("off", 0)


def test_compat_turns_offloads_off_and_null_is_the_same_as_leaving_out():
    assert parse(CLIENT | {"offload": None}).offload is True
    assert parse(CLIENT | {"compat": True, "offload": None}).offload is False


def test_addresses_and_routes_come_parsed_and_the_devices_own_subnet_is_no_route():
    config = parse(
        CLIENT
        | {
            "tunnel_addr": ["10.0.0.2/24", "fd00::2/64"],
            "routes": ["10.1.0.0/16", "10.0.0.0/24", "fd01::/48", "192.0.2.7"],
        }
    )
    assert [str(value) for value in config.tunnel_interfaces] == ["10.0.0.2/24", "fd00::2/64"]
    assert [str(value) for value in config.route_prefixes] == ["10.1.0.0/16", "fd01::/48", "192.0.2.7/32"]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1:1", "192.0.2.1", 1),
        ("[2001:db8::1]:65535", "2001:db8::1", 65535),
        ("[fe80::1%eth0]:9000", "fe80::1%eth0", 9000),
        ("xn--bcher-kva.example.:9000", "xn--bcher-kva.example.", 9000),
    ],
)
def test_a_server_is_dialled_by_address_or_by_name(text, host, port):
    assert parse(CLIENT | {"remote_addr": text}).remote_endpoint == (host, port)


def test_a_client_is_given_its_address_unless_it_wishes_one_and_compat_has_to_wish():
    values = {key: value for key, value in CLIENT.items() if key != "tunnel_addr"}
    for config in (parse(values), parse(values | {"tunnel_addr": "auto"}), parse(values | {"encryption": "none"})):
        assert (config.tunnel_addr, config.tunnel_interfaces, config.route_prefixes) == ("auto", (), ())
    assert parse(SERVER).tunnel_addr == "10.0.0.1/24"
    for more in ({}, {"tunnel_addr": "auto"}):
        text = the_problem(values | {"compat": True} | more)
        assert "tunnel_addr: given" in text and "the original's server, with compat, gives none" in text


def test_what_outlives_a_restart_has_a_directory_of_the_instances_name():
    assert parse(SERVER | {"name": "office"}).state_dir == "/var/lib/tunnel-supervisor/office"
    assert parse(SERVER | {"state_dir": "/srv/tunnel"}).state_dir == "/srv/tunnel"


def test_a_user_that_is_not_named_is_empty_and_root_stays_root():
    assert [parse(SERVER | {"user": user}).user for user in (None, "", "root", "vpn")] == ["", "", "root", "vpn"]


def test_a_listener_without_a_host_takes_every_address_as_in_the_original():
    assert parse(SERVER | {"local_addr": ":9000"}).listen_endpoint == ("::", 9000)


def test_a_checked_configuration_stays_as_it_is():
    with pytest.raises(AttributeError):
        parse(SERVER).mtu = 1


# --- what is refused -------------------------------------------------------------------------------


def test_every_problem_is_reported_at_once_with_its_source(tmp_path):
    path = file_with(
        tmp_path,
        json.dumps(
            {
                "mode": "server",
                "mtuu": 3,
                "mtu": "1400",
                "keepalive": 40,
                "lanes": True,
                "ring_slots": 5,
                "routes": ["10.1.2.3/16", 5],
                "user": 5,
                "encryption": "none",
                "tunnel_addr": ["10.0.0.1", "fd00::/129"],
                "timeout": 1.5,
                "push_routes": ["10.1.2.3/16"],
                "peers": [{"name": "a b", "rate_mbit": -1}, {"key_file": "b.key", "allowed": ["10.0.0.0/8", 5]}],
            }
        ),
    )
    with pytest.raises(ConfigError) as caught:
        load(path, ["fec=always", "novalue", "reconnect_min=11"])
    found = {(problem.source, problem.path) for problem in caught.value.problems}
    inside = {
        "mtuu",
        "mtu",
        "keepalive",
        "lanes",
        "routes[1]",
        "ring_slots",
        "user",
        "tunnel_addr[0]",
        "tunnel_addr[1]",
        "insecure",
        "push_routes[0]",
        "peers[0].name",
        "peers[0].rate_mbit",
        "peers[1].name",
        "peers[1].allowed[1]",
    }
    assert found == {(path, name) for name in inside} | {
        ("command line", name) for name in ("fec", "", "reconnect_min")
    }
    assert len(str(caught.value).splitlines()) == len(caught.value.problems) == len(found)
    assert caught.value.exit_status == 78


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
def test_an_unknown_setting_is_refused_and_the_nearest_name_proposed(key, nearest):
    expected = f'test.json: {key}: unknown setting, the nearest one is "{nearest}"'
    assert the_problem(CLIENT | {key: 1}) == expected


def test_the_value_of_an_unknown_setting_is_not_printed_because_it_may_be_a_secret():
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
        ({"connections": 65}, "connections: given 65, expected an integer from 1 to 64"),
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
        ({"congestion": "bbr cubic"}, 'congestion: given "bbr cubic", expected a name such as "bbr", or ""'),
        ({"affinity": {"tun-0": 0}}, 'given {"tun-0": 0}, expected "auto" or "none", or an object of workers'),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_told_what_is_expected(wrong, text):
    assert text in the_problem(CLIENT | wrong)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"local_addr": "9000"}, 'local_addr: given "9000", expected HOST:PORT'),
        ({"local_addr": "::1:9000"}, 'expected an IPv6 address in brackets, such as "[2001:db8::1]:9000"'),
        ({"local_addr": "[::1:9000"}, "expected HOST:PORT"),
        ({"local_addr": "[10.0.0.1]:9000"}, "expected an IPv6 address between the brackets"),
        ({"local_addr": "10.0.0.1:65536"}, "expected a port of 0 to 65535 behind the last colon"),
        ({"local_addr": "10.0.0.1:http"}, "expected a port of 0 to 65535"),
        ({"remote_addr": "10.0.0.1:"}, "expected a port of 0 to 65535"),
        ({"remote_addr": "10.0.0.1:0"}, "expected a port of 1 to 65535"),
        ({"remote_addr": ":9000"}, "expected a host before the colon"),
        ({"remote_addr": "10.0.0.256:9000"}, "expected four numbers of 0 to 255"),
        ({"remote_addr": "10.1:9000"}, "expected four numbers of 0 to 255"),
        ({"remote_addr": "bücher.example:9000"}, "expected a host name of letters, digits, hyphens and dots"),
        ({"remote_addr": "-a.example:9000"}, "expected a host name"),
        ({"remote_addr": ""}, 'expected the server that this client dials, such as "192.0.2.1:9000"'),
        ({"tunnel_addr": "10.0.0.2"}, 'expected an address with its prefix length, such as "10.0.0.1/24"'),
        ({"tunnel_addr": "10.0.0.2/33"}, "expected an address with its prefix length"),
        ({"tunnel_addr": "10.0.0.2/255.255.255.0"}, "expected an address with its prefix length"),
        ({"tunnel_addr": "10.0.0.0/24"}, "expected an address of a host: 10.0.0.0 names the subnet 10.0.0.0/24"),
        ({"tunnel_addr": "10.0.0.255/24"}, "expected an address of a host"),
        ({"tunnel_addr": "fe80::1%eth0/64"}, "expected an address with its prefix length"),
        ({"tunnel_addr": "127.0.0.1/8"}, "expected a unicast address that is not a loopback address"),
        ({"tunnel_addr": ""}, "expected an address with its prefix length"),
        ({"tunnel_addr": []}, "tunnel_addr: given [], expected at least one address"),
        ({"tunnel_addr": ["fd00::1/64", "fd00::1/48"]}, 'tunnel_addr[1]: given "fd00::1/48", expected each'),
        ({"tunnel_addr": ["auto", "fd00::2/64"]}, 'tunnel_addr[0]: given "auto", expected an address with its prefix'),
        ({"mode": "server", "tunnel_addr": "auto"}, "a server chooses for its clients, nobody for it"),
        (
            {"routes": ["10.1.2.3/16"]},
            ('routes[0]: given "10.1.2.3/16", expected no bits behind the prefix, that is "10.1.0.0/16"'),
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
        ({"affinity": {"tun-0": []}}, "affinity.tun-0: given [], expected at least one core"),
        ({"affinity": {"tcp-0": [1, 1]}}, "affinity.tcp-0: given [1, 1], expected each core once"),
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
        ({"state_dir": ""}, 'state_dir: given "", expected a path from / on'),
        ({"state_dir": "state"}, 'state_dir: given "state", expected a path from / on'),
        ({"public_addr": ":9000"}, 'public_addr: given ":9000", expected a host before the colon'),
        ({"public_addr": "vpn.example.org"}, "public_addr: given"),
        ({"push_routes": ["10.1.2.3/16"]}, 'push_routes[0]: given "10.1.2.3/16", expected no bits behind the prefix'),
        ({"push_routes": ["10.1.0.0/16"] * 2}, "push_routes[1]: given"),
        ({"mtu": 1279, "push_routes": ["fd01::/48"]}, "mtu: given 1279, expected at least 1280 with IPv6"),
        ({"max_clients": 4097}, "max_clients: given 4097, expected an integer from 1 to 4096 clients"),
        ({"max_handshakes": 0}, "max_handshakes: given 0, expected an integer from 1 to 65535 connections"),
        ({"handshake_timeout": 0}, "handshake_timeout: given 0, expected a number from 0.001"),
        ({"peer_queue_bytes": 131072}, "peer_queue_bytes: given 131072, expected an integer from 135168"),
        ({"rate_mbit": -1}, "rate_mbit: given -1, expected a number from 0 to 1000000 Mbit/s"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(wrong, text):
    assert text in the_problem(CLIENT | wrong)


def test_a_client_needs_its_server():
    values = {key: value for key, value in CLIENT.items() if key != "remote_addr"}
    assert "remote_addr: given nothing, expected" in the_problem(values)


def test_without_a_mode_only_the_mode_and_what_is_wrong_in_either_mode_is_reported():
    assert [problem.path for problem in problems({"mtu": 1})] == ["mtu", "mode"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"mode": "server"\n "mtu": 3}', "line 2, column 2: not JSON: Expecting ',' delimiter"),
        ("", "line 1, column 1: not JSON"),
        ("[1, 2]", "given [1, 2], expected an object of settings"),
        ('{"mtu": 1400, "mtu": 1300}', 'given more than once: "mtu"'),
        ('{"timeout": NaN}', "given NaN, expected a number"),
        ('{"timeout": Infinity}', "given Infinity, expected a number"),
        (b'{"mode": "\xff"}', "not UTF-8 at byte 10"),
        ("[" * 100_000, "nested too deeply"),
        ('{"mtu": ' + "9" * 5000 + "}", "Exceeds the limit"),
        (" " * (1 << 20) + "{}", "longer than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_configuration_says_where_and_why(tmp_path, content, text):
    path = file_with(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {text}")


def test_a_file_that_cannot_be_read_is_a_configuration_problem_beside_the_others(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path / "missing.json"), ["oops"])
    assert str(caught.value).splitlines() == [
        'command line: given "oops", expected KEY=VALUE, such as "mtu=1400"',
        f"{tmp_path}/missing.json: cannot be read: No such file or directory",
    ]
    with pytest.raises(ConfigError, match="Is a directory"):
        load(str(tmp_path))


def test_a_value_nested_without_end_is_named_and_not_printed():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert "mtu: given a list, expected an integer" in the_problem(CLIENT | {"mtu": nested})


def test_a_long_value_is_cut():
    assert len(the_problem(CLIENT | {"remote_addr": "x" * 10_000})) < 300
    assert len(the_problem(CLIENT | {"mtu": [1] * 10_000})) < 300
    assert len(the_problem(CLIENT | {"x" * 10_000: 1})) < 300


def test_a_byte_order_mark_does_no_harm(tmp_path):
    assert load(file_with(tmp_path, b"\xef\xbb\xbf" + json.dumps(CLIENT).encode())) == parse(CLIENT)


# --- notices ---------------------------------------------------------------------------------------


def test_a_plain_configuration_is_told_nothing():
    assert notices(parse(CLIENT)) == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (CLIENT | {"recv_queue_size": 5000}, "recv_queue_size has no effect"),
        (CLIENT | {"local_addr": "127.0.0.1:1"}, "local_addr has no effect: a client listens nowhere."),
        (CLIENT | {"insecure": True}, "insecure has no effect"),
        (CLIENT | {"fec": "off", "fec_parity": 2}, "fec_parity has no effect: fec is off."),
        (CLIENT | {"max_clients": 5}, "max_clients has no effect: the server decides"),
        (CLIENT | {"multi_client": True}, "multi_client has no effect: the server decides"),
        (CLIENT | {"push_routes": ["10.1.0.0/16"]}, "push_routes has no effect: the server decides"),
        (CLIENT | {"max_handshakes": 10}, "max_handshakes has no effect: the server decides"),
        (CLIENT | {"public_addr": "a.example:1"}, "public_addr has no effect: the server decides"),
        (SERVER | {"multi_client": False, "max_clients": 5}, "max_clients has no effect: multi_client is false."),
        (OPEN_SERVER | {"client_isolation": True}, "client_isolation has no effect: multi_client is false."),
        (OPEN_SERVER | {"public_addr": "a.example:1"}, "public_addr has no effect: invite needs TLS."),
        (
            OPEN_SERVER | {"compat": True, "push_routes": ["10.1.0.0/16"]},
            "push_routes has no effect: the original knows",
        ),
        (SERVER | {"max_handshakes": 4}, "one address can keep everybody else out."),
        (SERVER | {"max_connections_per_client": 7}, "a client opens 8 unless it is told otherwise"),
        (
            SERVER | {"max_clients": 254},
            "tunnel_addr 10.0.0.1/24 leaves addresses for 253 clients, and max_clients is 254",
        ),
        (SERVER | {"tunnel_addr": "10.0.0.0/31"}, "tunnel_addr 10.0.0.0/31 leaves addresses for 1 clients"),
        (SERVER | {"remote_addr": "192.0.2.1:9000"}, "remote_addr has no effect: a server dials nobody."),
        (SERVER | {"connections": 7}, "connections has no effect: the client decides"),
        (SERVER | {"local_addr": "127.0.0.1:0"}, "local_addr has port 0"),
        (OPEN_SERVER | {"compat": True, "tunnel_addr": "fd00::1/64"}, "drops IPv6 packets"),
        (CLIENT | {"idle": "spin"}, 'idle is "spin"'),
        (CLIENT | {"send_buffer_bytes": 65536}, "send_buffer_bytes is 65536"),
        (CLIENT | {"routes": ["192.0.2.0/24"]}, "routes leads 192.0.2.0/24 into the tunnel"),
        (CLIENT | {"remote_addr": "a.example:1", "routes": ["0.0.0.0/1"]}, "routes leads 0.0.0.0/1 into the"),
    ],
)
def test_what_is_accepted_and_does_nothing_or_deserves_a_warning_gets_a_sentence(values, sentence):
    found = [notice for notice in notices(parse(values)) if "insecure is true" not in notice]
    assert len(found) == 1 and sentence in found[0] and found[0].endswith(".")


# --- reload ----------------------------------------------------------------------------------------


def test_changes_names_the_settings_that_differ_and_what_follows_from_them():
    old = parse(CLIENT)
    assert changes(old, parse(CLIENT)) == []
    new = parse(CLIENT | {"lanes": 6, "log_level": "debug"})
    assert changes(old, new) == ["lanes", "connections", "log_level"]


def test_a_change_of_one_peer_is_a_change_of_the_peers():
    old = parse(SERVER | {"peers": [{"name": "a", "key_file": "a.key"}]})
    assert changes(old, parse(SERVER | {"peers": [{"name": "a", "key_file": "a.key", "rate_mbit": 0}]})) == []
    assert changes(old, parse(SERVER | {"peers": [{"name": "a", "key_file": "a.key", "rate_mbit": 5}]})) == ["peers"]
    assert changes(old, parse(SERVER)) == ["peers"]


def test_a_server_that_moves_can_be_followed_while_running():
    old, new = parse(CLIENT), parse(CLIENT | {"remote_addr": "vpn.example.org:9000"})
    assert changes(old, new) == ["remote_addr", "tls_server_name"]
    assert {RELOAD[name] for name in changes(old, new)} == {"live"}


def test_a_reload_can_apply_what_no_ring_no_device_and_no_process_depends_on():
    live = {name for name, how in RELOAD.items() if how == "live"}
    # fmt: off
    assert live == {
        "keepalive", "timeout", "log_level", "log_format", "idle", "congestion", "notsent_lowat", "routes",
        "remote_addr", "send_buffer_bytes", "receive_buffer_bytes", "restart_intensity", "restart_period",
        "heartbeat_timeout", "drain_timeout", "reconnect_min", "reconnect_max", "peers", "push_routes",
        "public_addr", "client_isolation", "rate_mbit", "tls_cert_file", "tls_key_file", "tls_ca_file",
        "tls_server_name", "max_handshakes", "max_handshakes_per_address", "connects_per_address",
        "handshake_timeout", "max_connections_per_client", "peer_queue_bytes",
    }
    # fmt: on
    assert RELOAD.keys() == FIELDS.keys() and set(RELOAD.values()) == {"live", "restart"}


# --- what is published -----------------------------------------------------------------------------

AGAIN = "run: python -m pipeline.config.reference"


def test_the_published_schema_is_the_codes():
    assert (ROOT / config_text.SCHEMA_PATH).read_text() == config_text.schema_text(), AGAIN


def test_the_published_reference_is_the_codes():
    document = (ROOT / config_text.REFERENCE_PATH).read_text()
    assert document == config_text.with_reference(document), AGAIN
    assert config_text.reference() in document


def test_every_setting_has_a_meaning_a_default_and_a_row():
    reference, of_a_peer = config_text.reference().split("### A peer\n")
    for fields, table in ((FIELDS, reference), (PEER_FIELDS, of_a_peer)):
        for name, field in fields.items():
            assert field.type.extra_json_schema["description"].endswith(".")
            assert f"| `{name}` | " in table
            assert (field.default is None) == bool(field.type.extra["derived"]), name
    assert config_text.PARTS.keys() <= FIELDS.keys()


def test_the_schema_knows_every_setting_and_refuses_others():
    schema = json_schema()
    assert schema["properties"].keys() == FIELDS.keys()
    assert schema["additionalProperties"] is False and schema["required"] == ["mode"]
    peer = schema["$defs"]["Peer"]
    assert schema["properties"]["peers"]["items"] == {"$ref": "#/$defs/Peer"} and schema["$defs"].keys() == {"Peer"}
    assert peer["properties"].keys() == PEER_FIELDS.keys()
    assert peer["additionalProperties"] is False and peer["required"] == ["name"]


def test_checks_and_notices_speak_of_settings_that_exist():
    assert {name for check in CHECKS for name in check.reads} <= FIELDS.keys()
    assert {name for unused in UNUSED for name in unused.names} <= FIELDS.keys()


def test_numbers_that_other_modules_know_too_are_the_same_there():
    assert SLOT_BYTES == SLOT_BYTES_MIN
    assert COMPAT_MTU_MAX == framing.COMPAT_LENGTH_LIMIT - 1
    assert set(WORKER_KINDS) == {worker for kinds in topology.KINDS.values() for worker in kinds}


def test_each_error_that_ends_the_command_has_its_exit_status():
    errors = (LocalError, NotRunning, PermissionDenied, ConfigError)
    assert [error.exit_status for error in errors] == [1, 3, 77, 78]


def test_errors_do_not_bring_msgspec_into_a_worker():
    code = "import sys, pipeline.errors; sys.exit('msgspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0


# --- properties ------------------------------------------------------------------------------------

NAMES = sorted(FIELDS)
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["server", "client", "auto", "none", "off", "10.0.0.1/24", "fd00::1/64", "[::1]:9000", "a:1", "tun-0"]
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
ANY_SETTINGS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=12), ANY_JSON, max_size=12)

GOOD = {  # values that are right by themselves and with any of the others
    "name": st.from_regex("[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", fullmatch=True),
    "tun_name": st.from_regex("[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", fullmatch=True),
    "local_addr": st.sampled_from(["[::1]:9000", ":9000", "0.0.0.0:0"]),
    "tunnel_addr": st.sampled_from(["10.0.0.9/24", ["10.0.0.9/24", "fd00::9/64"]]),
    "routes": st.just(["10.1.0.0/16", "fd01::/48"]),
    "mtu": st.integers(1280, 1495),
    "compat": st.booleans(),
    "offload": st.sampled_from([None, False]),
    "lanes": st.integers(1, 64),
    "connections": st.sampled_from([None, 1]),
    "affinity": st.sampled_from(["auto", "none", {"tun-0": [0, 3]}]),
    "idle": st.sampled_from(["block", "spin"]),
    "ring_slots": st.sampled_from([4, 4096]),
    "slot_bytes": st.integers(33, 1024).map(lambda pages: pages * 4096),
    "hold": st.floats(0, 86400),
    "timeout": st.floats(20, 86400),
    "keepalive": st.floats(0.001, 19),
    "tls_ca_file": st.sampled_from(["", "ä b"]),
    "encryption": st.sampled_from([None, "tls", "none"]),
    "push_routes": st.just(["10.1.0.0/16", "fd01::/48"]),
    "user": st.sampled_from([None, "", "root"]),
    "state_dir": st.sampled_from([None, "/srv/ä b"]),
    "rate_mbit": st.floats(0, 1000),
    "max_clients": st.integers(1, 4000),
    "tls_fingerprint": st.sampled_from(["", "aB" * 32, ":".join(["0f"] * 32)]),
}
BAD = {  # values that are wrong whatever the others are, with one problem each
    "name": "",
    "tun_name": "a b",
    "local_addr": "y",
    "remote_addr": "x",
    "tunnel_addr": "z",
    "public_addr": "x",
    "routes": ["x"],
    "mtu": 1,
    "compat": 1,
    "lanes": "2",
    "affinity": {"x-0": [0]},
    "idle": "nap",
    "ring_slots": 5,
    "slot_bytes": 4096,
    "timeout": -1,
    "keepalive": 86400,
    "reconnect_min": 86400,
    "congestion": "no way",
    "fec": "always",
    "encryption": "ssl",
    "tls_enabled": 1,
    "user": 0,
    "log_level": "loud",
    "peers": {},
    "push_routes": ["x"],
    "state_dir": "x",
    "tls_fingerprint": "aa",
    "tls_server_name": ":",
    "max_clients": 0,
    "unheard_of": 0,
    "connexions": 3,
}


@given(ANY_SETTINGS | ANY_JSON)
def test_no_json_whatever_raises_anything_but_a_configuration_error(values):
    try:
        config = parse(values, "any.json")
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert str(problem).startswith("any.json: ") and str(problem).isprintable()
    else:
        assert parse(json.loads(to_json(config))) == config


ANY_FILE = st.binary(max_size=60) | ANY_SETTINGS.map(lambda values: json.dumps(values).encode())


@given(ANY_FILE, st.lists(st.text(), max_size=4))
def test_no_file_and_no_override_raises_anything_but_a_configuration_error(tmp_path_factory, data, overrides):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    try:
        load(str(path), overrides)
    except ConfigError as error:
        assert error.problems


@given(st.fixed_dictionaries({}, optional=GOOD), st.sampled_from([OPEN_SERVER, CLIENT]))
def test_the_effective_configuration_parses_to_itself(values, base):
    config = parse(base | values)
    effective = json.loads(to_json(config))
    assert effective.keys() == FIELDS.keys()
    assert None not in effective.values()
    assert parse(effective) == config and changes(config, parse(effective)) == []
    assert all(notice.endswith(".") for notice in notices(config))


@settings(max_examples=200)
@given(st.sets(st.sampled_from(sorted(BAD)), min_size=1), st.sampled_from([SERVER, CLIENT]))
def test_each_of_any_number_of_mistakes_is_reported_and_nothing_else(mistakes, base):
    wrong = base | {name: BAD[name] for name in mistakes}
    found = [problem.path.split("[")[0] for problem in problems(wrong)]
    # what reads two settings waits until both are right by themselves
    waiting = {"keepalive"} if "timeout" in mistakes else set()
    waiting |= {"affinity"} if mistakes & {"lanes", "fec"} else set()
    assert sorted(found) == sorted(mistakes - waiting)


@given(st.sampled_from(NAMES), st.integers(0, 40), st.sampled_from("aeiostx_"))
def test_a_slip_of_one_letter_finds_a_known_name(name, place, letter):
    slip = name[:place] + letter + name[place:]
    if slip not in FIELDS:
        assert "unknown setting, the nearest one is" in the_problem(CLIENT | {slip: 1})
