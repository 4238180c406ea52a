"""The plan of a bridge: all that its process is told, as data. The supervisor writes it as JSON."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pipeline.wire.approach import Proxy


class BridgePlan(NamedTuple):
    """Either `proxy` or `command` is the way to the server."""

    name: str  # of the instance
    account: list[int] | None  # uid and gid to change to; None: we keep ours
    token: str  # hexadecimal: what a worker has to show
    proxy: Proxy | None  # reached by TLS
    command: list[str]  # program and arguments, with %h and %p for host and port of the server
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
        return plan._replace(proxy=_proxy(plan.proxy))


def _proxy(fields: Any) -> Proxy | None:
    if not fields:
        return None
    proxy = Proxy(*fields)
    return proxy._replace(login=(proxy.login[0], proxy.login[1]) if proxy.login else None)
