"""The token of the exporter: read from a file that is private, never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Config, parse
from pipeline.credentials import keys, metrics_token
from pipeline.errors import ConfigError


def config(path: Path | str, address: object = 9100) -> Config:
    settings = {"mode": "client", "remote_addr": "192.0.2.1:9", "metrics_addr": address}
    return parse(settings | {"metrics_token_file": str(path)})


def write(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def test_the_token_is_the_line_in_the_file(tmp_path: Path) -> None:
    key = keys.generate()
    assert metrics_token.load(config(write(tmp_path / "token", f"{key}\n"))) == key.encode()


def test_without_a_file_or_an_address_there_is_none() -> None:
    assert metrics_token.load(config("")) == b""
    assert metrics_token.load(config("/nowhere", "")) == b""


@pytest.mark.parametrize(
    "text", ["", "short", "with white space in it all", "umlaut-in-a-long-token-ü", "x" * 513, "a\0" * 20]
)
def test_what_is_no_token_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        metrics_token.load(config(write(tmp_path / "token", text)))
    (problem,) = caught.value.problems
    assert problem.path == "metrics_token_file"
    assert len(text) < 10 or text not in str(problem)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "token", keys.generate())
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="other users can read"):
        metrics_token.load(config(path))
