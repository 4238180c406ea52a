"""An invitation: the line that makes a machine a client of a server.

    tunnel1.eyJzZXJ2ZXIiOiJ2cG4uZXhhbXBsZS5vcmc6OTAwMCIsImtleSI6...

After the prefix comes a JSON object, in base64url without padding (RFC 4648, 5):

    server        HOST:PORT to dial
    key           of the peer, base64
    certificate   SHA-256 of the server's certificate, hexadecimal: the client accepts no other server
    name          of the peer at the server
    lasts         false: the server will have other certificates, so a client keeps no hash of this one. Its key tells
                  it whether it is the server. Left out if true
    alpn          names that the client is to offer in TLS. Left out for our own

The server takes every holder of the line for the peer, so no text of an error holds any part of it. decode() is total.
It ignores white space, since a long line is easily wrapped on its way, quotation marks around it, invisible characters,
and keys that a later version may add.
"""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from pipeline.config.peer import check_peer_name
from pipeline.config.types import AlpnName
from pipeline.config.values import check_host, parse_endpoint, parse_fingerprint
from pipeline.credentials import keys
from pipeline.errors import ConfigError, Problem
from pipeline.secret_text import INVITATION_PREFIX
from pipeline.system import small_file

SERVER_FORM = 'HOST or HOST:PORT, as clients reach this server, such as "vpn.example.org"'
ALPN_NAMES_MAX = 8
LINE_LENGTH_MAX = 2048  # four times the longest: a host name of 253 characters


class Invitation(NamedTuple):
    server: str
    key: bytes
    fingerprint: str
    name: str
    lasts: bool = True
    alpn: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a client that follow from it. Its key is not among them: there is no setting for a key."""
        return {
            "remote_addr": self.server,
            **({"tls_fingerprint": self.fingerprint} if self.lasts else {}),
            **({"tls_alpn": list(self.alpn)} if self.alpn else {}),
        }


class _Content(msgspec.Struct):
    server: str
    key: str
    certificate: str
    name: str
    lasts: bool = True
    alpn: Annotated[tuple[AlpnName, ...], Meta(max_length=ALPN_NAMES_MAX)] = ()


def encode(invitation: Invitation) -> str:
    """The line, printable ASCII."""
    content = {
        "server": invitation.server,
        "key": base64.b64encode(invitation.key).decode(),
        "certificate": invitation.fingerprint,
        "name": invitation.name,
        **({} if invitation.lasts else {"lasts": False}),
        **({"alpn": invitation.alpn} if invitation.alpn else {}),
    }
    data = json.dumps(content, separators=(",", ":")).encode()
    return INVITATION_PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode(line: str) -> Invitation:
    """The invitation in a line. ConfigError for any other text."""
    text = small_file.bare(line)
    if not text.startswith(INVITATION_PREFIX) or len(text) > LINE_LENGTH_MAX:
        raise _invitation_error(
            f"expected the line that `tunnel-supervisor invite` has printed, beginning with {INVITATION_PREFIX!r}; "
            f"found {len(text)} characters that are no such line"
        )
    try:
        content = _read(text.removeprefix(INVITATION_PREFIX))
    except (ValueError, RecursionError):
        raise _invitation_error("the line is cut off or altered: copy the whole line") from None
    try:
        if content.server.startswith(":") or not parse_endpoint(content.server).port:
            raise ValueError("HOST:PORT of the server")
        check_peer_name(content.name)
        return Invitation(
            content.server,
            keys.parse(content.key),
            parse_fingerprint(content.certificate).hex(),
            content.name,
            content.lasts,
            content.alpn,
        )
    except (ValueError, ConfigError):
        raise _invitation_error("no server prints a line with this content: ask for another invitation") from None


def decode_bytes(data: bytes) -> Invitation:
    """The invitation in the bytes of a file or of standard input. ConfigError for any other bytes."""
    try:
        line = small_file.decode(data)
    except ValueError as expected:
        raise _invitation_error(f"expected {expected}") from None
    return decode(line)


def with_port(server: str, port: int) -> str:
    """HOST:PORT from HOST or HOST:PORT; `port` is for a text without one. ValueError says what was expected."""
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


def _invitation_error(text: str) -> ConfigError:
    return ConfigError([Problem("", text, "invitation")])
