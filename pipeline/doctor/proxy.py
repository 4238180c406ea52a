"""The proxy of a client, or its WebSocket: whether it connects this machine with the server, by trying."""

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
    if config is None or not subject.is_client or not config.way_text or config.proxy_command:
        return []  # a command is run for packets alone
    try:
        loaded = TlsSettings(None, b"", b"", proxy=proxy_login.load(config), proxy_ca=proxy_login.load_ca(config))
    except TunnelError:
        return []  # `files` says it
    if (subject.snapshot or {}).get("full_tunnel", {}).get("on"):
        return []  # what we send would go into the tunnel: only the workers go around it
    bridge = plan_of(config, loaded, "", None)
    servers = config.remote_endpoints
    return [found for each in servers for found in try_way(config.way_text, loaded.proxy, bridge, *each)]


def try_way(way: str, through: Proxy | None, bridge: BridgePlan | None, host: str, port: int) -> list[Finding]:
    """Through a proxy, or as a bridge would do it."""
    try:
        if bridge is not None:
            asyncio.run(_try_with_bridge(bridge._replace(seconds=CONNECT_SECONDS), host, port))
        elif through is not None:
            connect(through, host, port, CONNECT_SECONDS).close()
    except (ApproachFailed, NoWay) as error:
        reason = printable(f"{way}: {str(error).removeprefix(f'{way}: ')}")
        return [problem(f"{reason} (it was asked for {host} port {port})", advice_for([reason], way))]
    return [ok(f"{way} connects with {host} port {port}")]


async def _try_with_bridge(bridge: BridgePlan, host: str, port: int) -> None:
    await (await open_far_end(bridge, proxy_context(bridge.ca_pem), host, port)).close()
