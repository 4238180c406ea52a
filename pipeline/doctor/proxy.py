"""The proxy of a client: whether it connects this machine with the server, by trying. The server hears nothing."""

from __future__ import annotations

from pipeline.credentials import proxy_login
from pipeline.doctor.finding import Finding, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.errors import TunnelError
from pipeline.log import printable
from pipeline.observe.sentence import advice_for
from pipeline.transport.approach import ApproachFailed, connect
from pipeline.wire.approach import Proxy

CONNECT_SECONDS = 4.0


def proxy(subject: Subject) -> list[Finding]:
    config = subject.config
    if config is None or not subject.is_client:
        return []
    try:
        found = proxy_login.load(config)
    except TunnelError:
        return []  # `files` says it
    return [] if found is None else try_proxy(found, *config.remote_endpoint)


def try_proxy(through: Proxy, host: str, port: int, seconds: float = CONNECT_SECONDS) -> list[Finding]:
    try:
        connect(through, host, port, seconds).close()
    except ApproachFailed as error:
        reason = printable(str(error))
        return [problem(f"{reason}; it was asked for {host} port {port}", advice_for([reason], proxied=True))]
    return [ok(f"proxy {through} connects with {host} port {port}")]
