"""No secret stays in a text, in whatever form it stands there; addresses and names are masked if that is asked for."""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import parse
from pipeline.credentials import certificates, keys
from pipeline.credentials.invitation import Invitation, encode
from pipeline.doctor.secrets_out import Masks, Secrets, secrets_of
from pipeline.secret_text import CONCEALED

KEY = bytes(range(7, 39))
WORD = base64.b64encode(KEY).decode()


def forms(raw: bytes) -> list[str]:
    """The forms in which a secret may stand in a text."""
    coded = [base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()]
    return [
        raw.hex(),
        raw.hex().upper(),
        *coded,
        *(text.rstrip("=") for text in coded),
        *map(quote, coded),
        *(quote(text, safe="") for text in coded),
    ]


@given(st.binary(min_size=16, max_size=48), st.text(max_size=9), st.text(max_size=9))
def test_no_form_of_a_known_secret_stays(raw: bytes, before: str, after: str) -> None:
    clean = Secrets([base64.b64encode(raw) + b"\n"])
    for form in forms(raw):
        assert form not in clean.out_of(f"{before}{form}{after}")
        assert form not in json.dumps(clean.out_of_value({"a": [f"{before}{form}"], form: 1}))


@pytest.mark.parametrize(
    "text",
    [
        WORD,
        encode(Invitation("vpn.example.org:9000", KEY, "ab" * 32, "ann")),
        certificates.make_ca("ca").key.decode(),
    ],
    ids=["key", "invitation", "private-key"],
)
def test_a_secret_that_nobody_knows_is_found_by_its_form(text: str) -> None:
    assert text not in Secrets([]).out_of(f"log: {text} end") and CONCEALED in Secrets([]).out_of(f"log: {text} end")


@pytest.mark.parametrize(
    ("name", "value"),
    [("password", "short"), ("metrics_token", "abc"), ("api_secret", "x"), ("key", "y"), ("web_password", "z")],
)
def test_a_value_with_the_name_of_a_secret_is_one(name: str, value: str) -> None:
    assert Secrets([]).out_of_value({name: value, "key_file": "/etc/k"}) == {name: CONCEALED, "key_file": "/etc/k"}


@pytest.mark.parametrize("url", ["http://user:pa$$word@proxy:3128", "socks5://tok3n@proxy:1080"])
def test_the_password_of_a_proxy_is_left_out_of_its_address(url: str) -> None:
    text = Secrets([]).out_of(f"proxy {url} refused")
    assert text == f"proxy {url.partition('://')[0]}://{CONCEALED}@{url.partition('@')[2]} refused"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("curl -H 'Authorization: Bearer abc.def-9' https://example.org", "abc.def-9"),
        ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("notify --password=hunter2 up", "hunter2"),
        ("https://example.org/hook?token=t0k&x=1", "t0k"),
        ('{"api_key": "k3y", "a": 1}', "k3y"),
        ("CHAT_SECRET: s3cr", "s3cr"),
    ],
)
def test_a_word_that_is_named_as_a_secret_is_one(text: str, word: str) -> None:
    clean = Secrets([]).out_of(text)
    assert word not in clean and clean.replace(CONCEALED, word) == text


def test_all_secrets_of_an_instance_are_known(tmp_path: Path) -> None:
    made = {name: secrets.token_bytes(32) for name in ("own", "named", "invited")}
    (tmp_path / "token").write_text("a token, and no base64\n")
    for name in ("own", "named"):
        keys.write_secret(tmp_path / name, base64.b64encode(made[name]) + b"\n")
    pair = certificates.make_self_signed("vpn")
    state = tmp_path / "state"
    (state / "peers").mkdir(parents=True)
    keys.write_secret(state / "server.key", pair.key)
    keys.write_secret(tmp_path / "tls.key", certificates.make_self_signed("other").key)
    (state / "peers" / "ann.json").write_text(
        json.dumps({"name": "ann", "key": base64.b64encode(made["invited"]).decode()})
    )
    config = parse(
        {
            "mode": "server",
            "tunnel_addr": "10.0.0.1/24",
            "state_dir": str(state),
            "key_file": str(tmp_path / "own"),
            "tls_cert_file": "x",
            "metrics_token_file": str(tmp_path / "token"),
            "tls_key_file": str(tmp_path / "tls.key"),
            "peers": [{"name": "bob", "key_file": str(tmp_path / "named")}],
        }
    )
    clean = Secrets(secrets_of(config))
    assert clean.out_of("Bearer a token, and no base64") == f"Bearer {CONCEALED}"
    for raw in made.values():
        for form in forms(raw):
            assert form not in clean.out_of(f"x{form}x")
    for file in (state / "server.key", tmp_path / "tls.key"):
        for line in file.read_text().splitlines()[1:-1]:
            assert line not in clean.out_of(f"x {line} x") or len(line) < 24


def test_a_text_without_secrets_stays_as_it_is() -> None:
    for text in ("metrics_token_file: cannot be read", "a token is needed", "tls_key_file=/etc/x.key"):
        assert Secrets([]).out_of(text) == text
    text = f"peer ann: 8 connections from 10.0.0.2:4711; fingerprint {'ab' * 32}; /etc/tunnel-supervisor/ann.key"
    assert Secrets([KEY]).out_of(text) == text
    assert Secrets([]).out_of_value({"a": 1, "b": None, "c": [True, 1.5]}) == {"a": 1, "b": None, "c": [True, 1.5]}


# -- masks


def test_the_same_address_has_the_same_word_each_time() -> None:
    masks = Masks([])
    text = masks.over(
        "from 203.0.113.5:4711 to [2001:db8::5]:443 via fe80::1%eth0, 203.0.113.5 again, mac 02:77:0a:00:00:01"
    )
    assert text == "from ipv4-2:4711 to [ipv6-3]:443 via ipv6-4%eth0, ipv4-2 again, mac mac-1"


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:9000",
        "[::1]:9",
        "0.0.0.0/0 and ::/0",
        "at 12:34:56, version 0.1.0",
        "256.1.1.1",
        "a::b::c",
        "kernel 6.18.1-2",
    ],
)
def test_what_tells_nothing_stays(text: str) -> None:
    assert Masks([]).over(text) == text


def test_names_of_hosts_and_peers_are_masked_in_values_and_not_in_keys() -> None:
    masks = Masks(["vpn.example.org", "name", "ab", "laptop", "laptop-2"])
    assert masks.over("laptop-2 and laptop at vpn.example.org, ab") == "name-4 and name-3 at name-1, ab"
    assert masks.over_value({"name": ["laptop"], "n": 7}) == {"name": ["name-3"], "n": 7}


def test_the_password_at_a_proxy_is_known_alone_and_with_its_user(tmp_path: Path) -> None:
    login = tmp_path / "login"
    login.write_text("office:correct horse\n")
    given = {"mode": "client", "remote_addr": "192.0.2.1:9", "proxy": "http://proxy.test:1"}
    clean = Secrets(secrets_of(parse(given | {"proxy_login_file": str(login)})))
    for text in ("it says correct horse", base64.b64encode(b"office:correct horse").decode()):
        assert clean.out_of(text) in ("it says " + CONCEALED, CONCEALED)
