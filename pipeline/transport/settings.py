"""The settings of connections: the options of a socket, the material of TLS.

`pipeline.runtime.plan.WorkerSettings` holds all that workers are told; this module declares the part that is read here.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pipeline.wire import framing
from pipeline.wire.approach import Proxy

ALPN = framing.ALPN


class TlsMaterial(NamedTuple):
    """Our own certificate, and how the other end's is verified."""

    certificate_pem: str  # of this end, with its chain; "" for none
    key_pem: str  # private key of that certificate; "" for none
    ca_pem: str  # CAs that the other end's certificate must come from; "" for none
    minimum_version: str  # "1.2" or "1.3"
    fingerprint: str  # SHA-256 of the server's certificate, hexadecimal; a client's may be "": not pinned
    server_name: str | None = None  # a client expects it in the server's certificate; None at a server
    verify: bool = False  # a client has a CA verify the server's certificate
    alpn: tuple[str, ...] = (ALPN,)  # names that a client offers, and a server selects from; none with compat
    like_a_web_server: bool = False  # a server sends tickets, as web servers do


class FallbackSettings(NamedTuple):
    """The web server to which clients go that do not prove to be a peer. Each address is HOST:PORT, "" for none."""

    address: str  # for clients in TLS
    h2: str  # for clients in TLS that have selected h2; it gets HTTP/2 without TLS
    plain: str  # for clients without TLS; it gets all bytes as they are
    tells_address: bool  # each connection to it begins with a header of the PROXY protocol
    connections: int  # of such clients at a time, of all tcp workers together


class SocketSettings(Protocol):
    """Options of every connection's socket."""

    @property
    def timeout(self) -> float: ...  # seconds

    @property
    def notsent_lowat(self) -> int: ...  # bytes; 0: the kernel's default

    @property
    def congestion(self) -> str: ...  # name of an algorithm; "auto": see pipeline.policy.congestion; "": the host's

    @property
    def send_buffer_bytes(self) -> int: ...  # 0: the kernel tunes it

    @property
    def receive_buffer_bytes(self) -> int: ...  # 0: the kernel tunes it


class DialSettings(SocketSettings, Protocol):
    """The options, the pauses between two attempts to connect, and the proxy between the ends."""

    @property
    def proxy(self) -> Proxy | None: ...

    @property
    def handshake_timeout(self) -> float: ...  # seconds

    @property
    def reconnect_min(self) -> float: ...  # seconds

    @property
    def reconnect_max(self) -> float: ...  # seconds

    @property
    def asks_around(self) -> bool: ...  # also around the tunnel for the server's name
