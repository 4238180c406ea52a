"""Secrets in a wrong place are not shown by a message about it, and other texts are shown as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config
from pipeline.cli.main import main
from pipeline.credentials import certificates, invitation, keys
from pipeline.credentials.invitation import Invitation
from pipeline.errors import ConfigError, Problem
from pipeline.secret_text import CONCEALED, conceal

KEY = "7wkwcYTSnO2tIce4gZCMAh6kN4RWICG+qH8aFhobZpQ="
LINE = invitation.encode(Invitation("vpn.example.org:9000", keys.parse(KEY), "ab" * 32, "ann"))
PEM = certificates.make_ca("ca").key.decode()
SECRETS = {"a key": KEY, "a key without its end": KEY[:-1], "an invitation": LINE, "a private key": PEM}
SHOWN = 16  # characters of a secret that a message has by accident at most

Run = Callable[..., tuple[int, str, str]]


def shows(text: str, secret: str) -> bool:
    """Any part of the secret, but what all secrets of its kind begin with."""
    common = len("-----BEGIN PRIVATE KEY-----") if secret == PEM else len("tunnel1.")
    plain = secret.replace("\n", "\\n")
    return any(plain[at : at + SHOWN] in text for at in range(common, len(plain) - SHOWN))


@given(st.binary(min_size=32, max_size=32), st.sampled_from(["", " ", '"', "key_file: ", "@"]))
def test_any_key_is_concealed_wherever_it_stands(key: bytes, before: str) -> None:
    from base64 import b64encode

    text = b64encode(key).decode()
    assert conceal(f"{before}{text}: not found") == f"{before}{CONCEALED}: not found"


@pytest.mark.parametrize(
    "text",
    [
        "/etc/tunnel/keys/abcdefghijklmnopqrstuvwxyz",
        "/home/Ann1/configs/tunnel/server/peers/lapto",
        "configs/a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r",
        "ab" * 32,
        "AB:" * 31 + "AB",
        "tunnel1.example.org",
        "an instance tunnel1.home does not run",
        "-----BEGIN CERTIFICATE-----",
        "a" * 43,
        "x" * 100,
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert conceal(text) == text


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
@pytest.mark.parametrize(
    "setting", ["key_file", "mtu", "name", "remote_addr", "tls_fingerprint", "psk", "peers", "routes"]
)
def test_a_problem_of_a_configuration_quotes_no_secret(setting: str, secret: str) -> None:
    for value in (secret, [secret], [{"name": "a", "key": secret}], {secret: 1}):
        values = {setting: value, secret: 1}
        try:
            config.parse({"mode": "client", "remote_addr": "h:1", **values}, "/etc/x.json")
        except ConfigError as error:
            assert not shows(str(error), secret), error
            assert not shows(json.dumps([str(problem) for problem in error.problems]), secret)


def test_a_path_that_is_a_secret_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        keys.read_key(KEY, "key_file")
    assert str(caught.value) == f"{CONCEALED}: key_file: cannot be read: No such file or directory"
    assert str(Problem("", "text", "/etc/key")) == "/etc/key: text"


@pytest.mark.parametrize("secret", [KEY, LINE], ids=["a key", "an invitation"])
@pytest.mark.parametrize(
    "words",
    [
        ["start", "--config"],
        ["start", "--join"],
        ["start"],
        ["status", "--name"],
        ["check"],
        ["invite", "--name", "none"],
        ["genkey", "x"],
        ["start", "--mode"],
        ["start", "--set"],
    ],
    ids=" ".join,
)
def test_no_command_that_is_given_a_secret_in_a_wrong_place_prints_it(
    words: list[str], secret: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main([*words, f"@{secret}" if words[-1] == "--join" else secret])
    except SystemExit as end:
        status = int(str(end.code))
    said = capsys.readouterr()
    assert status != 0 and said.err and not shows(said.out + said.err, secret)
