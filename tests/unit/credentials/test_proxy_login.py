"""The login at a proxy: read from a file that is private, never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Config, parse
from pipeline.credentials import proxy_login, tls_settings
from pipeline.errors import ConfigError
from pipeline.wire.approach import Proxy
from tests.harness.config_problems import CLIENT

PROXY = {"proxy": "http://proxy.test:3128", "key_file": "", "tls_skip_verify": True}


def config(path: Path | str) -> Config:
    return parse(CLIENT | PROXY | {"proxy_login_file": str(path)})


def write(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "login"),
    [
        ("user:password\n", ("user", "password")),
        ("user:pass:word", ("user", "pass:word")),
        ("user: spaces stay \r\n", ("user", " spaces stay ")),
        ("jürgen:ü", ("jürgen", "ü")),
    ],
)
def test_it_is_the_line_in_the_file(tmp_path: Path, text: str, login: tuple[str, str]) -> None:
    path = tmp_path / "login"
    path.touch(0o600)
    path.write_bytes(text.encode())
    assert proxy_login.load(config(path)) == Proxy("http", "proxy.test", 3128, login)


def test_a_proxy_needs_none() -> None:
    assert proxy_login.load(config("")) == Proxy("http", "proxy.test", 3128)
    assert proxy_login.load(parse(CLIENT | {"proxy_login_file": "/nowhere"})) is None


@pytest.mark.parametrize(
    "text", ["", "secret", ":secret", "secret:", "user\nsecret\n", "u:secret\nx", f"u:{'secret' * 50}"]
)
def test_what_is_no_login_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        proxy_login.load(config(write(tmp_path / "login", text)))
    (problem,) = caught.value.problems
    assert problem.path == "proxy_login_file"
    assert "secret" not in str(problem)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "login", "user:password")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="other users can read"):
        proxy_login.load(config(path))


def test_another_login_in_the_file_is_a_change_that_a_reload_tells(tmp_path: Path) -> None:
    path = write(tmp_path / "login", "user:password")
    given = config(path)
    before = tls_settings.load(given)
    assert tls_settings.changed_contents(given, before, tls_settings.load(given)) == []
    other = parse(CLIENT | PROXY | {"proxy_login_file": str(path), "proxy": "http://other.test:3128"})
    assert tls_settings.changed_contents(other, before, tls_settings.load(other)) == []  # the proxy is, not its login
    path.write_text("user:other")
    assert tls_settings.changed_contents(given, before, tls_settings.load(given)) == ["proxy_login_file"]
