"""The proxy of a client with its login and its CAs. User and password are in a file that only its owner can read."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.config.proxy_url import FIELD_BYTES_MAX
from pipeline.credentials import certificates, keys
from pipeline.errors import ConfigError, Problem
from pipeline.system import small_file
from pipeline.wire.approach import Proxy

SETTING, CA_SETTING = "proxy_login_file", "proxy_ca_file"
FORM = f"USER:PASSWORD on one line, each of 1 to {FIELD_BYTES_MAX} bytes"


def load(config: Config) -> Proxy | None:
    """The proxy that a configuration names; None if it names none. ConfigError if its login cannot be used."""
    proxy, path = config.named_proxy, config.proxy_login_file
    if proxy is None or not path:
        return proxy
    try:
        return proxy._replace(login=parse(small_file.decode(keys.read_secret(path, SETTING))))
    except ValueError as expected:
        raise ConfigError([Problem(SETTING, f"expected {expected}", path)]) from None


def load_ca(config: Config) -> str:
    """The CAs of a proxy with TLS, PEM; "" for those of the system."""
    if not (config.needs_bridge and config.proxy_ca_file):
        return ""
    return certificates.read_certificates(config.proxy_ca_file, CA_SETTING).decode()


def parse(text: str) -> tuple[str, str]:
    """User and password in the text of a file. ValueError says what was expected, and shows nothing of it."""
    line = text.removesuffix("\n").removesuffix("\r")
    user, colon, password = line.partition(":")
    if not colon or not line.isprintable():
        raise ValueError(f"{FORM}; found {len(text.splitlines())} lines" if "\n" in line else FORM)
    if not all(1 <= len(field.encode()) <= FIELD_BYTES_MAX for field in (user, password)):
        raise ValueError(FORM)
    return user, password
