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
    others        further servers at which the client can be, each HOST:PORT, or HOST with the port of `server`. The
                  certificate tells which of them all has made the line. Left out if there are none

The server takes every holder of the line for the peer, so no text of an error holds any part of it. decode() is total.
It ignores white space, since a long line is easily wrapped on its way, quotation marks around it, invisible characters,
and keys that a later version may add. A version that knows no `others` uses `server` alone.
"""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from pipeline.config.peer import check_peer_name
from pipeline.config.types import SERVERS_MAX, AlpnName
from pipeline.config.values import check_host, parse_endpoint, parse_fingerprint
from pipeline.credentials import keys
from pipeline.errors import ConfigError, Problem
from pipeline.secret_text import INVITATION_PREFIX
from pipeline.system import small_file

SERVER_FORM = 'HOST or HOST:PORT, as clients reach this server, such as "vpn.example.org"'
ALPN_NAMES_MAX = 8
LINE_LENGTH_MAX = 4096  # above the longest: SERVERS_MAX host names of 253 characters


class Invitation(NamedTuple):
    server: str
    key: bytes
    fingerprint: str
    name: str
    lasts: bool = True
    alpn: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def pin(self) -> bytes:
        """The hash of the certificate of the server that has made it; empty if that server will have others."""
        return parse_fingerprint(self.fingerprint) if self.lasts else b""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a client that follow from it. Its key is not among them: there is no setting for a key.

        Of several servers each has a certificate of its own, and proves by the key that it is one of them.
        """
        return {
            "remote_addr": [self.server, *self.others] if self.others else self.server,
            **({"tls_fingerprint": self.fingerprint} if self.lasts and not self.others else {}),
            **({"tls_alpn": list(self.alpn)} if self.alpn else {}),
        }


class _Content(msgspec.Struct):
    server: str
    key: str
    certificate: str
    name: str
    lasts: bool = True
    alpn: Annotated[tuple[AlpnName, ...], Meta(max_length=ALPN_NAMES_MAX)] = ()
    others: Annotated[tuple[str, ...], Meta(max_length=SERVERS_MAX - 1)] = ()


def encode(invitation: Invitation) -> str:
    """The line, printable ASCII."""
    content = {
        "server": invitation.server,
        "key": base64.b64encode(invitation.key).decode(),
        "certificate": invitation.fingerprint,
        "name": invitation.name,
        **({} if invitation.lasts else {"lasts": False}),
        **({"alpn": invitation.alpn} if invitation.alpn else {}),
        **({"others": _shortened(invitation)} if invitation.others else {}),
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
        port = parse_endpoint(content.server).port
        others = tuple(with_port(text, port) for text in content.others)
        if len({content.server, *others}) <= len(others):
            raise ValueError("each server once")
        check_peer_name(content.name)
        return Invitation(
            content.server,
            keys.parse(content.key),
            parse_fingerprint(content.certificate).hex(),
            content.name,
            content.lasts,
            content.alpn,
            others,
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


def _shortened(invitation: Invitation) -> list[str]:
    """The further servers, without the port of the first one: people paste the line, and show it as a picture."""
    port = f":{parse_endpoint(invitation.server).port}"
    return [text.removesuffix(port) for text in invitation.others]


def _read(text: str) -> _Content:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    return msgspec.json.decode(data, type=_Content)


def _invitation_error(text: str) -> ConfigError:
    return ConfigError([Problem("", text, "invitation")])
