"""The plan of a bridge: all that its process is told, as data. The supervisor writes it as JSON."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pipeline.wire.approach import Proxy
from pipeline.wire.websocket_url import WebSocketUrl


class BridgePlan(NamedTuple):
    """The way to the server is a command; or a WebSocket, by way of a proxy or not; or a proxy."""

    name: str  # of the instance
    account: list[int] | None  # uid and gid to change to; None: we keep ours
    token: str  # hexadecimal: what a worker has to show
    proxy: Proxy | None
    command: list[str]  # program and arguments, with %h and %p for host and port of the server
    websocket: WebSocketUrl | None
    ca_pem: str  # CAs that a certificate must come from; "": those of the system
    seconds: float  # that the way to the server may take
    timeout: float  # seconds without an acknowledgement after which a connection ends
    notsent_lowat: int  # bytes, TCP_NOTSENT_LOWAT; 0: the kernel's default
    log_level: str
    log_format: str
    asks_around: bool = False  # the tunnel, for the proxy's name (transport.uplink_names)

    def to_json(self) -> str:
        return json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> BridgePlan:
        plan = cls(*json.loads(text))
        websocket = WebSocketUrl(*plan.websocket) if plan.websocket else None
        return plan._replace(proxy=_proxy(plan.proxy), websocket=websocket)


def _proxy(fields: Any) -> Proxy | None:
    if not fields:
        return None
    proxy = Proxy(*fields)
    return proxy._replace(login=(proxy.login[0], proxy.login[1]) if proxy.login else None)
