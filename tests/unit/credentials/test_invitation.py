"""Invitations: the line that lets a client join."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.types import SERVERS_MAX
from pipeline.credentials.invitation import LINE_LENGTH_MAX, Invitation, decode, encode, with_port
from pipeline.errors import ConfigError
from pipeline.secret_text import INVITATION_PREFIX

KEY = bytes(range(32))
INVITATION = Invitation("vpn.example.org:9000", KEY, "ab" * 32, "alice")
LINE = encode(INVITATION)


def line_of(**changes: object) -> str:
    """The line with changed content; None removes a part."""
    content = {
        "server": "vpn.example.org:9000",
        "key": base64.b64encode(KEY).decode(),
        "certificate": "ab" * 32,
        "name": "alice",
    } | changes
    data = json.dumps({name: value for name, value in content.items() if value is not None}).encode()
    return INVITATION_PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def refusal(line: str) -> str:
    with pytest.raises(ConfigError) as caught:
        decode(line)
    text = str(caught.value)
    assert line not in text or not line.strip()
    return text


def test_a_line_is_printable_has_its_prefix_and_decodes_to_its_invitation() -> None:
    assert LINE.startswith("tunnel1.") and LINE.isascii() and LINE.isprintable() and " " not in LINE
    assert decode(LINE) == decode(line_of()) == INVITATION


@given(
    key=st.binary(min_size=32, max_size=32).filter(lambda key: len(set(key)) > 1),
    fingerprint=st.binary(min_size=32, max_size=32),
    name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", fullmatch=True),
    server=st.sampled_from(["192.0.2.1:1", "[2001:db8::1]:65535", "a" * 63 + ".example:9000"]),
)
def test_every_invitation_is_read_as_it_was_written(key: bytes, fingerprint: bytes, name: str, server: str) -> None:
    invitation = Invitation(server, key, fingerprint.hex(), name)
    line = encode(invitation)
    assert len(line) < LINE_LENGTH_MAX and decode(line) == invitation


def test_a_wrapped_line_decodes_as_well() -> None:
    assert decode(f"  {LINE[:70]}\r\n{LINE[70:140]}\n {LINE[140:]}\n") == INVITATION


def test_keys_of_a_later_version_are_ignored() -> None:
    assert decode(line_of(weather="fine", more=[1, {}])) == INVITATION


def test_a_line_that_is_cut_off_anywhere_is_refused() -> None:
    for length in range(len(INVITATION_PREFIX), len(LINE)):
        assert "cut off or altered" in refusal(LINE[:length])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        LINE[1:],
        "tunnel2." + LINE[len(INVITATION_PREFIX) :],
        "x" + LINE,
        INVITATION_PREFIX + "A" * LINE_LENGTH_MAX,
    ],
    ids=lambda line: line[:12],
)
def test_a_text_that_is_no_invitation_is_refused_with_the_command_that_makes_one(line: str) -> None:
    assert "`tunnel-supervisor invite`" in refusal(line)


@pytest.mark.parametrize(
    "changes",
    [
        {"server": "vpn.example.org"},
        {"server": ":9000"},
        {"server": "vpn.example.org:0"},
        {"server": ""},
        {"server": "a b:9000"},
        {"key": "hunter2"},
        {"key": base64.b64encode(bytes(32)).decode()},
        {"certificate": ""},
        {"certificate": "ab" * 31},
        {"certificate": "xy" * 32},
        {"name": ""},
        {"name": "../alice"},
        {"name": "a\nb"},
        {"name": "alice\n"},
        {"others": ["a b"]},
        {"others": [":443"]},
        {"others": ["b.example:0"]},
        {"others": ["vpn.example.org"]},
        {"others": ["b.example", "b.example:9000"]},
    ],
    ids=repr,
)
def test_a_line_that_no_server_prints_is_refused(changes: dict[str, str]) -> None:
    assert "ask for another invitation" in refusal(line_of(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"server": 9000},
        {"key": None},
        {"name": ["alice"]},
        {"certificate": None},
        {"others": "b.example"},
        {"others": [f"{each}.example" for each in range(SERVERS_MAX)]},
    ],
    ids=repr,
)
def test_a_line_with_parts_missing_or_of_other_types_is_refused(changes: dict[str, object]) -> None:
    assert "cut off or altered" in refusal(line_of(**changes))


def test_a_line_nested_without_end_is_refused() -> None:
    data = b'{"x":' + b"[" * 1400
    assert "cut off or altered" in refusal(INVITATION_PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("="))


@given(st.text(max_size=300))
def test_any_text_is_an_invitation_or_refused(text: str) -> None:
    for line in (text, INVITATION_PREFIX + text):
        with pytest.raises(ConfigError):
            decode(line)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["server", "key", "certificate", "name"]), inner)
        ),
        max_leaves=8,
    )
)
def test_any_object_is_an_invitation_or_refused(value: object) -> None:
    with pytest.raises(ConfigError):
        decode(INVITATION_PREFIX + base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("="))


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("vpn.example.org", "vpn.example.org:9000"),
        ("vpn.example.org:443", "vpn.example.org:443"),
        ("192.0.2.1", "192.0.2.1:9000"),
        ("192.0.2.1:443", "192.0.2.1:443"),
        ("2001:db8::1", "[2001:db8::1]:9000"),
        ("[2001:db8::1]", "[2001:db8::1]:9000"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
    ],
)
def test_an_address_without_a_port_gets_the_port_of_the_server(server: str, expected: str) -> None:
    assert with_port(server, 9000) == expected
    assert decode(line_of(server=expected)).server == expected


@pytest.mark.parametrize(
    "server",
    [
        "",
        ":",
        ":443",
        "a b",
        "vpn.example.org:",
        "vpn.example.org:0",
        "[2001:db8::1",
        "vpn.example.org:70000",
        "[]",
        "http://vpn.example.org",
    ],
)
def test_a_text_that_is_no_address_of_a_server_is_refused(server: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        with_port(server, 9000)


@given(st.text(max_size=30))
def test_any_text_is_an_address_that_an_invitation_can_hold_or_refused(text: str) -> None:
    try:
        server = with_port(text, 9000)
    except ValueError:
        return
    assert decode(line_of(server=server)).server == server


def test_an_invitation_says_what_a_client_of_a_web_servers_port_is_to_do() -> None:
    plain = Invitation("vpn.example.org:443", bytes(range(32)), "ab" * 32, "laptop")
    assert plain.settings == {"remote_addr": "vpn.example.org:443", "tls_fingerprint": "ab" * 32}
    hidden = plain._replace(lasts=False, alpn=("h2", "http/1.1"))
    assert decode(encode(hidden)) == hidden and decode(encode(plain)) == plain
    assert hidden.settings == {"remote_addr": "vpn.example.org:443", "tls_alpn": ["h2", "http/1.1"]}


SEVERAL = INVITATION._replace(others=("ams.example.org:9000", "[2001:db8::2]:443"))


def test_an_invitation_for_several_servers_makes_a_client_of_them_all() -> None:
    assert decode(encode(SEVERAL)) == SEVERAL
    assert SEVERAL.settings == {"remote_addr": ["vpn.example.org:9000", "ams.example.org:9000", "[2001:db8::2]:443"]}, (
        "and its certificate, which is that of one server, is no setting"
    )
    assert SEVERAL.pin == bytes.fromhex("ab" * 32) and SEVERAL._replace(lasts=False).pin == b""


def test_a_further_server_with_the_port_of_the_first_costs_its_name_alone() -> None:
    port = len(encode(SEVERAL._replace(others=("ams.example.org:9001",))))
    assert len(encode(SEVERAL._replace(others=("ams.example.org:9000",)))) < port


def test_a_version_that_knows_one_server_gets_the_first_one() -> None:
    data = base64.urlsafe_b64decode(encode(SEVERAL).removeprefix(INVITATION_PREFIX) + "==")
    known = {key: value for key, value in json.loads(data).items() if key != "others"}
    assert decode(line_of(**known)) == INVITATION


def test_the_longest_line_for_several_servers_is_read() -> None:
    hosts = [f"{each}{'a' * 59}.{'.'.join(['b' * 60] * 3)}" for each in range(SERVERS_MAX)]
    longest = INVITATION._replace(server=f"{hosts[0]}:65535", others=tuple(f"{host}:65534" for host in hosts[1:]))
    assert len(encode(longest)) < LINE_LENGTH_MAX and decode(encode(longest)) == longest
