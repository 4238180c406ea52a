"""The URL of a WebSocket, in parts."""

from __future__ import annotations

from typing import NamedTuple

PORTS = {"wss": 443, "ws": 80}


class WebSocketUrl(NamedTuple):
    """SCHEME://HOST:PORT/PATH."""

    scheme: str  # "wss", or "ws" without TLS
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"
