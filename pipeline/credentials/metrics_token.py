"""The token of the exporter: a text that a scraper or a browser gives, from a file that only its owner can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.credentials import keys
from pipeline.errors import ConfigError, Problem
from pipeline.system import small_file

if TYPE_CHECKING:
    from pipeline.config import Config

SETTING = "metrics_token_file"
LENGTH_MIN, LENGTH_MAX = 16, 512
FORM = f"a token of {LENGTH_MIN} to {LENGTH_MAX} letters, digits and signs on one line, as `genkey` makes one"


def load(config: Config) -> bytes:
    """The token that a configuration names; b"" if it names none, or no exporter. ConfigError if it cannot be used."""
    if config.metrics_endpoint is None or not config.metrics_token_file:
        return b""
    path = config.metrics_token_file
    try:
        return parse(small_file.decode(keys.read_secret(path, SETTING)))
    except ValueError as expected:
        raise ConfigError([Problem(SETTING, f"expected {expected}", path)]) from None


def parse(text: str) -> bytes:
    """The token in the text of a file. ValueError says what was expected, and shows nothing of it."""
    token = text.strip()
    if not LENGTH_MIN <= len(token) <= LENGTH_MAX:
        raise ValueError(f"{FORM}; found {len(token)} characters")
    if not all("!" <= char <= "~" for char in token):
        raise ValueError(f"{FORM}; found white space or other characters in it")
    return token.encode()
