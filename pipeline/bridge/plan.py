"""The plans of bridges: all that such a process is told, as data. The supervisor writes it as JSON.

BridgePlan         of a client
WebSocketPlan      of a server
to_text, of_text   as JSON, with its kind
"""

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

    def revived(self) -> BridgePlan:
        """The plan again, out of the array that JSON has made of it."""
        websocket = WebSocketUrl(*self.websocket) if self.websocket else None
        return self._replace(proxy=_proxy(self.proxy), websocket=websocket)


class WebSocketPlan(NamedTuple):
    """WebSockets at one path lead to the tcp workers, and all other requests to the web server, if there is one."""

    name: str  # of the instance
    account: list[int] | None  # uid and gid to change to; None: we keep ours
    path: str
    proxies: list[str]  # networks of web servers that are believed
    field: str  # of a request, in lower case, that has the address of the client
    target: list[Any]  # host and port of the tcp workers
    token: str  # hexadecimal: what the tcp workers have to see
    web_server: list[Any] | None  # host and port; None: other requests are answered here
    tells_address: bool  # to the web server, by the PROXY protocol
    seconds: float  # that a client may take for the head of its request
    timeout: float  # seconds without an acknowledgement after which a connection ends
    requests: int  # heads that are awaited at a time
    tunnels: int  # WebSockets at a time
    visitors: int  # of the web server at a time
    log_level: str
    log_format: str

    def revived(self) -> WebSocketPlan:
        return self


PLANS: dict[str, type[BridgePlan] | type[WebSocketPlan]] = {"client": BridgePlan, "server": WebSocketPlan}


def to_text(plan: BridgePlan | WebSocketPlan) -> str:
    return json.dumps([next(kind for kind, known in PLANS.items() if isinstance(plan, known)), *plan])


def of_text(text: str) -> BridgePlan | WebSocketPlan:
    kind, *fields = json.loads(text)
    return PLANS[kind](*fields).revived()


def _proxy(fields: Any) -> Proxy | None:
    if not fields:
        return None
    proxy = Proxy(*fields)
    return proxy._replace(login=(proxy.login[0], proxy.login[1]) if proxy.login else None)
