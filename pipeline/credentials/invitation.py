"""An invitation: the line that makes a machine a client of a server.

    tunnel1.eyJzZXJ2ZXIiOiJ2cG4uZXhhbXBsZS5vcmc6OTAwMCIsImtleSI6...

Behind the prefix, in base64url without padding (RFC 4648, 5), an object:

    server        HOST:PORT to dial
    key           the peer's, base64
    certificate   SHA-256 of the server's certificate, hexadecimal: no other server is taken for this one
    name          what the server calls the peer

Whoever has the line is the peer: no text of an error holds any part of it. decode() is total; it takes white space for
none, since a long line is easily wrapped on its way, and ignores what a later version may add to the object.
"""

from __future__ import annotations

import base64
import json
from typing import NamedTuple

import msgspec

from pipeline.config.convert import check_name
from pipeline.config.values import check_host, parse_endpoint, parse_fingerprint
from pipeline.credentials import keys
from pipeline.errors import ConfigError, Problem

PREFIX = "tunnel1."
SERVER_FORM = 'HOST or HOST:PORT, as clients reach this server, such as "vpn.example.org"'
LINE_LENGTH_MAX = 2048  # four times the longest: a host name of 253 characters


class Invitation(NamedTuple):
    server: str
    key: bytes
    fingerprint: str
    name: str


class _Content(msgspec.Struct):
    server: str
    key: str
    certificate: str
    name: str


def encode(invitation: Invitation) -> str:
    """The line, printable ASCII."""
    content = {
        "server": invitation.server,
        "key": base64.b64encode(invitation.key).decode(),
        "certificate": invitation.fingerprint,
        "name": invitation.name,
    }
    data = json.dumps(content, separators=(",", ":")).encode()
    return PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode(line: str) -> Invitation:
    """What a line says. ConfigError for any other text."""
    text = "".join(line.split())
    if not text.startswith(PREFIX) or len(text) > LINE_LENGTH_MAX:
        raise _wrong(
            f"expected the line that `tunnel-supervisor invite` has printed, from {PREFIX!r} on; "
            f"found {len(text)} characters that are none"
        )
    try:
        content = _read(text.removeprefix(PREFIX))
    except (ValueError, RecursionError):
        raise _wrong("the line is cut off or altered: copy it whole") from None
    try:
        if content.server.startswith(":") or not parse_endpoint(content.server).port:
            raise ValueError("HOST:PORT of the server")
        check_name(content.name)
        return Invitation(
            content.server, keys.parse(content.key), parse_fingerprint(content.certificate).hex(), content.name
        )
    except (ValueError, ConfigError):
        raise _wrong("the line holds what no server prints: ask for another one") from None


def with_port(server: str, port: int) -> str:
    """HOST or HOST:PORT as HOST:PORT, where `port` is for the first. ValueError, whose text is what was expected."""
    host = server[1:-1] if server.startswith("[") and server.endswith("]") else server
    try:
        check_host(host)
    except ValueError:
        if server.startswith(":") or not parse_endpoint(server).port:
            raise ValueError(SERVER_FORM) from None
        return server
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read(text: str) -> _Content:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    return msgspec.json.decode(data, type=_Content)


def _wrong(text: str) -> ConfigError:
    return ConfigError([Problem("", text, "invitation")])
