"""Configurations from files and overrides: the published ones, hostile ones, and any others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import changes, find_warnings, load, parse, reference, to_json
from pipeline.config.schema import SETTINGS
from pipeline.errors import ConfigError
from tests.harness.config_problems import CLIENT, OPEN_SERVER, SERVER, problems, the_problem
from tests.support import ROOT

NO_PROFILES = {ROOT / reference.SCHEMA_PATH, ROOT / "configs/grafana-dashboard.json"}
PROFILES = sorted(set((ROOT / "configs").glob("*.json")) - NO_PROFILES)


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
    "multi_client": True,
    "max_clients": 100,
    "client_isolation": False,
}


def file_with(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "tunnel.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("name", ["server", "client"])
def test_the_smallest_examples_work_and_need_each_of_their_settings(name: str) -> None:
    path = ROOT / "configs" / f"{name}.json"
    assert load(str(path)).mode == name
    values = json.loads(path.read_text())
    assert find_warnings(parse(values)) == []
    for key in values:
        less = {other: value for other, value in values.items() if other != key}
        try:
            assert find_warnings(parse(less)), key
        except ConfigError:
            pass


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_published_profile_works_as_it_is_and_all_of_it_has_an_effect(path: Path) -> None:
    warnings = find_warnings(load(str(path)))
    assert not [warning for warning in warnings if "no effect" in warning]
    assert [warning.partition(":")[0] for warning in warnings] == (
        ["insecure is true"] if path.stem == "original" else []
    )


def test_a_file_of_the_original_program_needs_only_to_accept_its_risks() -> None:
    assert "tls_enabled" in the_problem(ORIGINAL)
    assert "insecure" in the_problem(ORIGINAL | {"encryption": "none"})
    config = parse(ORIGINAL | {"encryption": "none", "insecure": True})
    assert {key: getattr(config, key) for key in ORIGINAL} == ORIGINAL
    assert len(find_warnings(config)) == 1 and "insecure is true" in find_warnings(config)[0]


def test_the_defaults_are_the_original_programs_except_for_encryption() -> None:
    config = parse(SERVER)
    assert {key: getattr(config, key) for key in ORIGINAL} == ORIGINAL | {"tls_enabled": True, "local_addr": ":9000"}


def test_the_published_profile_of_the_original_program_has_each_of_its_keys() -> None:
    values = json.loads((ROOT / "configs" / "original.json").read_text())
    assert {key: value for key, value in values.items() if key in ORIGINAL} == ORIGINAL


def test_a_start_without_a_file_works_from_overrides_alone() -> None:
    config = load(None, ["mode=client", "remote_addr=a.example:9000", "tunnel_addr=10.0.0.2/24", "mtu=9000"])
    assert (config.mode, config.mtu, config.remote_endpoint) == ("client", 9000, ("a.example", 9000))


def test_an_override_wins_over_the_file_and_is_json_or_else_a_string(tmp_path: Path) -> None:
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


def test_every_problem_is_reported_at_once_with_its_source(tmp_path: Path) -> None:
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
    ("content", "text"),
    [
        ('{"mode": "server"\n "mtu": 3}', "line 2, column 2: not JSON: Expecting ',' delimiter"),
        ("", "line 1, column 1: not JSON"),
        ("[1, 2]", "given [1, 2], expected an object of settings"),
        ('{"mtu": 1400, "mtu": 1300}', 'given more than once: "mtu"'),
        ('{"timeout": NaN}', "given NaN, expected a number"),
        ('{"timeout": Infinity}', "given Infinity, expected a number"),
        (b'{"mode": "\xff"}', "expected text, found bytes that are not UTF-8 at 10"),
        ("[" * 100_000, "nested too deeply"),
        ('{"mtu": ' + "9" * 5000 + "}", "Exceeds the limit"),
        (" " * (1 << 20) + "{}", "longer than 1048576 bytes"),
    ],
)
def test_the_problem_of_a_file_that_is_no_configuration_says_where_and_why(
    tmp_path: Path, content: str | bytes, text: str
) -> None:
    path = file_with(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {text}")


def test_a_file_that_cannot_be_read_is_a_configuration_problem_beside_the_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path / "missing.json"), ["oops"])
    assert str(caught.value).splitlines() == [
        'command line: given "oops", expected KEY=VALUE, such as "mtu=1400"',
        f"{tmp_path}/missing.json: cannot be read: No such file or directory",
    ]
    with pytest.raises(ConfigError, match="expected a regular file, found a directory"):
        load(str(tmp_path))


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    assert load(file_with(tmp_path, b"\xef\xbb\xbf" + json.dumps(CLIENT).encode())) == parse(CLIENT)


NAMES = sorted(SETTINGS)


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
    "lanes": st.one_of(st.just("auto"), st.integers(1, 32)),
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


ANY_BESIDE_GOOD = st.builds(lambda base, more: base | more, st.sampled_from([OPEN_SERVER, CLIENT]), ANY_SETTINGS)


@given(ANY_SETTINGS | ANY_BESIDE_GOOD | ANY_JSON)
def test_any_json_gives_a_configuration_or_a_configuration_error(values: object) -> None:
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
def test_any_file_and_override_gives_a_configuration_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, overrides: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    try:
        load(str(path), overrides)
    except ConfigError as error:
        assert error.problems


@given(st.fixed_dictionaries({}, optional=GOOD), st.sampled_from([OPEN_SERVER, CLIENT]))
def test_the_effective_configuration_parses_to_itself(values: dict, base: dict) -> None:
    config = parse(base | values)
    effective = json.loads(to_json(config))
    assert effective.keys() == SETTINGS.keys()
    assert None not in effective.values()
    assert parse(effective) == config and changes(config, parse(effective)) == []
    assert all(warning.endswith(".") for warning in find_warnings(config))


@settings(max_examples=200)
@given(st.sets(st.sampled_from(sorted(BAD)), min_size=1), st.sampled_from([SERVER, CLIENT]))
def test_each_of_any_number_of_mistakes_is_reported_and_nothing_else(mistakes: set[str], base: dict) -> None:
    wrong = base | {name: BAD[name] for name in mistakes}
    found = [problem.path.split("[")[0] for problem in problems(wrong)]
    # what reads two settings waits until both are right by themselves
    waiting = {"keepalive"} if "timeout" in mistakes else set()
    waiting |= {"affinity"} if mistakes & {"lanes", "fec"} else set()
    assert sorted(found) == sorted(mistakes - waiting)
