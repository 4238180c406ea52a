"""The proxy of a client: whether it connects this machine with the server, by trying. The server hears nothing."""

from __future__ import annotations

import asyncio

from pipeline.bridge.far_end import NoWay, open_far_end, proxy_context
from pipeline.bridge.plan import BridgePlan
from pipeline.credentials import proxy_login
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.doctor.finding import Finding, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.errors import TunnelError
from pipeline.log import printable
from pipeline.observe.sentence import advice_for
from pipeline.supervisor.processes.bridge import plan_of
from pipeline.transport.approach import ApproachFailed, connect
from pipeline.wire.approach import Proxy

CONNECT_SECONDS = 4.0


def proxy(subject: Subject) -> list[Finding]:
    config = subject.config
    if config is None or not subject.is_client:
        return []
    try:
        loaded = TlsSettings(None, b"", b"", proxy=proxy_login.load(config), proxy_ca=proxy_login.load_ca(config))
    except TunnelError:
        return []  # `files` says it
    if loaded.proxy is None or config.proxy_command:
        return []  # a command is run for packets alone
    if (subject.snapshot or {}).get("full_tunnel", {}).get("on"):
        return []  # what we send would go into the tunnel: only the workers go around it
    bridge = plan_of(config, loaded, "", None)
    return [found for server in config.remote_endpoints for found in try_proxy(loaded.proxy, *server, bridge)]


def try_proxy(through: Proxy, host: str, port: int, bridge: BridgePlan | None = None) -> list[Finding]:
    try:
        if bridge is not None:
            asyncio.run(_try_with_tls(bridge._replace(seconds=CONNECT_SECONDS), host, port))
        else:
            connect(through, host, port, CONNECT_SECONDS).close()
    except (ApproachFailed, NoWay) as error:
        reason = printable(str(error)) if bridge is None else f"proxy {through}: {printable(str(error))}"
        return [problem(f"{reason}; it was asked for {host} port {port}", advice_for([reason], proxied=True))]
    return [ok(f"proxy {through} connects with {host} port {port}")]


async def _try_with_tls(bridge: BridgePlan, host: str, port: int) -> None:
    await (await open_far_end(bridge, proxy_context(bridge.ca_pem), host, port)).close()
